"""The training loop of phases 1 and 4: steps, one evaluation and one line each epoch, checkpoints.

At a loss that is not finite (the step also returns NaN if the new state is not finite) training stops within a few
steps with a ``UserError``: one line and exit status 2. The state is not saved; earlier checkpoints stay.
"""

import math
import time
from typing import Any

import jax
import numpy as np

from rmn_jax import routing
from rmn_jax.errors import UserError
from rmn_jax.training import reviving
from rmn_jax.training.checkpoint import Position
from rmn_jax.training.churn import Churn, gathered
from rmn_jax.training.progress import epoch_line
from rmn_jax.training.run import Run
from rmn_jax.training.state import Metrics, Phase, TrainState

# Steps in flight: enough to hide the host's work, few enough that the progress bar is right.
_IN_FLIGHT = 2


def train(run: Run, state: TrainState, *, phase: Phase, until: int) -> TrainState:
    """Trains from ``state.step`` to step ``until``, which is the end of an epoch.

    Raises:
      Preempted: the process was asked to stop; the state is saved.
      UserError: the loss is not finite.
    """
    step, churn, name = int(state.step), Churn(run), run.phase_name(phase)
    if step < until:
        number = "" if name == "plain" else f"phase {phase:d}: "
        first, last = step // run.steps_per_epoch + 1, until // run.steps_per_epoch
        run.reporter.say(f"{number}{name} training, epochs {first} to {last}")
        if run.trace is not None:
            run.trace.begin_phase(phase)
    while step < until:
        epoch = step // run.steps_per_epoch
        end = (epoch + 1) * run.steps_per_epoch
        state, seconds = _train_epoch(run, state, step, end, phase)
        step = end
        line, top1 = _summary(run, state, epoch + 1, phase, seconds), None
        if run.config.revive_after and phase.routed:
            state, line["revived"] = _revive(run, state, last=step == run.total_steps)
        if line["epoch"] % run.config.eval_every_epochs == 0 or step == run.total_steps:
            run.reporter.compiles(f"evaluation of the {name} network")
            result, assignment = evaluate_with_units(run, state, phase.routed)
            line |= {f"eval_{key}": value for key, value in result.items()}
            top1 = result["top1"]
            if phase.routed:
                line["churn"] = churn.since_last(step, assignment)
        run.reporter.record(line)
        run.reporter.say(epoch_line(line, run.config.epochs, name))
        state = state._replace(metrics=jax.tree.map(lambda leaf: leaf * 0, state.metrics))
        due = (epoch + 1) % run.config.checkpoint.every_epochs == 0 or step == until
        if run.timer.due() or due:
            run.save(state, phase, top1)
        elif top1 is not None:
            run.best.offer(state, Position(step, phase), top1)
    return state


def _train_epoch(run: Run, state: TrainState, step: int, end: int, phase: Phase) -> tuple[TrainState, float]:
    """The steps of one epoch, from wherever in it the state is; also the seconds of one step."""
    train_step = run.networks.train_step(phase.routed)
    epoch = step // run.steps_per_epoch
    run.reporter.start_epoch(
        f"epoch {epoch + 1}/{run.config.epochs} {run.phase_name(phase)}",
        run.steps_per_epoch,
        step - epoch * run.steps_per_epoch,
    )
    begun, first, start = time.perf_counter(), step, step
    pending: list[jax.Array] = []

    def read(waiting: int) -> None:
        """Reads losses until ``waiting`` are left. They are read late, so that the devices never wait for the host."""
        while len(pending) > waiting:
            loss = float(pending.pop(0))
            _check_finite(loss, step - len(pending))
            run.reporter.advance(loss)

    try:
        while step < end:
            with run.reporter.compiling(f"training step of the {run.phase_name(phase)} network"):
                state, loss = train_step(state, run.dataset.train_batch(step), run.key)
            step += 1
            pending.append(loss)
            if run.trace is not None:
                run.trace.after_step(loss)
            if step == start + 1 and end > step:
                jax.block_until_ready(loss)  # the first step may compile; it is not timed
                begun, first = time.perf_counter(), step
            read(_IN_FLIGHT)
            if step < end and run.stop.reached(step, phase):
                read(0)
                run.save_and_stop(state, step, phase)
            if step < end and run.timer.due():
                read(0)
                paused = time.perf_counter()
                run.save(state, phase)
                begun += time.perf_counter() - paused
        jax.block_until_ready(state)
        read(0)
    finally:
        run.reporter.end_epoch()
    return state, (time.perf_counter() - begun) / max(1, end - first)


