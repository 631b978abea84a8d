import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.dispatch import invert, make_plan, permute

LOADS = {
    "random": [3, 0, 2, 0, 1, 3, 2, 2, 0],
    "one unit gets all": [2] * 9,
    "one input": [1],
    "already sorted": [0, 0, 1, 2, 3],
}


@pytest.mark.parametrize("assignment", LOADS.values(), ids=LOADS)
def test_a_plan_sorts_stably_and_drops_nothing(assignment):
    plan = make_plan(jnp.array(assignment, jnp.int32), 4)
    order = sorted(range(len(assignment)), key=lambda i: assignment[i])  # Python's sort is stable
    assert plan.order.tolist() == order
    assert plan.unit.tolist() == sorted(assignment)
    assert [order[i] for i in plan.inverse.tolist()] == list(range(len(assignment)))
    assert plan.sizes.tolist() == [assignment.count(unit) for unit in range(4)]
    assert plan.offsets.tolist() == [sum(a < unit for a in assignment) for unit in range(4)]


def test_permute_and_its_gradient(rng):
    x = jnp.float32(rng.normal(size=(7, 2, 3)))
    order = jnp.int32(rng.permutation(7))
    weights = jnp.float32(rng.normal(size=x.shape))
    np.testing.assert_array_equal(permute(x, order, invert(order)), np.asarray(x)[np.asarray(order)])
    gradient = jax.grad(lambda x: jnp.sum(permute(x, order, invert(order)) * weights))(x)
    expected = np.zeros(x.shape, np.float32)
    for row, source in enumerate(order.tolist()):
        expected[source] = weights[row]
    np.testing.assert_array_equal(gradient, expected)
