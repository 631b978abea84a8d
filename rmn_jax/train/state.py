"""All that a run is at one update; nothing else needs saving.

Axes: N units, S stages, C channels (see ``rmn_jax``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Metrics(NamedTuple):
    """Sums since the epoch began, so that a run stopped mid-epoch reports what an unstopped one does.

    Attributes:
      loss: [] float32, sum over inputs.
      correct: [] float32, inputs whose first guess was right.
      count: [] float32, inputs.
      load: [S, N] float32, inputs each unit got; [0, N] when plain.
      drift: [S] float32, sum over updates of how far the memories moved.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    load: jax.Array
    drift: jax.Array

    @classmethod
    def zeros(cls, num_stages: int, num_units: int) -> "Metrics":
        """Nothing counted yet; ``num_stages`` is 0 when plain."""
        loss, correct, count = (jnp.zeros((), jnp.float32) for _ in range(3))
        load = jnp.zeros((num_stages, num_units), jnp.float32)
        return cls(loss, correct, count, load, jnp.zeros((num_stages,), jnp.float32))


class TrainState(NamedTuple):
    """The state that an update maps to the next.

    Attributes:
      update: [] int32, updates done.
      params, batch_stats: the network's variables (float32).
      memory: ``memory1`` .. ``memoryS``, [N, C] float32; empty when plain.
      opt_state: optax's.
      metrics: see ``Metrics``.
      average: moving average of the parameters, as ``params`` (see ``rmn_jax.train.average``); None when off.
    """

    update: jax.Array
    params: Any
    batch_stats: Any
    memory: Any
    opt_state: Any
    metrics: Metrics
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is trained with."""
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        return {**variables, "memory": self.memory} if self.memory else variables

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What the network is evaluated with: the averaged parameters where there are any.

        The running statistics and the memories are the trained network's: both are moving averages already.
        """
        return self.variables if self.average is None else {**self.variables, "params": self.average}
