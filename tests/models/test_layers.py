"""The layers: conditional attention by hand, initial values, and the bias of a routed convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.models.layers import ConditionalAttention, RoutedConv, kernel_init, per_unit, scaled
from rmn_jax.routing.layout import sort_by_unit


def test_conditional_attention_is_equations_6_to_8(rng):
    x, assignment = rng.normal(size=(3, 2, 2, 32)), np.array([1, 0, 3])
    module = ConditionalAttention(num_units=4)
    variables = module.init(jax.random.key(0), jnp.float32(x), jnp.array(assignment))
    squeeze = np.asarray(variables["params"]["squeeze"]["kernel"])
    excite = np.asarray(variables["params"]["excite"]["kernel"])
    assert squeeze.shape == (32, 2)  # reduction 16
    assert excite.shape == (2 + 4, 32)  # the hidden code and a one-hot of length N
    hidden = np.maximum(x.mean((1, 2)) @ squeeze, 0)
    gate = 1 / (1 + np.exp(-np.concatenate([hidden, np.eye(4)[assignment]], -1) @ excite))
    output = module.apply(variables, jnp.float32(x), jnp.array(assignment))
    np.testing.assert_allclose(output, x * gate[:, None, None, :], rtol=1e-4, atol=1e-5)


def test_only_conditional_attention_depends_on_the_condition(rng):
    x = jnp.float32(rng.normal(size=(2, 2, 2, 16)))
    for num_units, differs in ((4, True), (None, False)):
        module = ConditionalAttention(num_units=num_units)
        variables = module.init(jax.random.key(0), x, jnp.array([0, 0]))
        one, other = (module.apply(variables, x, jnp.array(a)) for a in ([0, 0], [0, 3]))
        np.testing.assert_array_equal(one[0], other[0])
        assert bool(jnp.any(one[1] != other[1])) is differs


def test_the_kernel_of_each_unit_is_drawn_separately_with_the_plain_fans():
    # He, fan-out: variance 2 / (3 x 3 x 64) for any N. Drawn as one leaf [N, ...] it would be wrong by a factor of N.
    kernel = per_unit(kernel_init, 8)(jax.random.key(0), (8, 3, 3, 32, 64))
    np.testing.assert_allclose(np.asarray(kernel).reshape(8, -1).std(-1), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert len({float(unit[0, 0, 0, 0]) for unit in kernel}) == 8


@pytest.mark.parametrize("num_units", [None, 3])
def test_the_bias_is_that_of_each_rows_unit(rng, num_units):
    x = jnp.zeros((4, 2, 2, 3))
    layout = None if num_units is None else sort_by_unit(jnp.array([0, 2, 2, 2]), 3)
    module = RoutedConv(5, (1, 1), use_bias=True, num_units=num_units, layout=layout)
    variables = module.init(jax.random.key(0), x)
    shape = variables["params"]["bias"].shape
    bias = rng.normal(size=shape)
    variables = {"params": {**variables["params"], "bias": jnp.float32(bias)}}
    expected = np.broadcast_to(bias, (4, 5)) if num_units is None else bias[[0, 2, 2, 2]]
    np.testing.assert_allclose(module.apply(variables, x)[:, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("num_units", [None, 2])
def test_gradients_of_values_broadcast_over_pixels_are_summed_in_float32(num_units):
    # A sum of ones in bfloat16 stops at 256, so without float32 the sum over 4,096 pixels was 1,024.
    x = jnp.ones((2, 64, 64, 4), jnp.bfloat16)
    summed = lambda y: jnp.sum(y.astype(jnp.float32))  # noqa: E731
    layout = None if num_units is None else sort_by_unit(jnp.array([0, 1]), 2)
    module = RoutedConv(4, (1, 1), use_bias=True, dtype=jnp.bfloat16, num_units=num_units, layout=layout)
    variables = module.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda variables: summed(module.apply(variables, x))))(variables)
    rows = 2 if num_units is None else 1
    np.testing.assert_array_equal(gradient["params"]["bias"], np.full_like(gradient["params"]["bias"], rows * 4096))
    gate = jax.jit(jax.grad(lambda gate: summed(scaled(x, gate[:, None, None]))))(jnp.ones((2, 4)))
    np.testing.assert_array_equal(gate, np.full((2, 4), 4096))
