"""Block sizes of the kernels of ``rmn_jax.ops.mosaic``, as measured; written by ``benchmarks.gpu kernels --apply``.

A key is a pass and layer (``rmn_jax.ops.mosaic.key``). Layers that are not here have block sizes by rule. Nothing has
been measured yet.
"""

# Whether the kernels are right and whole steps with them faster than in tiles: then they are the default on Hopper.
FASTER_THAN_TILES = False

BLOCKS: dict[str, dict[str, int | bool]] = {}
