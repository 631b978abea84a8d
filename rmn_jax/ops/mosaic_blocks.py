"""Block sizes of the kernels of ``rmn_jax.ops.mosaic``, as measured; written by ``benchmarks.gpu kernels --apply``.

A key is a pass and layer (``rmn_jax.ops.mosaic.key``). Layers that are not here have block sizes by rule. Nothing has
been measured yet.
"""

BLOCKS: dict[str, dict[str, int | bool]] = {}
