"""Churn: the share of the held-out images whose unit changed since the last evaluation.

A unit can become good at its images only if they stay with it. Churn says whether they do. It is computed from what the
evaluation finds anyway; training never reads it.

Axes: B batch, M images of a split, S routed stages (see ``rmn_jax``).
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmn_jax.files import write_file
from rmn_jax.training.run import Run

FOLDER = "assignments"


def gathered(units: list[tuple[Any, Any]]) -> np.ndarray:
    """The units of a split, [S, M] int16, from ``(assignment [B, S], mask [B])`` of its batches, of all hosts."""
    if not units:
        return np.zeros((0, 0), np.int16)
    if jax.process_count() > 1:
        units = multihost_utils.process_allgather(units, tiled=True)
    rows = [np.asarray(assignment)[np.asarray(mask)] for assignment, mask in jax.device_get(units)]
    return np.concatenate(rows).T.astype(np.int16)


class Churn:
    """Compares each evaluation with the one before it.

    The units that an evaluation found are kept in the run folder (``assignments/STEP.json``, the newest few). So a run
    that goes on from a checkpoint compares with what an uninterrupted run compares with.

    Args:
      run: the run.
    """

    def __init__(self, run: Run):
        self._folder = run.workdir / FOLDER
        checkpoint, every = run.config.checkpoint, run.config.eval_every_epochs
        self._interval = every * run.steps_per_epoch
        self._first = run.stem_steps
        # A run may go on from its oldest checkpoint. The evaluation before that one is still needed.
        self._kept = (checkpoint.keep + 1) * checkpoint.every_epochs // every + 2
        self._writes = jax.process_index() == 0

    def since_last(self, step: int, assignment: np.ndarray) -> list[float] | None:
        """The churn of each stage at the evaluation after ``step`` steps, from the units [S, M]; it keeps them.

        Returns:
          S shares in [0, 1]. None for the first evaluation of phase 4, and where the one before it is not known: files
          were removed, images became unreadable, or ``eval_every_epochs`` was changed.
        """
        before = self._read((step - 1) // self._interval * self._interval)
        self._keep(step, assignment)
        if before is None or before.shape != assignment.shape:
            return None
        return np.mean(before != assignment, axis=1).tolist()

    def _read(self, step: int) -> np.ndarray | None:
        path = self._folder / f"{step:08d}.json"
        if step <= self._first or not path.exists():
            return None
        try:
            return np.array(json.loads(path.read_text()), np.int16)
        except (OSError, ValueError, TypeError):  # damaged
            return None

    def _keep(self, step: int, assignment: np.ndarray) -> None:
        if not self._writes:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_file(self._folder / f"{step:08d}.json", json.dumps(assignment.tolist()) + "\n")
        steps = sorted(path for path in self._folder.glob("*.json") if int(path.stem) <= step)
        for path in steps[: -self._kept]:
            path.unlink(missing_ok=True)
