"""Backend "slots": a routed layer on a map in slots, through XLA alone. It has every window, type and platform.

Groups of 8 slots are tiles of length 8 with the axes in another order: [H, W, R, C] is [H, W, V, L, C] with L = 8. So
each pass is that of the backend "tiles" between two transpositions. It serves the layers of a stage in slots that the
kernels of ``rmn_jax.ops.mosaic`` do not have.

Axes: N units, H W height and width, C channels in, O channels out, R slots, L slots in a tile, V tiles (see
``rmn_jax``).
"""

import jax
import jax.numpy as jnp

from rmn_jax.ops import tiles
from rmn_jax.ops.window import Window
from rmn_jax.routing.layout import GROUP, Slots, Tiles


def forward(x: jax.Array, kernel: jax.Array, layout: Slots, window: Window) -> jax.Array:
    """[H, W, R, C], [N, kh, kw, C, O] -> [OH, OW, R, O]."""
    return from_tiles(tiles.forward(as_tiles(x), kernel, _tiles(layout), window))


def input_gradient(dy, kernel, layout: Slots, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[OH, OW, R, O], [N, kh, kw, C, O] -> [H, W, R, C] of ``shape``."""
    height, width, num_slots, channels = shape
    wide = (GROUP, height, width, num_slots // GROUP, channels)
    return from_tiles(tiles.input_gradient(as_tiles(dy), kernel, _tiles(layout), window, wide))


def kernel_gradient(x, dy, layout: Slots, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[H, W, R, C] and [OH, OW, R, O] -> [N, kh, kw, C, O] of ``shape``, float32."""
    return tiles.kernel_gradient(as_tiles(x), as_tiles(dy), _tiles(layout), window, shape)


def as_tiles(x: jax.Array) -> jax.Array:
    """[H, W, R, C] -> [8, H, W, R / 8, C]."""
    height, width, _, channels = x.shape
    return jnp.transpose(x.reshape(height, width, -1, GROUP, channels), (3, 0, 1, 2, 4))


def from_tiles(x: jax.Array) -> jax.Array:
    """[8, H, W, R / 8, C] -> [H, W, R, C]."""
    return jnp.transpose(x, (1, 2, 3, 0, 4)).reshape(*x.shape[1:3], -1, x.shape[-1])


def _tiles(layout: Slots) -> Tiles:
    """The groups of 8 slots as tiles."""
    slot = layout.slot_of_row
    places = jnp.stack([slot % GROUP, slot // GROUP], axis=-1)
    return Tiles(layout.unit_of_group, layout.row_of_slot.reshape(-1, GROUP).T, places, layout.group_sizes)
