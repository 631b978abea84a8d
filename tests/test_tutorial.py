"""The tutorial notebook runs from beginning to end, and prints what is committed with it."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def printed(path):
    """The text of each code cell, and whether it draws."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    texts = ["".join("".join(output.get("text", "")) for output in cell["outputs"]) for cell in cells]
    draws = [any("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in cells]
    return texts, draws


def test_the_tutorial_prints_what_is_committed(tmp_path):
    (tmp_path / "docs").mkdir()
    copy = shutil.copy(NOTEBOOK, tmp_path / "docs")
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    folders = {name: str(tmp_path) for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", copy],
        cwd=tmp_path / "docs",
        env={**os.environ, **folders, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (expected, drawn), (found, draws) = printed(NOTEBOOK), printed(pathlib.Path(copy))
    assert draws == drawn and sum(draws) == 1
    for one, other in zip(found, expected, strict=True):
        # Last bits may send an image elsewhere. Words are equal, numbers nearly.
        assert re.sub(r"[\d.]+", "", one).split() == re.sub(r"[\d.]+", "", other).split()
        numbers = [[float(number) for number in re.findall(r"\d+\.?\d*", text)] for text in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=3)


def test_the_notebook_is_small_and_has_no_traces_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 50_000 and "/tmp/" not in text and "iopub" not in text
