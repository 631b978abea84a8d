"""An exported network: equal to the run's, read without this package, and files that cannot be used."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from rmn_jax.cli.main import main
from rmn_jax.data import decode, digits
from rmn_jax.inference.export import load_exported
from rmn_jax.inference.resize import fit

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "export.md"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "digits.rmn"
    assert main(["export", f"--workdir={trained[0].workdir}", f"--out={path}"]) == 0
    assert [file.name for file in path.parent.iterdir()] == ["digits.rmn"]  # nothing partial is left
    return path


def test_logits_equal_those_of_the_run_for_any_batch(trained, exported):
    run, _ = trained
    network = load_exported(exported)
    state, position = run.restore()
    model = run.networks.model(position.phase.routed).clone(axis_name=None)
    images = digits.load_arrays()["eval"][0][:35]  # a chunk of 32, and three one by one
    outputs = jax.jit(model.apply)(state.variables, run.preprocess.evaluate(images))
    found = network.call(images)
    np.testing.assert_allclose(found["logits"], outputs.logits, atol=1e-5)
    np.testing.assert_array_equal(found["units"], outputs.assignment)
    np.testing.assert_allclose(found["probabilities"], jax.nn.softmax(outputs.logits), atol=1e-6)
    assert network.about["class_names"] == [str(digit) for digit in range(10)]
    with zipfile.ZipFile(exported) as archive:  # for GPUs as well, though none is here
        assert {"cpu.program", "gpu.program"} <= set(archive.namelist())


def test_predict_takes_the_file(trained, exported, capsys):
    run, paths = trained
    words = [str(path) for path in paths[:3]]
    lines = []
    for source in (f"--model={exported}", f"--workdir={run.workdir}"):
        assert main(["predict", source, "--top=2", *words]) == 0
        lines.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for one, other in zip(*lines, strict=True):
        assert one["file"] == other["file"] and one["units"] == other["units"]
        for mine, theirs in zip(one["classes"], other["classes"], strict=True):
            assert mine["name"] == theirs["name"] and abs(mine["probability"] - theirs["probability"]) < 1e-5


def test_the_lines_of_the_page_load_it_without_this_package(trained, exported, tmp_path):
    program = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    image = Image.open(trained[1][0]).resize((21, 17))  # another size than the network's: it is scaled inside
    image.save(tmp_path / "digit.png")
    os.link(exported, tmp_path / "digits.rmn")
    blocked = "import sys; sys.modules.update(dict.fromkeys(['rmn_jax', 'flax', 'optax', 'orbax', 'cv2']))\n"
    show = "\nimport json; print(json.dumps([found['probabilities'].tolist(), found['units'].tolist()]))"
    done = subprocess.run(
        [sys.executable, "-c", blocked + program + show],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    probabilities, units = json.loads(done.stdout.splitlines()[-1])
    pixels = decode.fit(np.asarray(image), 8, 8)
    expected = load_exported(exported).call(pixels[None])
    # A pixel may be rounded to its neighbour, 1/255 away.
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=0.02)
    assert np.array(units).shape == (3, 1)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (24, 24), (20, 33), (12, 10), (5, 7), (9, 3), (1, 1), (61, 100)])
def test_scaling_inside_is_that_of_the_host(size, rng):
    images = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    for shape in ((8, 8), (21, 21)):
        inside = np.asarray(fit(images, *shape)).astype(int)
        host = np.stack([decode.fit(image, *shape) for image in images]).astype(int)
        assert np.abs(inside - host).max() <= 1 and (inside != host).mean() < 0.08


MODES = {"1": "png", "L": "png", "LA": "png", "P": "gif", "RGBA": "png", "CMYK": "jpg", "I;16": "png", "F": "tiff"}


def test_every_mode_of_image_is_predicted(exported, tmp_path, capsys):
    pixels = Image.fromarray(digits.load_arrays()["eval"][0][0]).resize((24, 24))
    for mode, suffix in MODES.items():
        wide = Image.fromarray(np.asarray(pixels.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else None
        (wide or pixels.convert(mode)).save(tmp_path / f"{mode.replace(';', '')}.{suffix}")
    words = [str(path) for path in sorted(tmp_path.iterdir())]
    assert main(["predict", f"--model={exported}", "--top=1", *words]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == words
    label = {line["file"].split("/")[-1].split(".")[0]: line["classes"][0]["label"] for line in lines}
    assert {label[mode] for mode in ("L", "LA", "RGBA", "CMYK", "I16", "F")} == {label["L"]}


def test_a_file_that_cannot_be_used_is_one_line(exported, trained, tmp_path, capsys):
    def changed(name, **about):
        with zipfile.ZipFile(exported) as old, zipfile.ZipFile(tmp_path / name, "w") as new:
            for each in old.namelist():
                content = old.read(each)
                new.writestr(each, json.dumps(json.loads(content) | about) if each == "about.json" else content)
        return tmp_path / name

    def cut(part):  # columns of its weights are missing
        path = tmp_path / f"cut_{part}"
        with zipfile.ZipFile(exported) as old, zipfile.ZipFile(path, "w") as new:
            for each in old.namelist():
                content = old.read(each)
                if each == "weights.npz":
                    arrays = dict(np.load(io.BytesIO(content)))
                    arrays = {name: array[..., :8] if part in name else array for name, array in arrays.items()}
                    file = io.BytesIO()
                    np.savez(file, **arrays)
                    content = file.getvalue()
                new.writestr(each, content)
        return path

    (tmp_path / "text").write_text("no archive")
    (tmp_path / "cut").write_bytes(exported.read_bytes()[:-5000])
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.txt", "b")
    wrong = {
        tmp_path / "absent": "no such file",
        tmp_path / "text": "not a network that this release can read",
        tmp_path / "cut": "not a network that this release can read",
        tmp_path / "zip": "not a network that this release can read",
        changed("foreign", format="other"): "is not an exported network",
        changed("newer", version=2): "is of format 2, this release reads 1",
        changed("few", class_names=["a", "b"]): "has 2 class names, but its network has 10 classes",
        changed("many", class_names=["a"] * 11): "has 11 class names, but its network has 10 classes",
        changed("none", class_names=None): "has no list of class names",
        changed("numbers", class_names=list(range(10))): "has no list of class names",
        changed("flat", stored_shape=[8, 8]): "gives [8, 8] as the shape of an image",
        changed("huge", stored_shape=[10**9, 8, 3]): "as the shape of an image",
        cut("memory"): "holds weights of another network",
        cut("head"): "holds weights of another network",
    }
    for path, message in wrong.items():
        assert main(["predict", f"--model={path}", str(trained[1][0])]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out
    assert main(["export", f"--workdir={trained[0].workdir}", f"--out={tmp_path / 'no' / 'folder.rmn'}"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["export", f"--workdir={tmp_path}", f"--out={tmp_path / 'x'}"]) == 2
    assert "holds no run" in capsys.readouterr().err and not (tmp_path / "x").exists()
