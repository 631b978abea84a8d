"""The routers that nearest memory is compared with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.cloning import clone
from rmn_jax.models import RMN, initialise
from rmn_jax.models.resnet import BasicBlock, resnet
from rmn_jax.models.routers import gate, hashed_unit, random_unit

UNITS, BATCH = 3, 24


def network(router, **settings):
    backbone = resnet(BasicBlock, (1, 1), 4, 5, stem_kernel=3, stem_strides=1, pool=False)
    return RMN(backbone, UNITS, router=router, **settings)


def test_random_units_are_even_differ_by_stage_and_repeat():
    keys = jax.random.split(jax.random.key(0), 3000)
    first, second = random_unit(keys, 0, UNITS), random_unit(keys, 1, UNITS)
    assert np.bincount(first, minlength=UNITS).min() > 900
    assert 0.25 < np.mean(first == second) < 0.42  # independent: a third
    assert (first == random_unit(keys, 0, UNITS)).all()


def test_an_image_keeps_its_hash_wherever_it_stands_and_brightness_does_not_matter(rng):
    images = jnp.float32(rng.normal(size=(400, 16, 16, 3)))
    unit = hashed_unit(images, 0, UNITS)
    assert (hashed_unit(images[::-1], 0, UNITS)[::-1] == unit).all()
    assert np.mean(hashed_unit(images + 0.3, 0, UNITS) == unit) > 0.99
    assert np.bincount(unit, minlength=UNITS).min() > 60
    assert np.mean(hashed_unit(images, 1, UNITS) == unit) < 0.6  # another stage, other directions


def test_the_gate_multiplies_by_one_and_learns_its_probability(rng):
    logits = jnp.float32(rng.normal(size=(BATCH, UNITS)))
    unit = jnp.argmax(logits, axis=-1)
    assert (gate(logits, unit).gain == 1).all()
    weight = jnp.float32(rng.normal(size=BATCH))
    found = jax.grad(lambda logits: jnp.sum(weight * gate(logits, unit).gain))(logits)
    probability = lambda logits: jnp.take_along_axis(jax.nn.softmax(logits), unit[:, None], axis=1)[:, 0]  # noqa: E731
    expected = jax.grad(lambda logits: jnp.sum(weight * probability(logits)))(logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_balancing_loss_is_one_when_balanced_and_n_when_all_go_to_one():
    even = jnp.repeat(20.0 * jnp.eye(UNITS), 4, axis=0)
    np.testing.assert_allclose(gate(even, jnp.argmax(even, -1)).balance, 1.0, rtol=1e-5)
    one = jnp.tile(20.0 * jnp.eye(UNITS)[:1], (12, 1))
    np.testing.assert_allclose(gate(one, jnp.argmax(one, -1)).balance, UNITS, rtol=1e-5)


@pytest.mark.parametrize("router", ["random", "hash", "learned"])
def test_right_after_cloning_every_router_gives_the_stems_logits(router, rng):
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
    if router == "learned":  # by hand, from the features that the stage is given
        for i, units in enumerate(outputs.assignment):
            features = (outputs.pooled[i] - outputs.pooled[i].mean(axis=0)) / jnp.sqrt(
                outputs.pooled[i].var(axis=0) + 1e-5
            )
            scores = features @ variables["params"][f"gate{i + 1}"]["kernel"]
            assert np.mean(units == jnp.argmax(scores, -1)) > 0.9  # but for ties within rounding


@pytest.mark.parametrize("backend", ["loop", "tiles"])
def test_the_gates_gradient_is_each_inputs_own_whatever_the_order(backend, rng):
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
