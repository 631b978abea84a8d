"""Mixup: training on weighted means of two examples (Zhang et al., 2018, https://arxiv.org/abs/1710.09412).

    x <- w x_i + (1 - w) x_j      y <- w y_i + (1 - w) y_j      w ~ Beta(alpha, alpha)

Rows 2j and 2j + 1 of a batch are partners, and each row draws a w from its own key. Batches come in random order, so
neighbours are a random pair. Devices and microbatches hold whole pairs, so the result does not depend on how a batch is
split. No library that this package uses has mixup.

Axes: B batch (see ``rmn_jax``).
"""

import jax
import jax.numpy as jnp


def mixup_weights(keys: jax.Array, alpha: float) -> jax.Array:
    """The w of each input, from Beta(alpha, alpha) with alpha above 0: keys [B] -> [B] float32 in [0, 1]."""
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)


def partners(rows: jax.Array) -> jax.Array:
    """The partner of each row (rows 2j and 2j + 1 exchanged): [B, ...] -> [B, ...]; B is even."""
    return jnp.flip(rows.reshape(-1, 2, *rows.shape[1:]), axis=1).reshape(rows.shape)


def mix(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """``w x_i + (1 - w) x_j`` of images or targets: rows [B, ...] float32, weights [B] -> [B, ...]."""
    weights = weights.reshape(-1, *(1 for _ in rows.shape[1:]))
    return weights * rows + (1.0 - weights) * partners(rows)
