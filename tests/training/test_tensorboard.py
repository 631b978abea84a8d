"""What TensorBoard shows of a run is what the run wrote to ``metrics.jsonl``, also after a restart."""

import json
import struct
import sys

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rmn_jax.cli.main import main
from rmn_jax.training import tensorboard
from rmn_jax.training.progress import Reporter
from rmn_jax.training.tensorboard import TensorBoard


def events(folder):
    """The events of all files, oldest first. A record is its length, a checksum, the event, a checksum."""
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def shown(folder):
    """``{tag: {step: value}}`` as TensorBoard shows it: a new file hides what is there from its first step on."""
    found = {}
    for event in events(folder):
        if event.HasField("session_log"):
            assert event.session_log.status == SessionLog.START
            found = {tag: {s: v for s, v in values.items() if s < event.step} for tag, values in found.items()}
        for value in event.summary.value:
            steps = found.setdefault(value.tag, {})
            assert event.step not in steps, "a step is shown twice"
            steps[event.step] = value.histo if value.HasField("histo") else value.simple_value
    return found


LINE = {
    "epoch": 2,
    "step": 10,
    "phase": 4,
    "learning_rate": 0.25,
    "train_loss": 1.5,
    "train_top1": 0.5,
    "seconds_per_step": 0.125,
    "stages": [2, 4],
    "load": [[3, 0, 5], [4, 4, 0]],
    "entropy": [0.5, 0.25],
    "dead_units": [1, 1],
    "memory_drift": [0.75, 0.5],
    "eval_top1": 0.25,
    "eval_top5": 0.75,
    "eval_loss": 2.0,
    "eval_load": [[1, 1, 1], [0, 0, 3]],
    "churn": [0.125, 0.0],
}


def record(folder, *lines, step=0):
    reporter = Reporter(folder, quiet=True, tensorboard=True)
    reporter.rewind(step)
    for line in lines:
        reporter.record(line)
    reporter.close()


def test_a_line_becomes_scalars_and_histograms_by_stage(tmp_path):
    record(tmp_path, LINE)
    found = {tag: values[10] for tag, values in shown(tmp_path).items()}
    scalars = {tag: value for tag, value in found.items() if isinstance(value, float)}
    assert scalars == {
        "loss/train": 1.5,
        "loss/held_out": 2.0,
        "top1/train": 0.5,
        "top1/held_out": 0.25,
        "top5/held_out": 0.75,
        "learning_rate": 0.25,
        "seconds_per_step": 0.125,
        "drift/stage2": 0.75,
        "drift/stage4": 0.5,
        "dead_units/stage2": 1,
        "dead_units/stage4": 1,
        "churn/stage2": 0.125,
        "churn/stage4": 0,
        "load_entropy/stage2": 0.5,
        "load_entropy/stage4": 0.25,
    }
    histogram = found["load/stage2"]  # three inputs of unit 0 and five of unit 2
    assert (histogram.num, histogram.sum, histogram.sum_squares) == (8, 10, 20)
    assert list(histogram.bucket_limit) == [-0.5, 0.5, 1.5, 2.5] and list(histogram.bucket) == [0, 3, 0, 5]
    assert list(found["load_held_out/stage4"].bucket) == [0, 0, 0, 3]


def test_what_a_line_does_not_have_is_left_out(tmp_path):
    plain = {
        **LINE,
        "step": 5,
        "phase": 1,
        "stages": [],
        "load": [],
        "entropy": [],
        "dead_units": [],
        "memory_drift": [],
    }
    plain = {key: value for key, value in plain.items() if not key.startswith("eval_") and key != "churn"}
    record(tmp_path, plain, {**LINE, "churn": None})  # the first evaluation of phase 4 has no churn
    found = shown(tmp_path)
    assert set(found["loss/train"]) == {5, 10} and set(found["loss/held_out"]) == set(found["load/stage2"]) == {10}
    assert not any(tag.startswith("churn") for tag in found)


def test_a_run_that_goes_back_shows_no_step_twice(tmp_path):
    lines = [{**LINE, "step": step} for step in (5, 10, 15)]
    record(tmp_path, *lines)
    record(tmp_path, *({**line, "train_loss": 9.0} for line in lines[2:]), step=12)  # within an epoch
    record(tmp_path, {**LINE, "step": 20, "train_loss": 7.0}, step=15)
    assert shown(tmp_path)["loss/train"] == {5: 1.5, 10: 1.5, 15: 9.0, 20: 7.0}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


def test_a_full_disk_ends_tensorboard_and_not_the_run(tmp_path, monkeypatch):
    said = []
    board = TensorBoard(tmp_path, said.append)
    board.begin(0)

    def full(event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writer, "write_event", full)
    board.write(LINE)
    board.write(LINE)
    board.close()
    assert len(said) == 1 and "No space left on device; the run goes on without TensorBoard" in said[0]
    (tmp_path / "file").write_text("")
    TensorBoard(tmp_path / "file", said.append).begin(0)
    assert len(said) == 2


SETTINGS = ["epochs=2", "batch_size=720", "model.width=2", "learning_rate.warmup_epochs=1", "checkpoint.every_epochs=1"]
WORDS = [f"--config.{setting}" for setting in SETTINGS]


def test_a_run_writes_for_tensorboard_when_it_is_asked_to(tmp_path, capsys, monkeypatch):
    command = ["train", "--config=configs/digits.py:plain", f"--workdir={tmp_path / 'run'}", *WORDS]
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main([*command, "--config.tensorboard=True"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "pip install 'rmn_jax[tensorboard]'" in lines[0]
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert main([*command, "--config.tensorboard=True"]) == 0
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = shown(tmp_path / "run")
    for tag, key in tensorboard._SCALARS.items():
        np.testing.assert_allclose(list(found[tag].values()), [line[key] for line in written], rtol=1e-6)
    assert main([*command, "--config.tensorboard=False"]) == 0  # no result depends on it
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main(["eval", f"--workdir={tmp_path / 'run'}"]) == 0  # evaluation needs no package
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert said.count("plain training, epochs 1 to 2") == said.count("epoch 2/2  plain ") == 1 and "stem" not in said
    assert said.count("compiling the training step of the plain network") == 1
