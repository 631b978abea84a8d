"""Backend "scan": one loop over a static number of tiles, each with a unit looked up in a table.

The most tiles that any load needs (``rmn_jax.routing.layout.max_tiles``) is static. So the trip count is known at
compile time, and an accelerator never waits for the host to read a load. Iterations past the last used tile change
nothing.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.ops import window as single
from rmn_jax.ops.window import Window
from rmn_jax.routing.layout import Sorted, TileTable, tile_length, tile_table


def forward(x: jax.Array, kernel: jax.Array, layout: Sorted, window: Window) -> jax.Array:
    """[B, H, W, C] sorted, [N, kh, kw, C, O] -> [B, OH, OW, O]."""
    return _map_tiles(x, kernel, layout, lambda tile, unit_kernel: single.convolve(tile, unit_kernel, window))


def input_gradient(dy, kernel, layout: Sorted, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] sorted, [N, kh, kw, C, O] -> [B, H, W, C] of ``shape``."""
    of_tile = lambda tile, unit_kernel: single.input_gradient(tile, unit_kernel, window, (len(tile), *shape[1:]))  # noqa: E731
    return _map_tiles(dy, kernel, layout, of_tile)


def kernel_gradient(x, dy, layout: Sorted, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, H, W, C] and [B, OH, OW, O] sorted -> [N, kh, kw, C, O] of ``shape``, float32."""
    batch = x.shape[0]
    length = tile_length(batch, layout.num_units)

    def add_tile(result, tile):
        start, valid = _rows(tile, batch, length)
        tile_x = lax.dynamic_slice_in_dim(x, start, length)
        tile_dy = jnp.where(valid, lax.dynamic_slice_in_dim(dy, start, length), 0)
        total = lax.dynamic_index_in_dim(result, tile.unit, keepdims=False)
        total = total + single.kernel_gradient(tile_x, tile_dy, window).astype(jnp.float32)
        return lax.dynamic_update_index_in_dim(result, total, tile.unit, 0), None

    return lax.scan(add_tile, jnp.zeros(shape, jnp.float32), tile_table(layout, batch, length))[0]


def _map_tiles(x, kernel, layout: Sorted, function) -> jax.Array:
    batch = x.shape[0]
    length = tile_length(batch, layout.num_units)
    result = jax.eval_shape(function, x, kernel[0])

    def write_tile(out, tile):
        start, valid = _rows(tile, batch, length)
        unit_kernel = lax.dynamic_index_in_dim(kernel, tile.unit, keepdims=False)
        value = function(lax.dynamic_slice_in_dim(x, start, length), unit_kernel)
        kept = lax.dynamic_slice_in_dim(out, start, length)
        return lax.dynamic_update_slice_in_dim(out, jnp.where(valid, value, kept), start, 0), None

    return lax.scan(write_tile, jnp.zeros(result.shape, result.dtype), tile_table(layout, batch, length))[0]


def _rows(tile: TileTable, batch: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Where to slice for a tile, and which of the sliced rows belong to it ([length, 1, 1, 1] bool)."""
    start = jnp.minimum(tile.low, batch - length)
    rows = start + jnp.arange(length, dtype=jnp.int32)
    return start, ((rows >= tile.low) & (rows < tile.high))[:, None, None, None]
