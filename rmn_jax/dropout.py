"""What is dropped at random in training: single values, or whole residual branches.

An input's draw depends on its own key and on where in the network it is drawn, on nothing else: neither the
batch it came in, nor how that batch was sorted or cut over devices, changes it.
"""

import zlib

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
        return _dropped(self, x, (*x.shape[1:3], x.shape[-1]) if x.ndim > 3 else x.shape[1:])


class StochasticDepth(nn.Module):
    """Sets an input's whole branch to 0 with probability ``rate``, divides the others by ``1 - rate``.

    For the residual branch of a block, before the shortcut is added (Huang et al., 2016). Does nothing in
    evaluation.
    """

    rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _dropped(self, x, (1, 1, 1))


def _dropped(module: nn.Module, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """``x`` with one draw for each of the values of ``shape`` and each row, or place where ``x`` is [L, H, W, V, C]."""
    layers, rate = module.layers, module.rate
    if not layers.train or rate == 0.0:
        return x
    if layers.keys is None:
        raise ValueError(f"{'/'.join(module.path)} drops at random: pass keys=[B] (one an input) when train=True")
    place = zlib.crc32("/".join(module.path).encode())
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), 1.0 - rate, shape)  # noqa: E731
    if layers.keys.ndim == 2:
        draw = jax.vmap(draw, out_axes=2)
    kept = jax.vmap(draw)(layers.keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
