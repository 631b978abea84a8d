"""The optimizers against their arithmetic, and their state under cloning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.config import default_config
from rmn_jax.training.cloning import clone
from rmn_jax.training.optimizer import learning_rate, make_optimizer

GRADIENTS = np.array([[0.5, -2.0], [1.0, 0.1], [-0.3, 0.02]])


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


def test_sgd_has_the_rate_outside_the_momentum(config):
    rate = learning_rate(config, 10)
    first = np.array([1.0, -1.0])
    p, momentum = first, np.zeros(2)
    for n, (gradient, found) in enumerate(zip(GRADIENTS, trajectory(config, first), strict=True)):
        momentum = 0.9 * momentum + gradient + 0.01 * p
        p = p - float(rate(n)) * momentum
        np.testing.assert_allclose(found, p, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_cloned_units_go_on_as_the_plain_network_would(name, config):
    """If every unit gets the gradient of the plain network, each unit moves as the plain network does."""
    config.optimizer.name = name
    optimizer = make_optimizer(config, 10)
    plain = {"stem": {"kernel": jnp.array([1.0, 2.0])}, "stage1": {"kernel": jnp.array([3.0, -1.0])}}
    gradients = jax.tree.map(lambda p: 0.3 * p + 0.1, plain)
    changes, state = optimizer.update(gradients, optimizer.init(plain), plain)
    plain = jax.tree.map(jnp.add, plain, changes)
    routed, routed_state = clone(plain, 3), clone(state, 3)
    assert jax.tree.map(jnp.shape, routed_state) == jax.tree.map(jnp.shape, optimizer.init(routed))
    changes, _ = optimizer.update(gradients, state, plain)
    routed_changes, _ = optimizer.update(clone(gradients, 3), routed_state, routed)
    jax.tree.map(np.testing.assert_array_equal, routed_changes, clone(changes, 3))
