"""The best state of a run by its held-out top-1, until the next checkpoint, and when a checkpoint is due by the clock.

The best state is kept in host memory and written just before the next checkpoint. If the process dies before, the run
goes on from the checkpoint before, and finds the same best state again.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmn_jax.training.checkpoint import Checkpoints
from rmn_jax.training.manifest import Position, score
from rmn_jax.training.state import TrainState

# With several processes the clock is asked every 16 steps only: each time they wait for one another.
_STEPS_BETWEEN_AGREEMENTS = 16
_NONE = (False, -1.0)


class Held(NamedTuple):
    """A state in host memory, where it is in the run, and its held-out top-1."""

    state: TrainState
    position: Position
    top1: float


class BestState:
    """Holds the best state that has no checkpoint yet.

    Args:
      checkpoints: of the run; an evaluated state must be better than what they record.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._known: tuple[bool, float] | None = None
        self._held: Held | None = None

    def offer(self, state: TrainState, position: Position, top1: float) -> None:
        """Holds a copy of the state if it is better than all before; among equals the earliest stays."""
        if score(position, top1) > self._best_known():
            self._known = score(position, top1)
            self._held = Held(jax.tree.map(_to_host, state), position, top1)

    def take(self, position: Position, top1: float | None) -> Held | None:
        """The state that is to be saved before the checkpoint of ``position``; None if that is better, or none is held.

        Args:
          position: of the checkpoint that will be saved now.
          top1: of its state; None if it was not evaluated.
        """
        held, self._held = self._held, None
        if top1 is None or score(position, top1) <= self._best_known():
            return held
        self._known = score(position, top1)
        return None

    def _best_known(self) -> tuple[bool, float]:
        if self._known is None:
            best = self._checkpoints.best()
            known = _NONE if best is None else score(*best)
            if jax.process_count() > 1:  # all processes must decide alike
                bits = np.array(known, np.float64).view(np.uint32)  # JAX would round to float32
                shared = np.asarray(multihost_utils.broadcast_one_to_all(bits), np.uint32).view(np.float64)
                known = (bool(shared[0]), float(shared[1]))
            self._known = known
        return self._known


def _to_host(leaf: Any) -> np.ndarray:
    """A copy of an array. The next step overwrites the original."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.array(multihost_utils.process_allgather(leaf, tiled=True))
    return np.array(leaf)


class SaveTimer:
    """When a checkpoint is due by the clock.

    Args:
      minutes: between two checkpoints; 0 is never.
    """

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes
        self._asked = 0
        self.restart()

    def restart(self) -> None:
        """A checkpoint was saved."""
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether to save now; asked after each step. With several processes, process 0 decides for all."""
        if not self._seconds:
            return False
        late = time.monotonic() - self._last >= self._seconds
        if jax.process_count() == 1:
            return late
        self._asked += 1
        if self._asked % _STEPS_BETWEEN_AGREEMENTS:
            return False
        return bool(multihost_utils.broadcast_one_to_all(np.bool_(late)))
