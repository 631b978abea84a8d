"""What is dropped at random in training: single values, or whole residual branches.

An input's draw depends on its own key and on where in the network it is drawn, on nothing else: neither the
batch it came in, nor how that batch was sorted or cut over devices, changes it.
"""

import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.layers import Layers


class Dropout(nn.Module):
    """Sets each value to 0 with probability ``rate`` and divides the others by ``1 - rate``.

    Does nothing in evaluation, where no keys are needed.
    """

    rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _dropped(self, x, lambda shape: shape)


class StochasticDepth(nn.Module):
    """Sets an input's whole branch to 0 with probability ``rate``, divides the others by ``1 - rate``.

    For the residual branch of a block, before the shortcut is added (Huang et al., 2016). Does nothing in
    evaluation.
    """

    rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _dropped(self, x, lambda shape: (1,) * len(shape))


def _dropped(module: nn.Module, x: jax.Array, shape_of: Callable[[tuple[int, ...]], tuple[int, ...]]) -> jax.Array:
    """``x`` with a draw of ``shape_of(an input's shape)`` for each row, or each place where ``x`` is in tiles."""
    layers, rate = module.layers, module.rate
    if not layers.train or rate == 0.0:
        return x
    if layers.keys is None:
        raise ValueError(f"{'/'.join(module.path)} drops at random: pass keys=[B] (one an input) when train=True")
    place = zlib.crc32("/".join(module.path).encode())
    in_tiles = layers.keys.ndim == 2  # [L, V], for x [L, H, W, V, C]
    shape = shape_of((*x.shape[1:3], x.shape[-1]) if in_tiles else x.shape[1:])
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), 1.0 - rate, shape)  # noqa: E731
    kept = jax.vmap(jax.vmap(draw, out_axes=2) if in_tiles else draw)(layers.keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
