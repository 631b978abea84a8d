"""Memories: the nearest one (eq. 4), their moving average (eq. 9), and statistics of the routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax import routing


def test_the_unit_is_the_nearest_memory_by_euclidean_distance(rng):
    pooled, memory = rng.normal(size=(20, 6)), rng.normal(size=(5, 6))
    expected = [min(range(5), key=lambda j: np.linalg.norm(row - memory[j])) for row in pooled]
    np.testing.assert_array_equal(routing.nearest_unit(jnp.float32(pooled), jnp.float32(memory)), expected)


def test_nearest_is_not_the_largest_inner_product():
    # The far memory has the larger inner product with the input: 10 x 1 > 1 x 1.
    memory = jnp.array([[10.0, 0.0], [1.0, 0.0]])
    assert routing.nearest_unit(jnp.array([[1.0, 0.5]]), memory).tolist() == [1]


def test_a_tie_goes_to_the_lower_index():
    memory = jnp.array([[9.0], [1.0], [-1.0], [1.0]])
    assert routing.nearest_unit(jnp.array([[0.0]]), memory).tolist() == [1]


def test_close_memories_far_from_the_origin_are_told_apart():
    # Computed as x.x - 2 x.m + m.m, both distances would round to the same float32: next to 1e8, 0.125^2 is lost.
    memory = jnp.array([[10000.0], [10000.125]])
    assert routing.nearest_unit(jnp.array([[10000.0], [10000.125]]), memory).tolist() == [0, 1]


def test_update_memory_is_equation_9_by_hand():
    # Unit 0 gets (2, 4) and (4, 0): mean (3, 2). 0.9 (1, 1) + 0.1 (3, 2) = (1.2, 1.1).
    # Unit 1 gets no input and keeps (5, 5). Unit 2 gets (1, 7): 0.9 (0, 0) + 0.1 (1, 7) = (0.1, 0.7).
    memory = jnp.array([[1.0, 1.0], [5.0, 5.0], [0.0, 0.0]])
    pooled = jnp.array([[2.0, 4.0], [1.0, 7.0], [4.0, 0.0]])
    sums = routing.unit_sums(pooled, jnp.array([0, 2, 0]), 3)
    assert sums.inputs.tolist() == [2, 0, 1]
    moved = routing.update_memory(memory, sums, 0.9)
    np.testing.assert_allclose(moved, [[1.2, 1.1], [5.0, 5.0], [0.1, 0.7]], rtol=1e-6)


def test_a_momentum_of_one_keeps_the_memory_and_of_zero_takes_the_mean():
    memory, pooled = jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [5.0]])
    sums = routing.unit_sums(pooled, jnp.array([0, 0]), 2)
    np.testing.assert_allclose(routing.update_memory(memory, sums, 1.0), [[1.0], [2.0]])
    np.testing.assert_allclose(routing.update_memory(memory, sums, 0.0), [[4.0], [2.0]])


def test_shapes_that_do_not_fit_are_refused():
    pooled, memory = jnp.zeros((6, 4)), jnp.zeros((3, 4))
    sums = routing.unit_sums(pooled, jnp.zeros(6, jnp.int32), 3)
    for wrong in (jnp.zeros((3, 5)), jnp.zeros((2, 4)), jnp.zeros(4)):
        with pytest.raises(AssertionError, match="assert_equal_shape"):
            routing.update_memory(wrong, sums, 0.9)
    for rows, memories in ((pooled, memory[:, :3]), (pooled[0], memory), (pooled, memory[None])):
        with pytest.raises(AssertionError):
            routing.nearest_unit(rows, memories)
    for assignment in (jnp.zeros(5, jnp.int32), jnp.zeros((6, 1), jnp.int32)):
        with pytest.raises(AssertionError):
            routing.unit_sums(pooled, assignment, 3)


def test_entropy_drift_and_dead_units():
    load = jnp.array([[4.0, 4.0, 4.0, 4.0], [16.0, 0.0, 0.0, 0.0], [8.0, 8.0, 0.0, 0.0]])
    np.testing.assert_allclose(routing.load_entropy(load), [np.log(4), 0.0, np.log(2)], atol=1e-6)
    assert routing.dead_units(load).tolist() == [0, 3, 2]
    # One memory moves by (3, 4), length 5; the other stays: mean 2.5.
    assert float(routing.memory_drift(jnp.zeros((2, 2)), jnp.array([[3.0, 4.0], [0.0, 0.0]]))) == 2.5


def test_global_average_pool_and_its_gradient_are_those_of_the_mean(rng):
    x = jnp.asarray(rng.normal(size=(3, 5, 4, 6)), jnp.float32)
    mean = np.asarray(x, np.float64).mean((1, 2))
    np.testing.assert_allclose(routing.global_average_pool(x), mean, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: routing.global_average_pool(x)[1, 2])(x)
    expected = np.zeros(x.shape)
    expected[1, :, :, 2] = 1 / 20  # the weight of one of 5 x 4 pixels
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert routing.global_average_pool(x.astype(jnp.bfloat16)).dtype == jnp.float32
