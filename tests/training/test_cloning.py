"""Cloning: N copies of every leaf of a stage, in parameters and optimizer state alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmn_jax.training.cloning import clone, permute_units

PARAMS = {
    "stem": {"conv1": {"kernel": jnp.ones((3, 3, 3, 4))}},
    "stage1": {"block1": {"conv1": {"kernel": jnp.arange(36.0).reshape(3, 3, 2, 2)}}},
    "attention1": {"squeeze": {"kernel": jnp.ones((4, 1))}},
    "head": {"fc": {"kernel": jnp.ones((4, 2))}},
}


def test_only_leaves_of_a_stage_get_n_equal_copies():
    routed = clone(PARAMS, 3)
    kernel = routed["stage1"]["block1"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 3, 2, 2)
    for unit in kernel:
        np.testing.assert_array_equal(unit, PARAMS["stage1"]["block1"]["conv1"]["kernel"])
    for name in ("stem", "attention1", "head"):
        assert jax.tree.map(jnp.shape, routed[name]) == jax.tree.map(jnp.shape, PARAMS[name])


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1, momentum=0.9), optax.rmsprop(optax.constant_schedule(0.1), momentum=0.9, eps=1e-3)],
    ids=["sgd", "rmsprop"],
)
def test_the_optimizer_state_is_cloned_with_its_momentum(optimizer):
    gradients = jax.tree.map(lambda leaf: leaf + 1.0, PARAMS)
    _, state = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    routed = clone(state, 2)
    fresh = optimizer.init(clone(PARAMS, 2))
    assert jax.tree.map(jnp.shape, routed) == jax.tree.map(jnp.shape, fresh)
    # One more step of the clones with the same gradient equals the clones of one more plain step.
    expected, _ = optimizer.update(gradients, state, PARAMS)
    got, _ = optimizer.update(clone(gradients, 2), routed, clone(PARAMS, 2))
    jax.tree.map(np.testing.assert_array_equal, got, clone(expected, 2))


def test_one_unit_still_gets_the_axis():
    assert clone(PARAMS, 1)["stage1"]["block1"]["conv1"]["kernel"].shape == (1, 3, 3, 2, 2)
    with pytest.raises(ValueError, match="num_units is 0"):
        clone(PARAMS, 0)


def test_units_are_renumbered_by_stage():
    tree = {"params": {"stage1": jnp.array([10, 11, 12]), "stage2": jnp.array([20, 21, 22])}}
    got = permute_units(tree, {"stage2": jnp.array([2, 0, 1])})
    assert got["params"]["stage1"].tolist() == [10, 11, 12]
    assert got["params"]["stage2"].tolist() == [22, 20, 21]
