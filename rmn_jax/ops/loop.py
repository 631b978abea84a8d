"""Backend "loop": for each unit, for each tile of its rows; trip counts follow the load.

The work is that of the plain convolution plus, for each unit, the unfilled part of its last tile. Rows of a
tile that belong to another unit are computed and thrown away (outputs) or masked (kernel gradient).

What the shape of the loops owes to XLA:CPU: the kernel is sliced once a unit, not once a tile; a loop over tiles
inside a loop over units compiles its body once, where unrolling would compile it N times. On small feature maps a
matrix product spends much of its time on packing the kernel, so a unit should take few tiles; but a large tile
is mostly empty for a small unit. Where kernels are large, a tile comes in several lengths, and the shortest that holds
the rows runs.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import RoutePlan
from rmn_jax.ops import minimal, products
from rmn_jax.ops.window import Window

# Feature maps from this many pixels on keep a product busy with a few inputs, however large the batch.
_LARGE_MAP = 64
# Rows of pixels to a tile; its patches then stay in the cache.
_PIXELS = 4096
# Inputs that a tile of a small map holds, at least and, unless loads are large, at most.
_SHORTEST, _LONGEST = 8, 32
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

    def of_length(length: int, low, high, x, dy):
        start = jnp.minimum(low, x.shape[0] - length)
        tile_dy = jnp.where(_inside(start, length, low, high), lax.dynamic_slice_in_dim(dy, start, length), 0)
        return of_rows(lax.dynamic_slice_in_dim(x, start, length), tile_dy)

    def of_unit(unit, result):
        first, last = plan.offsets[unit], plan.offsets[unit] + plan.sizes[unit]

        def of_tile(index, total):
            low, high = _bounds(first, last, index, lengths[-1])
            return total + _shortest(of_length, lengths, low, high, x, dy)

        zeros = jnp.zeros(shape[1:], jnp.float32)
        total = lax.fori_loop(0, _tiles(first, last, lengths[-1]), of_tile, zeros)
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
    longest = lengths[-1]

    def of_length(length: int, low, high, x, own_kernel):
        del high
        start = jnp.minimum(low, batch - length)
        value = function(lax.dynamic_slice_in_dim(x, start, length), own_kernel)
        if length == longest:
            return value
        room = jnp.zeros((longest, *value.shape[1:]), value.dtype)
        return lax.dynamic_update_slice_in_dim(room, value, start - jnp.minimum(low, batch - longest), 0)

    def of_unit(unit, out):
        own_kernel = prepare(own_of(unit))
        first, last = plan.offsets[unit], plan.offsets[unit] + plan.sizes[unit]

        def of_tile(index, out):
            # A tile may reach into its neighbours, whose rows keep what they have.
            low, high = _bounds(first, last, index, longest)
            value = _shortest(of_length, lengths, low, high, x, own_kernel)
            start = jnp.minimum(low, batch - longest)
            if longest == 1:  # no neighbours to reach into
                return lax.dynamic_update_slice_in_dim(out, value, start, 0)
            kept = lax.dynamic_slice_in_dim(out, start, longest)
            value = jnp.where(_inside(start, longest, low, high), value, kept)
            return lax.dynamic_update_slice_in_dim(out, value, start, 0)

        return lax.fori_loop(0, _tiles(first, last, longest), of_tile, out)

    return lax.fori_loop(0, plan.num_units, of_unit, jnp.zeros(result.shape, result.dtype))


def tile_lengths(batch: int, positions: int, num_units: int, kernel_values: int) -> tuple[int, ...]:
    """Inputs to a tile, ascending, for feature maps of ``positions`` pixels: one length, or the choice of lengths.

    Several lengths only where a kernel has many values: each length is compiled, and a small kernel packs quickly.
    """
    fitting = max(1, _PIXELS // positions)
    if num_units == 1:
        return (min(batch, fitting),)
    if kernel_values < products.LARGE_KERNEL:
        return (min(batch, fitting, max(_SHORTEST, min(_LONGEST, 512 // positions))),)
    longest = min(fitting, _LONGEST)
    if positions < _LARGE_MAP:
        longest *= min(2, max(1, batch // (num_units * _LONGEST)))  # large loads can do with longer steps
    step = max(1, longest // 4)
    return (*range(step, min(batch, longest), step), min(batch, longest))


def _tiles(first, last, longest: int):
    return -(-(last - first) // longest)


def _bounds(first, last, index, longest: int):
    low = first + index * longest
    return low, jnp.minimum(low + longest, last)


def _inside(start, length: int, low, high) -> jax.Array:
    rows = start + jnp.arange(length)
    return ((rows >= low) & (rows < high))[:, None, None, None]


def _shortest(function: Callable, lengths: tuple[int, ...], low, high, *arrays):
    """``function`` with the shortest length that holds rows low .. high."""
    if len(lengths) == 1:
        return function(lengths[0], low, high, *arrays)
    branch = sum((high - low > length).astype(jnp.int32) for length in lengths[:-1])
    choices = [lambda *rest, length=length: function(length, *rest) for length in lengths]
    return lax.switch(branch, choices, low, high, *arrays)
