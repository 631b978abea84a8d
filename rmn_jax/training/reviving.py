"""Reviving dead units, off by default: a unit without inputs for k epochs begins again as half of the fullest one.

It takes the fullest unit's parameters, moving average, batch norm statistics and momenta, and its row in the
condition of the attention, frozen ones too. So the two compute the same, and the network's outputs do not change. Its
memory becomes the mean of the half of the fullest unit's inputs that are farthest from the fullest unit's memory.
Most of these go to it from now on.

Everything is a function of the state, of the training images and of the configuration, so a run that was stopped goes
on to the same bits.

Axes: B batch, N units, S routed stages, M training images, C channels (see ``rmn_jax``).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax import routing
from rmn_jax.training.cloning import copy_unit
from rmn_jax.training.extraction import extract
from rmn_jax.training.run import Run
from rmn_jax.training.state import TrainState


def count_idle_epochs(state: TrainState) -> TrainState:
    """The state with ``idle`` counted on, at the end of an epoch: from the loads of the epoch."""
    return state._replace(idle=jnp.where(state.metrics.load == 0, state.idle + 1, 0))


def revive_units(run: Run, state: TrainState, after: int) -> tuple[TrainState, list[list[int]]]:
    """Revives the units of a routed state that had no inputs for ``after`` epochs; says which.

    Inputs and distances are those of the whole training split, in evaluation mode, before any unit is revived. Copies
    compute the same, so the inputs of later stages are still those. If two units of a stage are dead, the second takes
    the unit that is then the fullest.

    Args:
      run: the run.
      state: of its routed network, with ``idle``.
      after: k, epochs; 1 or more.

    Returns:
      The state, and ``[stage, unit, source]`` for each unit that was revived.
    """
    idle = np.asarray(jax.device_get(state.idle))
    if not (idle >= after).any():
        return state, []
    revived = []
    batch_size = run.config.batch_size // run.config.accumulation  # as in phase 3
    pooled = extract(run, state.variables, routed=True, split="train", batch_size=batch_size).pooled
    model = run.config.model
    conditions = model.num_units if model.attention == "conditional" else 0
    for row, stage in enumerate(run.networks.routed_stages):
        for unit in np.flatnonzero(idle[row] >= after):
            memory = np.asarray(jax.device_get(state.memory[f"memory{stage}"]))
            source, centre = split_fullest(pooled[stage - 1], memory, int(unit), model.metric)
            if centre is None:
                continue
            state = run.place(_copied(state, stage, row, source, int(unit), centre, conditions))
            revived.append([stage, int(unit), source])
            run.reporter.say(f"stage {stage}: the dead unit {unit} begins again with half of unit {source}'s inputs")
    return state, revived


def split_fullest(
    features: np.ndarray, memory: np.ndarray, dead: int, metric: str = "euclidean"
) -> tuple[int, np.ndarray | None]:
    """The unit with the most inputs, and the mean of the half of its inputs that is farthest from its memory.

    Args:
      features: [M, C] float32, inputs of the stage.
      memory: [N, C] float32.
      dead: the unit to revive; inputs that are nearest to its memory count for the next one.
      metric: see ``rmn_jax.routing.squared_distances``.

    Returns:
      The unit's number, the lowest among equals, and [C] float32; None if it has one input alone.
    """
    distances = np.array(_distances(features, memory, metric))
    distances[:, dead] = np.inf
    assignment = distances.argmin(axis=1)
    fullest = int(np.bincount(assignment, minlength=len(memory)).argmax())
    own = np.flatnonzero(assignment == fullest)
    if len(own) < 2:
        return fullest, None
    farthest = own[np.argsort(-distances[own, fullest], kind="stable")[: len(own) // 2]]
    return fullest, features[farthest].mean(axis=0, dtype=np.float64).astype(np.float32)


@functools.partial(jax.jit, static_argnames="metric")
def _distances(features: Any, memory: Any, metric: str) -> jax.Array:
    return jnp.stack([routing.squared_distances(features, unit[None], metric)[:, 0] for unit in memory], axis=1)


@functools.partial(jax.jit, static_argnames=("stage", "row", "num_conditions"))
def _copied(state: TrainState, stage: int, row: int, source: int, unit: int, centre, num_conditions: int) -> TrainState:
    name = f"memory{stage}"
    copied: Any = {
        key: copy_unit(getattr(state, key), stage, source, unit, num_conditions)
        for key in ("params", "batch_stats", "opt_state", "ema")
    }
    return state._replace(
        **copied,
        memory={**state.memory, name: state.memory[name].at[unit].set(centre)},
        idle=state.idle.at[row, unit].set(0),
    )
