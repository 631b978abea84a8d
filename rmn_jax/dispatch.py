"""The route plan of a stage: how a batch is sorted so that each unit's inputs lie together.

No input is dropped and no capacity exists: a unit's group is as long as its load. The plan is made once
per stage and shared by all its layers. Axes: B inputs, N units (see ``rmn_jax``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class RoutePlan(NamedTuple):
    """A stable sort of a batch by unit.

    Attributes:
      unit: [B] int32, the unit of each row of the sorted batch, non-decreasing.
      order: [B] int32, ``sorted[r] = batch[order[r]]``.
      inverse: [B] int32, ``batch[b] = sorted[inverse[b]]``.
      sizes: [N] int32, rows of each unit; their sum is B, some may be 0.
      offsets: [N] int32, the first row of each unit.
    """

    unit: jax.Array
    order: jax.Array
    inverse: jax.Array
    sizes: jax.Array
    offsets: jax.Array

    @property
    def num_units(self) -> int:
        """N."""
        return self.sizes.shape[0]


def make_plan(assignment: jax.Array, num_units: int) -> RoutePlan:
    """The plan that sorts a batch by its assignment ([B] int32, each in [0, N))."""
    order = jnp.argsort(assignment, stable=True).astype(jnp.int32)
    sizes = jnp.sum(jax.nn.one_hot(assignment, num_units, dtype=jnp.int32), axis=0)
    return RoutePlan(
        unit=assignment[order].astype(jnp.int32),
        order=order,
        inverse=invert(order),
        sizes=sizes,
        offsets=jnp.cumsum(sizes) - sizes,
    )


def invert(order: jax.Array) -> jax.Array:
    """The inverse of a permutation: [B] int32 -> [B] int32."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype), unique_indices=True)


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """``x[order]`` along the first axis, whose gradient is the gather by ``inverse``, not a scatter-add."""
    return x.at[order].get(unique_indices=True, mode="promise_in_bounds")


def _permute_forward(x, order, inverse):
    return permute(x, order, inverse), (order, inverse)


def _permute_backward(residuals, cotangent):
    order, inverse = residuals
    no_gradient = np.zeros(order.shape, jax.dtypes.float0)
    return permute(cotangent, inverse, order), no_gradient, no_gradient


permute.defvjp(_permute_forward, _permute_backward)
