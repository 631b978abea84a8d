"""Batch layouts: the sort by unit, tiles, and moves between layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.routing.layout import (
    already_sorted,
    invert,
    make_tiles,
    max_tiles,
    permute,
    single_group,
    slots_per_tile,
    sort_by_unit,
    take_rows,
    tile_length,
    tile_table,
    to_layout,
)

UNITS = 4
LOADS = {
    "random": [3, 0, 2, 0, 1, 3, 2, 2, 0],
    "one unit gets all": [2] * 9,
    "one input": [1],
    "already sorted": [0, 0, 1, 2, 3],
}


def sorted_layout(assignment):
    return sort_by_unit(jnp.array(assignment, jnp.int32), UNITS)


def tiles_of(assignment, length, monkeypatch):
    monkeypatch.setattr("rmn_jax.routing.layout.slots_per_tile", lambda *_: length)
    return make_tiles(sorted_layout(assignment), pixels=1)


@pytest.mark.parametrize("assignment", LOADS.values(), ids=LOADS)
def test_sort_by_unit_is_stable_and_drops_no_row(assignment):
    layout = sorted_layout(assignment)
    order = sorted(range(len(assignment)), key=lambda i: assignment[i])  # Python's sort is stable
    assert layout.order.tolist() == order
    assert layout.unit.tolist() == sorted(assignment)
    assert [order[i] for i in layout.inverse.tolist()] == list(range(len(assignment)))
    assert layout.group_sizes.tolist() == [assignment.count(unit) for unit in range(UNITS)]
    assert layout.offsets.tolist() == [sum(a < unit for a in assignment) for unit in range(UNITS)]


def test_sort_by_unit_wants_a_vector_of_integers():
    with pytest.raises(AssertionError, match="assert_rank"):
        sort_by_unit(jnp.zeros((2, 3), jnp.int32), UNITS)
    with pytest.raises(AssertionError, match="assert_type"):
        sort_by_unit(jnp.zeros(3, jnp.float32), UNITS)


@pytest.mark.parametrize("assignment", LOADS.values(), ids=LOADS)
def test_a_sorted_batch_and_a_single_group_need_no_sort(assignment):
    layout = sorted_layout(assignment)
    for found, expected in (
        (already_sorted(layout), sort_by_unit(layout.unit, UNITS)),
        (single_group(len(assignment)), sort_by_unit(jnp.zeros(len(assignment), jnp.int32), 1)),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


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


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("assignment", LOADS.values(), ids=LOADS)
def test_tiles_hold_each_row_once_in_a_tile_of_its_unit(assignment, length, monkeypatch):
    tiles = tiles_of(assignment, length, monkeypatch)
    assert tiles.row_of_slot.shape == (length, max_tiles(len(assignment), UNITS, length))
    assert sorted(tiles.row_of_slot[tiles.valid].tolist()) == list(range(len(assignment)))
    for row, (slot, tile) in enumerate(tiles.slot_of_row.tolist()):
        assert tiles.row_of_slot[slot, tile] == row
        assert tiles.unit[tile] == assignment[row]
    assert tiles.group_sizes.tolist() == [assignment.count(unit) for unit in range(UNITS)]


def test_max_tiles_is_reached():
    # Groups of 5, 5, 5 and 1 rows in tiles of 4: each has one row more than a multiple of 4. That is the worst case:
    # 2 + 2 + 2 + 1 = 7 tiles.
    assignment = [0] * 5 + [1] * 5 + [2] * 5 + [3]
    tiles = tile_table(sorted_layout(assignment), 16, 4)
    assert (tiles.high > tiles.low).all() and len(tiles.unit) == 7


def test_the_tile_length_follows_the_costs():
    # On large maps padding costs more than kernels, so tiles are short. Padding is at most a quarter of the batch.
    assert [slots_per_tile(1024, 8, side**2) for side in (64, 32, 16, 8, 1)] == [8, 16, 32, 32, 32]
    assert slots_per_tile(128, 8, 64) == tile_length(128, 8) == 4
    assert slots_per_tile(1, 8, 224**2) == 1


@pytest.mark.parametrize("kind", ["sorted", "tiles"])
def test_to_layout_moves_every_row_and_its_vjp_moves_them_back(kind, rng, monkeypatch):
    x = jnp.float32(rng.normal(size=(9, 2, 3, 4)))
    loads = [LOADS["random"], [1, 1, 3, 3, 3, 0, 1, 3, 3]]
    if kind == "tiles":
        one, other = (tiles_of(load, length, monkeypatch) for load, length in zip(loads, (2, 3), strict=True))
    else:
        one, other = (sorted_layout(load) for load in loads)
    for source, target in ((None, one), (one, other), (other, None), (one, None), (one, one), (None, None)):
        in_source, in_target = to_layout(x, None, source), to_layout(x, None, target)
        np.testing.assert_array_equal(to_layout(in_source, source, target), in_target)
        np.testing.assert_array_equal(to_layout(in_target, target, None), x)
        # NaN in the padding of the source is never moved, and no padding has a gradient.
        cotangent = jnp.float32(rng.normal(size=in_target.shape))
        marked = jnp.where(to_layout(jnp.ones_like(x), None, source) > 0, in_source, jnp.nan)
        moved, pull = jax.vjp(lambda values, s=source, t=target: to_layout(values, s, t), marked)
        np.testing.assert_array_equal(moved, in_target)
        expected = to_layout(to_layout(cotangent, target, None), None, source)
        np.testing.assert_array_equal(pull(cotangent)[0], expected)


def test_sorted_rows_and_tiles_do_not_mix(monkeypatch):
    tiles, layout = tiles_of(LOADS["random"], 2, monkeypatch), sorted_layout(LOADS["random"])
    x = jnp.zeros((9, 1, 1, 1))
    for source, target in ((layout, tiles), (tiles, layout)):
        with pytest.raises(ValueError, match=r"go through batch order \(None\)"):
            to_layout(to_layout(x, None, source), source, target)


def test_to_layout_refuses_a_map_that_is_not_in_its_source(monkeypatch):
    tiles, layout = tiles_of(LOADS["random"], 2, monkeypatch), sorted_layout(LOADS["random"])
    slots, num_tiles = tiles.row_of_slot.shape
    for shape, source in (
        ((9, 4), None),  # a matrix
        ((slots, 1, 1, num_tiles, 1), layout),  # tiles where sorted rows are wanted
        ((8, 1, 1, 1), layout),  # a row too few
        ((9, 1, 1, 1), tiles),  # rows where tiles are wanted
        ((slots + 1, 1, 1, num_tiles, 1), tiles),  # a slot too many
        ((slots, 1, 1, num_tiles - 1, 1), tiles),  # a tile too few
    ):
        with pytest.raises(AssertionError):
            to_layout(jnp.zeros(shape), source, None)


def test_take_rows_puts_a_value_where_to_layout_puts_the_row(rng, monkeypatch):
    values = jnp.int32(rng.permutation(9))
    tiles = tiles_of(LOADS["random"], 2, monkeypatch)
    for target in (None, sorted_layout(LOADS["random"]), tiles):
        rows = to_layout(values[:, None, None, None], None, target)
        found = take_rows(values, target).reshape(rows.shape)
        valid = True if target is not tiles else tiles.valid.reshape(rows.shape)
        np.testing.assert_array_equal(jnp.where(valid, found, 0), rows)
