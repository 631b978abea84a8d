"""Information against arithmetic by hand, and what shuffling leaves of it."""

import math

import numpy as np
import pytest

from rmn_jax.analysis import measures


def test_entropy_by_hand():
    # Two codes, half each: ln 2. Shares 1/2, 1/4, 1/4: 1/2 ln 2 + 2 x 1/4 ln 4 = 3/2 ln 2. Unused codes add nothing.
    assert measures.entropy(np.array([0, 1, 0, 1])) == pytest.approx(math.log(2))
    assert measures.entropy(np.array([5, 5, 0, 3])) == pytest.approx(1.5 * math.log(2))
    assert measures.entropy(np.zeros(7, int)) == 0


def test_mutual_information_by_hand():
    # Joint counts [[3, 1], [1, 3]] of 8: 2 (3/8 ln(3/8 / 1/4) + 1/8 ln(1/8 / 1/4)) = 3/4 ln 3/2 - 1/4 ln 2.
    one = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    other = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    expected = 0.75 * math.log(1.5) - 0.25 * math.log(2)
    assert measures.mutual_information(one, other) == pytest.approx(expected)
    assert measures.mutual_information(other, one) == pytest.approx(expected)


def test_what_decides_the_unit_tells_its_whole_entropy(rng):
    codes = rng.integers(0, 12, 2000)
    units = np.array([2, 0, 1, 3])[codes % 4]  # 12 classes, three to a unit
    assert measures.mutual_information(units, codes) == pytest.approx(measures.entropy(units))
    found = measures.information(units, codes)
    assert found.nats == pytest.approx(measures.entropy(units))
    assert found.share == pytest.approx(1) and found.above_chance


def test_all_pairs_equally_often_tell_nothing():
    units, codes = (part.ravel() for part in np.meshgrid(np.arange(4), np.arange(10)))
    assert measures.mutual_information(units, codes) == pytest.approx(0, abs=1e-12)


def test_chance_is_what_a_small_sample_shows(rng):
    # Independent, yet with M = 400 images of K = 50 classes in N = 4 units the sample's information is not 0. To second
    # order it is (N - 1)(K - 1) / 2M = 3 x 49 / 800 = 0.184 nats (Miller and Madow), with eight images a class a bit
    # more.
    units, codes = rng.integers(0, 4, 400), rng.integers(0, 50, 400)
    found = measures.information(units, codes)
    assert found.nats > 0.15
    assert 0.18 < found.chance < 0.23
    assert found.chance < found.chance_95 < found.chance + 0.05
    assert abs(found.share) < 0.03


def test_few_shuffles_of_independent_samples_are_exceeded():
    # 5% of samples without any connection lie above the 95th percentile of their shuffles; of 200, about 10.
    rng = np.random.default_rng(1)
    above = [
        measures.information(rng.integers(0, 3, 150), rng.integers(0, 6, 150), seed=seed).above_chance
        for seed in range(200)
    ]
    assert 2 <= sum(above) <= 22


def test_nothing_to_explain_is_no_share(rng):
    one_unit = measures.information(np.zeros(50, int), rng.integers(0, 5, 50))
    assert one_unit.nats == one_unit.chance == one_unit.share == 0 and not one_unit.above_chance
    own_class = measures.information(rng.integers(0, 4, 50), np.arange(50))  # every shuffle "explains" all
    assert own_class.share == 0 and not own_class.above_chance


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
    images[1, 0, 0] = (0, 204, 51)  # one pixel in four: 204 / 4 / 255 = 0.2 and 0.05
    np.testing.assert_allclose(measures.mean_colour(images), [[1, 0, 0], [0, 0.2, 0.05]])


def test_edge_energy_by_hand():
    across = np.broadcast_to((np.arange(4) * 30)[None, :, None], (4, 4, 3)).astype(np.uint8)
    down = np.broadcast_to((np.arange(4) * 40)[:, None, None], (4, 4, 3)).astype(np.uint8)
    energy = measures.edge_energy(np.stack([np.full_like(across, 77), across, down, across + down]))
    # Of the luminance in 0..1 a pixel: both slopes together are as steep as their hypotenuse, 50.
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
    # Two bins a channel, cut at the middle: eight colours, red the largest digit.
    np.testing.assert_array_equal(measures.colour_bins(colour, 2), [0, 1, 2, 4, 7, 3, 5, 6])
    grey = np.repeat(np.arange(8.0)[:, None], 3, axis=1)  # the channels say the same: only the diagonal is used
    np.testing.assert_array_equal(measures.colour_bins(grey, 4), np.repeat([0, 21, 42, 63], 2))
