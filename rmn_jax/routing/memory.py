"""Memories: distances to them, the nearest one, their moving average, and statistics of the routing.

How a memory moves in a training step: the step routes with the memories from before it. Each device sums the pooled
inputs of each unit (``unit_sums``), over microbatches too. The sums of all devices are added, and each memory moves
once, towards the mean of its unit's inputs in the global batch (``update_memory``, eq. 9). A unit without inputs keeps
its memory. No gradient flows into memories. ``rmn_jax.training.step`` does this.

Pure functions on arrays; no Flax, no state. Axes: B batch, N units, C channels (see ``rmn_jax``).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rmn_jax.routing.layout import Layout, Slots, pixel_axes


def global_average_pool(x: jax.Array, layout: Layout = None) -> jax.Array:
    """Mean over height and width, in float32: [B, H, W, C] -> [B, C], [L, H, W, V, C] -> [L, V, C].

    A map in slots needs its ``layout``: [H, W, R, C] -> [R, C].
    """
    if jax.default_backend() != "cpu" or isinstance(layout, Slots):
        return jnp.mean(x, axis=pixel_axes(layout), dtype=jnp.float32)
    # XLA:CPU sums the pixels on one core, one channel at a time. A matrix product with ones is five times faster.
    pixels = x.shape[1] * x.shape[2]
    rows = x.astype(jnp.float32).reshape(x.shape[0], pixels, -1)
    sums = jnp.matmul(jnp.ones((x.shape[0], 1, pixels), jnp.float32), rows)[:, 0]
    return sums.reshape(x.shape[0], *x.shape[3:]) / pixels


METRICS = ("euclidean", "cosine")


def squared_distances(pooled: jax.Array, memory: jax.Array, metric: str = "euclidean") -> jax.Array:
    """Squared distance of every input to every memory.

    Computed as a sum of squared differences, not by a matrix product: the differences do not cancel when two memories
    are close, and N is small.

    Args:
      pooled: [B, C] float32, GAP of the stage's input.
      memory: [N, C] float32.
      metric: "euclidean" (the paper's) or "cosine": both are first scaled to length 1, which orders by angle.

    Returns:
      [B, N] float32.

    Raises:
      AssertionError: shapes that do not fit.
    """
    chex.assert_rank([pooled, memory], 2)
    chex.assert_equal_shape_suffix([pooled, memory], 1)
    if metric == "cosine":
        pooled, memory = unit_length(pooled), unit_length(memory)
    difference = pooled[:, None, :] - memory[None, :, :]
    return jnp.sum(difference * difference, axis=-1)


def unit_length(x: jax.Array) -> jax.Array:
    """Rows scaled to Euclidean length 1, [..., C] -> [..., C]; a zero row stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest_unit(pooled: jax.Array, memory: jax.Array, metric: str = "euclidean") -> jax.Array:
    """Assignment R = argmin_j || m_j - GAP(f) ||_2 (eq. 4); the lowest index wins a tie.

    Args:
      pooled: [B, C] float32.
      memory: [N, C] float32.
      metric: see ``squared_distances``.

    Returns:
      [B] int32, each in [0, N).
    """
    return jnp.argmin(squared_distances(pooled, memory, metric), axis=-1).astype(jnp.int32)


class UnitSums(NamedTuple):
    """Inputs of a batch that each unit received: their sum ``total`` [N, C] float32 and number ``inputs`` [N] float32.

    Sums, not means: the sums of several devices add up to those of the global batch.
    """

    total: jax.Array
    inputs: jax.Array


def unit_sums(pooled: jax.Array, assignment: jax.Array, num_units: int) -> UnitSums:
    """Sum [N, C] and number [N] of the pooled inputs of each unit, from inputs [B, C] and assignment [B].

    Raises:
      AssertionError: shapes that do not fit.
    """
    chex.assert_rank([pooled, assignment], [2, 1])
    chex.assert_equal_shape_prefix([pooled, assignment], 1)
    member = jax.nn.one_hot(assignment, num_units, dtype=jnp.float32)
    total = jnp.matmul(member.T, pooled, precision=jax.lax.Precision.HIGHEST)
    return UnitSums(total, jnp.sum(member, axis=0))


def update_memory(memory: jax.Array, sums: UnitSums, alpha: float) -> jax.Array:
    """The memory after a step (eq. 9): ``m <- alpha m + (1 - alpha) mean``.

    Args:
      memory: [N, C] float32.
      sums: sums of the global batch. A unit without inputs keeps its memory.
      alpha: momentum in [0, 1]; larger is smoother.

    Returns:
      [N, C] float32.

    Raises:
      AssertionError: shapes that do not fit.
    """
    chex.assert_equal_shape([memory, sums.total])
    chex.assert_shape(sums.inputs, (memory.shape[0],))
    mean = sums.total / jnp.maximum(sums.inputs, 1.0)[:, None]
    moved = alpha * memory + (1.0 - alpha) * mean
    return jnp.where(sums.inputs[:, None] > 0, moved, memory)


def memory_drift(before: jax.Array, after: jax.Array) -> jax.Array:
    """Distance that a memory moved, mean over units: [N, C] twice -> [] float32."""
    return jnp.mean(jnp.linalg.norm(after - before, axis=-1))


def load_entropy(load: jax.Array) -> jax.Array:
    """Entropy in nats of the share of inputs of each unit: [..., N] -> [...]. An even load has log N."""
    share = load / jnp.maximum(jnp.sum(load, axis=-1, keepdims=True), 1.0)
    return -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0), axis=-1)


def dead_units(load: jax.Array) -> jax.Array:
    """Number of units without inputs: counts [..., N] -> [...] int32."""
    return jnp.sum(load == 0, axis=-1).astype(jnp.int32)
