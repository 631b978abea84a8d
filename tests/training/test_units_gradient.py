"""The gradient of a unit: weighed by its share of the batch, or averaged over the unit's inputs."""

import jax
import numpy as np
import optax
import pytest
from small_states import BATCH, UNITS, make, make_batch, noisy

from rmn_jax.training.cloning import is_procedural
from rmn_jax.training.step import make_mesh, make_train_step


@pytest.mark.parametrize("devices", [1, 8])
def test_own_is_share_times_batch_size_over_inputs_of_the_unit(devices, rng):
    optimizer = optax.sgd(1.0)  # rate 1: the change of a parameter is its gradient
    batch, change, load = make_batch(rng), {}, None
    for kind in ("share", "own"):
        model, state = make(True, "none", optimizer)
        before = jax.device_get(state.params)
        step = make_train_step(
            model, optimizer, noisy, make_mesh(jax.devices()[:devices]), alpha=0.9, unit_gradient=kind
        )
        after, _ = step(state, batch, jax.random.key(7))
        change[kind] = jax.tree.map(lambda a, b: np.asarray(a) - b, jax.device_get(after.params), before)
        load = np.asarray(after.metrics.load)
    assert load is not None and (load[0] > 0).sum() == 2  # the inputs are not all in one unit
    share, own = (jax.tree_util.tree_leaves_with_path(change[kind]) for kind in ("share", "own"))
    for (path, a), (_, b) in zip(share, own, strict=True):
        if not is_procedural(path):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
            continue
        stage = next(i for i in range(2) if any(getattr(key, "key", "") == f"stage{i + 1}" for key in path))
        for unit in range(UNITS):
            factor = BATCH / max(load[stage, unit], 1)
            np.testing.assert_allclose(b[unit], factor * a[unit], rtol=1e-4, atol=1e-6 * factor)
