import json

from rmn_jax.data import bench
from rmn_jax.data.bench import bench_input


def test_bench_prints_a_line_for_each_pipeline_and_the_step(data_config, capsys):
    lines = bench_input(data_config(), batch_size=32, seconds=0.05, step=lambda batch: batch["image"] + 1)
    assert [line["path"] for line in lines] == ["device", "step", "stream"]
    assert all(line["images_per_second"] > 0 for line in lines) and lines[0]["share_of_step"] > 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
    assert lines[2]["images_per_second_per_core"] > 0 and lines[2]["cores_to_feed_step"] >= 1


def test_cores_that_feed_a_step(monkeypatch):
    monkeypatch.setattr(bench, "available_cores", lambda: 4)
    lines = [{"path": "step", "images_per_second": 1000}, {"path": "stream", "images_per_second": 600, "workers": 3}]
    bench._add_cores(lines)  # 200 a core, so 5 cores for 1,000
    assert (lines[1]["images_per_second_per_core"], lines[1]["cores_to_feed_step"]) == (200, 5)
    lines = [{"path": "stream", "images_per_second": 600, "workers": 8}]
    bench._add_cores(lines)  # 8 workers on 4 cores, and no step
    assert lines == [{"path": "stream", "images_per_second": 600, "workers": 8, "images_per_second_per_core": 150}]
    lines = [{"path": "stream", "images_per_second": 600, "workers": 0}]
    bench._add_cores(lines)  # threads on all 4 cores
    assert lines[0]["images_per_second_per_core"] == 150
