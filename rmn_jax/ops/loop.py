"""Backend "loop": for each unit, for each tile of its rows; trip counts follow the load.

The work is that of the plain convolution plus, for each unit, the unfilled part of its last tile. Rows of a
tile that belong to another unit are computed and thrown away (outputs) or masked (kernel gradient).

What the shape of the loops owes to XLA:CPU: the kernel is sliced once a unit, not once a tile; a loop over tiles
inside a loop over units compiles its body once, where unrolling would compile it N times. On small feature maps a
matrix product spends much of its time on packing the kernel, so a unit should take few tiles; but a large tile
is mostly empty for a small unit. So a tile has one of two lengths: long ones while they are nearly full, then
short ones. Each is compiled, so two are twice the programs of one.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import RoutePlan
from rmn_jax.ops import minimal, products
from rmn_jax.ops.window import Window

# Rows of pixels to a tile; its patches then stay in the cache.
_PIXELS = 4096
# Feature maps of fewer pixels take longer tiles.
_LARGE_MAP = 64
# Inputs to a tile of a small map: what short ones have, and where long ones begin and, unless loads are large, end.
_SHORT, _LEAST, _MOST = 8, 16, 32
# Values of one kernel from which the tiles' lengths matter enough to be compiled twice.
_TWO_LENGTHS = 2**15
# Pixels from which a pointwise layer goes row by row: the kernels repeated for each row are then small beside the rows.
_ROW_BY_ROW = 512


def forward(x: jax.Array, kernel: jax.Array, plan: RoutePlan, window: Window) -> jax.Array:
    """[B, H, W, C] sorted, [N, kh, kw, C, O] -> [B, OH, OW, O]."""
    if _row_by_row(x, window):
        return jnp.einsum("bhwc,bco->bhwo", x, kernel[plan.unit, 0, 0])
    if minimal.fits(window, x.shape[-1], x.dtype):
        return map_tiles(x, kernel, plan, minimal.convolve, minimal.combined_taps)
    return map_tiles(x, kernel, plan, lambda tile, own: products.convolve(tile, own, window))


def input_gradient(dy, kernel, plan: RoutePlan, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] sorted, [N, kh, kw, C, O] -> [B, H, W, C] of ``shape``."""
    if _row_by_row(dy, window):
        return jnp.einsum("bhwo,bco->bhwc", dy, kernel[plan.unit, 0, 0])
    if minimal.fits(window, dy.shape[-1], dy.dtype):
        turn = lambda own: minimal.combined_taps(own[::-1, ::-1])  # noqa: E731
        return map_tiles(dy, kernel, plan, minimal.input_gradient, turn)
    return map_tiles(dy, kernel, plan, lambda tile, own: products.input_gradient(tile, own, window, shape[1:3]))


def kernel_gradient(x, dy, plan: RoutePlan, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, H, W, C] and [B, OH, OW, O] sorted -> [N, kh, kw, C, O] of ``shape``, float32."""
    lengths = tile_lengths(x.shape[0], dy.shape[1] * dy.shape[2], plan.num_units, math.prod(shape[1:]))
    of_rows: Callable[..., jax.Array] = functools.partial(products.kernel_gradient, window=window)
    if minimal.fits(window, shape[-2], x.dtype):
        of_rows = minimal.kernel_gradient

    def of_unit(unit, result):
        first, last = plan.offsets[unit], plan.offsets[unit] + plan.sizes[unit]

        def of_tile(length: int, low, total):
            start, own = _rows(low, last, length, x.shape[0])
            tile_dy = jnp.where(own, lax.dynamic_slice_in_dim(dy, start, length), 0)
            return total + of_rows(lax.dynamic_slice_in_dim(x, start, length), tile_dy)

        total = _over_tiles(lengths, first, last, of_tile, jnp.zeros(shape[1:], jnp.float32))
        return lax.dynamic_update_index_in_dim(result, total, unit, 0)

    return lax.fori_loop(0, shape[0], of_unit, jnp.zeros(shape, jnp.float32))


def _row_by_row(rows: jax.Array, window: Window) -> bool:
    return window.pointwise and rows.shape[1] * rows.shape[2] >= _ROW_BY_ROW


def map_tiles(
    x, kernel, plan: RoutePlan, function: Callable, prepare: Callable = lambda own_kernel: own_kernel
) -> jax.Array:
    """``function(tile of x, its unit's kernel)`` over all tiles of all units, into one array.

    ``kernel`` is an array or a tree of them, each with a leading axis N; ``prepare`` is applied to a unit's own once,
    for all its tiles.
    """
    own_of = lambda unit: jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, unit, keepdims=False), kernel)  # noqa: E731
    batch, result = x.shape[0], jax.eval_shape(lambda x: function(x, prepare(own_of(0))), x)
    positions = max(x.shape[1] * x.shape[2], result.shape[1] * result.shape[2])
    values = sum(leaf.size for leaf in jax.tree.leaves(kernel)) // plan.num_units
    lengths = tile_lengths(batch, positions, plan.num_units, values)

    def of_unit(unit, out):
        own_kernel = prepare(own_of(unit))
        first, last = plan.offsets[unit], plan.offsets[unit] + plan.sizes[unit]

        def of_tile(length: int, low, out):
            start, own = _rows(low, last, length, batch)
            value = function(lax.dynamic_slice_in_dim(x, start, length), own_kernel)
            if length > 1:  # a tile may reach into its neighbours, whose rows keep what they have
                value = jnp.where(own, value, lax.dynamic_slice_in_dim(out, start, length))
            return lax.dynamic_update_slice_in_dim(out, value, start, 0)

        return _over_tiles(lengths, first, last, of_tile, out)

    return lax.fori_loop(0, plan.num_units, of_unit, jnp.zeros(result.shape, result.dtype))


def tile_lengths(batch: int, positions: int, num_units: int, kernel_values: int) -> tuple[int, ...]:
    """Inputs to a tile for feature maps of ``positions`` pixels: one length, or a short and a long one.

    Two lengths only where a kernel has many values: each is compiled, and a small kernel packs quickly.
    """
    fitting = max(1, min(batch, _PIXELS // positions))
    if num_units == 1:
        return (fitting,)
    if kernel_values < _TWO_LENGTHS:
        return (min(fitting, max(_SHORT, min(_MOST, 512 // positions))),)
    share, small_map = batch // num_units, positions < _LARGE_MAP
    most = 2 * _MOST if small_map and share >= 2 * _MOST else _MOST
    long = min(fitting, max(_LEAST, min(share, most)))
    # The smaller the map, the more a tile costs beside its rows.
    short = max(long // (2 if small_map else 4), min(_SHORT, fitting // 4), 1)
    return (short, long) if short < long else (long,)


def _over_tiles(lengths: tuple[int, ...], first, last, of_tile: Callable, carry: Any) -> Any:
    """``carry = of_tile(length, low, carry)`` over tiles that cover rows first .. last: long ones while they fill."""
    short, long = lengths[0], lengths[-1]

    def step(state):
        low, carry = state
        if short == long:
            return low + long, of_tile(long, low, carry)
        fills = last - low > long - short
        choices = [functools.partial(of_tile, length) for length in (long, short)]
        return low + jnp.where(fills, long, short), lax.cond(fills, *choices, low, carry)

    return lax.while_loop(lambda state: state[0] < last, step, (first, carry))[1]


def _rows(low, last, length: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Where to slice for a tile from row ``low`` on, and which of its rows are its own ([length, 1, 1, 1] bool)."""
    start = jnp.minimum(low, batch - length)
    rows = start + jnp.arange(length)
    return start, ((rows >= low) & (rows < last))[:, None, None, None]
