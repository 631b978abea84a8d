import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax import dispatch
from rmn_jax.dispatch import arrange, bound, invert, lay_out, make_plan, permute, take_rows

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


def tiles_of(assignment, length, monkeypatch):
    monkeypatch.setattr(dispatch, "places_to_a_tile", lambda *_: length)
    return lay_out(make_plan(jnp.array(assignment, jnp.int32), 4), pixels=1)


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("assignment", LOADS.values(), ids=LOADS)
def test_tiles_hold_each_row_once_among_its_own_units(assignment, length, monkeypatch):
    tiles = tiles_of(assignment, length, monkeypatch)
    assert tiles.rows.shape == (length, bound(len(assignment), 4, length))
    assert sorted(tiles.rows[tiles.owned].tolist()) == list(range(len(assignment)))
    for row, (place, tile) in enumerate(tiles.home.tolist()):
        assert tiles.rows[place, tile] == row
        assert tiles.unit[tile] == assignment[row]
    assert tiles.sizes.tolist() == [assignment.count(unit) for unit in range(4)]


def test_the_bound_on_tiles_is_reached():
    # One row more than a multiple of the length in every unit: nothing can take more tiles.
    assignment = [0] * 5 + [1] * 5 + [2] * 5 + [3]
    tiles = dispatch.tile_table(make_plan(jnp.array(assignment), 4), 16, 4)
    assert (tiles.high > tiles.low).all() and len(tiles.unit) == 7


def test_the_length_of_tiles_follows_what_they_cost():
    # Large maps: empty places cost more than kernels, so tiles are short. Never more than a quarter is empty.
    assert [dispatch.places_to_a_tile(1024, 8, side**2) for side in (64, 32, 16, 8, 1)] == [8, 16, 32, 32, 32]
    assert dispatch.places_to_a_tile(128, 8, 64) == dispatch.tile_length(128, 8) == 4
    assert dispatch.places_to_a_tile(1, 8, 224**2) == 1


@pytest.mark.parametrize("kind", ["sorted", "tiles"])
def test_arranging_moves_every_row_and_its_gradient_back(kind, rng, monkeypatch):
    x = jnp.float32(rng.normal(size=(9, 2, 3, 4)))
    loads = [LOADS["random"], [1, 1, 3, 3, 3, 0, 1, 3, 3]]
    if kind == "tiles":
        one, other = (tiles_of(load, length, monkeypatch) for load, length in zip(loads, (2, 3), strict=True))
    else:
        one, other = (make_plan(jnp.array(load), 4) for load in loads)
    for source, target in ((None, one), (one, other), (other, None), (one, None), (one, one), (None, None)):
        here, there = arrange(x, None, source), arrange(x, None, target)
        np.testing.assert_array_equal(arrange(here, source, target), there)
        np.testing.assert_array_equal(arrange(there, target, None), x)
        # What is nobody's is never moved along, and the gradient is nobody's nowhere.
        noise = jnp.float32(rng.normal(size=there.shape))
        marked = jnp.where(arrange(jnp.ones_like(x), None, source) > 0, here, jnp.nan)
        moved, pull = jax.vjp(lambda values, s=source, t=target: arrange(values, s, t), marked)
        np.testing.assert_array_equal(moved, there)
        np.testing.assert_array_equal(pull(noise)[0], arrange(arrange(noise, target, None), None, source))


def test_plans_and_tiles_do_not_mix(monkeypatch):
    tiles = tiles_of(LOADS["random"], 2, monkeypatch)
    plan = make_plan(jnp.array(LOADS["random"]), 4)
    for source, target in ((plan, tiles), (tiles, plan)):
        with pytest.raises(ValueError, match="in the batch's order first"):
            arrange(jnp.zeros((9, 1, 1, 1)), source, target)


def test_a_value_for_each_row_goes_where_the_row_goes(rng, monkeypatch):
    values = jnp.int32(rng.permutation(9))
    tiles = tiles_of(LOADS["random"], 2, monkeypatch)
    for target in (None, make_plan(jnp.array(LOADS["random"]), 4), tiles):
        rows = arrange(values[:, None, None, None], None, target)
        found = take_rows(values, target).reshape(rows.shape)
        owned = True if target is not tiles else tiles.owned.reshape(rows.shape)
        np.testing.assert_array_equal(jnp.where(owned, found, 0), rows)
