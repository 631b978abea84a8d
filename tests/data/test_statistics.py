import json
import os

import numpy as np
import pytest

from rmn_jax import data
from rmn_jax.data import statistics
from rmn_jax.errors import UserError


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


def test_given_statistics_replace_those_of_the_images(data_config):
    config = data_config(mean="0.5, 0.25,0", std="1,2,4")
    assert statistics.given(config) == ((0.5, 0.25, 0.0), (1.0, 2.0, 4.0))
    info = data.load(config, batch_size=8, eval_batch_size=8, seed=0).info
    assert (info.mean, info.std) == statistics.given(config)
    assert statistics.to_text(info.std) == "1,2,4"
    assert statistics.given(data_config(mean="", std="")) is None
    described = data.describe(config)
    assert described == info


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ("0.5,0.5,0.5", "", "data.std is empty"),
        ("", "1,1,1", "data.mean is empty"),
        ("0.5,0.5", "1,1,1", "data.mean is '0.5,0.5'; it must be three numbers"),
        ("0,0,0", "1,1,grey", "data.std is '1,1,grey'; it must be three numbers"),
        ("0,0,nan", "1,1,1", "must be three numbers"),
        ("0,0,0", "1,0,1", "above 0"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(mean, std, message, data_config):
    with pytest.raises(UserError, match=message):
        data.load(data_config(mean=mean, std=std), batch_size=8, eval_batch_size=8, seed=0)


@pytest.mark.parametrize("name", ["mean", "std", "digest"])
@pytest.mark.parametrize(
    "value", [[0.1, 0.3], [0.1], "0.1", None, [], [None, None], [True, 1], [float("inf"), 0.1], {}]
)
def test_an_edited_entry_is_computed_again(name, value, tmp_path, caplog):
    right = ((0.1, 0.2), (0.3, 0.4))
    statistics.load_or_compute(tmp_path, "key", lambda: right)
    path = tmp_path / "rmn_statistics.json"
    stored = json.loads(path.read_text())
    stored["key"][name] = value
    path.write_text(json.dumps(stored))
    assert statistics.load_or_compute(tmp_path, "key", lambda: right) == right
    assert statistics.load_or_compute(tmp_path, "key", lambda: pytest.fail("computed again")) == right


@pytest.mark.parametrize("text", ["[]", "null", "3", "[" * 100_000, '{"key": 3}', "\udcff"])
def test_a_damaged_file_is_written_again(text, tmp_path):
    (tmp_path / "rmn_statistics.json").write_text(text, errors="surrogateescape")
    right = ((0.1, 0.2), (0.3, 0.4))
    assert statistics.load_or_compute(tmp_path, "key", lambda: right) == right
    assert statistics.load_or_compute(tmp_path, "key", lambda: pytest.fail("computed again")) == right


def test_a_pipe_in_place_of_the_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "rmn_statistics.json")
    assert statistics.load_or_compute(tmp_path, "key", lambda: ((0.5,), (0.5,))) == ((0.5,), (0.5,))
