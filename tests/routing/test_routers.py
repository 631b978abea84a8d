"""Routers: nearest memory, the baselines that it is compared with, and how to add one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.models import RMN, initialise
from rmn_jax.models.resnet import BasicBlock, resnet
from rmn_jax.routing import ROUTERS, Router, StageInput, nearest_unit, squared_distances
from rmn_jax.routing.routers import hashed_unit, random_unit, top1_gate
from rmn_jax.training.cloning import clone

UNITS, BATCH = 3, 24


def network(router, **settings):
    backbone = resnet(BasicBlock, (1, 1), 4, 5, stem_kernel=3, stem_strides=1, pool=False)
    return RMN(backbone, UNITS, router=router, **settings)


def stage_input(rng, **settings):
    features, images = rng.normal(size=(BATCH, 4)), rng.normal(size=(BATCH, 8, 8, 3))
    return StageInput(0, UNITS, jnp.float32(features), jnp.float32(images), **settings)


def test_random_units_are_balanced_differ_by_stage_and_repeat():
    keys = jax.random.split(jax.random.key(0), 3000)
    first, second = random_unit(keys, 0, UNITS), random_unit(keys, 1, UNITS)
    assert np.bincount(first, minlength=UNITS).min() > 900
    assert 0.25 < np.mean(first == second) < 0.42  # independent: a third
    assert (first == random_unit(keys, 0, UNITS)).all()


def test_the_hash_of_an_image_depends_neither_on_its_position_nor_on_its_brightness(rng):
    images = jnp.float32(rng.normal(size=(400, 16, 16, 3)))
    unit = hashed_unit(images, 0, UNITS)
    assert (hashed_unit(images[::-1], 0, UNITS)[::-1] == unit).all()
    assert np.mean(hashed_unit(images + 0.3, 0, UNITS) == unit) > 0.99
    assert np.bincount(unit, minlength=UNITS).min() > 60
    assert np.mean(hashed_unit(images, 1, UNITS) == unit) < 0.6  # another stage, other directions


def test_the_gain_is_one_with_the_gradient_of_the_probability(rng):
    logits = jnp.float32(rng.normal(size=(BATCH, UNITS)))
    unit = jnp.argmax(logits, axis=-1)
    assert (top1_gate(logits, unit)[0] == 1).all()
    weight = jnp.float32(rng.normal(size=BATCH))
    found = jax.grad(lambda logits: jnp.sum(weight * top1_gate(logits, unit)[0]))(logits)
    probability = lambda logits: jnp.take_along_axis(jax.nn.softmax(logits), unit[:, None], axis=1)[:, 0]  # noqa: E731
    expected = jax.grad(lambda logits: jnp.sum(weight * probability(logits)))(logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_load_balancing_loss_is_one_for_even_loads_and_n_for_a_single_unit():
    even = jnp.repeat(20.0 * jnp.eye(UNITS), 4, axis=0)
    np.testing.assert_allclose(top1_gate(even, jnp.argmax(even, -1))[1], 1.0, rtol=1e-5)
    one = jnp.tile(20.0 * jnp.eye(UNITS)[:1], (12, 1))
    np.testing.assert_allclose(top1_gate(one, jnp.argmax(one, -1))[1], UNITS, rtol=1e-5)


@pytest.mark.parametrize("router", ["random", "hash", "learned"])
def test_right_after_cloning_the_logits_are_those_of_phase_1_with_every_router(router, rng):
    plain = network(router, routed=False)
    images, keys = jnp.float32(rng.normal(size=(BATCH, 8, 8, 3))), jax.random.split(jax.random.key(3), BATCH)
    variables = initialise(plain, jax.random.key(0), images, keys=keys)
    expected = jax.jit(plain.apply)(variables, images, keys=keys)
    for i, pooled in enumerate(expected.pooled if router == "learned" else ()):
        variables["batch_stats"][f"gate_norm{i + 1}"] = {"mean": pooled.mean(axis=0), "var": pooled.var(axis=0)}
    memory = {"memory1": jnp.zeros((UNITS, 4)), "memory2": jnp.zeros((UNITS, 4))}
    routed_variables = {**{name: clone(tree, UNITS) for name, tree in variables.items()}, "memory": memory}
    routed = plain.clone(routed=True)
    outputs = jax.jit(routed.apply)(routed_variables, images, keys=keys)
    assert all(len(np.unique(stage)) > 1 for stage in outputs.assignment)
    np.testing.assert_allclose(outputs.logits, expected.logits, rtol=1e-4, atol=1e-4)
    if router == "hash":
        for stage, units in enumerate(outputs.assignment):
            assert (units == hashed_unit(images, stage, UNITS)).all()
    if router == "learned":  # by hand, from the features that the router sees
        loss = 0.0
        for i, units in enumerate(outputs.assignment):
            features = (outputs.pooled[i] - outputs.pooled[i].mean(axis=0)) / jnp.sqrt(
                outputs.pooled[i].var(axis=0) + 1e-5
            )
            scores = features @ variables["params"][f"gate{i + 1}"]["kernel"]
            assert np.mean(units == jnp.argmax(scores, -1)) > 0.9  # rounding may decide a near tie otherwise
            share = np.bincount(units, minlength=UNITS) / BATCH
            loss += UNITS * np.sum(share * np.mean(jax.nn.softmax(scores), axis=0))
        np.testing.assert_allclose(outputs.auxiliary_loss, loss, rtol=1e-3)
    else:
        assert float(outputs.auxiliary_loss) == 0


@pytest.mark.parametrize("backend", ["loop", "tiles"])
def test_the_gradient_of_the_gate_does_not_depend_on_the_batch_order(backend, rng):
    model = network("learned", attention="se", backend=backend)
    images = jnp.float32(rng.normal(size=(BATCH, 8, 8, 3)))
    variables = initialise(model, jax.random.key(0), images)

    @jax.jit
    def gradient(images, weights):
        def loss(params):
            outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(weights * outputs.logits), outputs.assignment

        gradients, assignment = jax.grad(loss, has_aux=True)(variables["params"])
        return [gradients["gate1"]["kernel"], gradients["gate2"]["kernel"]], assignment

    weights = jnp.float32(rng.normal(size=(BATCH, 5)))
    expected, assignment = gradient(images, weights)
    assert all(len(np.unique(stage)) > 1 for stage in assignment)
    found, _ = gradient(jnp.roll(images, 7, axis=0), jnp.roll(weights, 7, axis=0))
    for value, wanted in zip(found, expected, strict=True):
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-5)


def test_cosine_memories_route_by_angle(rng):
    model = network("memory", metric="cosine")
    images = jnp.float32(rng.normal(size=(BATCH, 8, 8, 3)))
    variables = initialise(model, jax.random.key(0), images)
    memory = {name: jnp.float32(rng.uniform(size=leaf.shape)) for name, leaf in variables["memory"].items()}
    long = {name: leaf * jnp.array([1.0, 7.0, 0.1])[:, None] for name, leaf in memory.items()}
    apply = jax.jit(model.apply)
    one, other = (apply({**variables, "memory": m}, images) for m in (memory, long))
    assert (one.assignment == other.assignment).all() and len(np.unique(one.assignment)) > 1
    pooled, m = np.asarray(one.pooled[0]), np.asarray(memory["memory1"])
    cosine = pooled @ m.T / np.linalg.norm(pooled, axis=1)[:, None] / np.linalg.norm(m, axis=1)
    assert np.mean(one.assignment[0] == cosine.argmax(-1)) > 0.9


def test_an_unknown_router_is_refused():
    with pytest.raises(ValueError, match="unknown router 'nearest'"):
        network("nearest").init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_memory_router_takes_the_nearest_memory_and_returns_the_distances(metric, rng):
    inputs, memory = stage_input(rng, metric=metric), jnp.float32(rng.normal(size=(UNITS, 4)))
    routing = ROUTERS["memory"](inputs, memory)
    np.testing.assert_array_equal(routing.assignment, nearest_unit(inputs.features, memory, metric))
    np.testing.assert_array_equal(routing.metrics["distances"], squared_distances(inputs.features, memory, metric))
    assert routing.gain is None and float(routing.auxiliary_loss) == 0


@pytest.mark.parametrize("router", ["memory", "random", "hash"])
def test_a_given_assignment_overrides_the_router(router, rng):
    given = jnp.arange(BATCH, dtype=jnp.int32) % UNITS
    routing = ROUTERS[router](stage_input(rng), jnp.zeros((UNITS, 4)), given)  # without keys: nothing is drawn
    np.testing.assert_array_equal(routing.assignment, given)


def test_a_router_refuses_shapes_that_do_not_fit(rng):
    router, inputs = ROUTERS["memory"], stage_input(rng)
    for shape in ((UNITS + 1, 4), (UNITS, 5), (UNITS,)):
        with pytest.raises(AssertionError, match="assert_shape"):
            router(inputs, jnp.zeros(shape))
    for shape in ((BATCH - 1,), (BATCH, 1), (2, BATCH)):
        with pytest.raises(AssertionError, match="assert_shape"):
            router(inputs, jnp.zeros((UNITS, 4)), jnp.zeros(shape, jnp.int32))


def test_only_the_random_router_needs_keys(rng):
    assert [name for name, router in ROUTERS.items() if router.needs_keys] == ["random"]
    with pytest.raises(ValueError, match=r"needs keys=\[B\]"):
        ROUTERS["random"](stage_input(rng), jnp.zeros((UNITS, 4)))


class ByFirstPixel(Router):
    """Units 0 and 2, by the sign of an image's first value; the auxiliary loss of stage i, from 1, is 10^i."""

    def choose(self, inputs, scores, distances):
        assert scores is None and distances.shape == (BATCH, UNITS)
        return jnp.where(inputs.images[:, 0, 0, 0] > 0, 2, 0).astype(jnp.int32)

    def gate(self, inputs, scores, assignment):
        return None, jnp.float32(10.0 ** (inputs.stage + 1))


def test_a_new_router_is_one_subclass_and_one_entry(rng, monkeypatch):
    monkeypatch.setitem(ROUTERS, "first_pixel", ByFirstPixel())
    model = network("first_pixel")
    images = jnp.float32(rng.normal(size=(BATCH, 8, 8, 3)))
    outputs, _ = jax.jit(model.init_with_output)(jax.random.key(0), images)
    expected = np.where(images[:, 0, 0, 0] > 0, 2, 0)
    assert len(np.unique(expected)) == 2
    np.testing.assert_array_equal(outputs.assignment, [expected, expected])
    assert float(outputs.auxiliary_loss) == 110  # 10 + 100
