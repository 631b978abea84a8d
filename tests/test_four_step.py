"""The four steps on the digits: stopped in each step and at each boundary, a run ends with the same bits."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

from rmn_jax import four_step
from rmn_jax.cloning import clone
from rmn_jax.config import default_config
from rmn_jax.errors import Preempted
from rmn_jax.four_step import run_training
from rmn_jax.train import loop
from rmn_jax.train.progress import Reporter
from rmn_jax.train.run import Run, write_file


def make_config(method="rmn"):
    config = default_config()
    config.method = method
    config.epochs, config.stem_epochs = 3, 1
    config.batch_size, config.eval_batch_size = 288, 180  # 1,437 images: 4 updates an epoch
    config.learning_rate.warmup_epochs = 1
    config.learning_rate.peak = 0.05
    config.model.backbone = "resnet8"
    config.model.num_units = 3
    config.model.attention = "conditional"
    config.data.name = "digits"
    config.data.augment, config.data.crop_padding = "crop", 1
    return config


class StoppedRun(Run):
    """A run that is asked to stop at ``stop_at`` = (update, step)."""

    stop_at: tuple[int, int] | None = None

    def should_stop(self, update, step):
        return (update, step) == self.stop_at


def open_run(workdir, stop_at=None, config=None):
    run = StoppedRun(config or make_config(), workdir, devices=jax.devices()[:1], quiet=True)
    run.stop_at = stop_at
    return run


def make_everything_config():
    """Accumulation, moving average, mixup and label smoothing together."""
    config = make_config()
    config.accumulation, config.mixup, config.ema, config.label_smoothing = 2, 0.2, 0.9, 0.1
    return config


def outcome(workdir):
    """The final state's digests and the metrics without the timing."""
    final = pathlib.Path(workdir) / "checkpoints" / "update_00000012.step4" / "manifest.json"
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds_per_update") > 0
    return json.loads(final.read_text())["leaves"], lines


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    result = run_training(open_run(workdir))
    return result, *outcome(workdir)


