"""The optimizers against their arithmetic; decay, clipping, factors and freezing; their state under cloning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmn_jax.config import checks, default_config
from rmn_jax.errors import UserError
from rmn_jax.training.cloning import clone
from rmn_jax.training.gradients import apply_changes
from rmn_jax.training.optimizer import OPTIMIZERS, learning_rate, make_optimizer

GRADIENTS = np.array([[0.5, -2.0], [1.0, 0.1], [-0.3, 0.02]])
NAMES = sorted(OPTIMIZERS)
COUPLED = {"sgd", "nesterov", "rmsprop"}


def network(rng, units=None):
    """Parameters as a network has them, with the axis N below stage1 if ``units`` is given."""
    stage = () if units is None else (units,)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "stem": {"conv": {"kernel": draw(3, 3, 2, 4)}, "bn": {"scale": draw(4), "bias": draw(4)}},
        "stage1": {"conv": {"kernel": draw(*stage, 3, 3, 4, 4)}, "bn": {"scale": draw(*stage, 4)}},
        "attention1": {"squeeze": {"kernel": draw(4, 2)}},
        "head": {"fc": {"kernel": draw(4, 5), "bias": draw(5)}},
    }


def run(optimizer, params, gradients):
    """Parameters and state after a step for each of the gradients."""
    state = optimizer.init(params)
    for gradient in gradients:
        changes, state = optimizer.update(gradient, state, params)
        params = apply_changes(params, changes)
    return params, state


def trajectory(config, first):
    """The parameters after each of the gradients."""
    optimizer = make_optimizer(config, steps_per_epoch=10)
    params = {"a": jnp.asarray(first, jnp.float32)}
    state, found = optimizer.init(params), []
    for gradient in GRADIENTS:
        changes, state = optimizer.update({"a": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = jax.tree.map(jnp.add, params, changes)
        found.append(np.asarray(params["a"]))
    return found


@pytest.fixture
def config():
    config = default_config()
    config.epochs, config.learning_rate.warmup_epochs = 2, 1
    config.optimizer.weight_decay = 0.01  # large enough to show in the result
    return config


def test_the_configuration_takes_the_names_of_the_table():
    assert set(checks.OPTIMIZERS) == OPTIMIZERS.keys()


def test_rmsprop_is_that_of_efficientnet(config):
    """Mean squares begin at 1, epsilon is under the root, the rate is inside the momentum, the decay is L2."""
    config.optimizer.name, config.learning_rate.peak = "rmsprop", 0.048
    rate = learning_rate(config, 10)
    first = np.array([1.0, -1.0])
    p, squares, momentum = first, np.ones(2), np.zeros(2)
    for n, (gradient, found) in enumerate(zip(GRADIENTS, trajectory(config, first), strict=True)):
        g = gradient + 0.01 * p
        squares = 0.9 * squares + 0.1 * g**2
        momentum = 0.9 * momentum + float(rate(n)) * g / np.sqrt(squares + 1e-3)
        p = p - momentum
        np.testing.assert_allclose(found, p, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_sgd_has_the_rate_outside_the_momentum(name, config):
    config.optimizer.name = name
    rate = learning_rate(config, 10)
    first = np.array([1.0, -1.0])
    p, momentum = first, np.zeros(2)
    for n, (gradient, found) in enumerate(zip(GRADIENTS, trajectory(config, first), strict=True)):
        g = gradient + 0.01 * p
        momentum = 0.9 * momentum + g
        ahead = g + 0.9 * momentum if name == "nesterov" else momentum
        p = p - float(rate(n)) * ahead
        np.testing.assert_allclose(found, p, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_the_decay_of_adamw_and_lamb_is_decoupled(name, config):
    """The decay is added to the step m / (sqrt(v) + eps); LAMB scales the sum to the length of the parameters."""
    config.optimizer.name, config.optimizer.adam_epsilon = name, 1e-3
    rate = learning_rate(config, 10)
    first = np.array([1.0, -1.0])
    p, mean, square = first, np.zeros(2), np.zeros(2)
    for n, (gradient, found) in enumerate(zip(GRADIENTS, trajectory(config, first), strict=True)):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = mean / (1 - 0.9 ** (n + 1)), square / (1 - 0.999 ** (n + 1))
        change = corrected[0] / (np.sqrt(corrected[1]) + 1e-3) + 0.01 * p
        if name == "lamb":
            change *= np.linalg.norm(p) / np.linalg.norm(change)
        p = p - float(rate(n)) * change
        np.testing.assert_allclose(found, p, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_cloned_units_go_on_as_the_plain_network_would(name, config, rng):
    """If every unit gets the gradient of the plain network, each unit moves as the plain network does."""
    config.optimizer.name, config.optimizer.weight_decay_on, config.optimizer.freeze = name, "kernels", "head"
    optimizers = make_optimizer(config, 10), make_optimizer(config, 10, routed_stages=(1,))
    plain, state = run(optimizers[0], network(rng), [network(rng) for _ in range(3)])
    routed, routed_state = clone(plain, 3), clone(state, 3)
    assert jax.tree.map(jnp.shape, routed_state) == jax.tree.map(jnp.shape, optimizers[1].init(routed))
    momenta = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(routed_state) if "stage1" in str(path)]
    assert momenta and all(leaf.shape[0] == 3 and jnp.any(leaf != 0) for leaf in momenta)
    gradients = network(rng)
    plain_on = apply_changes(plain, optimizers[0].update(gradients, state, plain)[0])
    routed_on = apply_changes(routed, optimizers[1].update(clone(gradients, 3), routed_state, routed)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), routed_on, clone(plain_on, 3))


@pytest.mark.parametrize("name", NAMES)
def test_each_unit_moves_as_a_plain_network_with_its_parameters(name, config, rng):
    """Also with units that differ: neither a norm over all units nor a count of axes may join them."""
    config.optimizer.name, config.optimizer.weight_decay_on = name, "kernels"
    params, gradients = network(rng, units=3), [network(rng, units=3) for _ in range(3)]
    routed, _ = run(make_optimizer(config, 10, routed_stages=(1,)), params, gradients)
    for unit in range(3):
        alone = lambda tree, unit=unit: {**tree, "stage1": jax.tree.map(lambda leaf: leaf[unit], tree["stage1"])}  # noqa: E731
        plain, _ = run(make_optimizer(config, 10), alone(params), [alone(each) for each in gradients])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), alone(routed), plain)


@pytest.mark.parametrize("name", NAMES)
def test_without_norms_and_biases_in_the_decay_only_kernels_shrink(name, config, rng):
    """With gradients of zero only the decay moves a parameter, and from the second step on no rule hides it."""
    config.optimizer.name, config.optimizer.weight_decay_on = name, "kernels"
    params = network(rng, units=2)
    moved, _ = run(make_optimizer(config, 10, routed_stages=(1,)), params, [jax.tree.map(jnp.zeros_like, params)] * 3)
    for path, before in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        after = moved
        for key in name.split("/"):
            after = after[key]
        assert bool(jnp.all(after == before)) != name.endswith("kernel"), name
    config.optimizer.weight_decay_on = "all"
    moved, _ = run(make_optimizer(config, 10, routed_stages=(1,)), params, [jax.tree.map(jnp.zeros_like, params)] * 3)
    assert not jnp.any(moved["head"]["fc"]["bias"] == params["head"]["fc"]["bias"])


def test_clipping_scales_the_whole_gradient(config, rng):
    config.optimizer.weight_decay = 0.0
    params, gradient = network(rng), network(rng)
    norm = float(optax.tree.norm(gradient))
    plain, _ = run(make_optimizer(config, 10), params, [jax.tree.map(lambda leaf: leaf / norm * 0.5, gradient)])
    config.optimizer.clip_norm = 0.5
    clipped, _ = run(make_optimizer(config, 10), params, [gradient])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), clipped, plain)
    config.optimizer.clip_norm = 2 * norm
    far, _ = run(make_optimizer(config, 10), params, [gradient])
    config.optimizer.clip_norm = 0.0
    jax.tree.map(np.testing.assert_array_equal, far, run(make_optimizer(config, 10), params, [gradient])[0])
    # A frozen parameter's gradient is no part of the norm.
    config.optimizer.clip_norm, config.optimizer.freeze = 0.5, "stem"
    huge = {**gradient, "stem": jax.tree.map(lambda leaf: leaf * 1e6, gradient["stem"])}
    frozen = [run(make_optimizer(config, 10), params, [each])[0] for each in (gradient, huge)]
    jax.tree.map(np.testing.assert_array_equal, *frozen)


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_multiplies_the_rate_of_its_part(name, config, rng):
    """As if the part had a schedule of its own, of the same form; attention goes with the stages."""
    config.optimizer.name, config.learning_rate.initial, config.learning_rate.final = name, 0.0, 0.0
    params, gradients = network(rng), [network(rng) for _ in range(3)]
    factors = {"stem": 0.0, "stages": 0.25, "head": 4.0}
    config.learning_rate.update({f"{part}_factor": factor for part, factor in factors.items()})
    found, _ = run(make_optimizer(config, 10), params, gradients)
    config.learning_rate.update(dict.fromkeys((f"{part}_factor" for part in factors), 1.0))
    peak = config.learning_rate.peak
    for part in params:
        config.learning_rate.peak = peak * factors.get(part, factors["stages"])
        whole = make_optimizer(config, 10)
        # Alone, so that nothing else of the network can have a part in it.
        alone, _ = run(whole, {part: params[part]}, [{part: each[part]} for each in gradients])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[part], alone[part])


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_keep_their_bits(name, config, rng):
    config.optimizer.update({"name": name, "freeze": "stem, stage*/bn,head/*/bias", "clip_norm": 1.0})
    params = network(rng, units=2)
    params["stem"]["bn"]["bias"] = jnp.float32([0.0, -0.0, 1e-40, -3.0])
    optimizer = make_optimizer(config, 10, routed_stages=(1,))
    moved, state = run(optimizer, params, [network(rng, units=2) for _ in range(3)])
    frozen = {"stem/conv/kernel", "stem/bn/scale", "stem/bn/bias", "stage1/bn/scale", "head/fc/bias"}
    for path, before in jax.tree_util.tree_leaves_with_path(params):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        after = moved
        for key in where.split("/"):
            after = after[key]
        assert (np.asarray(before).tobytes() == np.asarray(after).tobytes()) == (where in frozen), where
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(state)
    ]
    assert not [each for each in names for part in frozen if each.endswith(part)]  # and have no momenta
    assert [each for each in names if each.endswith("stage1/conv/kernel")]


@pytest.mark.parametrize("freeze", ["stage9", "stem,stage1/conv9", "Stem", "conv", "kernel"])
def test_a_pattern_that_matches_nothing_is_one_line(freeze, config, rng):
    config.optimizer.freeze = freeze
    with pytest.raises(UserError) as error:
        make_optimizer(config, 10).init(network(rng))
    line = str(error.value)
    assert repr(freeze.split(",")[-1]) in line and "attention1, head, stage1, stem" in line and "\n" not in line


def test_the_default_optimizer_is_what_it_was(config, rng):
    """State and arithmetic of a default run: a chain of decay and SGD, as in earlier releases' checkpoints."""
    params = network(rng)
    optimizer = make_optimizer(config, 10)
    before = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(learning_rate(config, 10), momentum=0.9))
    assert jax.tree.structure(optimizer.init(params)) == jax.tree.structure(before.init(params))
    step = lambda rule: str(jax.make_jaxpr(rule.update)(params, rule.init(params), params))  # noqa: E731
    assert step(optimizer) == step(before)
