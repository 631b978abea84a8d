"""Predictions from a run folder, and the memory analysis, compared with the evaluation of the run."""

import csv
import io
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from rmn_jax.cli.main import main
from rmn_jax.cli.pages import load_config
from rmn_jax.data import folder
from rmn_jax.inference.predict import load_trained, predict_files
from rmn_jax.training import loop
from rmn_jax.training.run import Run
from rmn_jax.training.state import Phase


def test_predictions_equal_the_evaluation(trained, capsys):
    run, paths = trained
    assert main(["predict", f"--workdir={run.workdir}", "--top=3", *map(str, paths)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in paths]
    # The network of the run on the first 100 images of the evaluation split.
    state, position = run.restore()
    batch = next(iter(run.dataset.eval_batches()))
    model = run.networks.model(position.phase.routed).clone(axis_name=None)
    outputs = jax.jit(model.apply)(state.variables, run.preprocess.evaluate(batch["image"]))
    np.testing.assert_array_equal([line["classes"][0]["label"] for line in lines], outputs.logits[:100].argmax(-1))
    np.testing.assert_array_equal([line["units"] for line in lines], outputs.assignment[:, :100].T)
    probabilities = np.asarray(jax.nn.softmax(outputs.logits[:100]))
    for line, expected in zip(lines, probabilities, strict=True):
        got = [entry["probability"] for entry in line["classes"]]
        np.testing.assert_allclose(got, np.sort(expected)[::-1][:3], atol=2e-5)
        assert all(entry["name"] == str(entry["label"]) for entry in line["classes"])


@pytest.mark.parametrize("pipeline", ["device", "stream"])
def test_images_are_cropped_as_in_evaluation(pipeline, tmp_path):
    # A network that is trained on random resized crops is evaluated on the central 7/8.
    pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 60, 40, 3), dtype=np.uint8).repeat(2, axis=2)
    for number, image in enumerate(pixels.reshape(-1, 120, 40, 3)):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    settings = {"data.name": "folder", "data.path": str(tmp_path / "images"), "data.image_size": 32}
    settings |= {"data.pipeline": pipeline, "data.augment": "resized_crop_flip", "batch_size": 8, "eval_batch_size": 8}
    settings |= {"method": "plain", "model.attention": "none"}
    config = load_config("configs/digits.py", [f"--config.{key}={value}" for key, value in settings.items()])
    run = Run(config, tmp_path / "run", quiet=True)
    run.claim_workdir()
    state = run.initial_state()
    run.save(state, Phase.STEM)
    batch = next(iter(run.dataset.eval_batches()))
    model = run.networks.model(routed=False).clone(axis_name=None)
    outputs = model.apply(state.variables, run.preprocess.evaluate(batch["image"]))
    images = folder.open_image_set(str(tmp_path / "images")).evaluation
    lines = list(predict_files(load_trained(run.workdir), [images.describe(i) for i in range(len(images))]))
    found = [{entry["label"]: entry["probability"] for entry in line["classes"]} for line in lines]
    expected = jax.nn.softmax(outputs.logits[: len(images)])
    np.testing.assert_allclose([[each[0], each[1]] for each in found], expected, atol=2e-6)


def test_a_file_that_is_no_image_is_named(trained, tmp_path, capsys):
    run, paths = trained
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    for path in (text, tmp_path / "absent.png"):
        assert main(["predict", f"--workdir={run.workdir}", str(path)]) == 2
        captured = capsys.readouterr()
        assert str(path) in captured.err and len(captured.err.splitlines()) == 1 and not captured.out
    # The others are predicted; each bad file is named.
    words = [str(text), str(paths[0]), str(tmp_path / "absent.png"), str(paths[1])]
    assert main(["predict", f"--workdir={run.workdir}", *words]) == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["file"] for line in captured.out.splitlines()] == words[1::2]
    first, second, last = captured.err.splitlines()
    assert words[0] in first and words[2] in second and last.startswith("rmn: 2 files cannot be read")


def test_folders_and_lists_give_a_table(trained, tmp_path, capsys):
    run, paths = trained
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(["photos/b.png", "photos/more/a.png", "c.png"]):
        shutil.copy(paths[number], tmp_path / name)
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'c.png'}\n\n")
    typed = ["predict", f"--workdir={run.workdir}", str(tmp_path / "photos"), f"--list={tmp_path / 'list.txt'}"]
    assert main([*typed, "--top=2", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["file"] for row in rows] == [str(tmp_path / n) for n in ("photos/b.png", "photos/more/a.png", "c.png")]
    expected = list(predict_files(load_trained(run.workdir), paths[:3], top=2))
    for row, line in zip(rows, expected, strict=True):
        assert [row["label1"], row["label2"]] == [str(entry["label"]) for entry in line["classes"]]
        assert row["units"] == " ".join(map(str, line["units"])) and "label3" not in row
    assert main(["predict", f"--workdir={run.workdir}"]) == 2
    assert "no image is given" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", f"--workdir={run.workdir}", str(tmp_path / "empty")]) == 2
    assert "has no images" in capsys.readouterr().err


def test_prediction_streams(trained):
    run, paths = trained
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield paths[number % len(paths)]

    lines = predict_files(load_trained(run.workdir), endless(), top=1)
    assert [next(lines)["file"] for _ in range(70)] == [str(path) for path in paths[:70]]
    assert len(read) == 128  # two batches of 64


def test_memory_analysis_shows_the_nearest_images(trained, capsys):
    run = trained[0]
    assert main(["analyze", f"--workdir={run.workdir}", "--top_k=4"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    with Image.open(result["figures"][0]) as figure:
        assert figure.width > 800 and len(np.unique(np.asarray(figure))) > 20  # images, not an empty figure
    stages = json.loads((run.workdir / "routing.json").read_text())["stages"]
    state, _ = run.restore()
    batch = next(iter(run.dataset.eval_batches()))
    model = run.networks.model(routed=True).clone(axis_name=None)
    outputs = jax.jit(model.apply)(state.variables, run.preprocess.evaluate(batch["image"]))
    evaluated = loop.evaluate(run, state, routed=True)["load"]
    for i, stage in enumerate(stages):
        assert stage["load"] == evaluated[i] and sum(stage["load"]) == 360
        assert stage["images"][1] == [f"digits eval, example {position}" for position in stage["nearest"][1]]
        memory = np.asarray(state.memory[f"memory{i + 1}"])
        for unit in range(4):
            distance = np.linalg.norm(np.asarray(outputs.pooled[i]) - memory[unit], axis=-1)
            np.testing.assert_allclose(stage["distance"][unit], np.sort(distance)[:4], rtol=1e-3, atol=1e-4)
