"""The benchmark of the input at tiny sizes: what it runs and prints. No test depends on a speed."""

import json
import os
import sys
import time

import numpy as np
import pytest

from benchmarks import input as benchmark
from benchmarks.input_pipelines import Size, feed, lines, summary, write_folder
from benchmarks.input_side import SIZE, check, cpu_seconds

TINY = Size(images=16, batch=4, batches=2, rounds=1)


@pytest.fixture(scope="module")
def photographs():
    return benchmark.photographs(TINY.images)


@pytest.fixture
def folder(tmp_path, photographs):
    write_folder(tmp_path, photographs)
    return tmp_path


def test_photographs_differ(photographs):
    assert len(set(photographs)) == TINY.images


def test_ours_and_opencv_crop_the_same_windows(photographs):
    for number, data in enumerate(photographs):
        one, other = benchmark.ours(data, number), benchmark.opencv(data, number)
        assert np.abs(one.astype(int) - other).max() <= 1


def test_arithmetic_of_the_lines():
    rates = np.array([100.0, 400.0, 200.0])
    assert feed(rates, (1000, 999, 1001)) == {"cores_to_feed": {"1000": 5, "999": 5, "1001": 6}}
    assert feed(rates, ()) == {}
    assert summary("rate", rates) == {"rate": 200, "rate_quartiles": [150, 300]}
    assert summary("ratio", rates / 200) == {"ratio": 1.0, "ratio_quartiles": [0.75, 1.5]}


def test_folder_has_a_class_folder_for_each_class(folder, photographs):
    files = sorted((folder / "train").glob("*/*.jpg"))
    assert len(files) == TINY.images and len({file.parent for file in files}) == 8
    assert {file.read_bytes() for file in files} == set(photographs)


def test_cpu_seconds_are_those_of_the_process():
    before, started = cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() - started < 0.05:
        pass
    assert 0.05 <= cpu_seconds([os.getpid()]) - before < 5


@pytest.mark.parametrize("wrong", [np.zeros((4, SIZE, SIZE, 3), np.float32), np.zeros((4, 3, SIZE, SIZE), np.uint8)])
def test_a_side_that_delivers_something_else_is_refused(wrong):
    check(np.zeros((4, SIZE, SIZE, 3), np.uint8), 4)
    with pytest.raises(ValueError, match="a batch is"):
        check(wrong, 4)


def test_decoding_is_compared_and_written(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    command = ["benchmarks.input", "--parts", "decode", "--images=2", "--rounds=1", "--feed", "1000", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["side"] for line in printed] == ["rmn_jax", "opencv", "pillow", "tensorflow"]
    for line in printed[:3]:
        assert line["images_per_core_second"] > 0 and line["cores_to_feed"]["1000"] >= 1
    written = json.loads(out.read_text())
    assert written["lines"] == printed and {"date", "processor", "cores", "command"} <= set(written)


@pytest.mark.parametrize("side", ["stream", "torch-pillow", "torch-opencv"])
def test_a_pipeline_delivers_batches_in_its_own_process(folder, side):
    (line,) = lines(folder, [side], TINY, fed=(1000,))
    if "skipped" in line:
        pytest.skip(line["skipped"])
    assert line["images_per_core_second"] > 0 and line["images_per_second_on_one_core"] > 0
    assert line[f"ratio_to_{side}"] == 1 and line["cores_to_feed"]["1000"] >= 1
    assert line["versions"]["opencv" if side != "torch-pillow" else "pillow"]


def test_what_is_not_given_is_skipped_visibly(folder):
    assert list(lines(folder, ["torch-pillow-simd"], TINY)) == [
        {"part": "pipelines", "side": "torch-pillow-simd", "skipped": "no --pillow_simd"}
    ]
