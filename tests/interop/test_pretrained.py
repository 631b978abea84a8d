"""A run from a weights file: an RMN that continues with phases 2 to 4."""

import json

import numpy as np
import pytest
import torchvision_files
from safetensors.numpy import save_file

from rmn_jax.cli.main import main

DIGITS = [
    "--config=configs/digits.py",
    "--config.epochs=1",
    "--config.batch_size=720",
    "--config.learning_rate.warmup_epochs=0",
    "--config.learning_rate.peak=0.001",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(torchvision_files.fill(torchvision_files.shapes_of("resnet18", 10)), path)
    return path


def run_import(workdir, weights, *more):
    return main(
        [
            "import",
            "--backbone=resnet18",
            f"--weights={weights}",
            f"--workdir={workdir}",
            "--num_classes=10",
            *more,
        ]
    )


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_an_imported_rmn_continues_with_cloning_memories_and_routed_training(weights, tmp_path, capsys):
    assert run_import(tmp_path / "run", weights, "--num_units=2", *DIGITS) == 0
    report = last_line(capsys)
    assert report["loaded"] == 122 - 20  # 122 tensors in the state dict, minus the 20 batch counters of batch norm
    assert report["missing"] == report["unexpected"] == []
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == "rmn" and config["stem_epochs"] == 0 and config["model"]["num_units"] == 2
    # Training continues with the same configuration: memories first, then an epoch of one step.
    same = ["--config.stem_epochs=0", "--config.model.backbone=resnet18", "--config.model.num_units=2"]
    assert main(["train", f"--workdir={tmp_path / 'run'}", *DIGITS, *same]) == 0
    assert last_line(capsys)["steps"] == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == [4] and np.array(lines[0]["load"]).shape == (4, 2)


def test_a_wrong_file_or_a_used_folder_changes_nothing(weights, tmp_path, capsys):
    (tmp_path / "empty.safetensors").write_bytes(b"")
    assert run_import(tmp_path / "run", tmp_path / "empty.safetensors", *DIGITS) == 2
    assert not (tmp_path / "run").exists()
    assert run_import(tmp_path / "run", weights, "--num_units=0", *DIGITS) == 2
    assert not (tmp_path / "run").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.json").write_text("{}")
    assert run_import(tmp_path / "used", weights, *DIGITS) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "used").iterdir()) == ["config.json"]
