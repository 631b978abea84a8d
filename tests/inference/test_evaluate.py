"""Evaluation on a folder: the numbers of the run on the same images, by class, and files that say so."""

import csv
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from rmn_jax.analysis.confusion import per_class
from rmn_jax.cli.commands import _by_class
from rmn_jax.cli.main import main
from rmn_jax.data import digits
from rmn_jax.inference.evaluate import summarise


def test_summary_by_hand():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]]))
    found = summarise(logits, np.array([0, 2, 2, 0]))
    assert found.top1 == 0.75 and found.top5 == 1  # the third is wrong; the tie of the fourth goes to the lower class
    assert found.loss == pytest.approx(-np.log([0.7, 0.5, 0.1, 0.4]).mean(), rel=1e-6)
    assert found.confusion.tolist() == [[2, 0, 0], [0, 0, 0], [0, 1, 1]]
    np.testing.assert_array_equal(per_class(found.confusion), [1, np.nan, 0.5])


def test_a_folder_gives_the_numbers_of_the_run(trained, tmp_path, capsys):
    run, _ = trained
    images, labels = digits.load_arrays()["eval"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "moved" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    assert main(["eval", f"--workdir={run.workdir}", "--config.eval_batch_size=120"]) == 0
    expected = json.loads(capsys.readouterr().out.splitlines()[-1])
    typed = ["eval", f"--workdir={run.workdir}", f"--data={tmp_path / 'moved'}"]
    assert main(typed) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["examples"] == 360
    for name in ("top1", "top5", "loss"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
    rows = list(csv.DictReader(io.StringIO(pathlib.Path(found["csv"]).read_text(encoding="utf-8"))))
    confusion = np.array([[int(row[str(name)]) for name in range(10)] for row in rows])
    assert confusion.sum() == 360 and confusion.diagonal().sum() / 360 == pytest.approx(found["top1"])
    assert confusion.sum(axis=1).tolist() == np.bincount(labels).tolist()
    for row, (name, accuracy) in zip(rows, found["per_class"].items(), strict=True):
        assert row["class"] == name and float(row["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    with Image.open(found["figure"]) as figure:
        assert figure.width > 400
    # Another class, and an image that is none.
    (tmp_path / "moved" / "3" / "x.png").write_text("no image")
    assert main(typed) == 2
    assert "x.png cannot be read as an image" in capsys.readouterr().err
    (tmp_path / "moved" / "ant").mkdir()
    (tmp_path / "moved" / "ant" / "1.png").write_text("")
    assert main(typed) == 2
    assert "the network has no class 'ant'" in capsys.readouterr().err


def test_a_run_is_evaluated_by_class_on_its_own_data(trained, tmp_path, capsys):
    run, _ = trained
    typed = ["eval", f"--workdir={run.workdir}", "--config.eval_batch_size=120"]
    for split in ("eval", "train"):
        assert main([*typed, f"--split={split}"]) == 0
        expected = json.loads(capsys.readouterr().out.splitlines()[-1])
        out = tmp_path / split
        assert main([*typed, f"--split={split}", f"--out={out}"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
        _, labels = digits.load_arrays()[split]
        rows = list(csv.DictReader(io.StringIO((out / "confusion.csv").read_text(encoding="utf-8"))))
        confusion = np.array([[int(row[str(name)]) for name in range(10)] for row in rows])
        assert confusion.sum(axis=1).tolist() == np.bincount(labels).tolist()  # rows are true classes
        assert confusion.diagonal().sum() / len(labels) == pytest.approx(found["top1"], abs=1e-6)
        assert list(found["per_class"].values()) == pytest.approx(per_class(confusion), abs=1e-6)
        assert (found["csv"], found["figure"]) == (str(out / "confusion.csv"), str(out / "confusion.png"))
    (tmp_path / "file").write_text("")
    assert main([*typed, f"--out={tmp_path / 'file'}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_classes_of_one_name_stay_apart(tmp_path):
    counts = np.array([[2, 0], [1, 1]])
    found = _by_class(counts, ("crane", "crane"), tmp_path)["per_class"]  # ImageNet has a bird and a machine
    assert found == {"0 crane": 1.0, "1 crane": 0.5}


def test_only_free_keys_can_be_set(trained, capsys):
    for command in ("eval", "analyze"):
        assert main([command, f"--workdir={trained[0].workdir}", "--config.model.num_units=2"]) == 2
        assert "--config.model.num_units belongs to the trained run" in capsys.readouterr().err
