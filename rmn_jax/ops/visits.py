"""Backend "visits": one loop over a static number of tile visits, each with a unit looked up in a table.

The bound on the visits of any load (``rmn_jax.dispatch.bound``) is static: the loop's trip count is known when it is
compiled, and an accelerator never waits for the host to read a load. Visits past the last tile change nothing.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import RoutePlan, TileTable, tile_length, tile_table
from rmn_jax.ops import window as single
from rmn_jax.ops.window import Window


def forward(x: jax.Array, kernel: jax.Array, plan: RoutePlan, window: Window) -> jax.Array:
    """[B, H, W, C] sorted, [N, kh, kw, C, O] -> [B, OH, OW, O]."""
    return _map_visits(x, kernel, plan, lambda tile, own: single.convolve(tile, own, window))


def input_gradient(dy, kernel, plan: RoutePlan, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] sorted, [N, kh, kw, C, O] -> [B, H, W, C] of ``shape``."""
    of_tile = lambda tile, own: single.input_gradient(tile, own, window, (len(tile), *shape[1:]))  # noqa: E731
    return _map_visits(dy, kernel, plan, of_tile)


def kernel_gradient(x, dy, plan: RoutePlan, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, H, W, C] and [B, OH, OW, O] sorted -> [N, kh, kw, C, O] of ``shape``, float32."""
    batch = x.shape[0]
    length = tile_length(batch, plan.num_units)

    def visit(result, tile):
        start, own = _rows(tile, batch, length)
        tile_x = lax.dynamic_slice_in_dim(x, start, length)
        tile_dy = jnp.where(own, lax.dynamic_slice_in_dim(dy, start, length), 0)
        total = lax.dynamic_index_in_dim(result, tile.unit, keepdims=False)
        total = total + single.kernel_gradient(tile_x, tile_dy, window).astype(jnp.float32)
        return lax.dynamic_update_index_in_dim(result, total, tile.unit, 0), None

    return lax.scan(visit, jnp.zeros(shape, jnp.float32), tile_table(plan, batch, length))[0]


def _map_visits(x, kernel, plan: RoutePlan, function) -> jax.Array:
    batch = x.shape[0]
    length = tile_length(batch, plan.num_units)
    result = jax.eval_shape(function, x, kernel[0])

    def visit(out, tile):
        start, own = _rows(tile, batch, length)
        own_kernel = lax.dynamic_index_in_dim(kernel, tile.unit, keepdims=False)
        value = function(lax.dynamic_slice_in_dim(x, start, length), own_kernel)
        kept = lax.dynamic_slice_in_dim(out, start, length)
        return lax.dynamic_update_slice_in_dim(out, jnp.where(own, value, kept), start, 0), None

    return lax.scan(visit, jnp.zeros(result.shape, result.dtype), tile_table(plan, batch, length))[0]


def _rows(tile: TileTable, batch: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Where to slice for a visit, and which of the sliced rows are its own ([length, 1, 1, 1] bool)."""
    start = jnp.minimum(tile.low, batch - length)
    rows = start + jnp.arange(length, dtype=jnp.int32)
    return start, ((rows >= tile.low) & (rows < tile.high))[:, None, None, None]
