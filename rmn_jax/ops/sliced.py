"""Backend "sliced": tiles as in ``rmn_jax.ops.tiles``, in groups of at most 128 channels in and out.

cuDNN has grouped kernels up to 128 channels a group. For more, it slices the batch and convolves group by group, many
times slower (measured on an H100). Here a layer C -> O of a tile is C / 128 times O / 128 groups: each takes one slice
of the input's channels to one slice of the output's, and the outputs of all input slices are added. The input is laid
out O / 128 times. Partial outputs are rounded to x's type before they are added, in float32. The kernel gradient needs
no sums.

Not measured yet. Layers that have at most 128 channels, or other multiples, are those of ``tiles``.

Axes: N units, H W height and width, C channels in, O channels out, L slots in a tile, V tiles (see ``rmn_jax``).
"""

import jax
import jax.numpy as jnp

from rmn_jax.ops import tiles
from rmn_jax.ops.window import Window
from rmn_jax.routing.layout import Tiles

# Channels of a group, at most.
SLICE = 128


def slices(channels: int) -> int:
    """In how many slices these channels are: 1 where they are few, or no multiple."""
    return channels // SLICE if channels % SLICE == 0 else 1


def forward(x: jax.Array, kernel: jax.Array, layout: Tiles, window: Window) -> jax.Array:
    """[L, H, W, V, C], [N, kh, kw, C, O] -> [L, OH, OW, V, O]."""
    x, kernel, sliced, count = _sliced(x, kernel, layout)
    return _added(tiles.forward(x, kernel, sliced, window), *count)


def input_gradient(dy, kernel, layout: Tiles, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[L, OH, OW, V, O], [N, kh, kw, C, O] -> [L, H, W, V, C] of ``shape``.

    The cotangent has the role of the input: its slices are laid out C / 128 times, and are added up.
    """
    turned, kernel, sliced, count = _sliced(dy, jnp.swapaxes(kernel, 3, 4), layout)
    wide = (*shape[:3], turned.shape[3], shape[4] // count[1])
    return _added(tiles.input_gradient(turned, jnp.swapaxes(kernel, 3, 4), sliced, window, wide), *count)


def kernel_gradient(x, dy, layout: Tiles, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[L, H, W, V, C] and [L, OH, OW, V, O] -> [N, kh, kw, C, O] of ``shape``, float32."""
    num_units, height, width, channels, features = shape
    inputs, outputs = slices(channels), slices(features)
    x = _repeat(x, inputs, outputs, inner=True)
    dy = _repeat(dy, outputs, inputs, inner=False)
    sliced = _layout(layout, inputs * outputs)
    small = (num_units * outputs * inputs, height, width, channels // inputs, features // outputs)
    parts = tiles.kernel_gradient(x, dy, sliced, window, small)
    parts = parts.reshape(num_units, outputs, inputs, *small[1:])
    return jnp.transpose(parts, (0, 3, 4, 2, 5, 1, 6)).reshape(shape)


def _sliced(x, kernel, layout: Tiles):
    """The layer as one of smaller groups: x, kernels of N (O / 128) (C / 128) units, layout, (slices of C, of O)."""
    num_units, height, width, channels, features = kernel.shape
    inputs, outputs = slices(channels), slices(features)
    x = _repeat(x, inputs, outputs, inner=True)
    kernel = kernel.reshape(num_units, height, width, inputs, channels // inputs, outputs, features // outputs)
    kernel = jnp.transpose(kernel, (0, 5, 3, 1, 2, 4, 6))
    kernel = kernel.reshape(-1, height, width, channels // inputs, features // outputs)
    return x, kernel, _layout(layout, inputs * outputs), (inputs, outputs)


def _repeat(x, own: int, other: int, inner: bool) -> jax.Array:
    """[L, H, W, V, C] -> [L, H, W, V other own, C / own]; with ``inner`` the own slices vary fastest."""
    length, height, width, num_tiles, channels = x.shape
    x = x.reshape(length, height, width, num_tiles, own, channels // own)
    x = jnp.expand_dims(x, 4 if inner else 5)
    shape = list(x.shape)
    shape[4 if inner else 5] = other
    return jnp.broadcast_to(x, shape).reshape(length, height, width, -1, channels // own)


def _layout(layout: Tiles, count: int) -> Tiles:
    """Tiles and units once for each pair of slices. Only the units are used below."""
    unit = (layout.unit[:, None] * count + jnp.arange(count, dtype=layout.unit.dtype)).reshape(-1)
    return layout._replace(unit=unit)


def _added(y: jax.Array, inputs: int, outputs: int) -> jax.Array:
    """[L, H, W, V outputs inputs, O / outputs] -> [L, H, W, V, O]: the sum over the input's slices."""
    if inputs == 1:
        return y.reshape(*y.shape[:3], -1, outputs * y.shape[-1])
    parts = y.reshape(*y.shape[:3], -1, outputs, inputs, y.shape[-1])
    total = jnp.sum(parts.astype(jnp.float32), axis=5).astype(y.dtype)
    return total.reshape(*total.shape[:4], -1)