def _revive(run: Run, state: TrainState, last: bool) -> tuple[TrainState, list[list[int]]]:
    """Before the evaluation, so that it is that of the state that is saved; not where no training follows."""
    state = reviving.count_idle_epochs(state)
    return (state, []) if last else reviving.revive_units(run, state, run.config.revive_after)


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the training loss or the network's state is not finite at step {step}, which is not saved; lower "
            "config.learning_rate.peak or lengthen config.learning_rate.warmup_epochs, and start in a new --workdir."
        )


def _summary(run: Run, state: TrainState, epoch: int, phase: Phase, seconds: float) -> dict[str, Any]:
    """The JSON line of an epoch, without its evaluation. Entropy is in nats; drift is the mean over steps."""
    metrics: Metrics = jax.tree.map(np.asarray, jax.device_get(state.metrics))
    count = max(float(metrics.count), 1.0)
    loss = float(metrics.loss) / count
    step = int(state.step)
    _check_finite(loss, step)
    return {
        "epoch": epoch,
        "step": step,
        "phase": phase,
        "learning_rate": float(run.learning_rate(step - 1)),
        "train_loss": loss,
        "train_top1": float(metrics.correct) / count,
        "seconds_per_step": seconds,
        "stages": list(run.networks.model(phase.routed).stages_with_memories),
        "load": metrics.load.astype(int).tolist(),
        "entropy": np.asarray(routing.load_entropy(metrics.load)).tolist(),
        "dead_units": np.asarray(routing.dead_units(metrics.load)).tolist(),
        "memory_drift": (metrics.drift / run.steps_per_epoch).tolist(),
    }


def evaluate(run: Run, state: TrainState, routed: bool, split: str = "eval", confusion: bool = False) -> dict[str, Any]:
    """``{"top1", "top5", "loss", "examples", "load"}`` over a split, with every example counted once.

    With ``config.ema`` the averaged parameters are evaluated.

    Args:
      run: the run.
      state: a state of it.
      routed: whether that is a state of the routed network.
      split: "eval" or "train".
      confusion: whether to count examples by class and predicted class.

    Returns:
      Accuracies in [0, 1], mean loss in nats, number of examples, and the load of the routed stages, S lists of N
      numbers (empty when plain); with ``confusion`` also that array, [K, K] int, with true classes as rows.

    Raises:
      UserError: the loss is not finite, or every example was skipped.
    """
    return evaluate_with_units(run, state, routed, split, confusion)[0]


def evaluate_with_units(
    run: Run, state: TrainState, routed: bool, split: str = "eval", confusion: bool = False
) -> tuple[dict[str, Any], np.ndarray]:
    """As ``evaluate``; also the unit of each example at each routed stage, [S, M] int16 in the order of the split."""
    eval_step = run.networks.eval_step(routed, confusion)
    sums, units = None, []
    for batch in run.dataset.eval_batches(split):
        part = eval_step(state.eval_variables, batch, run.eval_key)
        if part.assignment is not None:
            units.append((part.assignment, batch["mask"]))
        part = part._replace(assignment=None)
        sums = part if sums is None else jax.tree.map(lambda a, b: a + b, sums, part)
    sums = jax.device_get(sums)
    count = 0.0 if sums is None else float(sums.count)
    if not count:
        raise UserError(f"the {split} split has no image to evaluate; repair the data set.")
    if not math.isfinite(float(sums.loss)):
        raise UserError(
            f"the {split} split's loss is not finite: training diverged; lower config.learning_rate.peak "
            "or lengthen config.learning_rate.warmup_epochs, and start in a new --workdir."
        )
    result = {
        "top1": float(sums.top1) / count,
        "top5": float(sums.top5) / count,
        "loss": float(sums.loss) / count,
        "examples": int(count),
        "load": sums.load.astype(int).tolist(),
    }
    if confusion:
        result["confusion"] = np.asarray(sums.confusion)
    return result, gathered(units)
