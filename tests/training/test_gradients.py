"""Gradient accumulation: what a step by microbatches shares with a step at once, and what batch norm changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_states import BATCH, UNITS, make, make_batch, noisy, normalise, normless

from rmn_jax.training.gradients import split_microbatches
from rmn_jax.training.step import make_mesh, make_train_step

FIELDS = ("params", "batch_stats", "memory", "opt_state", "metrics", "step")


def assert_close(one, other):
    for field in FIELDS:
        a, b = getattr(one, field), getattr(other, field)
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=field)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize(("count", "group"), [(2, 1), (4, 1), (2, 2), (1, 2)])
def test_a_microbatch_has_the_same_inputs_on_any_number_of_devices(devices, count, group):
    rows = np.arange(32).reshape(devices, -1)  # each device's rows of the global batch
    found = [np.asarray(split_microbatches({"row": local}, count, group)["row"]) for local in rows]
    for p in range(count):
        expected = [i for i in range(32) if (i // group) % count == p]
        assert np.concatenate([local[p] for local in found]).tolist() == expected


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("routed", "count", "mixup"), [(True, 4, 0.0), (False, 2, 0.4)], ids=str)
def test_without_norms_microbatches_change_nothing(routed, count, mixup, devices, rng):
    optimizer = optax.sgd(1.0, momentum=0.9)  # rate 1: the change of a parameter is its gradient
    batch, results = make_batch(rng), []
    for accumulation, used in ((1, 1), (count, devices)):
        model, state = make(routed, "conditional", optimizer, normless())
        mesh = make_mesh(jax.devices()[:used])
        settings = {"alpha": 0.9, "label_smoothing": 0.1, "mixup": mixup, "accumulation": accumulation}
        step = make_train_step(model, optimizer, noisy, mesh, **settings)
        results.append(jax.device_get(step(state, batch, jax.random.key(7))))
    (whole, whole_loss), (split, split_loss) = results
    assert int(split.step) == 1 and float(split.metrics.count) == BATCH
    np.testing.assert_allclose(split_loss, whole_loss, rtol=1e-5)
    assert_close(split, whole)
    if routed:
        assert (whole.metrics.load[0] > 0).sum() == 2  # the inputs are not all in one unit


def by_hand(model, state, batch, count, alpha):
    """The step of rate 1 that ``make_train_step`` documents, microbatch by microbatch, on one device."""
    model = model.clone(axis_name=None)

    @jax.jit
    def gradient_of(params, batch_stats, images, label):
        def loss_of(params):
            variables = {"params": params, "batch_stats": batch_stats, "memory": state.memory}
            outputs, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
            label_logits = jax.nn.log_softmax(outputs.logits)[jnp.arange(len(label)), label]
            return -jnp.sum(label_logits) / BATCH, (outputs.pooled, outputs.assignment, changed["batch_stats"])

        return jax.grad(loss_of, has_aux=True)(params)

    batch_stats, gradients, pooled, assignment = state.batch_stats, [], [], []
    for p in range(count):
        images, label = normalise(jnp.asarray(batch["image"][p::count])), batch["label"][p::count]
        gradient, (features, units, batch_stats) = gradient_of(state.params, batch_stats, images, label)
        gradients.append(gradient)
        pooled.append(features)
        assignment.append(units)
    params = jax.tree.map(lambda p, *g: p - sum(g), state.params, *gradients)
    memory = {}
    for i, name in enumerate(sorted(state.memory)):
        features = np.concatenate([stages[i] for stages in pooled])
        units = np.concatenate([stages[i] for stages in assignment])
        memory[name] = np.array(state.memory[name])
        for unit in set(units.tolist()):
            mean = features[units == unit].mean(0)
            memory[name][unit] = alpha * memory[name][unit] + (1 - alpha) * mean
    load = np.stack([np.bincount(np.concatenate(u), minlength=UNITS) for u in zip(*assignment, strict=True)])
    return params, batch_stats, memory, load


@pytest.mark.parametrize("devices", [1, 8])
def test_each_microbatch_is_normalised_by_itself_and_memories_move_once(devices, rng):
    optimizer, count = optax.sgd(1.0), 4
    model, state = make(True, "none", optimizer)
    batch = make_batch(rng)
    expected = jax.device_get(by_hand(model, state, batch, count, alpha=0.8))
    mesh = make_mesh(jax.devices()[:devices])
    augment = lambda keys, images: normalise(images)  # noqa: E731
    step = make_train_step(model, optimizer, augment, mesh, alpha=0.8, accumulation=count)
    after = jax.device_get(step(state, batch, jax.random.key(0))[0])
    found = (after.params, after.batch_stats, after.memory, after.metrics.load)
    for a, b in zip(found, expected, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), a, b)


def test_four_microbatches_need_less_memory_than_the_whole_batch():
    optimizer = optax.sgd(0.1)
    model, state = make(False, "none", optimizer, normless())
    abstract = jax.eval_shape(lambda: state)
    images = jax.ShapeDtypeStruct((64, 24, 24, 3), np.uint8)
    row = jax.ShapeDtypeStruct((64,), np.int32)
    batch = {"image": images, "label": row, "index": row, "mask": row}
    needed = []
    for accumulation in (1, 4):
        mesh = make_mesh(jax.devices()[:1])
        step = make_train_step(model, optimizer, noisy, mesh, alpha=0.9, accumulation=accumulation)
        compiled = step.lower(abstract, batch, jax.random.key(0)).compile()
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[1] < 0.5 * needed[0]  # a quarter of the activations, plus the sums
