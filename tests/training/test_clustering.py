"""k-means for the memories: it finds planted clusters, repeats bit for bit, and refuses features that cannot work."""

import numpy as np
import pytest

from rmn_jax.errors import UserError
from rmn_jax.training.clustering import k_means


def test_planted_clusters_are_found(rng):
    centres = np.array([[0, 0, 10], [10, 0, 0], [0, 10, 0], [-10, -10, -10]], np.float32)
    features = np.concatenate([rng.normal(c, 0.1, size=(50, 3)) for c in centres]).astype(np.float32)
    found = k_means(rng.permutation(features), 4, seed=0)
    assert found.dtype == np.float32
    for centre in centres:
        assert np.linalg.norm(found - centre, axis=-1).min() < 0.1


def test_the_same_seed_gives_the_same_bits(rng):
    features = rng.normal(size=(500, 8)).astype(np.float32)
    np.testing.assert_array_equal(k_means(features, 5, seed=3), k_means(features, 5, seed=3))


def test_one_unit_is_the_mean(rng):
    features = rng.normal(size=(40, 3)).astype(np.float32)
    np.testing.assert_allclose(k_means(features, 1, seed=0)[0], features.mean(0), rtol=1e-4, atol=1e-6)


def test_equal_features_give_equal_centres_and_no_warning():
    np.testing.assert_array_equal(k_means(np.ones((10, 2), np.float32), 3, seed=0), np.ones((3, 2)))


def test_too_few_features_or_nan_are_a_user_error():
    with pytest.raises(UserError, match="set config.model.num_units to 2 or less"):
        k_means(np.zeros((2, 3), np.float32), 4, seed=0)
    with pytest.raises(UserError, match="phase 1 diverged"):
        k_means(np.full((9, 3), np.nan, np.float32), 4, seed=0)
