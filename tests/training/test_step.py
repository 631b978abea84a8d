"""One optimizer step: on one device and on eight, and against arithmetic by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_states import BATCH, UNITS, make, make_batch, noisy, normalise

from rmn_jax.models import RMN, create_backbone
from rmn_jax.training.step import AXIS, make_eval_step, make_mesh, make_train_step


@pytest.mark.parametrize(
    ("routed", "attention"), [(False, "conditional"), (True, "conditional"), (True, "none")], ids=str
)
def test_eight_devices_take_the_same_step_as_one(routed, attention, rng):
    optimizer = optax.sgd(1.0, momentum=0.9)  # rate 1: the change of a parameter is its gradient
    batch, results = make_batch(rng), []
    for devices in (1, 8):
        model, state = make(routed, attention, optimizer)
        step = make_train_step(model, optimizer, noisy, make_mesh(jax.devices()[:devices]), alpha=0.9)
        state, loss = step(state, batch, jax.random.key(7))
        results.append(jax.device_get((state, loss)))
    (one, one_loss), (eight, eight_loss) = results
    np.testing.assert_allclose(one_loss, eight_loss, rtol=1e-5)
    for name in ("params", "batch_stats", "memory", "opt_state", "metrics"):
        a, b = getattr(one, name), getattr(eight, name)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)
    if routed:
        assert one.metrics.load.sum(-1).tolist() == [BATCH, BATCH]
        assert (one.metrics.load[:, 2] == 0).all() and (one.metrics.load[0, :2] > 0).all()


def test_a_unit_without_inputs_keeps_its_parameters_statistics_and_memory(rng):
    optimizer = optax.sgd(0.1, momentum=0.9)
    model, state = make(True, "none", optimizer)
    before = jax.device_get(state)
    step = make_train_step(model, optimizer, noisy, make_mesh(jax.devices()[:1]), alpha=0.9)
    after = jax.device_get(step(state, make_batch(rng), jax.random.key(0))[0])
    for name in ("stage1", "stage2"):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a[2], b[2]),
            (before.params[name], before.batch_stats[name]),
            (after.params[name], after.batch_stats[name]),
        )
    np.testing.assert_array_equal(before.memory["memory1"][2], after.memory["memory1"][2])
    assert (before.memory["memory1"][0] != after.memory["memory1"][0]).all()


def test_memories_move_by_equation_9_over_the_global_batch(rng):
    optimizer = optax.sgd(0.1)
    model, state = make(True, "none", optimizer)
    batch = make_batch(rng)
    before = jax.device_get(state)
    images = normalise(jnp.asarray(batch["image"]))
    local = model.clone(axis_name=None)
    result, _ = local.apply(before.variables, images, train=True, mutable=["batch_stats"])
    step = make_train_step(model, optimizer, lambda keys, x: normalise(x), make_mesh(), alpha=0.8)
    after = jax.device_get(step(state, batch, jax.random.key(0))[0])
    for i in (0, 1):
        pooled, assignment = np.asarray(result.pooled[i]), np.asarray(result.assignment[i])
        for unit in range(UNITS):
            expected = before.memory[f"memory{i + 1}"][unit]
            if (assignment == unit).any():
                expected = 0.8 * expected + 0.2 * pooled[assignment == unit].mean(0)
            np.testing.assert_allclose(after.memory[f"memory{i + 1}"][unit], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_unmasked_example_once(devices, rng):
    model, state = make(True, "none", optax.sgd(0.1))
    batch = make_batch(rng)
    sums = make_eval_step(model, normalise, make_mesh(jax.devices()[:devices]))(
        state.variables, batch, jax.random.key(0)
    )
    local = model.clone(axis_name=None)
    result = jax.jit(local.apply)(state.variables, normalise(jnp.asarray(batch["image"])))
    logits, label = np.asarray(result.logits, np.float64)[:-5], batch["label"][:-5]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(label)), label]
    assert float(sums.count) == BATCH - 5
    np.testing.assert_allclose(sums.loss, losses.sum(), rtol=1e-4)
    assert float(sums.top1) == (logits.argmax(-1) == label).sum()
    assert float(sums.top5) == BATCH - 5  # five classes: always among the first five
    np.testing.assert_array_equal(sums.load[0], np.bincount(result.assignment[0][:-5], minlength=UNITS))


# With equal logits the guess is class 0, as in argmax. With NaN logits no guess is right.
@pytest.mark.parametrize(("value", "hits"), [(0.0, (1, 5)), (np.nan, (0, 0))], ids=["equal", "NaN"])
def test_equal_or_nan_logits_are_not_right_for_every_class(value, hits):
    model = RMN(create_backbone("resnet8", 10, 8), routed=False, axis_name=AXIS)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, value), variables)
    batch = {
        "image": np.zeros((10, 8, 8, 3), np.uint8),
        "label": np.arange(10, dtype=np.int32),
        "index": np.arange(10, dtype=np.int32),
        "mask": np.ones(10, bool),
    }
    sums = make_eval_step(model, normalise, make_mesh(jax.devices()[:1]))(variables, batch, jax.random.key(0))
    assert (float(sums.top1), float(sums.top5)) == hits
