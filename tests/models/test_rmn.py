"""The whole network: what routing changes, and what it must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.models import RMN, create_backbone, initialise
from rmn_jax.models.resnet import Bottleneck, resnet
from rmn_jax.training.cloning import clone, permute_units

UNITS = 3


def backbones():
    return {
        "basic": create_backbone("resnet8", 10, 8),
        "bottleneck": resnet(Bottleneck, (2, 1), 8, 10, stem_kernel=7, stem_strides=2, pool=True),
    }


def plain_network(backbone, attention):
    """A plain network whose running statistics have moved from their initial values; its variables; images."""
    plain = RMN(backbone, UNITS, routed=False, attention=attention)
    images = jax.random.normal(jax.random.key(1), (24, 16, 16, 3))
    keys = jax.random.split(jax.random.key(2), 24)
    variables = initialise(plain, jax.random.key(0), images, keys=keys)
    in_training = functools.partial(plain.apply, train=True, mutable=["batch_stats"])
    _, changed = jax.jit(in_training)(variables, images, keys=keys)
    return plain, {**variables, **changed}, images


def cloned(plain, variables, images, seed):
    """The cloned network. Each memory is the feature vector of a random input, so that several units are used."""
    routed = plain.clone(routed=True)
    pooled = jax.jit(plain.apply)(variables, images, keys=jax.random.split(jax.random.key(0), len(images))).pooled
    rng = np.random.default_rng(seed)
    memory = {f"memory{i + 1}": p[rng.choice(len(images), UNITS, replace=False)] for i, p in enumerate(pooled)}
    return routed, {**{name: clone(tree, UNITS) for name, tree in variables.items()}, "memory": memory}


@pytest.mark.parametrize("attention", ["none", "se", "conditional"])
@pytest.mark.parametrize("name", backbones())
def test_right_after_cloning_routed_logits_are_the_plain_ones(name, attention):
    plain, variables, images = plain_network(backbones()[name], attention)
    for seed in (0, 1):
        routed, routed_variables = cloned(plain, variables, images, seed)
        result = jax.jit(routed.apply)(routed_variables, images)
        assert len(np.unique(result.assignment)) > 1  # otherwise nothing was routed
        # Attention depends on the assignment, so the plain network gets it as its condition.
        expected = jax.jit(plain.apply)(variables, images, assignment=result.assignment)
        np.testing.assert_allclose(result.logits, expected.logits, rtol=1e-4, atol=1e-4)
        for a, b in zip(result.stages, expected.stages, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        for a, b in zip(result.pooled, expected.pooled, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_renumbering_units_with_their_memories_changes_nothing(train):
    plain, variables, images = plain_network(backbones()["basic"], "se")
    routed, variables = cloned(plain, variables, images, 0)
    # Different parameters for each unit.
    noise = jax.random.key(5)
    variables["params"] = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(noise, leaf.shape), variables["params"]
    )
    orders = {"stage1": jnp.array([2, 0, 1]), "stage2": jnp.array([1, 0, 2]), "stage3": jnp.array([0, 2, 1])}
    renumbered = permute_units(variables, orders | {f"memory{i}": orders[f"stage{i}"] for i in (1, 2, 3)})

    def run(variables):
        return routed.apply(variables, images, train=train, mutable=["batch_stats"])

    one, one_stats = jax.jit(run)(variables)
    other, other_stats = jax.jit(run)(renumbered)
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-4)
    for i in range(3):
        order = np.asarray(orders[f"stage{i + 1}"])
        np.testing.assert_array_equal(one.assignment[i], order[np.asarray(other.assignment[i])])
    expected = permute_units(one_stats, orders)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), other_stats, expected)


def variables_of_route(tree, route):
    """The plain variables of one route through the stages; ``route[i]`` is the unit of stage i + 1."""

    def take(path, leaf):
        part = path[0].key
        return leaf[route[int(part[5:]) - 1]] if part.startswith("stage") else leaf

    return jax.tree_util.tree_map_with_path(take, tree)


def test_every_input_passes_through_the_units_of_its_nearest_memories():
    """The oracle runs each input alone through the plain network that the units on its route make up."""
    plain, variables, images = plain_network(backbones()["basic"], "none")
    routed, variables = cloned(plain, variables, images, 0)
    variables["params"] = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(6), leaf.shape), variables["params"]
    )
    result = jax.jit(routed.apply)(variables, images)
    alone = jax.jit(plain.apply)
    for example in range(6):
        route = result.assignment[:, example]
        on_route = {name: variables_of_route(variables[name], route) for name in ("params", "batch_stats")}
        one = alone(on_route, images[example : example + 1])
        np.testing.assert_allclose(result.logits[example], one.logits[0], rtol=1e-4, atol=1e-4)
        for i in range(3):  # the unit of each stage is that of the nearest memory
            distance = np.linalg.norm(one.pooled[i] - variables["memory"][f"memory{i + 1}"], axis=-1)
            assert int(route[i]) == int(distance.argmin())
            np.testing.assert_allclose(result.distances[i][example], distance**2, rtol=1e-3, atol=1e-4)


def test_one_unit_is_the_plain_network():
    plain, variables, images = plain_network(backbones()["basic"], "none")
    routed = plain.clone(routed=True, num_units=1)
    one = {**{name: clone(tree, 1) for name, tree in variables.items()}}
    one["memory"] = {f"memory{i + 1}": jnp.zeros((1, c)) for i, c in enumerate((16, 16, 32))}
    for train in (False, True):
        (got, got_stats), (expected, stats) = (
            jax.jit(functools.partial(model.apply, train=train, mutable=["batch_stats"]))(tree, images)
            for model, tree in ((routed, one), (plain, variables))
        )
        np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            got_stats["batch_stats"],
            clone(stats["batch_stats"], 1),
        )


def test_the_random_condition_is_uniform_and_independent_for_each_input_and_stage():
    plain = RMN(create_backbone("resnet8", 10, 8), num_units=4, routed=False, attention="conditional")
    images = jnp.zeros((400, 4, 4, 3))
    keys = jax.random.split(jax.random.key(0), 400)
    variables = initialise(plain, jax.random.key(0), images[:1], keys=keys[:1])
    conditions = np.asarray(jax.jit(plain.apply)(variables, images, keys=keys).assignment)
    for stage in conditions:
        # 400 draws over 4 units: 100 each, standard deviation sqrt(400 x 1/4 x 3/4) = 8.7; four of them are 35.
        assert np.abs(np.bincount(stage, minlength=4) - 100).max() < 35
    assert 0.15 < np.mean(conditions[0] == conditions[1]) < 0.35  # independent stages agree in 1/4
    with pytest.raises(ValueError, match="needs keys"):
        plain.apply(variables, images)


COUNTS = {  # exact for torchvision's networks at 1000 classes; rounded for the paper's RMNs, N = 8 (its supplement)
    ("resnet18", False, "none"): 11_689_512,
    ("resnet50", False, "none"): 25_557_032,
    ("resnet18", True, "none"): 89.8e6,
    ("resnet18", True, "conditional"): 89.9e6,
    ("resnet50", True, "none"): 190.0e6,
    ("resnet50", True, "conditional"): 190.7e6,
}


@pytest.mark.parametrize(("name", "routed", "attention"), COUNTS)
def test_parameter_counts(name, routed, attention):
    model = RMN(create_backbone(name, 1000, 224), num_units=8, routed=routed, attention=attention)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    expected = COUNTS[name, routed, attention]
    if isinstance(expected, int):
        assert count == expected
    else:
        assert abs(count - expected) < 0.1e6


def test_a_routed_tree_is_the_plain_tree_with_a_leading_axis_below_the_stages():
    backbone = create_backbone("resnet18", 10, 32)
    images, key = jnp.zeros((1, 32, 32, 3)), jax.random.key(0)
    plain = jax.eval_shape(RMN(backbone, 5, routed=False).init, key, images)
    routed = jax.eval_shape(RMN(backbone, 5, routed=True).init, key, images)
    for name in ("params", "batch_stats"):
        expected = jax.eval_shape(lambda tree: clone(tree, 5), plain[name])
        assert jax.tree.map(lambda leaf: leaf.shape, routed[name]) == jax.tree.map(lambda leaf: leaf.shape, expected)
    assert {name: leaf.shape for name, leaf in routed["memory"].items()} == {
        "memory1": (5, 64), "memory2": (5, 64), "memory3": (5, 128), "memory4": (5, 256)
    }  # fmt: skip


def test_gradients_stay_finite_in_a_deep_stage_with_a_unit_without_inputs(monkeypatch):
    # Unused tiles belong to the last unit. It has no inputs, so its variances are 0, and each of its norms would
    # multiply these tiles by 1 / sqrt(1e-5) = 316.
    monkeypatch.setattr("rmn_jax.routing.layout.slots_per_tile", lambda *_: 2)
    backbone = resnet(Bottleneck, (6,), 8, 5, stem_kernel=3, stem_strides=1, pool=False)
    images = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    assignment = (jnp.arange(8) % 2)[None]

    def gradients(backend):
        model = RMN(backbone, UNITS, backend=backend)
        variables = initialise(model, jax.random.key(1), images)
        shifted = lambda path, leaf: leaf + 0.1 * (path[-1].key == "bias")  # noqa: E731
        params = jax.tree_util.tree_map_with_path(shifted, variables["params"])

        def loss(params):
            every = {**variables, "params": params}
            outputs, _ = model.apply(every, images, train=True, assignment=assignment, mutable=["batch_stats"])
            return jnp.mean(outputs.logits**2)

        return jax.jit(jax.value_and_grad(loss))(params)

    (loss, found), (expected_loss, expected) = gradients("tiles"), gradients("loop")
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, wanted, rtol=1e-2, atol=1e-3 * max(1e-3, np.abs(wanted).max()))


@pytest.mark.parametrize("routed", [True, False])
def test_shapes_and_names_that_do_not_fit_are_refused(routed):
    backbone = create_backbone("resnet8", 10, 8)  # three stages
    images, key = jnp.zeros((4, 8, 8, 3)), jax.random.key(0)
    model = RMN(backbone, UNITS, routed=routed)
    for shape in ((2, 4), (3, 5), (4,)):
        with pytest.raises(AssertionError, match="assert_shape"):
            jax.eval_shape(model.init, key, images, assignment=jnp.zeros(shape, jnp.int32))
    with pytest.raises(AssertionError, match="assert_rank"):
        jax.eval_shape(model.init, key, images[0])
    with pytest.raises(ValueError, match="unknown attention 'full'"):
        jax.eval_shape(model.clone(attention="full").init, key, images)
