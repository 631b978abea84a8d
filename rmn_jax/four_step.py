"""The four-step training of a routing-by-memory network.

    1  stem training         the plain backbone, for ``stem_epochs``
    2  procedure cloning     every stage's parameters, statistics and momentum, N times
    3  memory initialisation k-means of what each stage is given
    4  routed training       the same schedule goes on, now routed, memories moving (eq. 9)

Steps 1 and 4 are the same loop over the same update. A plain run ("Original") is step 1 to the end.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rmn_jax import routing
from rmn_jax.cloning import clone
from rmn_jax.clustering import k_means
from rmn_jax.train import loop
from rmn_jax.train.run import Run
from rmn_jax.train.state import Metrics, TrainState
from rmn_jax.train.step import make_extract_step


def run_training(run: Run) -> dict[str, Any]:
    """Trains from wherever the run's folder says it is, to the end.

    Returns:
      ``{"top1", "loss", "epochs", "steps", "workdir"}``: accuracy and loss on the evaluation split, and the number of
      updates done.

    Raises:
      Preempted: asked to stop; saved. The same call goes on.
      UserError: see ``Run`` and ``loop.train``.
    """
    found = run.restore()
    run.claim_workdir()
    with run.stopping_on_signals():
        if found is None:
            state, step = run.place(run.initial_state()), 1
        else:
            state, step = found[0], found[1].step
            run.reporter.say(f"going on from update {found[1].update} of {run.total_updates} in {run.workdir}")
        run.reporter.rewind(int(state.update))
        routed = run.config.method == "rmn"
        if step == 1:
            state = loop.train(run, state, step=1, until=run.stem_updates)
            if routed:
                run.check_stop(state, run.stem_updates, 1)
                state = initialise_memories(run, clone_procedures(run, state), stem=state)
                run.save(state, 3)
                run.check_stop(state, run.stem_updates, 3)
        if routed:
            state = loop.train(run, state, step=4, until=run.total_updates)
        result = loop.evaluate(run, state, routed)
    return {
        "top1": result["top1"],
        "loss": result["loss"],
        "epochs": run.config.epochs,
        "steps": int(state.update),
        "workdir": str(run.workdir),
    }


def clone_procedures(run: Run, state: TrainState) -> TrainState:
    """Step 2: parameters, their average, BN statistics and momentum, N times each; memories still zero."""
    num_units = run.config.model.num_units
    run.reporter.say(f"step 2: cloning every stage into {num_units} procedures")
    target = run.state_shapes(routed=True)
    return run.place(
        state._replace(
            params=clone(state.params, num_units),
            batch_stats=clone(state.batch_stats, num_units),
            opt_state=clone(state.opt_state, num_units),
            average=clone(state.average, num_units),
            memory=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), target.memory),
            metrics=Metrics.zeros(len(target.memory), num_units),
        )
    )


def initialise_memories(run: Run, state: TrainState, stem: TrainState) -> TrainState:
    """Step 3: the memories become the centres of a k-means over GAP(f_{i-1}) of all training inputs.

    Args:
      run: the run.
      state: right after cloning.
      stem: at the end of step 1. The cloned network computes, with any memories, what the plain one does, so the
        features are taken from the plain network: evaluation mode, no augmentation, and with conditional attention the
        random condition of step 1. With ``config.ema`` too it is the trained parameters, which step 4 routes by.
    """
    run.reporter.say("step 3: k-means of each stage's inputs for the memories")
    stages = extract_features(run, stem)
    if run.config.model.metric == "cosine":
        stages = [np.asarray(routing.unit_length(jnp.asarray(stage))) for stage in stages]
    memory = {
        f"memory{i + 1}": jnp.asarray(k_means(stage, run.config.model.num_units, run.config.seed))
        for i, stage in enumerate(stages)
    }
    return run.place(state._replace(memory=memory))


def extract_features(run: Run, stem: TrainState, split: str = "train") -> list[np.ndarray]:
    """GAP(f_{i-1}) of every input of a split ("train" or "eval") at each stage of the stem network.

    As many at a time as an update takes: the last bits depend on it, and ``eval_batch_size`` is free to change.

    Returns:
      S arrays [M, C_i] float32, in the split's order.
    """
    extract = make_extract_step(run.model(routed=False), run.preprocess.evaluate, run.mesh)
    parts = []
    for batch in run.dataset.eval_batches(split, run.config.batch_size // run.config.accumulation):
        (pooled, _), mask = extract(stem.variables, batch, run.eval_key), batch["mask"]
        if jax.process_count() > 1:
            pooled, mask = multihost_utils.process_allgather((pooled, mask), tiled=True)
        used = np.asarray(mask)
        parts.append([np.asarray(stage)[used] for stage in pooled])
    return [np.concatenate(stage) for stage in zip(*parts, strict=True)]
