"""The demo as a user runs it: both networks learn the digits, and its table, summary and figure are right."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent


def test_the_demo(tmp_path):
    command = [sys.executable, "-m", "experiments.demo", "--workdir", str(tmp_path / "demo")]
    done = subprocess.run(command, cwd=ROOT, env=_one_device(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert set(summary) == {"plain", "rmn", "figures"}
    assert summary["plain"]["top1"] >= 0.97 and summary["rmn"]["top1"] >= 0.97
    # The plain ResNet-8, counted by hand: 3x3 convolutions 9 x (3x16 + 2x16x16 + 16x32 + 32x32 + 32x64 + 64x64),
    # shortcuts 16x32 + 32x64, batch norm 2 x (3x16 + 3x32 + 3x64), linear 64x10 + 10.
    convolutions = 9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64
    assert summary["plain"]["params"] == convolutions + 2 * (3 * 16 + 3 * 32 + 3 * 64) + 650
    routed = summary["rmn"]
    assert routed["num_units"] == 4 and np.array(routed["load"]).shape == (3, 4)
    assert np.array(routed["load"]).sum(-1).tolist() == [360] * 3
    assert routed["dead_units"] == int((np.array(routed["load"]) == 0).sum())
    assert 1 < routed["macs"] / summary["plain"]["macs"] < 1.01
    for figure in summary["figures"]:
        with Image.open(figure) as image:
            assert image.width > 800
    table = done.stdout
    columns = ("top-1", "parameters", "multiply-adds", "time per step", "dead units")
    for word in (*columns, f"{routed['params']:,}"):
        assert word in table


def _one_device() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "COLUMNS": "120"}
