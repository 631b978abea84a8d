"""Phase 3 of a network whose procedures differ already: memories found anew, on other data.

Axes: S stages, N units (see ``rmn_jax``).
"""

import jax.numpy as jnp
import numpy as np

from rmn_jax import routing
from rmn_jax.training.clustering import k_means
from rmn_jax.training.extraction import extract
from rmn_jax.training.run import Run
from rmn_jax.training.state import TrainState


def renew_memories(run: Run, state: TrainState) -> TrainState:
    """K-means of each stage's inputs, begun at the old memories, so that centre j stays with procedure j.

    Stage after stage: what a stage receives depends on the memories of those before it.

    Args:
      run: the run.
      state: of its routed network.
    """
    run.reporter.say("phase 3: k-means of each stage's inputs, from the old memories")
    batch_size = run.config.batch_size // run.config.accumulation
    for stage in run.networks.routed_stages:
        name = f"memory{stage}"
        inputs = extract(run, state.variables, routed=True, split="train", batch_size=batch_size).pooled[stage - 1]
        start = np.asarray(state.memory[name])
        if run.config.model.metric == "cosine":
            inputs, start = (np.asarray(routing.unit_length(jnp.asarray(each))) for each in (inputs, start))
        memory = k_means(inputs, run.config.model.num_units, run.config.seed, start)
        state = run.place(state._replace(memory={**state.memory, name: jnp.asarray(memory)}))
    return state
