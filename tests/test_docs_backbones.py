"""The programs of docs/backbones.md do what the page says."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rmn_jax.cli.main import main
from rmn_jax.models import BACKBONES
from rmn_jax.routing import ROUTERS

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "backbones.md"
# In the order of the page: how to add a backbone, the page that trains it, how to add a router.
ADD_BACKBONE, CONFIG_PAGE, ADD_ROUTER = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run(program):
    """The names that a program defines. What it adds to the two tables is removed again."""
    before, names = (dict(BACKBONES), dict(ROUTERS)), {}
    try:
        exec(compile(program, str(PAGE), "exec"), names)
    finally:
        for table, entries in zip((BACKBONES, ROUTERS), before, strict=True):
            table.clear()
            table.update(entries)
    return names


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Writes a module of the user's own. What it registers is removed again."""
    before = dict(BACKBONES), dict(ROUTERS)
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)
    for table, entries in zip((BACKBONES, ROUTERS), before, strict=True):
        table.clear()
        table.update(entries)


def test_the_backbone_trains_and_every_command_finds_it(user_module, tmp_path, capfd):
    definition = ADD_BACKBONE[ADD_BACKBONE.index("class Block") : ADD_BACKBONE.index("rmn.register_backbone")]
    assert len([line for line in definition.splitlines() if line.strip()]) < 40
    user_module("my_backbones", ADD_BACKBONE)
    (tmp_path / "tiny_digits.py").write_text(CONFIG_PAGE)
    workdir, image = tmp_path / "runs" / "tiny", tmp_path / "digit.png"
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(image)
    assert main(["train", f"--config={tmp_path / 'tiny_digits.py'}", f"--workdir={workdir}"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    # 1,437 training images in batches of 128: 11 full ones for each of 4 epochs. Ten classes, so chance is 0.1.
    assert result["steps"] == 44 and result["top1"] > 0.3
    commands = [
        ["eval", f"--workdir={workdir}"],
        ["predict", f"--workdir={workdir}", str(image)],
        ["export", f"--workdir={workdir}", f"--out={tmp_path / 'tiny.rmn'}"],
        ["export", f"--workdir={workdir}", f"--out={tmp_path / 'tiny.st'}", "--format=safetensors"],
        ["import", f"--from={tmp_path / 'tiny.st'}", f"--workdir={tmp_path / 'new'}", "--config.epochs=1"],
    ]
    code = "import json, sys; from rmn_jax.cli.main import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"

    def in_another_process(typed):
        root = pathlib.Path(__file__).parent.parent
        path = os.pathsep.join([str(tmp_path), str(root), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
        program = [sys.executable, "-c", code, json.dumps(typed)]
        return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)

    done = in_another_process(commands)
    assert done.returncode == 0, done.stderr
    evaluated, predicted, exported, weights, imported = map(json.loads, done.stdout.splitlines())
    assert evaluated["top1"] == pytest.approx(result["top1"]) and len(predicted["units"]) == 2
    assert exported["bytes"] > weights["bytes"] > 0 and imported["fresh"] == []
    # Without the module no command works but that on the exported file, and each says why.
    (tmp_path / "my_backbones.py").unlink()
    done = in_another_process([commands[0]])
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "'my_backbones', which Python does not find; install it, or set PYTHONPATH" in done.stderr
    for name in ("my_backbones", "tiny"):
        sys.modules.pop(name, None), BACKBONES.pop(name, None)
    assert main(["predict", f"--model={tmp_path / 'tiny.rmn'}", str(image)]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["units"] == predicted["units"]


BAD_MODULES = {
    "absent_module": (None, "which Python does not find"),
    "absent_module.inside": (None, "which Python does not find"),
    "my_backbones.py": ("", "it must be a module as in an import statement"),
    "../my_backbones": ("", "it must be a module as in an import statement"),
    "failing": ("x = 1 / 0", "which cannot be loaded: ZeroDivisionError: division by zero"),
    "leaving": ("import sys\nsys.exit(3)", "which cannot be loaded: SystemExit: 3"),
    "wrong": ("def f(:", "which cannot be loaded: SyntaxError"),
    "needing": ("import absent_module", "which imports absent_module, and Python does not find that"),
    "silent": ("", "config.model.module names the module that registers it"),
    "twice": ("import rmn_jax\nrmn_jax.register_backbone('resnet8', print)", "there is a backbone 'resnet8' already"),
}


@pytest.mark.parametrize("name", BAD_MODULES)
def test_a_module_that_cannot_be_used_is_one_line(name, user_module, tmp_path, capsys):
    text, message = BAD_MODULES[name]
    if text is not None and "." not in name:
        user_module(name, text)
    typed = ["train", "--config=digits", f"--workdir={tmp_path / 'run'}", f"--config.model.module={name}"]
    assert main([*typed, "--config.model.backbone=tiny"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_the_router_sends_bright_images_to_units_with_a_high_number(monkeypatch):
    names = run(ADD_ROUTER)
    monkeypatch.setitem(ROUTERS, "brightness", names["Brightness"]())
    # sigmoid(-9), sigmoid(-0.5), sigmoid(0.5), sigmoid(9) are 0.0001, 0.38, 0.62, 0.9999; times 4 and rounded down.
    images = jnp.array([-9.0, -0.5, 0.5, 9.0])[:, None, None, None] * jnp.ones((1, 8, 8, 3))
    outputs, _ = jax.jit(names["model"].init_with_output)(jax.random.key(0), images)
    assert outputs.assignment.tolist() == [[0, 1, 2, 3]] * 3  # three stages