# Step 1 is updates 0 to 4, step 4 is updates 4 to 12; the loop looks before each update of an epoch but the first.
PLACES = {
    "in step 1": (2, 1),
    "between steps 1 and 2": (4, 1),
    "between steps 3 and 4": (4, 3),
    "in step 4": (6, 4),
    "late in step 4": (11, 4),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_stopped_run_goes_on_to_the_same_bits(place, uninterrupted, tmp_path):
    result, leaves, lines = uninterrupted
    with pytest.raises(Preempted, match=f"after update {place[0]};"):
        run_training(open_run(tmp_path, place))
    assert not list((tmp_path / "checkpoints").glob("*damaged*"))  # nothing is saved twice
    again = run_training(open_run(tmp_path))
    assert {**again, "workdir": ""} == {**result, "workdir": ""}
    assert outcome(tmp_path) == (leaves, lines)


def test_stopping_where_it_was_restored_saves_nothing_twice(tmp_path):
    run = open_run(tmp_path)
    run.claim_workdir()
    run.save(run.place(run.initial_state()), 1)
    again = open_run(tmp_path, (0, 1))
    state, _ = again.restore()
    with pytest.raises(Preempted):
        again.check_stop(state, 0, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update_00000000.step1"]


def test_a_line_of_the_metrics_that_cannot_be_read_is_left_out_alone(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    lines = ['{"update": 4}', '{"oops', '{"update": 8}', '{"update": 12}', '{"up']
    file.write_bytes("\n".join(lines).replace("oops", "oo\udcffps").encode("utf-8", "surrogateescape"))
    Reporter(tmp_path).rewind(8)
    assert file.read_text().splitlines() == [lines[0], lines[2]]
    assert "line 2 of" in capsys.readouterr().err


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)


def test_accumulation_average_and_mixup_go_on_to_the_same_bits(tmp_path):
    run_training(open_run(tmp_path / "whole", config=make_everything_config()))
    for place in (PLACES["in step 1"], PLACES["between steps 3 and 4"], PLACES["in step 4"]):
        with pytest.raises(Preempted):
            run_training(open_run(tmp_path / "parts", place, make_everything_config()))
    run_training(open_run(tmp_path / "parts", config=make_everything_config()))
    leaves, lines = outcome(tmp_path / "parts")
    assert (leaves, lines) == outcome(tmp_path / "whole")
    averages = {name for name in leaves if name.startswith("average/")}
    assert {name.replace("average/", "params/", 1) for name in averages} == {
        name for name in leaves if name.startswith("params/")
    }
    assert all(leaves[name] != leaves[name.replace("average/", "params/", 1)] for name in averages)


def test_the_moving_average_is_cloned_and_evaluated(tmp_path):
    run = open_run(tmp_path, config=make_everything_config())
    trained = run.place(run.initial_state())
    jax.tree.map(np.testing.assert_array_equal, trained.average, trained.params)  # where it begins
    averaged = trained._replace(average=jax.tree.map(lambda leaf: leaf * 0.7 + 0.01, trained.params))
    cloned = four_step.clone_procedures(run, averaged)
    jax.tree.map(np.testing.assert_array_equal, cloned.average, clone(averaged.average, 3))
    want = loop.evaluate(run, trained._replace(params=averaged.average, average=None), routed=False)
    assert loop.evaluate(run, averaged, routed=False) == want
    assert loop.evaluate(run, trained, routed=False)["loss"] != want["loss"]


def test_a_killed_run_goes_on_to_the_same_bits(uninterrupted, tmp_path, monkeypatch):
    """Killed after epoch 2's line was written and before its checkpoint: the line is written again, not twice."""
    result, leaves, lines = uninterrupted
    run = open_run(tmp_path)
    save = run.save

    def dies(state, step):
        if int(state.update) == 8:
            raise KeyboardInterrupt
        save(state, step)

    monkeypatch.setattr(run, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        run_training(run)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "upd')
    again = run_training(open_run(tmp_path))
    assert {**again, "workdir": ""} == {**result, "workdir": ""}
    assert outcome(tmp_path) == (leaves, lines)


def test_the_metrics_tell_what_routing_did(uninterrupted):
    result, _, lines = uninterrupted
    assert [(line["epoch"], line["update"], line["step"]) for line in lines] == [
        (1, 4, 1),
        (2, 8, 4),
        (3, 12, 4),
    ]
    assert result["steps"] == 12 and result["epochs"] == 3
    for line in lines[1:]:
        assert np.array(line["load"]).sum(-1).tolist() == [4 * 288] * 3
        assert len(line["entropy"]) == len(line["dead_units"]) == len(line["memory_drift"]) == 3
        assert line["eval_examples"] == 360 and np.array(line["eval_load"]).sum(-1).tolist() == [360] * 3
    assert lines[0]["load"] == []
    assert result["top1"] == lines[-1]["eval_top1"]


def test_evaluation_counts_every_example_once_whatever_the_batch_size(uninterrupted, tmp_path):
    results = []
    for size in (180, 77, 360):
        config = make_config()
        config.eval_batch_size = size
        run = open_run(tmp_path, config=config)
        results.append(loop.evaluate(run, run.place(run.initial_state()), routed=False))
    assert [r["examples"] for r in results] == [360] * 3
    assert results[0]["top1"] == results[1]["top1"] == results[2]["top1"]
    np.testing.assert_allclose([r["loss"] for r in results], results[0]["loss"], rtol=1e-5)


def test_memories_start_at_the_centres_of_what_the_stages_are_given(tmp_path):
    run = open_run(tmp_path)
    stem = run.place(run.initial_state())
    cloned = four_step.clone_procedures(run, stem)
    jax.tree.map(np.testing.assert_array_equal, cloned.params, clone(stem.params, 3))
    features = four_step.extract_features(run, stem)
    assert [f.shape for f in features] == [(1437, 16), (1437, 16), (1437, 32)]
    memory = jax.device_get(four_step.initialise_memories(run, cloned, stem).memory)
    for i, stage in enumerate(features):
        centres = memory[f"memory{i + 1}"]
        nearest = np.linalg.norm(stage[:, None] - centres[None], axis=-1).argmin(-1)
        for unit in range(3):  # a k-means centre is the mean of what is nearest to it
            np.testing.assert_allclose(centres[unit], stage[nearest == unit].mean(0), rtol=1e-3, atol=1e-4)


def test_memories_do_not_depend_on_the_batch_of_evaluation(tmp_path):
    # A run may go on with another eval_batch_size, and ends with the same bits; features differ in their last ones.
    found = []
    for size in (180, 77):
        config = make_config()
        config.eval_batch_size = size
        run = open_run(tmp_path, config=config)
        found.append(four_step.extract_features(run, run.place(run.initial_state())))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_plain_run_is_one_step(tmp_path):
    config = make_config("plain")
    config.epochs = 1
    result = run_training(open_run(tmp_path, config=config))
    assert result["steps"] == 4
    assert (tmp_path / "checkpoints" / "update_00000004.step1").is_dir()


def test_no_stem_epochs_starts_routed_from_the_initial_network(tmp_path):
    config = make_config()
    config.epochs, config.stem_epochs = 1, 0
    assert run_training(open_run(tmp_path, config=config))["steps"] == 4
    assert [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4]
