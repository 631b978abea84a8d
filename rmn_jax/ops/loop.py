"""Backend "loop": for each unit, for each tile of its rows; trip counts follow the load.

The work is that of the plain convolution plus, for each unit, the unfilled part of its last tile. Rows of a
tile that belong to another unit are computed and thrown away (outputs) or masked (kernel gradient).

The shape of the loops matters on XLA:CPU: the kernel is sliced once a unit, not once a tile; a loop over tiles
inside a loop over units compiles one convolution, where unrolling would compile N.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import RoutePlan
from rmn_jax.ops import window as single
from rmn_jax.ops.window import Window

# Rows of pixels to a tile. Small enough that a unit's unfilled last tile is little work, large enough that
# one tile's convolution runs at full speed (benchmarks/results has the measurements behind both).
_PIXELS_OUTPUT = 512
_PIXELS_GRADIENT = 1024
_INPUTS_A_TILE = (8, 32)


def forward(x: jax.Array, kernel: jax.Array, plan: RoutePlan, window: Window) -> jax.Array:
    """[B, H, W, C] sorted, [N, kh, kw, C, O] -> [B, OH, OW, O]."""
    return _map_tiles(x, kernel, plan, lambda tile, own: single.convolve(tile, own, window))


def input_gradient(dy, kernel, plan: RoutePlan, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] sorted, [N, kh, kw, C, O] -> [B, H, W, C] of ``shape``."""
    turned = single.flipped(kernel)  # once, outside the loops
    return _map_tiles(dy, turned, plan, lambda tile, own: single.convolve_flipped(tile, own, window, shape[1:3]))


def kernel_gradient(x, dy, plan: RoutePlan, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, H, W, C] and [B, OH, OW, O] sorted -> [N, kh, kw, C, O] of ``shape``, float32."""
    length = _tile_length(x.shape[0], dy.shape[1] * dy.shape[2], _PIXELS_GRADIENT)

    def of_unit(unit, result):
        first, last = plan.offsets[unit], plan.offsets[unit] + plan.sizes[unit]

        def of_tile(index, total):
            low = first + index * length
            start = jnp.minimum(low, x.shape[0] - length)
            rows = start + jnp.arange(length)
            own = ((rows >= low) & (rows < last))[:, None, None, None]
            tile_x = lax.dynamic_slice_in_dim(x, start, length)
            tile_dy = jnp.where(own, lax.dynamic_slice_in_dim(dy, start, length), 0)
            return total + single.kernel_gradient(tile_x, tile_dy, window)

        total = lax.fori_loop(0, -(-(last - first) // length), of_tile, jnp.zeros(shape[1:], jnp.float32))
        return lax.dynamic_update_index_in_dim(result, total, unit, 0)

    sizes, offsets = jnp.asarray(plan.sizes), jnp.asarray(plan.offsets)
    plan = plan._replace(sizes=sizes, offsets=offsets)
    return lax.fori_loop(0, shape[0], of_unit, jnp.zeros(shape, jnp.float32))


def _map_tiles(x, kernel, plan: RoutePlan, function) -> jax.Array:
    """``function(tile of x, its unit's kernel)`` over all tiles of all units, into one array."""
    result = jax.eval_shape(function, x, kernel[0])
    length = _tile_length(x.shape[0], max(x.shape[1] * x.shape[2], result.shape[1] * result.shape[2]), _PIXELS_OUTPUT)

    def of_unit(unit, out):
        own_kernel = lax.dynamic_index_in_dim(kernel, unit, keepdims=False)
        first, last = plan.offsets[unit], plan.offsets[unit] + plan.sizes[unit]

        def of_tile(index, out):
            # The last tile of a long group is moved back to end with the group; that of a short one
            # reaches into its neighbours, whose rows keep what they have.
            start = jnp.minimum(first + index * length, jnp.maximum(last - length, 0))
            rows = start + jnp.arange(length)
            own = ((rows >= first) & (rows < last))[:, None, None, None]
            value = function(lax.dynamic_slice_in_dim(x, start, length), own_kernel)
            kept = lax.dynamic_slice_in_dim(out, start, length)
            return lax.dynamic_update_slice_in_dim(out, jnp.where(own, value, kept), start, 0)

        return lax.fori_loop(0, -(-(last - first) // length), of_tile, out)

    return lax.fori_loop(0, kernel.shape[0], of_unit, jnp.zeros(result.shape, result.dtype))


def _tile_length(batch: int, positions: int, pixels: int) -> int:
    """Inputs to a tile for feature maps of ``positions`` pixels."""
    low, high = _INPUTS_A_TILE
    return min(batch, max(low, min(high, pixels // positions)))
