"""Batch norm of each unit against that of its sub-batch alone, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.models.layers import RoutedBatchNorm
from rmn_jax.ops import batch_moments, normalize, scale_and_shift
from rmn_jax.routing.layout import make_tiles, sort_by_unit, to_layout

UNIT = np.array([0, 0, 0, 2, 2, 3, 3, 3, 3])  # unit 1 gets no input
UNITS = 4


def alone(x, scale, bias):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + bias


def test_each_unit_is_normalised_by_its_sub_batch(rng):
    x = rng.normal(2.0, 3.0, size=(9, 4, 5, 6))
    scale, bias = rng.normal(size=(UNITS, 6)), rng.normal(size=(UNITS, 6))
    layout = sort_by_unit(jnp.array(UNIT), UNITS)
    moments = batch_moments(jnp.float32(x), layout)
    output = normalize(
        jnp.float32(x), moments.mean, moments.variance, jnp.float32(scale), jnp.float32(bias), layout, 1e-5
    )
    for j in (0, 2, 3):
        rows = UNIT == j
        np.testing.assert_allclose(moments.mean[j], x[rows].mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moments.variance[j], x[rows].var((0, 1, 2)), rtol=1e-4)
        np.testing.assert_allclose(output[rows], alone(x[rows], scale[j], bias[j]), rtol=1e-4, atol=1e-4)
    assert moments.values.tolist() == [3 * 20, 0, 2 * 20, 4 * 20]


def test_gradients_are_those_of_the_sub_batches_alone(rng):
    x = jnp.float32(rng.normal(size=(9, 3, 3, 4)))
    scale, bias = jnp.float32(rng.normal(size=(UNITS, 4))), jnp.float32(rng.normal(size=(UNITS, 4)))
    weights = jnp.float32(rng.normal(size=x.shape))
    layout = sort_by_unit(jnp.array(UNIT), UNITS)

    def routed(x, scale, bias):
        moments = batch_moments(x, layout)
        return jnp.sum(normalize(x, moments.mean, moments.variance, scale, bias, layout, 1e-5) * weights)

    def separate(x, scale, bias):
        total = 0.0
        for j in (0, 2, 3):
            rows = np.flatnonzero(UNIT == j)
            part = x[rows]
            centred = part - part.mean((0, 1, 2))
            y = centred / jnp.sqrt((centred**2).mean((0, 1, 2)) + 1e-5) * scale[j] + bias[j]
            total += jnp.sum(y * weights[rows])
        return total

    got = jax.grad(routed, argnums=(0, 1, 2))(x, scale, bias)
    expected = jax.grad(separate, argnums=(0, 1, 2))(x, scale, bias)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_units", [None, UNITS])
def test_running_statistics_move_by_momentum_and_stay_for_a_unit_without_inputs(rng, num_units):
    x = rng.normal(1.0, 2.0, size=(9, 2, 2, 3))
    layout = None if num_units is None else sort_by_unit(jnp.array(UNIT), UNITS)
    module = RoutedBatchNorm(train=True, num_units=num_units, layout=layout)
    variables = module.init(jax.random.key(0), jnp.float32(x))
    groups = {None: np.full(9, True)} if num_units is None else {j: UNIT == j for j in (0, 2, 3)}
    before = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])
    _, changed = module.apply({**variables, "batch_stats": before}, jnp.float32(x), mutable=["batch_stats"])
    after = changed["batch_stats"]
    for j, rows in groups.items():
        pick = (lambda leaf: leaf) if j is None else (lambda leaf, j=j: leaf[j])
        # Start: mean 0 + 0.5, variance 1 + 0.5.
        np.testing.assert_allclose(pick(after["mean"]), 0.9 * 0.5 + 0.1 * x[rows].mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pick(after["var"]), 0.9 * 1.5 + 0.1 * x[rows].var((0, 1, 2)), rtol=1e-4)
    if num_units is not None:
        np.testing.assert_array_equal(after["mean"][1], 0.5)
        np.testing.assert_array_equal(after["var"][1], 1.5)


def test_evaluation_uses_the_running_statistics_of_each_rows_unit(rng):
    x = rng.normal(size=(9, 2, 2, 3))
    mean, variance = rng.normal(size=(UNITS, 3)), rng.uniform(0.5, 2.0, size=(UNITS, 3))
    module = RoutedBatchNorm(train=False, num_units=UNITS, layout=sort_by_unit(jnp.array(UNIT), UNITS))
    variables = module.init(jax.random.key(0), jnp.float32(x))
    variables = {**variables, "batch_stats": {"mean": jnp.float32(mean), "var": jnp.float32(variance)}}
    expected = (x - mean[UNIT][:, None, None]) / np.sqrt(variance[UNIT][:, None, None] + 1e-5)
    np.testing.assert_allclose(module.apply(variables, jnp.float32(x)), expected, rtol=1e-4, atol=1e-5)


def test_moments_and_gradients_of_tiles_are_those_of_sorted_rows_whatever_the_padding_holds(rng, monkeypatch):
    monkeypatch.setattr("rmn_jax.routing.layout.slots_per_tile", lambda *_: 2)
    x = jnp.float32(rng.normal(2.0, 3.0, size=(9, 4, 5, 6)))
    scale, bias = jnp.float32(rng.normal(size=(2, UNITS, 6)))
    order = rng.permutation(9)
    sorted_rows = sort_by_unit(jnp.array(UNIT[order]), UNITS)
    tiles = make_tiles(sorted_rows, 20)
    noise = jnp.float32(rng.normal(size=to_layout(x, None, tiles).shape))
    padding = to_layout(jnp.ones_like(x), None, tiles) == 0
    assert padding.any()

    def normalised(x, scale, bias, layout):
        rows = to_layout(x, None, layout)
        if layout is tiles:
            rows = jnp.where(padding, noise, rows)
        moments = batch_moments(rows, layout)
        y = normalize(rows, moments.mean, moments.variance, scale, bias, layout, 1e-5)
        return to_layout(y, layout, None), moments

    expected, found = (
        jax.vjp(lambda *values, a=layout: normalised(*values, a)[0], x[order], scale, bias)
        for layout in (sorted_rows, tiles)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
    cotangent = jnp.float32(rng.normal(size=x.shape))
    for value, wanted in zip(found[1](cotangent), expected[1](cotangent), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-4)
    moments = (normalised(x[order], scale, bias, layout)[1] for layout in (tiles, sorted_rows))
    for value, wanted in zip(*moments, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_the_layout_are_refused():
    layout, vectors = sort_by_unit(jnp.array(UNIT), UNITS), jnp.ones((UNITS, 3))
    for shape in ((8, 2, 2, 3), (9, 2, 3)):  # a row too few, an axis too few
        with pytest.raises(AssertionError):
            batch_moments(jnp.zeros(shape), layout)
    with pytest.raises(AssertionError, match="assert_shape"):
        scale_and_shift(jnp.zeros((9, 2, 2, 3)), vectors[0], vectors[0], layout)


@pytest.mark.parametrize("make", [None, make_tiles], ids=["sorted", "tiles"])
@pytest.mark.parametrize(("statistics", "own_share"), [("batch", 1.0), ("mixed", 1.0), ("mixed", 0.4), ("mixed", 0.0)])
def test_statistics_with_a_part_of_the_whole_batch(rng, make, statistics, own_share):
    x = rng.normal(2.0, 3.0, size=(9, 4, 4, 6)) + UNIT[:, None, None, None]
    sorted_layout = sort_by_unit(jnp.array(UNIT), UNITS)
    layout = sorted_layout if make is None else make(sorted_layout, 16)
    moved = to_layout(jnp.float32(x), None, layout)
    moments = batch_moments(moved, layout, None, statistics, own_share)
    for j in range(UNITS):
        rows = x[UNIT == j]
        # One in four units has an even share of 9 / 4 rows. Its weight is n_j / (n_j + 9 / 4), for example 3 / 5.25.
        weight = 0.0 if statistics == "batch" else own_share * len(rows) / (len(rows) + 9 / 4)
        own = np.zeros((2, 6)) if len(rows) == 0 else np.stack([rows.mean((0, 1, 2)), (rows**2).mean((0, 1, 2))])
        batch = np.stack([x.mean((0, 1, 2)), (x**2).mean((0, 1, 2))])
        mean, square = weight * own + (1 - weight) * batch
        np.testing.assert_allclose(moments.mean[j], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(moments.variance[j], square - mean**2, rtol=1e-3)
    assert moments.values.tolist() == [9 * 16] * UNITS
