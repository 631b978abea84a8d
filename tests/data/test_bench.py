import json

from rmn_jax.data.bench import bench_input


def test_bench_prints_a_line_for_each_pipeline_and_the_step(data_config, capsys):
    lines = bench_input(data_config(), batch_size=32, seconds=0.05, step=lambda batch: batch["image"] + 1)
    assert [line["path"] for line in lines] == ["device", "step", "stream"]
    assert all(line["images_per_second"] > 0 for line in lines) and lines[0]["share_of_step"] > 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
