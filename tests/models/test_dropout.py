"""Dropout and stochastic depth: rates, and draws that depend only on an input's key and the module's path."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.models.dropout import Dropout, StochasticDepth
from rmn_jax.models.layers import Layers


class Twice(nn.Module):
    """The same layer under two names."""

    kind: type[nn.Module]
    layers: Layers

    @nn.compact
    def __call__(self, x):
        return tuple(self.kind(0.25, self.layers, name=name)(x) for name in ("first", "second"))


def apply(kind, x, keys, train=True):
    return Twice(kind, Layers(None, None, train, keys)).apply({}, x)


KEYS = jax.random.split(jax.random.key(3), 400)


def test_dropout_keeps_three_quarters_and_the_mean():
    first, second = apply(Dropout, jnp.ones((400, 50)), KEYS)
    assert set(np.unique(first)) == {0.0, np.float32(4 / 3)}
    # 20,000 draws at 0.75: the standard deviation of the share is 0.003. The tolerance is four of them.
    assert abs(float(jnp.mean(first > 0)) - 0.75) < 0.012
    assert not np.array_equal(first, second)


def test_stochastic_depth_drops_the_whole_branch_of_an_input():
    first, second = apply(StochasticDepth, jnp.ones((400, 2, 2, 3)), KEYS)
    rows = np.asarray(first).reshape(400, -1)
    assert (rows == rows[:, :1]).all()
    # 400 draws at 0.75: the standard deviation of the share is 0.022. The tolerance is four of them.
    assert abs((rows[:, 0] > 0).mean() - 0.75) < 0.09
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", [Dropout, StochasticDepth])
def test_a_draw_depends_on_the_inputs_key_not_on_its_row(kind):
    x, order = jnp.ones((8, 3)), np.array([5, 1, 7, 2])
    whole = apply(kind, x, KEYS[:8])
    part = apply(kind, x[:4], KEYS[order])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[order], b)


@pytest.mark.parametrize("kind", [Dropout, StochasticDepth])
def test_evaluation_needs_no_keys_and_training_without_keys_is_refused(kind):
    x = jnp.ones((2, 3))
    for y in apply(kind, x, None, train=False):
        np.testing.assert_array_equal(y, x)
    with pytest.raises(ValueError, match=r"first drops at random: pass keys=\[B\]"):
        apply(kind, x, None)


def test_rate_zero_needs_no_keys():
    layer = functools.partial(StochasticDepth, 0.0, Layers(None, None, True, None))
    np.testing.assert_array_equal(layer().apply({}, jnp.ones((2, 3))), jnp.ones((2, 3)))
