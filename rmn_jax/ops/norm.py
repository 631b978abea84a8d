"""Batch normalisation over each unit's own inputs, by segment sums on a batch sorted by unit or laid out in tiles.

Axes: B inputs, N units, H W, C channels (see ``rmn_jax``), L inputs to a tile, V tiles (see ``rmn_jax.dispatch``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmn_jax.dispatch import RoutePlan, Tiles, merge_tiles


class Moments(NamedTuple):
    """``mean`` and ``variance`` (biased), [C] or [N, C] float32, and ``values``, [] or [N]: how many were averaged."""

    mean: jax.Array
    variance: jax.Array
    values: jax.Array


def batch_moments(x: jax.Array, plan: RoutePlan | Tiles | None, axis_name: str | None = None) -> Moments:
    """Mean and biased variance over the global batch and all positions, of each unit's inputs alone.

    One reduction over devices carries (sum, sum of squares, count) together.

    Args:
      x: [B, H, W, C], sorted by ``plan``, or [L, H, W, V, C], laid out by it.
      plan: the stage's plan or tiles; None takes the batch as one group (the plain layer).
      axis_name: mesh axis to sum over, or None on one device.

    Returns:
      Moments of shape [N, C] with a plan, [C] without. A unit without inputs has 0 values, mean 0, variance 0.
    """
    x = x.astype(jnp.float32)
    positions = x.shape[1] * x.shape[2]
    if plan is None:
        # A column for the count lets one reduction carry all three.
        count = jnp.full((1,), x.shape[0] * positions, jnp.float32)
        sums = jnp.concatenate([jnp.sum(x, (0, 1, 2)), jnp.sum(x * x, (0, 1, 2)), count])
    else:
        wide = merge_tiles(x)  # XLA fuses more with it
        each = [jnp.sum(values, (1, 2)).reshape(-1, *x.shape[3:]) for values in (wide, wide * wide)]
        rows = jnp.concatenate(each, axis=-1)
        if isinstance(plan, Tiles):
            rows = jnp.sum(jnp.where(plan.owned[..., None], rows, 0.0), axis=0)
        member = jax.nn.one_hot(plan.unit, plan.num_units, axis=0, dtype=jnp.float32)
        sums = jnp.matmul(member, rows, precision=jax.lax.Precision.HIGHEST)
        sums = jnp.concatenate([sums, (plan.sizes * positions).astype(jnp.float32)[:, None]], axis=-1)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    total, squares, count = jnp.split(sums, [x.shape[-1], 2 * x.shape[-1]], axis=-1)
    divisor = jnp.maximum(count, 1.0)
    mean = total / divisor
    variance = jnp.maximum(squares / divisor - mean * mean, 0.0)
    return Moments(mean, variance, count[..., 0])


def normalize(x, mean, variance, scale, bias, plan: RoutePlan | Tiles | None, epsilon: float) -> jax.Array:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` with each row's own unit's vectors.

    Args:
      x: [B, H, W, C], sorted by ``plan``, or [L, H, W, V, C], laid out by it.
      mean: [N, C] float32 with a plan, [C] without.
      variance: alike.
      scale: alike.
      bias: alike.
      plan: the stage's plan or tiles, or None.
      epsilon: added to the variance.

    Returns:
      As x, in its dtype.
    """
    return scale_and_shift(x, *affine(mean, variance, scale, bias, epsilon), plan)


def affine(mean, variance, scale, bias, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The factor and shift, each of their shape, by which ``normalize`` is one multiplication and one addition."""
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    return factor, bias - mean * factor


def scale_and_shift(x: jax.Array, factor: jax.Array, shift: jax.Array, plan: RoutePlan | Tiles | None) -> jax.Array:
    """``x * factor + shift`` with each row's own unit's vectors, [N, C] with a plan, [C] without; in x's dtype."""
    if plan is not None:
        factor, shift = broadcast_to_rows(factor, plan), broadcast_to_rows(shift, plan)
    return (merge_tiles(x).astype(jnp.float32) * factor + shift).astype(x.dtype).reshape(x.shape)


def broadcast_to_rows(values: jax.Array, plan: RoutePlan | Tiles) -> jax.Array:
    """Each row's own unit's vector, as it goes with the rows: [N, C] -> [B, 1, 1, C], or [L, 1, 1, V C] for tiles.

    Zeros at places that are nobody's: a unit without inputs would magnify what is there norm by norm, past all numbers.
    """
    own = of_own_unit(values, plan)
    if isinstance(plan, Tiles):
        own = jnp.where(plan.owned[..., None], own, 0.0).reshape(len(plan.rows), -1)
    return own[:, None, None, :]


def of_own_unit(values: jax.Array, plan: RoutePlan | Tiles) -> jax.Array:
    """Each sorted row's, or each tile's, own unit's vector: [N, C] -> [B, C] or [V, C].

    A product with the one-hot membership, not a gather: its gradient is then a product as well, where the
    gather's would be a scatter-add, slow and on some devices not reproducible.
    """
    member = jax.nn.one_hot(plan.unit, plan.num_units, dtype=values.dtype)
    return jnp.matmul(member, values, precision=jax.lax.Precision.HIGHEST)
