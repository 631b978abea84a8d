"""Where inputs are routed: nearest memory, the memories' moving average, and what routing did.

Pure functions on arrays; no Flax, no state. Axes: B inputs, N units, C channels (see ``rmn_jax``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean over height and width, in float32: [B, H, W, C] -> [B, C], [L, H, W, V, C] -> [L, V, C]."""
    if jax.default_backend() != "cpu":
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    # XLA:CPU adds up an input's pixels on one core, a channel at a time; a product with ones is five times faster.
    pixels = x.shape[1] * x.shape[2]
    rows = x.astype(jnp.float32).reshape(x.shape[0], pixels, -1)
    sums = jnp.matmul(jnp.ones((x.shape[0], 1, pixels), jnp.float32), rows)[:, 0]
    return sums.reshape(x.shape[0], *x.shape[3:]) / pixels


METRICS = ("euclidean", "cosine")


def squared_distances(pooled: jax.Array, memory: jax.Array, metric: str = "euclidean") -> jax.Array:
    """Squared distance of every input to every memory.

    Taken as a sum of squared differences, not through a matrix product: the difference form does not
    cancel when two memories lie close together, and N is small.

    Args:
      pooled: [B, C] float32, GAP of the stage's input.
      memory: [N, C] float32.
      metric: "euclidean" (the paper's), or "cosine": both brought to length 1 first, which orders by angle.

    Returns:
      [B, N] float32.
    """
    if metric == "cosine":
        pooled, memory = unit_length(pooled), unit_length(memory)
    difference = pooled[:, None, :] - memory[None, :, :]
    return jnp.sum(difference * difference, axis=-1)


def unit_length(x: jax.Array) -> jax.Array:
    """Rows scaled to Euclidean length 1, [..., C] -> [..., C]; a row of zeros stays one."""
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
    """What a batch sent to each unit of a stage: ``total`` [N, C] float32 and ``inputs`` [N] float32.

    Sums, not means, so that the sums of several devices add up to those of the global batch.
    """

    total: jax.Array
    inputs: jax.Array


def unit_sums(pooled: jax.Array, assignment: jax.Array, num_units: int) -> UnitSums:
    """Sum of the pooled inputs of each unit ([B, C], [B] -> [N, C]) and their number ([N])."""
    member = jax.nn.one_hot(assignment, num_units, dtype=jnp.float32)
    total = jnp.matmul(member.T, pooled, precision=jax.lax.Precision.HIGHEST)
    return UnitSums(total, jnp.sum(member, axis=0))


def update_memory(memory: jax.Array, sums: UnitSums, alpha: float) -> jax.Array:
    """The memory after an update (eq. 9): ``m <- alpha m + (1 - alpha) mean``.

    Args:
      memory: [N, C] float32.
      sums: the global batch's sums; a unit with no inputs keeps its memory.
      alpha: momentum in [0, 1]; larger is smoother.

    Returns:
      [N, C] float32.
    """
    mean = sums.total / jnp.maximum(sums.inputs, 1.0)[:, None]
    moved = alpha * memory + (1.0 - alpha) * mean
    return jnp.where(sums.inputs[:, None] > 0, moved, memory)


def memory_drift(before: jax.Array, after: jax.Array) -> jax.Array:
    """Mean over units of the distance a memory moved: [N, C] twice -> [] float32."""
    return jnp.mean(jnp.linalg.norm(after - before, axis=-1))


def load_entropy(load: jax.Array) -> jax.Array:
    """Entropy in nats of the share of inputs each unit got: [..., N] -> [...]; log N is even load."""
    share = load / jnp.maximum(jnp.sum(load, axis=-1, keepdims=True), 1.0)
    return -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0), axis=-1)


def dead_units(load: jax.Array) -> jax.Array:
    """Number of units that got no input: [..., N] counts -> [...] int32."""
    return jnp.sum(load == 0, axis=-1).astype(jnp.int32)
