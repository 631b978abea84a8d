"""The state of a run after a step, and the phase it is in. A checkpoint holds nothing else.

Axes: N units, S stages, C channels (see ``rmn_jax``).
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Phase(enum.IntEnum):
    """The four phases of training (the paper's "steps"). A plain run stays in STEM."""

    STEM = 1
    CLONING = 2
    MEMORIES = 3
    ROUTED = 4

    @property
    def routed(self) -> bool:
        """Whether the state at the end of this phase is that of the routed network."""
        return self is not Phase.STEM

    @property
    def label(self) -> str:
        """The name for people: "stem", "cloning", "memories" or "routed"."""
        return self.name.lower()


class Metrics(NamedTuple):
    """Sums since the beginning of the epoch. They are in the checkpoint, so a run can resume within an epoch.

    Attributes:
      loss: [] float32, sum over inputs.
      correct: [] float32, inputs whose first prediction was right.
      count: [] float32, inputs.
      load: [S, N] float32, inputs of each unit of the S routed stages; [0, N] when plain.
      drift: [S] float32, distance that the memories moved, summed over steps.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    load: jax.Array
    drift: jax.Array

    @classmethod
    def zeros(cls, num_stages: int, num_units: int) -> "Metrics":
        """No inputs counted yet; ``num_stages`` is the number of routed stages, 0 when plain."""
        loss, correct, count = (jnp.zeros((), jnp.float32) for _ in range(3))
        load = jnp.zeros((num_stages, num_units), jnp.float32)
        return cls(loss, correct, count, load, jnp.zeros((num_stages,), jnp.float32))


class TrainState(NamedTuple):
    """The state that a step maps to the next.

    Attributes:
      step: [] int32, optimizer steps done.
      params: the network's parameters, float32.
      batch_stats: running statistics of batch norm, float32.
      memory: ``memory1`` .. ``memoryS`` (of routed stages), [N, C] float32; empty when plain.
      opt_state: of the optax optimizer.
      metrics: see ``Metrics``.
      ema: exponential moving average of the parameters, as ``params`` (see ``rmn_jax.training.ema``); None when off.
      idle: [S, N] int32, epochs without inputs of each unit, for reviving (see ``rmn_jax.training.reviving``); None
        when off or plain.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    memory: Any
    opt_state: Any
    metrics: Metrics
    ema: Any = None
    idle: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that the network is trained with."""
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        return {**variables, "memory": self.memory} if self.memory else variables

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables that the network is evaluated with: the averaged parameters, if there are any.

        Running statistics and memories are those of the trained network: both are moving averages already.
        """
        return self.variables if self.ema is None else {**self.variables, "params": self.ema}
