"""Runs of release 0.1 are still evaluated and resumed.

Release 0.1 called an optimizer step an update and a phase a step, and ``data.pipeline`` was ``data.feed``. The archive
holds two of its run folders, each trained to step 15 of 15: ``plain`` with the checkpoint of step 15, and ``rmn`` with
that of step 10. They are ResNet-8 of width 2 on the digits, with N = 2 and a moving average. Files of the checkpoints
that Orbax does not read are left out.
"""

import json
import math
import pathlib
import zipfile

import jax.numpy as jnp
import pytest

from rmn_jax.cli.main import main
from rmn_jax.config import from_json
from rmn_jax.training.checkpoint import Position
from rmn_jax.training.progress import read_metrics
from rmn_jax.training.run import open_run
from rmn_jax.training.state import Phase

ARCHIVE = pathlib.Path(__file__).parent / "runs_of_release_0_1.zip"
PAGE = pathlib.Path(__file__).parent.parent.parent / "configs" / "digits.py"


@pytest.fixture
def runs(tmp_path):
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def checkpoint_names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def change(path, **model):
    """Changes values of ``config.model`` in a stored configuration."""
    stored = json.loads(path.read_text())
    stored["model"].update(model)
    path.write_text(json.dumps(stored))


def old_words(workdir):
    """The stored configuration as ``--config.key=value`` words, under the keys of release 0.1."""
    stored = json.loads((workdir / "config.json").read_text())
    flat = {
        f"{key}.{inner}" if isinstance(value, dict) else key: leaf
        for key, value in stored.items()
        for inner, leaf in (value.items() if isinstance(value, dict) else [("", value)])
    }
    return [f"--config.{key}={value}" for key, value in flat.items()]


@pytest.mark.parametrize("name", ["plain", "rmn"])
def test_the_configuration_has_todays_keys(name, runs):
    assert '"feed": "device"' in (runs / name / "config.json").read_text()
    config = from_json(runs / name / "config.json")
    assert config.data.pipeline == "device" and "feed" not in config.data
    assert config.method == name and config.model.width == 2 and config.ema == 0.5


def test_an_old_backend_name_is_mapped(runs):
    path = runs / "rmn" / "config.json"
    change(path, backend="visits")
    assert from_json(path).model.backend == "scan"


def test_options_that_a_backbone_used_to_ignore_are_unset(runs):
    path = runs / "rmn" / "config.json"
    change(path, small_stem="3x3")  # ResNet-8 has a width, but no other stem
    assert (from_json(path).model.small_stem, from_json(path).model.width) == ("7x7", 2)
    change(path, backbone="vgg16_bn")  # VGG has neither
    assert (from_json(path).model.small_stem, from_json(path).model.width) == ("7x7", 0)
    change(path, backbone="resnet18", width=4)  # ResNet-18 has both
    assert (from_json(path).model.small_stem, from_json(path).model.width) == ("3x3", 4)


def test_metrics_are_read_under_todays_keys(runs):
    lines = read_metrics(runs / "rmn" / "metrics.jsonl")
    assert [(line["epoch"], line["step"], line["phase"]) for line in lines] == [(1, 5, 1), (2, 10, 4), (3, 15, 4)]
    assert all(line["seconds_per_step"] > 0 and not {"update", "seconds_per_update"} & line.keys() for line in lines)


def test_evaluation_gives_the_recorded_result(runs, capsys):
    assert main(["eval", f"--workdir={runs / 'plain'}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    # As release 0.1 printed it for this run: 75 of 360 are right.
    assert result["examples"] == 360
    assert result["top1"] == pytest.approx(75 / 360)
    assert result["loss"] == pytest.approx(2.2143497043185763, rel=1e-4)


def test_a_routed_run_resumes_from_its_old_checkpoint(runs, capsys):
    workdir = runs / "rmn"
    words, before = old_words(workdir), read_metrics(workdir / "metrics.jsonl")
    assert "--config.data.feed=device" in words
    assert main(["train", f"--config={PAGE}", f"--workdir={workdir}", *words]) == 0
    captured = capsys.readouterr()
    assert "going on from step 10 of 15" in captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert result["steps"] == 15 and math.isfinite(result["loss"])
    assert checkpoint_names(workdir) == ["step_00000015.phase4", "update_00000010.step4"]
    after = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(after) == 3 and after[:2] == before[:2]
    assert all(line.keys() >= before[0].keys() and "update" not in line for line in after)  # newer keys may be added
    # Release 0.1 trained the same five steps; rounding may differ between versions of XLA.
    assert after[2]["train_loss"] == pytest.approx(before[2]["train_loss"], rel=1e-2)
    assert from_json(workdir / "config.json").data.pipeline == "device"
    assert '"feed"' not in (workdir / "config.json").read_text()


def test_checkpoints_with_old_and_new_names_are_pruned_together(runs):
    run, state, position = open_run(runs / "rmn")
    assert position == Position(10, Phase.ROUTED) and int(state.step) == 10
    assert run.config.checkpoint.keep == 2
    run.checkpoints.save(state._replace(step=jnp.int32(15)), Position(15, Phase.ROUTED))
    assert checkpoint_names(run.workdir) == ["step_00000015.phase4", "update_00000010.step4"]
    run.checkpoints.save(state._replace(step=jnp.int32(20)), Position(20, Phase.ROUTED))
    assert checkpoint_names(run.workdir) == ["step_00000015.phase4", "step_00000020.phase4"]
