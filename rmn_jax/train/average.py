"""An exponential moving average of the parameters, for evaluation; training never reads it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def start_average(params: Any, decay: float) -> Any:
    """The average before the first update: a copy of the parameters, None when ``decay`` is 0 (off)."""
    return jax.tree.map(jnp.copy, params) if decay else None  # not the same buffers: updates reuse them


def move_average(average: Any, params: Any, decay: float, update: jax.Array) -> Any:
    """``a <- d a + (1 - d) params`` with ``d = min(decay, (1 + n) / (10 + n))``.

    The rule of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``: early on the average spans
    about the last ninth of the updates, so that the random initial values are soon forgotten.

    Args:
      average: as ``params``, or None (off), which stays None.
      params: after the update.
      decay: above 0 and below 1.
      update: [] int32, n, updates done before this one.
    """
    if average is None:
        return None
    step_size = jnp.maximum(1.0 - decay, 9.0 / (10.0 + update))  # 1 - d, without cancellation
    return optax.incremental_update(params, average, step_size)
