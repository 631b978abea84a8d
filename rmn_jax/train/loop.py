"""The loop of steps 1 and 4: updates until a given one, an evaluation and a line an epoch, checkpoints."""

import math
import time
from typing import Any

import jax
import numpy as np

from rmn_jax import routing
from rmn_jax.errors import UserError
from rmn_jax.train.progress import STEP_NAMES, epoch_line
from rmn_jax.train.run import Run
from rmn_jax.train.state import Metrics, TrainState

# Updates under way at once: enough to hide the host's work, few enough that the bar tells the truth.
_IN_FLIGHT = 2


def train(run: Run, state: TrainState, *, step: int, until: int) -> TrainState:
    """Updates from ``state.update`` to ``until``, which is the end of an epoch.

    Raises:
      Preempted: the process was asked to stop; the state is saved.
      UserError: the loss is no longer finite.
    """
    update = int(state.update)
    while update < until:
        epoch = update // run.updates_per_epoch
        end = (epoch + 1) * run.updates_per_epoch
        state, seconds = _train_epoch(run, state, update, end, step)
        update = end
        line = _summary(run, state, epoch + 1, step, seconds)
        if line["epoch"] % run.config.eval_every_epochs == 0 or update == run.total_updates:
            line |= {f"eval_{name}": value for name, value in evaluate(run, state, step > 1).items()}
        run.reporter.record(line)
        run.reporter.say(epoch_line(line, run.config.epochs))
        state = state._replace(metrics=jax.tree.map(lambda leaf: leaf * 0, state.metrics))
        if (epoch + 1) % run.config.checkpoint.every_epochs == 0 or update == until:
            run.save(state, step)
    return state


def _train_epoch(run: Run, state: TrainState, update: int, end: int, step: int) -> tuple[TrainState, float]:
    """One epoch's updates, from wherever in it the state is; also the seconds an update took."""
    train_step = run.train_step(routed=step > 1)
    epoch = update // run.updates_per_epoch
    run.reporter.start_epoch(
        f"epoch {epoch + 1}/{run.config.epochs} {STEP_NAMES[step]}",
        run.updates_per_epoch,
        update - epoch * run.updates_per_epoch,
    )
    begun, first, pending = time.perf_counter(), update, []
    try:
        while update < end:
            state, loss = train_step(state, run.dataset.train_batch(update), run.key)
            update += 1
            pending.append(loss)
            if update == first + 1 and end > update:
                jax.block_until_ready(loss)  # the first update may compile; it is left out of the timing
                begun, first = time.perf_counter(), update
            run.reporter.advance(float(pending.pop(0)) if len(pending) > _IN_FLIGHT else None)
            if update < end:
                run.check_stop(state, update, step)
        jax.block_until_ready(state)
    finally:
        run.reporter.end_epoch()
    return state, (time.perf_counter() - begun) / max(1, end - first)


def _summary(run: Run, state: TrainState, epoch: int, step: int, seconds: float) -> dict[str, Any]:
    """The epoch's JSON line, without its evaluation. Entropy is in nats; drift is the mean an update."""
    metrics: Metrics = jax.tree.map(np.asarray, jax.device_get(state.metrics))
    count = max(float(metrics.count), 1.0)
    loss = float(metrics.loss) / count
    update = int(state.update)
    if not math.isfinite(loss):
        raise UserError(
            f"the training loss is not finite at epoch {epoch}; lower config.learning_rate.peak "
            "or lengthen config.learning_rate.warmup_epochs, and start in a new --workdir."
        )
    return {
        "epoch": epoch,
        "update": update,
        "step": step,
        "learning_rate": float(run.learning_rate(update - 1)),
        "train_loss": loss,
        "train_top1": float(metrics.correct) / count,
        "seconds_per_update": seconds,
        "load": metrics.load.astype(int).tolist(),
        "entropy": np.asarray(routing.load_entropy(metrics.load)).tolist(),
        "dead_units": np.asarray(routing.dead_units(metrics.load)).tolist(),
        "memory_drift": (metrics.drift / run.updates_per_epoch).tolist(),
    }


def evaluate(run: Run, state: TrainState, routed: bool, split: str = "eval") -> dict[str, Any]:
    """``{"top1", "top5", "loss", "examples", "load"}`` over a split, every example counted once.

    With ``config.ema`` it is the averaged parameters that are evaluated.

    Raises:
      UserError: the loss is not finite, or every example was skipped.
    """
    eval_step = run.eval_step(routed)
    sums = None
    for batch in run.dataset.eval_batches(split):
        part = eval_step(state.eval_variables, batch, run.eval_key)
        sums = part if sums is None else jax.tree.map(lambda a, b: a + b, sums, part)
    sums = jax.device_get(sums)
    count = 0.0 if sums is None else float(sums.count)
    if not count:
        raise UserError(f"there is no image to evaluate on in the {split} split; mend the data set.")
    if not math.isfinite(float(sums.loss)):
        raise UserError(
            f"the {split} split's loss is not finite: training diverged; lower config.learning_rate.peak "
            "or lengthen config.learning_rate.warmup_epochs, and start in a new --workdir."
        )
    return {
        "top1": float(sums.top1) / count,
        "top5": float(sums.top5) / count,
        "loss": float(sums.loss) / count,
        "examples": int(count),
        "load": sums.load.astype(int).tolist(),
    }
