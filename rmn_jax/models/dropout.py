"""Dropout of single values, and stochastic depth, which drops whole residual branches.

The draw of an input depends only on the input's key and on the module's path in the network. It does not depend on the
batch, on the layout, or on how the batch is split over devices.

Axes: B batch, H W height and width, C channels, L slots in a tile, V tiles (see ``rmn_jax``).
"""

import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.models.layers import Layers
from rmn_jax.routing.layout import Slots, pixel_axes


class Dropout(nn.Module):
    """Sets each value to 0 with probability ``rate`` and divides the others by ``1 - rate``.

    In evaluation it returns its input and needs no keys.

    Attributes:
      rate: probability in [0, 1).
      layers: tells whether this is training, and has the keys.
    """

    rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _dropped(self, x, lambda shape: shape)


class StochasticDepth(nn.Module):
    """Sets the whole branch of an input to 0 with probability ``rate`` and divides the others by ``1 - rate``.

    For the residual branch of a block, before the shortcut is added (Huang et al., 2016). In evaluation it returns its
    input and needs no keys.

    Attributes:
      rate: probability in [0, 1).
      layers: tells whether this is training, and has the keys.
    """

    rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _dropped(self, x, lambda shape: (1,) * len(shape))


def _dropped(module: nn.Module, x: jax.Array, shape_of: Callable[[tuple[int, ...]], tuple[int, ...]]) -> jax.Array:
    """Drops from x [B, ..., C], or [L, H, W, V, C] in tiles, with one draw for each row or slot.

    A draw has the shape ``shape_of(shape of one input)`` and is broadcast over the input.
    """
    layers, rate = module.layers, module.rate
    if not layers.train or rate == 0.0:
        return x
    if layers.keys is None:
        raise ValueError(f"{'/'.join(module.path)} drops at random: pass keys=[B] (one for each input) when train=True")
    position = zlib.crc32("/".join(module.path).encode())
    in_tiles = layers.keys.ndim == 2  # [L, V], for x [L, H, W, V, C]
    in_slots = isinstance(layers.layout, Slots)  # [R], for x [H, W, R, C]
    height, width = pixel_axes(layers.layout)
    shape = shape_of((x.shape[height], x.shape[width], x.shape[-1]) if x.ndim > 3 else x.shape[1:])
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, position), 1.0 - rate, shape)  # noqa: E731
    kept = jax.vmap(jax.vmap(draw, out_axes=2) if in_tiles else draw, out_axes=2 if in_slots else 0)(layers.keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
