"""A run from another run, plain or routed, and from exported weights; torchvision's names, out and in again."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmn_jax.cli.main import main
from rmn_jax.interop.weights_file import load_weights

TINY = [
    "--config=configs/digits.py",
    "--config.epochs=2",
    "--config.stem_epochs=1",
    "--config.batch_size=720",
    "--config.model.width=8",
    "--config.model.num_units=2",
    "--config.learning_rate.warmup_epochs=0",
]


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("transfer") / "routed"
    assert main(["train", f"--workdir={workdir}", *TINY]) == 0
    return workdir


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("transfer") / "plain"
    assert main(["train", f"--workdir={workdir}", *TINY, "--config.method=plain", "--config.epochs=1"]) == 0
    return workdir


def last(capsys):
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[-1])


def phases(workdir):
    return [json.loads(line)["phase"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_is_prolonged_by_the_command_that_train_names(routed, tmp_path, capsys):
    assert main(["train", f"--workdir={routed}", "--config.epochs=3"]) == 2
    error = capsys.readouterr().err
    assert "a run of 2 epochs" in error and len(error.splitlines()) == 1
    typed = error[error.index("rmn import") : error.index(", then")].replace("NEW", str(tmp_path / "new")).split()
    assert main(typed[1:]) == 0
    report = last(capsys)
    assert report["fresh"] == [] and "the classifier was loaded" in report["head"]
    new, old = load_weights(tmp_path / "new"), load_weights(routed)
    assert new.arrays.keys() == old.arrays.keys() and new.routed
    for name, array in old.arrays.items():
        np.testing.assert_array_equal(new.arrays[name], array)
    assert main(["train", f"--workdir={tmp_path / 'new'}"]) == 0
    assert last(capsys)["epochs"] == 1 and phases(tmp_path / "new") == [4]


def test_memories_are_found_anew_from_an_exported_file(routed, tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    assert main(["export", f"--workdir={routed}", f"--out={file}", "--format=safetensors"]) == 0
    assert last(capsys)["bytes"] == file.stat().st_size
    workdir = tmp_path / "new"
    typed = ["import", f"--from={file}", f"--workdir={workdir}", "--memories=new", "--fresh_head", "--config.epochs=1"]
    assert main([*typed, "--config.data.classes=6"]) == 0
    report = last(capsys)
    assert report["fresh"] == ["params/head/fc/bias", "params/head/fc/kernel"]
    assert main(["train", f"--workdir={workdir}"]) == 0
    assert phases(workdir) == [4]
    started = load_weights(workdir).arrays["memory/memory1"]
    assert np.abs(started - load_weights(routed).arrays["memory/memory1"]).max() > 1e-3


def test_memories_of_one_routed_stage_are_found_anew(tmp_path, capsys):
    assert main(["train", f"--workdir={tmp_path / 'old'}", *TINY, "--config.model.routed_stages=last"]) == 0
    assert main(["import", f"--from={tmp_path / 'old'}", f"--workdir={tmp_path / 'new'}", "--memories=new"]) == 0
    assert main(["train", f"--workdir={tmp_path / 'new'}"]) == 0
    assert phases(tmp_path / "new") == [4, 4]
    memories = {name for name in load_weights(tmp_path / "new").arrays if name.startswith("memory/")}
    assert memories == {"memory/memory3"}


def test_other_classes_begin_with_a_new_head(routed, tmp_path, capsys):
    assert main(["import", f"--from={routed}", f"--workdir={tmp_path / 'a'}", "--config.data.classes=6"]) == 0
    assert "10 classes there, 6 in digits" in last(capsys)["head"]
    assert load_weights(tmp_path / "a").arrays["params/head/fc/bias"].shape == (6,)


WAYS_TO_ASK = {
    "the key": ["--config.model.num_units=3"],
    "the argument": ["--num_units=3"],
    "both": ["--num_units=3", "--config.model.num_units=3"],
    "the method": ["--config.method=rmn", "--config.model.num_units=3"],
    "a page": [*TINY, "--config.model.num_units=3"],
}


@pytest.mark.parametrize("way", WAYS_TO_ASK)
def test_a_plain_run_begins_a_routed_one(way, plain, tmp_path, capsys):
    workdir = tmp_path / "new"
    assert main(["import", f"--from={plain}", f"--workdir={workdir}", *WAYS_TO_ASK[way]]) == 0
    assert all("attention" in name or "gate" in name for name in last(capsys)["fresh"])
    config = json.loads((workdir / "config.json").read_text())
    assert (config["method"], config["stem_epochs"], config["model"]["num_units"]) == ("rmn", 0, 3)
    new, old = load_weights(workdir), load_weights(plain)
    assert not new.routed  # phases 2 to 4 are to come
    kernel = next(name for name in old.arrays if name.startswith("params/stage1") and name.endswith("kernel"))
    np.testing.assert_array_equal(new.arrays[kernel], old.arrays[kernel])
    if way == "the key":
        assert main(["train", f"--workdir={workdir}"]) == 0
        assert set(phases(workdir)) == {4} and load_weights(workdir).arrays["memory/memory1"].shape[0] == 3


PLAIN_STAYS = [[], ["--config.epochs=3"], ["--config.method=plain", "--config.model.num_units=3"]]


@pytest.mark.parametrize("typed", PLAIN_STAYS, ids=str)
def test_a_plain_run_stays_plain_where_no_units_are_asked_for(typed, plain, tmp_path):
    assert main(["import", f"--from={plain}", f"--workdir={tmp_path / 'new'}", *typed]) == 0
    assert json.loads((tmp_path / "new" / "config.json").read_text())["method"] == "plain"


WITHOUT_MEMORIES = {
    ("--memories=keep",): "has no memories",
    ("--memories=new", "--num_units=2"): "has no memories",
    ("--num_units=2", "--config.model.num_units=3"): "give one of them",
    ("--config.model.num_units=0",): "it must be 1 or more",
    ("--config.model.num_units=many",): "it must be a whole number",
}


def test_what_a_plain_run_does_not_have_is_one_line(plain, tmp_path, capsys):
    for typed, message in WITHOUT_MEMORIES.items():
        assert main(["import", f"--from={plain}", f"--workdir={tmp_path / 'new'}", *typed]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "new").exists()
    assert main(["analyze", f"--workdir={plain}"]) == 2
    assert "is not routed (yet)" in capsys.readouterr().err


MISFITS = {
    "--config.model.width=16": "has config.model.width 8, the new run 16",
    "--config.model.num_units=3": "has config.model.num_units 2, the new run 3",
    "--num_units=5": "has 2 units, and keeps them",
    "--backbone=resnet8": "--backbone goes with --weights only",
}


@pytest.mark.parametrize("flag", MISFITS)
def test_a_misfit_is_one_line(flag, routed, tmp_path, capsys):
    assert main(["import", f"--from={routed}", f"--workdir={tmp_path / 'new'}", flag]) == 2
    error = capsys.readouterr().err
    assert MISFITS[flag] in error and len(error.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_files_that_are_not_ours_are_one_line(tmp_path, capsys):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "foreign")
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "newer", metadata={"rmn_jax": json.dumps({"version": 9})})
    (tmp_path / "text").write_text("x")
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "list", metadata={"rmn_jax": "[1]"})
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "bare", metadata={"rmn_jax": json.dumps({"version": 1})})
    wrong = {
        "list": "is of format None, this one reads 1",
        "bare": "has no configuration or no data set in its header",
        "foreign": "weights of torchvision or timm are read with --weights",
        "newer": "is of format 9, this one reads 1",
        "text": "It is no run folder either",
        "absent": "no such run or file",
    }
    for name, message in wrong.items():
        assert main(["import", f"--from={tmp_path / name}", f"--workdir={tmp_path / 'new'}"]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_header_that_does_not_fit_its_weights_is_one_line(routed, tmp_path, capsys):
    from safetensors import safe_open

    file = tmp_path / "good"
    assert main(["export", f"--workdir={routed}", f"--out={file}", "--format=safetensors"]) == 0
    with safe_open(file, framework="numpy") as opened:
        about, arrays = json.loads(opened.metadata()["rmn_jax"]), load_file(file)

    def data(**changes):
        return {**about, "dataset": {**about["dataset"], **changes}}

    kernel = next(name for name in arrays if name.startswith("params/stage1") and name.endswith("kernel"))
    wrong = {
        "has no configuration": ({**about, "config": 3}, arrays),
        "config.model.width is 'x'; it must be a whole number": (
            {**about, "config": {"model": {"width": "x"}}},
            arrays,
        ),
        "there is no key": ({**about, "config": {"model": {"depth": 1}}}, arrays),
        "num_classes is 10, but class_names has 2 names": (data(class_names=["a", "b"]), arrays),
        "class_names is 7": (data(class_names=7), arrays),
        "unknown key 'colour'": (data(colour=1), arrays),
        "10 classes, but a list of 3 class names": (data(num_classes=3, class_names=["0", "1", "2"]), arrays),
        "has no memories for its routed network": (
            about,
            {name: array for name, array in arrays.items() if not name.startswith("memory")},
        ),
        "but its header is of a plain network": ({**about, "routed": False}, arrays),
        f"has no {kernel}": (about, {name: array for name, array in arrays.items() if name != kernel}),
        "not finite": (about, {**arrays, kernel: arrays[kernel] * np.nan}),
    }
    capsys.readouterr()
    for message, (header, tensors) in wrong.items():
        save_file(tensors, tmp_path / "bad", metadata={"rmn_jax": json.dumps(header)})
        typed = ["--config.data.classes=3"] if "3 class names" in message else []
        assert main(["import", f"--from={tmp_path / 'bad'}", f"--workdir={tmp_path / 'new'}", *typed]) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
        assert not (tmp_path / "new").exists()


def test_torchvision_has_no_routed_network(routed, tmp_path, capsys):
    typed = ["export", f"--workdir={routed}", f"--out={tmp_path / 'w'}", "--format=torchvision"]
    assert main(typed) == 2
    assert "torchvision has no routed networks" in capsys.readouterr().err and not (tmp_path / "w").exists()


def test_the_file_holds_the_classes(routed, tmp_path, capsys):
    from safetensors import safe_open

    assert main(["export", f"--workdir={routed}", f"--out={tmp_path / 'w'}", "--format=safetensors"]) == 0
    with safe_open(tmp_path / "w", framework="numpy") as file:
        about = json.loads(file.metadata()["rmn_jax"])
    assert about["dataset"]["class_names"] == [str(digit) for digit in range(10)]
    assert about["config"]["model"]["width"] == 8
    assert load_file(tmp_path / "w").keys() == load_weights(routed).arrays.keys()
