"""A run from a weights file: an RMN that continues with phases 2 to 4."""

import json
import shutil

import numpy as np
import pytest
import torchvision_files
from PIL import Image
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


def test_the_classes_are_those_of_the_data_and_prediction_works_at_once(tmp_path, capsys):
    # 12 classes in the file, 10 in the digits, no --num_classes: a new classifier, and a sentence that says so.
    path = tmp_path / "twelve.safetensors"
    save_file(torchvision_files.fill(torchvision_files.shapes_of("resnet18", 12)), path)
    workdir = tmp_path / "run"
    arguments = ["--backbone=resnet18", f"--weights={path}", f"--workdir={workdir}", *DIGITS]
    assert main(["import", *arguments]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert "the file has 12 classes, digits has 10" in report["head"] and report["head"] in captured.err
    assert {"params/head/fc/bias", "params/head/fc/kernel"} <= set(report["fresh"])
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["mean"] == "0.485,0.456,0.406" and config["data"]["std"] == "0.229,0.224,0.225"
    image = tmp_path / "grey.png"
    Image.new("RGB", (8, 8), (90, 90, 90)).save(image)
    assert main(["predict", f"--workdir={workdir}", "--top=10", str(image)]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {entry["name"] for entry in line["classes"]} == {str(digit) for digit in range(10)}
    # The weights are gone: the run does not begin again from random ones.
    shutil.rmtree(workdir / "checkpoints")
    before = {path.name for path in workdir.iterdir()}
    for page in ([], [*DIGITS, "--config.method=plain", "--config.model.backbone=resnet18", "--config.stem_epochs=0"]):
        assert main(["train", f"--workdir={workdir}", *page]) == 2
        assert "the weights it began from are gone" in capsys.readouterr().err
    assert {path.name for path in workdir.iterdir()} - {"run.lock"} == before


MISFITS = {
    "--config.model.width=16": "config.model.width is 16, but it holds the published resnet18",
    "--config.model.small_stem=3x3": "config.model.small_stem is '3x3', but it holds the published resnet18",
    "--num_classes=7": "--num_classes is 7, but the data set digits has 10 classes",
    "--config.data.name=folder": "config.data.path is empty",
    "--config.data.mean=0.5,0.5": "config.data.std is empty; set config.data.mean and config.data.std both",
    "--backbone=resnet8": "no weights can be imported for 'resnet8'",
}


@pytest.mark.parametrize("flag", MISFITS)
def test_a_misfit_is_named_and_nothing_is_written(flag, weights, tmp_path, capsys):
    typed = ["import", "--backbone=resnet18", f"--weights={weights}", f"--workdir={tmp_path / 'run'}", *DIGITS, flag]
    assert main(typed) == 2
    captured = capsys.readouterr()
    assert MISFITS[flag] in captured.err and len(captured.err.splitlines()) == 1 and not captured.out
    assert not (tmp_path / "run").exists()


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
