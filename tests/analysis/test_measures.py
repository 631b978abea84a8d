"""Information compared with arithmetic by hand, and its value by chance."""

import math

import numpy as np
import pytest

from rmn_jax.analysis import measures


def test_entropy_by_hand():
    # Two codes of one half each: ln 2. Shares 1/2, 1/4, 1/4: 1/2 ln 2 + 2 x 1/4 ln 4 = 3/2 ln 2. Unused codes add 0.
    assert measures.entropy(np.array([0, 1, 0, 1])) == pytest.approx(math.log(2))
    assert measures.entropy(np.array([5, 5, 0, 3])) == pytest.approx(1.5 * math.log(2))
    assert measures.entropy(np.zeros(7, int)) == 0


def test_mutual_information_by_hand():
    # Joint counts [[3, 1], [1, 3]], 8 in total: 2 (3/8 ln(3/8 / 1/4) + 1/8 ln(1/8 / 1/4)) = 3/4 ln 3/2 - 1/4 ln 2.
    one = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    other = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    expected = 0.75 * math.log(1.5) - 0.25 * math.log(2)
    assert measures.mutual_information(one, other) == pytest.approx(expected)
    assert measures.mutual_information(other, one) == pytest.approx(expected)


def test_a_property_that_determines_the_unit_has_its_whole_entropy(rng):
    codes = rng.integers(0, 12, 2000)
    units = np.array([2, 0, 1, 3])[codes % 4]  # 12 classes, three to a unit
    assert measures.mutual_information(units, codes) == pytest.approx(measures.entropy(units))
    found = measures.information(units, codes)
    assert found.nats == pytest.approx(measures.entropy(units))
    assert found.share == pytest.approx(1) and found.above_chance


def test_independent_codes_have_no_information():
    units, codes = (part.ravel() for part in np.meshgrid(np.arange(4), np.arange(10)))
    assert measures.mutual_information(units, codes) == pytest.approx(0, abs=1e-12)


def test_chance_is_the_information_of_a_small_independent_sample(rng):
    # Unit and class are independent, but the information of a sample is not 0. For M = 400 images of K = 50 classes in
    # N = 4 units it is, to second order, (N - 1)(K - 1) / 2M = 3 x 49 / 800 = 0.184 nats (Miller and Madow). With only
    # eight images for each class it is a little more.
    units, codes = rng.integers(0, 4, 400), rng.integers(0, 50, 400)
    found = measures.information(units, codes)
    assert found.nats > 0.15
    assert 0.18 < found.chance < 0.23
    assert found.chance < found.chance_95 < found.chance + 0.05
    assert abs(found.share) < 0.03


def test_few_independent_samples_are_above_chance():
    # 5% of independent samples are above the 95th percentile of their shuffles: about 10 of 200.
    rng = np.random.default_rng(1)
    above = [
        measures.information(rng.integers(0, 3, 150), rng.integers(0, 6, 150), seed=seed).above_chance
        for seed in range(200)
    ]
    assert 2 <= sum(above) <= 22


def test_the_share_is_0_if_nothing_can_be_explained(rng):
    one_unit = measures.information(np.zeros(50, int), rng.integers(0, 5, 50))
    assert one_unit.nats == one_unit.chance == one_unit.share == 0 and not one_unit.above_chance
    one_class_each = measures.information(rng.integers(0, 4, 50), np.arange(50))  # every shuffle "explains" everything
    assert one_class_each.share == 0 and not one_class_each.above_chance


def test_renaming_units_changes_nothing(rng):
    units, codes = rng.integers(0, 4, 300), rng.integers(0, 7, 300)
    renamed = np.array([3, 1, 0, 2])[units]
    assert measures.mutual_information(renamed, codes) == pytest.approx(measures.mutual_information(units, codes))


def test_the_same_seed_gives_the_same_chance(rng):
    units, codes = rng.integers(0, 4, 300), rng.integers(0, 7, 300)
    assert measures.information(units, codes) == measures.information(units, codes)


def test_mean_colour_by_hand():
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[0, :, :, 0] = 255  # red
    images[1, 0, 0] = (0, 204, 51)  # one pixel of four: 204 / 4 / 255 = 0.2, and 0.05
    np.testing.assert_allclose(measures.mean_colour(images), [[1, 0, 0], [0, 0.2, 0.05]])


def test_edge_energy_by_hand():
    across = np.broadcast_to((np.arange(4) * 30)[None, :, None], (4, 4, 3)).astype(np.uint8)
    down = np.broadcast_to((np.arange(4) * 40)[:, None, None], (4, 4, 3)).astype(np.uint8)
    energy = measures.edge_energy(np.stack([np.full_like(across, 77), across, down, across + down]))
    # In luminance (0..1) per pixel. The gradient of the sum has the length of the hypotenuse: 50.
    np.testing.assert_allclose(energy, np.array([0, 30, 40, 50]) / 255, atol=1e-12)


def test_edges_of_one_colour_channel_count_by_its_luminance():
    images = np.zeros((3, 2, 4, 3), np.uint8)
    for channel in range(3):
        images[channel, :, :, channel] = np.arange(4) * 51
    np.testing.assert_allclose(measures.edge_energy(images), 0.2 * np.array([0.2126, 0.7152, 0.0722]))


def test_quantile_bins_hold_equally_many(rng):
    bins = measures.quantile_bins(rng.normal(size=1600), 16)
    assert np.bincount(bins).tolist() == [100] * 16
    assert measures.quantile_bins(np.full(10, 3.0), 4).max() - measures.quantile_bins(np.full(10, 3.0), 4).min() == 0


def test_colour_bins_join_the_channels():
    colour = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]], float)
    # Two bins for each channel, split at the median: eight codes, with red as the highest digit.
    np.testing.assert_array_equal(measures.colour_bins(colour, 2), [0, 1, 2, 4, 7, 3, 5, 6])
    grey = np.repeat(np.arange(8.0)[:, None], 3, axis=1)  # equal channels: only the diagonal is used
    np.testing.assert_array_equal(measures.colour_bins(grey, 4), np.repeat([0, 21, 42, 63], 2))
