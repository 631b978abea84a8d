"""The layout of slots: where rows lie, how they move, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.routing.layout import (
    assert_in_layout,
    make_slots,
    make_tiles,
    num_slots,
    over_pixels,
    pixel_axes,
    sort_by_unit,
    take_rows,
    to_layout,
)

LOADS = {
    "random": [3, 0, 2, 0, 1, 3, 2, 2, 0],
    "one unit gets all": [2] * 9,
    "one input": [1],
    "exactly one group": [1] * 8,
    "already sorted": [0, 0, 1, 2, 3],
}


def slots_of(load):
    return make_slots(sort_by_unit(jnp.array(load, jnp.int32), 4))


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_each_row_has_one_slot_in_a_group_of_its_unit(load):
    slots = slots_of(load)
    assert slots.row_of_slot.shape == slots.unit.shape == (num_slots(len(load), 4),)
    assert sorted(slots.row_of_slot[slots.valid].tolist()) == list(range(len(load)))
    for row, slot in enumerate(slots.slot_of_row.tolist()):
        assert slots.row_of_slot[slot] == row
        assert slots.unit[slot] == load[row]
    groups = slots.unit.reshape(-1, 8)
    assert (groups == groups[:, :1]).all()  # a group has one unit
    assert (jnp.diff(slots.unit_of_group) >= 0).all()
    assert slots.unit_of_group.tolist() == groups[:, 0].tolist()
    assert slots.group_sizes.tolist() == [load.count(unit) for unit in range(4)]


def test_the_number_of_slots():
    # floor((1024 + 7 x 8) / 8) = 135 groups. One row needs one group, whatever N is: min(B, N) = 1.
    assert num_slots(1024, 8) == 1080
    assert num_slots(1, 8) == 8
    # One row more than a multiple of 8 in three units, and one in the fourth, fill all groups: 2 + 2 + 2 + 1.
    load = [0] * 9 + [1] * 9 + [2] * 9 + [3]
    slots = slots_of(load)
    assert num_slots(28, 4) == 56
    assert slots.valid.reshape(-1, 8).any(axis=1).all()


@pytest.mark.parametrize("other", ["batch order", "slots", "tiles"])
def test_moving_is_exact_and_its_gradient_is_the_move_back(other, rng):
    x = jnp.float32(rng.normal(size=(9, 2, 3, 4)))
    source = slots_of(LOADS["random"])
    target = {
        "batch order": None,
        "slots": slots_of([1, 1, 3, 3, 3, 0, 1, 3, 3]),
        "tiles": make_tiles(sort_by_unit(jnp.array(LOADS["random"], jnp.int32), 4), 6),
    }[other]
    for one, two in ((source, target), (target, source)):
        here, there = to_layout(x, None, one), to_layout(x, None, two)
        np.testing.assert_array_equal(to_layout(there, two, None), x)
        # What padding holds does not move, and padding has no gradient.
        marked = jnp.where(to_layout(jnp.ones_like(x), None, one) > 0, here, jnp.nan)
        moved, pull = jax.vjp(lambda values, one=one, two=two: to_layout(values, one, two), marked)
        np.testing.assert_array_equal(moved, there)
        noise = jnp.float32(rng.normal(size=there.shape))
        np.testing.assert_array_equal(pull(noise)[0], to_layout(to_layout(noise, two, None), None, one))


def test_a_move_along_slots_is_one_gather_and_no_scatter():
    one, two = slots_of(LOADS["random"]), slots_of(LOADS["one unit gets all"])
    x = jnp.ones((2, 2, one.unit.shape[0], 3))
    move = lambda x: jnp.sum(to_layout(x, one, two) ** 2)  # noqa: E731
    text = str(jax.make_jaxpr(jax.grad(move))(x))
    assert text.count("offset_dims=(0, 1, 3)") == 2  # there and back
    assert "scatter" not in text


def test_shapes_and_values_of_rows(rng):
    values, slots = jnp.int32(rng.permutation(9)), slots_of(LOADS["random"])
    taken = take_rows(values, slots)
    np.testing.assert_array_equal(taken[slots.slot_of_row], values)
    assert taken.shape == slots.unit.shape
    assert pixel_axes(slots) == (0, 1) and pixel_axes(None) == (1, 2)
    assert over_pixels(jnp.ones((32, 5)), slots).shape == (1, 1, 32, 5)
    with pytest.raises(AssertionError):
        assert_in_layout(jnp.ones((9, 2, 2, 3)), slots)
    with pytest.raises(ValueError, match="in the batch order|through batch order"):
        to_layout(jnp.ones((9, 1, 1, 1)), sort_by_unit(jnp.array(LOADS["random"]), 4), slots)
