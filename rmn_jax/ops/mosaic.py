"""Backend "mosaic": a routed convolution on a map in slots, as kernels for Hopper GPUs (Pallas Mosaic GPU).

It has 3x3 convolutions of stride 1 and 2 and 1x1 convolutions, in bfloat16 with float32 sums, for channels that are
multiples of 64 (``fits``). ``rmn_jax.ops.choose`` says where it runs. The kernels are in ``mosaic_conv`` (output and
input gradient) and ``mosaic_wgrad`` (kernel gradient). Those modules are imported when they are first needed: older
versions of JAX do not have what they import.

**No kernel here has been run on a GPU yet.** They agree with the oracle in JAX's interpreter and are lowered for CUDA
in the tests. ``python -m benchmarks.gpu kernels`` checks and times them on a GPU.

Block sizes come from ``mosaic_blocks`` where it has the layer, else from the rules of this module.

Axes: N units, H W height and width, C channels in, O channels out, R slots (see ``rmn_jax``).
"""

from typing import Any

import jax
import jax.numpy as jnp

from rmn_jax.ops.mosaic_blocks import BLOCKS
from rmn_jax.ops.window import Window
from rmn_jax.routing.layout import GROUP, Slots, Sorted, TileTable, tile_table

# Shared memory of a thread block on Hopper, in bytes; less some for the barriers.
_SHARED_MEMORY = 232_448 - 1024
# Streaming multiprocessors of an H100 SXM and an H200, where JAX does not say.
_MULTIPROCESSORS = 132
# Thread blocks that the kernel gradient aims at: a few for each multiprocessor, or their ends are uneven.
_THREAD_BLOCKS = 4 * _MULTIPROCESSORS
# A border of shared source pixels is worth up to this much more padding in tiles.
_HALO_WORTH = 1.2
# Larger tiles are worth up to this much more padding.
_LARGE_WORTH = 1.08

# Parameters of JAX's GPU interpreter; tests set them to run the kernels on a CPU.
interpret: Any = None


def available() -> bool:
    """Whether this version of JAX has the features that the kernels use. Earlier versions lower the kernels wrongly."""
    return jax.__version_info__ >= (0, 11, 2)


def fits(shape: tuple[int, ...], kernel_shape: tuple[int, ...], window: Window, dtype) -> bool:
    """Whether the kernels have a layer.

    Args:
      shape: of the input, [H, W, R, C].
      kernel_shape: [N, kh, kw, C, O].
      window: of the convolution; a strided 1x1 is pointwise by then (see ``rmn_jax.ops.window.subsampled``).
      dtype: of input and kernel.
    """
    square = window == Window.make(3, 3, window.strides, None) and window.strides in (1, 2)
    height, width = shape[:2]
    return (
        dtype == jnp.bfloat16
        and (square or window.pointwise)
        and all(channels % 64 == 0 and channels <= 2048 for channels in kernel_shape[3:])
        and height * width > 1
        and height % window.strides == width % window.strides == 0
    )


def forward(x: jax.Array, kernel: jax.Array, layout: Slots, window: Window) -> jax.Array:
    """[H, W, R, C], [N, kh, kw, C, O] -> [OH, OW, R, O]."""
    from rmn_jax.ops import mosaic_conv

    size = x.shape[:2]
    x = _flat(x, window)
    blocks = blocks_of("fwd", x.shape, kernel.shape, window)
    given = (x, kernel, layout.unit_of_group, _used(layout))
    y = mosaic_conv.forward(*given, window, blocks, interpret, _thread_blocks())
    return y if not window.pointwise else y.reshape(*size, *y.shape[2:])


