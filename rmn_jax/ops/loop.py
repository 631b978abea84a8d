"""Backend "loop": for each unit, for each tile of its rows. Trip counts follow the load. What CPUs run.

The work is that of the plain convolution plus, for each unit, the unfilled part of its last tile. Rows of a tile that
belong to another unit are computed and discarded (outputs) or masked (kernel gradient).

The loops have this shape because of XLA:CPU. The kernel is sliced once for each unit, not once for each tile. A loop
over tiles inside a loop over units compiles its body once; unrolling would compile it N times. On small feature maps a
matrix product spends much of its time packing the kernel, so a unit should have few tiles; but a large tile is mostly
empty for a small unit. So tiles come in two lengths: long while they are nearly full, then short. Each length is
compiled once more.

Axes: B batch, N units, H W height and width, C channels in, O channels out (see ``rmn_jax``).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.ops import im2col, winograd
from rmn_jax.ops.window import Window
from rmn_jax.routing.layout import Sorted

# Most pixels in a tile: its patches then stay in the cache.
_PIXELS = 4096
# Feature maps with fewer pixels have longer tiles.
_LARGE_MAP = 64
# Inputs in a short tile; least and most inputs in a long tile. With large loads, small maps take twice the most.
_SHORT, _LEAST, _MOST = 8, 16, 32
# From this many values in a kernel on, two tile lengths are worth compiling.
_TWO_LENGTHS = 2**15
# From this many pixels on, a pointwise layer goes row by row: a kernel copied for each row then costs little.
_ROW_BY_ROW = 512


def forward(x: jax.Array, kernel: jax.Array, layout: Sorted, window: Window) -> jax.Array:
    """[B, H, W, C] sorted, [N, kh, kw, C, O] -> [B, OH, OW, O]."""
    if _row_by_row(x, window):
        return jnp.einsum("bhwc,bco->bhwo", x, kernel[layout.unit, 0, 0])
    if winograd.fits(window, x.shape[-1], x.dtype):
        return map_tiles(x, kernel, layout, winograd.convolve, winograd.combined_taps)
    return map_tiles(x, kernel, layout, lambda tile, unit_kernel: im2col.convolve(tile, unit_kernel, window))


def input_gradient(dy, kernel, layout: Sorted, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] sorted, [N, kh, kw, C, O] -> [B, H, W, C] of ``shape``."""
    if _row_by_row(dy, window):
        return jnp.einsum("bhwo,bco->bhwc", dy, kernel[layout.unit, 0, 0])
    if winograd.fits(window, dy.shape[-1], dy.dtype):
        turn = lambda unit_kernel: winograd.combined_taps(unit_kernel[::-1, ::-1])  # noqa: E731
        return map_tiles(dy, kernel, layout, winograd.input_gradient, turn)
    of_tile = lambda tile, unit_kernel: im2col.input_gradient(tile, unit_kernel, window, shape[1:3])  # noqa: E731
    return map_tiles(dy, kernel, layout, of_tile)


