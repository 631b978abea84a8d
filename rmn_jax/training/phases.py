"""The four phases of training a routing-by-memory network. The paper calls them steps.

    1  stem training          the plain backbone, for ``stem_epochs``
    2  procedure cloning      the parameters, statistics and momentum of every stage, N times
    3  memory initialisation  k-means of the inputs of each stage
    4  routed training        the same schedule goes on, now routed; memories move by eq. 9

Phases 1 and 4 are the same loop over the same step. A plain run ("Original") is phase 1 to the end.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax import routing
from rmn_jax.training import loop
from rmn_jax.training.cloning import clone
from rmn_jax.training.clustering import k_means
from rmn_jax.training.extraction import extract
from rmn_jax.training.renewal import renew_memories
from rmn_jax.training.run import Run
from rmn_jax.training.state import Metrics, Phase, TrainState
from rmn_jax.training.tensorboard import check_installed


def run_training(run: Run) -> dict[str, Any]:
    """Trains from the newest checkpoint in the run folder, or from the start, to the end.

    Returns:
      ``{"top1", "loss", "epochs", "steps", "workdir"}``: accuracy and loss on the evaluation split, and the number of
      optimizer steps done.

    Raises:
      Preempted: asked to stop; the state is saved. The same call goes on.
      UserError: see ``Run`` and ``loop.train``.
    """
    if run.config.tensorboard and jax.process_index() == 0:  # only the first process writes
        check_installed()
    trace = run.trace or contextlib.nullcontext()
    with run.stop.on_signals(), run.owned(), contextlib.closing(run.reporter), trace:
        state, phase = _begin(run)
        routed = run.config.method == "rmn"
        if phase is Phase.STEM:
            state = loop.train(run, state, phase=Phase.STEM, until=run.stem_steps)
            if routed:
                run.stop_if_asked(state, run.stem_steps, Phase.STEM)
                state = initialise_memories(run, clone_procedures(run, state), stem=state)
                run.save(state, Phase.MEMORIES)
                run.stop_if_asked(state, run.stem_steps, Phase.MEMORIES)
        if phase is Phase.CLONING:  # a routed run that was imported to find its memories anew
            state = renew_memories(run, state)
            run.save(state, Phase.MEMORIES)
            run.stop_if_asked(state, int(state.step), Phase.MEMORIES)
        if routed:
            state = loop.train(run, state, phase=Phase.ROUTED, until=run.total_steps)
        result = loop.evaluate(run, state, routed)
    return {
        "top1": result["top1"],
        "loss": result["loss"],
        "epochs": run.config.epochs,
        "steps": int(state.step),
        "workdir": str(run.workdir),
    }


def _begin(run: Run) -> tuple[TrainState, Phase]:
    """The state to go on from, and its phase. Makes the folder the run's own."""
    found = run.restore()
    if found is None:
        run.check_beginning()
        run.check_nothing_lost()
    run.claim_workdir()
    run.reporter.say(run.dataset.notes)
    note = run.networks.split_note()
    if note:
        run.reporter.say(note)
    if found is None:
        state, phase = run.initial_state(), Phase.STEM
    else:
        state, phase = found[0], found[1].phase
        run.reporter.say(f"going on from step {found[1].step} of {run.total_steps} in {run.workdir}")
    run.reporter.rewind(int(state.step))
    return state, phase


def clone_procedures(run: Run, state: TrainState) -> TrainState:
    """Phase 2: copies each routed stage's parameters, EMA, BN statistics and momentum N times; memories are zeros."""
    num_units, stages = run.config.model.num_units, run.networks.routed_stages
    named = "every stage" if run.config.model.routed_stages == "all" else f"stage {', '.join(map(str, stages))}"
    run.reporter.say(f"phase 2: cloning {named} into {num_units} procedures")
    target = run.networks.state_shapes(routed=True)

    def cloned(state: TrainState) -> TrainState:
        return state._replace(
            params=clone(state.params, num_units, stages),
            batch_stats=clone(state.batch_stats, num_units, stages),
            opt_state=clone(state.opt_state, num_units, stages),
            ema=clone(state.ema, num_units, stages),
            memory=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), target.memory),
            idle=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), target.idle),
            metrics=Metrics.zeros(len(target.memory), num_units),
        )

    if run.networks.specs(routed=True) is None:
        return run.place(cloned(state))
    # Each device makes its own part: N copies may not fit on one.
    return jax.jit(cloned, out_shardings=run.networks.shardings(routed=True))(state)


def initialise_memories(run: Run, state: TrainState, stem: TrainState) -> TrainState:
    """Phase 3: the memories become the centres of a k-means over GAP(f_{i-1}) of all training inputs.

    Args:
      run: the run.
      state: right after cloning.
      stem: the state at the end of phase 1. In evaluation the plain and the cloned network agree, so features come
        from the plain one: without augmentation, and with conditional attention under the random condition of phase
        1. They use the trained parameters, not the EMA, because phase 4 routes by those.
    """
    run.reporter.say("phase 3: k-means of each routed stage's inputs for the memories")
    # In batches of the training microbatch size: the last bits depend on it, and ``eval_batch_size`` may change.
    batch_size = run.config.batch_size // run.config.accumulation
    pooled = extract(run, stem.variables, routed=False, split="train", batch_size=batch_size).pooled
    features = {stage: pooled[stage - 1] for stage in run.networks.routed_stages}
    if run.config.model.metric == "cosine":
        features = {stage: np.asarray(routing.unit_length(jnp.asarray(rows))) for stage, rows in features.items()}
    memory = {
        f"memory{stage}": jnp.asarray(k_means(rows, run.config.model.num_units, run.config.seed))
        for stage, rows in features.items()
    }
    return run.place(state._replace(memory=memory))