def input_gradient(dy, kernel, layout: Slots, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[OH, OW, R, O], [N, kh, kw, C, O] -> [H, W, R, C] of ``shape``."""
    from rmn_jax.ops import mosaic_conv

    dy = _flat(dy, window)
    blocks = blocks_of("dgrad", dy.shape, kernel.shape, window)
    given = (dy, kernel, layout.unit_of_group, _used(layout))
    dx = mosaic_conv.input_gradient(*given, window, blocks, interpret, _thread_blocks())
    return dx.reshape(shape)


def kernel_gradient(x, dy, layout: Slots, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[H, W, R, C] and [OH, OW, R, O] -> [N, kh, kw, C, O] of ``shape``, float32."""
    from rmn_jax.ops import mosaic_wgrad

    x, dy = _flat(x, window), _flat(dy, window)
    blocks = blocks_of("wgrad", dy.shape, shape, window)
    table = chunks(layout, blocks.chunk)
    return mosaic_wgrad.kernel_gradient(x, dy, table, layout.num_units, window, blocks, interpret)


def _used(layout: Slots) -> jax.Array:
    """[1] int32, how many groups of slots hold rows: the first ones."""
    return jnp.sum(-(-layout.group_sizes // GROUP), dtype=jnp.int32)[None]


def chunks(layout: Slots, length: int) -> TileTable:
    """Chunks of at most ``length`` consecutive groups of slots of one unit, without groups that hold no row."""
    sizes = -(-layout.group_sizes // GROUP)
    offsets = jnp.cumsum(sizes) - sizes
    return tile_table(Sorted(sizes, sizes, sizes, sizes, offsets), len(layout.unit) // GROUP, length)


def blocks_of(which: str, size: tuple[int, ...], kernel_shape: tuple[int, ...], window: Window) -> Any:
    """Block sizes of one pass of one layer: from the table, else by rule.

    Args:
      which: "fwd", "dgrad" or "wgrad".
      size: [H, W, R, ..] of what the pass reads: the input for "fwd", else the cotangent.
      kernel_shape: [N, kh, kw, C, O].
      window: of the convolution.
    """
    kind: Any
    if which == "wgrad":
        from rmn_jax.ops.mosaic_wgrad import Blocks as kind
    else:
        from rmn_jax.ops.mosaic_conv import Blocks as kind
    found = BLOCKS.get(key(which, size, kernel_shape, window))
    if found is not None:
        return kind(**found)
    rule = _kernel_gradient_blocks if which == "wgrad" else _product_blocks
    return rule(which, size, kernel_shape, window)


def key(which: str, size: tuple[int, ...], kernel_shape: tuple[int, ...], window: Window) -> str:
    """A layer and pass in the table, as in "fwd 3x3/1 64-128 @16x16"; arguments as in ``blocks_of``."""
    _, height, width, channels, features = kernel_shape
    return f"{which} {height}x{width}/{window.strides} {channels}-{features} @{size[0]}x{size[1]}"


def _product_blocks(which: str, size: tuple[int, ...], kernel_shape: tuple[int, ...], window: Window) -> Any:
    """Tiles as large as shared memory and the map allow: a larger tile reads less from the L2 cache."""
    from rmn_jax.ops.mosaic_conv import Blocks

    outputs = kernel_shape[3 if which == "dgrad" else 4]
    strides = window.strides if which == "fwd" else 1
    height, width = size[0] // strides, size[1] // strides
    best = {halo: _covered(height, width, 16, halo) for halo in (False, True)}
    halo = not window.pointwise and best[True] <= _HALO_WORTH * best[False]
    runs = 2 if _covered(height, width, 32, halo) <= _LARGE_WORTH * best[halo] else 1
    columns = 128 if outputs % 128 == 0 else 64
    # With a border, a source serves several taps: two are enough.
    for kernels in (6, 5, 4, 3, 2):
        blocks = Blocks(columns, runs, 2 if halo else min(kernels, 5), kernels, halo)
        if product_fits(blocks, height, width):
            return blocks
    return Blocks(columns, 1, 2, 3, halo)


def product_fits(blocks: Any, height: int, width: int) -> bool:
    """Whether shared memory holds a tile of ``mosaic_conv`` on a target of this size; with a border for 3x3 taps."""
    from rmn_jax.ops.mosaic_conv import CONSUMERS, RUN, tile_pixels

    rows, columns = tile_pixels(height, width, CONSUMERS * RUN * blocks.runs, blocks.halo)
    box = (rows + 2) * (columns + 2) if blocks.halo else rows * columns
    size = 1024 * blocks.sources * box + 128 * blocks.columns * (blocks.kernels + CONSUMERS * RUN * GROUP // 64)
    return size <= _SHARED_MEMORY and min(blocks.sources, blocks.kernels) >= 2


def _covered(height: int, width: int, pixels: int, halo: bool) -> int:
    """Pixels of the tiles that cover a map."""
    from rmn_jax.ops.mosaic_conv import tile_pixels

    rows, columns = tile_pixels(height, width, pixels, halo)
    return -(-height // rows) * -(-width // columns) * pixels


def _kernel_gradient_blocks(which: str, size: tuple[int, ...], kernel_shape: tuple[int, ...], window: Window) -> Any:
    from rmn_jax.ops.mosaic_wgrad import Blocks

    height, width, num_slots = size[:3]
    _, kernel_height, kernel_width, channels, features = kernel_shape
    slices = kernel_height * kernel_width * channels // 64
    one_row = height * -(-width // 8) * 8
    shared = not window.pointwise and window.strides == 1 and one_row <= _HALO_WORTH * _covered(height, width, 8, False)
    columns = 128 if features % 128 == 0 else 64
    rows, warp_groups = 1, next(count for count in (3, 2, 1) if slices % count == 0)
    if shared:
        rows, warp_groups = kernel_height if columns == 64 else 1, kernel_width
    elif warp_groups < 3 and features % 256 == 0:
        columns = 256
    inner = (kernel_height // rows * channels // 64 if shared else slices // warp_groups) * features // columns
    groups = num_slots // GROUP
    chunk = max(1, min(groups, round(groups * inner / _THREAD_BLOCKS)))
    splits = 1 if chunk > 1 else max(1, min(8, round(_THREAD_BLOCKS / (groups * inner))))
    for stages in (5, 4, 3, 2):
        blocks = Blocks(columns, rows, warp_groups, stages, chunk, splits, shared)
        if kernel_gradient_fits(blocks):
            return blocks
    raise AssertionError("two stages always fit")


def kernel_gradient_fits(blocks: Any) -> bool:
    """Whether shared memory, and registers, hold a thread block of ``mosaic_wgrad``; where it shares, for 3x3 taps."""
    box = blocks.rows * (8 + 2) if blocks.shared else 8 * blocks.warp_groups
    size = blocks.stages * (1024 * box + 128 * blocks.columns) + blocks.warp_groups * 64 * 64 * 4
    # A sum of 64 x 64 takes 32 registers of a thread; of 232 or 160, some 30 are for other things.
    sums = blocks.rows * blocks.columns // 2
    return size <= _SHARED_MEMORY and blocks.stages >= 2 and sums <= (128 if blocks.warp_groups == 3 else 192)


def _flat(x: jax.Array, window: Window) -> jax.Array:
    return x.reshape(flat_shape(x.shape, window))


def flat_shape(shape: tuple[int, ...], window: Window) -> tuple[int, ...]:
    """A map [H, W, R, C] as a 1x1 convolution may see it: rows of 8, 4 or 2 pixels, which tiles cover without rest."""
    pixels = shape[0] * shape[1]
    width = next((width for width in (8, 4, 2) if pixels % width == 0), None)
    return shape if width is None or not window.pointwise else (pixels // width, width, *shape[2:])


def _thread_blocks() -> int:
    """A thread block for each multiprocessor."""
    if interpret is not None:
        return 2
    return int(getattr(jax.devices()[0], "core_count", None) or _MULTIPROCESSORS)
