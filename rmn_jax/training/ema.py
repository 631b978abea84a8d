"""Exponential moving average (EMA) of the parameters, for evaluation. Training never reads it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def start_ema(params: Any, decay: float) -> Any:
    """The average before the first step: a copy of the parameters, or None if ``decay`` is 0 (off)."""
    return jax.tree.map(jnp.copy, params) if decay else None  # a copy, because a step reuses the state's buffers


def update_ema(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """``a <- d a + (1 - d) params`` with ``d = min(decay, (1 + n) / (10 + n))``.

    The rule of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``. Early in training the average covers
    about the last ninth of the steps, so it soon forgets the random initial values.

    Args:
      ema: as ``params``; None (off) stays None.
      params: after the step.
      decay: above 0 and below 1.
      step: [] int32, n, steps done before this one.
    """
    if ema is None:
        return None
    step_size = jnp.maximum(1.0 - decay, 9.0 / (10.0 + step))  # 1 - d, without cancellation
    return optax.incremental_update(params, ema, step_size)
