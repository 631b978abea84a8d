"""Backend "tiles": each pass one grouped convolution, whose groups are tiles of rows that share a unit.

The batch is laid out as V tiles of L inputs, [L, H, W, V C]: tile v is a group of channels, and the group's kernel is
that of the unit the tile belongs to. V is the static bound of ``rmn_jax.ops.visits`` on the tiles of any load: nothing
is dropped and nothing waits for the host. Places that are nobody's hold what is at hand and are never read, or zeros
where they would count. A pass is two gathers around one call of the library, where "visits" makes one call a tile.

Axes: B inputs, N units, H W, C channels in, O channels out; L inputs to a tile, V tiles (see ``rmn_jax``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import RoutePlan
from rmn_jax.ops import visits
from rmn_jax.ops.window import Window

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Layout(NamedTuple):
    """Where rows are: tile by tile ``unit`` [V] and ``rows`` [L, V] (B: nobody's), row by row ``home`` [B, 2]."""

    unit: jax.Array
    rows: jax.Array
    home: jax.Array


def lay_out(plan: RoutePlan, batch: int) -> Layout:
    """The tiles of a batch [B] sorted by ``plan``; a home is (place in the tile, tile). All int32."""
    length = visits.tile_length(batch, plan.num_units)
    tiles = visits.schedule(plan, batch, length)
    rows = tiles.low + jnp.arange(length, dtype=jnp.int32)[:, None]
    used = -(-plan.sizes // length)
    within = jnp.arange(batch, dtype=jnp.int32) - plan.offsets[plan.unit]
    tile = (jnp.cumsum(used) - used)[plan.unit] + within // length
    return Layout(tiles.unit, jnp.where(rows < tiles.high, rows, batch), jnp.stack([within % length, tile], axis=-1))


def forward(x: jax.Array, kernel: jax.Array, plan: RoutePlan, window: Window) -> jax.Array:
    """[B, H, W, C] sorted, [N, kh, kw, C, O] -> [B, OH, OW, O]."""
    layout = lay_out(plan, x.shape[0])
    return _collect(_convolve(_spread(x, layout), _of_tiles(kernel, layout), window, layout), layout)


def input_gradient(dy, kernel, plan: RoutePlan, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] sorted, [N, kh, kw, C, O] -> [B, H, W, C] of ``shape``."""
    layout = lay_out(plan, dy.shape[0])
    own = _of_tiles(kernel, layout)
    tiles = jax.ShapeDtypeStruct((len(layout.rows), *shape[1:3], len(layout.unit) * shape[3]), dy.dtype)
    pull = jax.linear_transpose(lambda x: _convolve(x, own, window, layout), tiles)
    return _collect(pull(_spread(dy, layout))[0], layout)


def kernel_gradient(x, dy, plan: RoutePlan, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, H, W, C] and [B, OH, OW, O] sorted -> [N, kh, kw, C, O] of ``shape``, float32."""
    layout = lay_out(plan, x.shape[0])
    tiles, (num_units, height, width, channels, features) = _spread(x, layout), shape
    kernels = jax.ShapeDtypeStruct((height, width, channels, len(layout.unit) * features), x.dtype)
    pull = jax.linear_transpose(lambda kernel: _convolve(tiles, kernel, window, layout), kernels)
    of_tiles = pull(_spread(dy, layout, nobodys=0))[0].reshape(height, width, channels, -1, features)
    of_unit = jax.nn.one_hot(layout.unit, num_units, dtype=jnp.float32)
    return jnp.einsum("vn,hwcvo->nhwco", of_unit, of_tiles.astype(jnp.float32), precision=lax.Precision.HIGHEST)


def _spread(x: jax.Array, layout: Layout, nobodys: float | None = None) -> jax.Array:
    """[B, H, W, C] -> [L, H, W, V C]; what is nobody's is some row's, or the value ``nobodys``."""
    fill, clip = lax.GatherScatterMode.FILL_OR_DROP, lax.GatherScatterMode.CLIP
    dimensions = lax.GatherDimensionNumbers(offset_dims=(1, 2, 4), collapsed_slice_dims=(0,), start_index_map=(0,))
    mode = clip if nobodys is None else fill
    tiles = lax.gather(x, layout.rows[..., None], dimensions, (1, *x.shape[1:]), mode=mode, fill_value=nobodys)
    return tiles.reshape(*tiles.shape[:3], -1)


def _collect(tiles: jax.Array, layout: Layout) -> jax.Array:
    """[L, H, W, V C] -> [B, H, W, C]."""
    tiles = tiles.reshape(*tiles.shape[:3], len(layout.unit), -1)
    dimensions = lax.GatherDimensionNumbers(offset_dims=(1, 2, 3), collapsed_slice_dims=(0, 3), start_index_map=(0, 3))
    sizes = (1, *tiles.shape[1:3], 1, tiles.shape[4])
    return lax.gather(tiles, layout.home, dimensions, sizes, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def _of_tiles(kernel: jax.Array, layout: Layout) -> jax.Array:
    """[N, kh, kw, C, O] -> [kh, kw, C, V O]."""
    own = jnp.moveaxis(kernel[layout.unit], 0, 3)
    return own.reshape(*own.shape[:3], -1)


def _convolve(tiles: jax.Array, kernel: jax.Array, window: Window, layout: Layout) -> jax.Array:
    """[L, H, W, V C] with [kh, kw, C, V O] -> [L, OH, OW, V O]."""
    strides = (window.strides, window.strides)
    groups = len(layout.unit)
    return lax.conv_general_dilated(
        tiles, kernel, strides, window.padding, dimension_numbers=_LAYOUT, feature_group_count=groups
    )