def kernel_gradient(x, dy, layout: Sorted, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, H, W, C] and [B, OH, OW, O] sorted -> [N, kh, kw, C, O] of ``shape``, float32."""
    lengths = tile_lengths(x.shape[0], dy.shape[1] * dy.shape[2], layout.num_units, math.prod(shape[1:]))
    of_rows: Callable[..., jax.Array] = functools.partial(im2col.kernel_gradient, window=window)
    if winograd.fits(window, shape[-2], x.dtype):
        of_rows = winograd.kernel_gradient

    def of_unit(unit, result):
        first, last = layout.offsets[unit], layout.offsets[unit] + layout.group_sizes[unit]

        def of_tile(length: int, low, total):
            start, valid = _rows(low, last, length, x.shape[0])
            tile_dy = jnp.where(valid, lax.dynamic_slice_in_dim(dy, start, length), 0)
            return total + of_rows(lax.dynamic_slice_in_dim(x, start, length), tile_dy)

        total = _over_tiles(lengths, first, last, of_tile, jnp.zeros(shape[1:], jnp.float32))
        return lax.dynamic_update_index_in_dim(result, total, unit, 0)

    return lax.fori_loop(0, shape[0], of_unit, jnp.zeros(shape, jnp.float32))


def _row_by_row(rows: jax.Array, window: Window) -> bool:
    return window.pointwise and rows.shape[1] * rows.shape[2] >= _ROW_BY_ROW


def map_tiles(
    x, kernel, layout: Sorted, function: Callable, transform: Callable = lambda unit_kernel: unit_kernel
) -> jax.Array:
    """Applies ``function(tile of x, kernel of its unit)`` to all tiles of all units.

    Args:
      x: [B, H, W, C], sorted by unit.
      kernel: an array or a tree of arrays, each with a leading axis N.
      layout: of x.
      function: maps a tile [L, H, W, C] and a transformed kernel to [L, OH, OW, O].
      transform: applied to the kernel of a unit once, for all its tiles.

    Returns:
      [B, OH, OW, O], sorted by unit.
    """
    kernel_of = lambda unit: jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, unit, keepdims=False), kernel)  # noqa: E731
    batch, result = x.shape[0], jax.eval_shape(lambda x: function(x, transform(kernel_of(0))), x)
    pixels = max(x.shape[1] * x.shape[2], result.shape[1] * result.shape[2])
    values = sum(leaf.size for leaf in jax.tree.leaves(kernel)) // layout.num_units
    lengths = tile_lengths(batch, pixels, layout.num_units, values)

    def of_unit(unit, out):
        unit_kernel = transform(kernel_of(unit))
        first, last = layout.offsets[unit], layout.offsets[unit] + layout.group_sizes[unit]

        def of_tile(length: int, low, out):
            start, valid = _rows(low, last, length, batch)
            value = function(lax.dynamic_slice_in_dim(x, start, length), unit_kernel)
            if length > 1:  # a tile may reach into its neighbours, whose rows keep what they have
                value = jnp.where(valid, value, lax.dynamic_slice_in_dim(out, start, length))
            return lax.dynamic_update_slice_in_dim(out, value, start, 0)

        return _over_tiles(lengths, first, last, of_tile, out)

    return lax.fori_loop(0, layout.num_units, of_unit, jnp.zeros(result.shape, result.dtype))


def tile_lengths(batch: int, pixels: int, num_units: int, kernel_values: int) -> tuple[int, ...]:
    """Inputs in a tile for feature maps of ``pixels`` = H W: one length, or a short and a long one.

    Only kernels with many values get two lengths: each length is compiled, and a small kernel packs quickly.
    """
    fitting = max(1, min(batch, _PIXELS // pixels))
    if num_units == 1:
        return (fitting,)
    share, small_map = batch // num_units, pixels < _LARGE_MAP
    if kernel_values < _TWO_LENGTHS:
        return (min(fitting, max(_SHORT, min(_MOST, 512 // pixels, share))),)
    most = 2 * _MOST if small_map and share >= 2 * _MOST else _MOST
    long = min(fitting, max(_LEAST, min(share, most)))
    # On a smaller map a tile costs more beside its rows.
    short = max(long // (2 if small_map else 4), min(_SHORT, fitting // 4), 1)
    return (short, long) if short < long else (long,)


def _over_tiles(lengths: tuple[int, ...], first, last, of_tile: Callable, carry: Any) -> Any:
    """``carry = of_tile(length, low, carry)`` over tiles that cover rows first .. last, long ones first."""
    short, long = lengths[0], lengths[-1]

    def next_tile(state):
        low, carry = state
        if short == long:
            return low + long, of_tile(long, low, carry)
        fills = last - low > long - short
        choices = [functools.partial(of_tile, length) for length in (long, short)]
        return low + jnp.where(fills, long, short), lax.cond(fills, *choices, low, carry)

    return lax.while_loop(lambda state: state[0] < last, next_tile, (first, carry))[1]


def _rows(low, last, length: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Where to slice for a tile from row ``low`` on, and which of the rows belong to it ([length, 1, 1, 1] bool)."""
    start = jnp.minimum(low, batch - length)
    rows = start + jnp.arange(length)
    return start, ((rows >= low) & (rows < last))[:, None, None, None]
