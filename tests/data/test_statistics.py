import numpy as np
import pytest

from rmn_jax.data import statistics


def test_mean_and_deviation_are_numpy_s():
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    mean, std = statistics.compute([images[:3], images[3:]])
    scaled = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=0), rtol=1e-12)


def test_statistics_are_computed_once_and_stored(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return (0.1, 0.2), (0.3, 0.4)

    for _ in range(2):
        assert statistics.load_or_compute(tmp_path, "key", compute) == ((0.1, 0.2), (0.3, 0.4))
    statistics.load_or_compute(tmp_path, "another key", compute)
    assert len(calls) == 2
    assert statistics.load_or_compute(tmp_path, "key", lambda: pytest.fail("computed again")) is not None


def test_a_damaged_file_or_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "rmn_statistics.json").write_text("{")
    assert statistics.load_or_compute(tmp_path, "key", lambda: ((0.5,), (0.5,))) == ((0.5,), (0.5,))
    assert statistics.load_or_compute(tmp_path / "none", "key", lambda: ((0.5,), (0.5,))) == ((0.5,), (0.5,))
    assert statistics.load_or_compute(None, "key", lambda: ((0.5,), (0.5,))) == ((0.5,), (0.5,))
