"""The weights in the repository: they load, are small, and have the accuracy that their card says."""

import json
import pathlib
import re

import pytest

from rmn_jax.cli.main import main

WEIGHTS = pathlib.Path(__file__).parent.parent.parent / "weights"


def test_the_digits_weights_have_the_accuracy_of_their_card(tmp_path, capsys):
    file = WEIGHTS / "digits_rmn.safetensors"
    assert file.stat().st_size < 3e6
    assert main(["import", f"--from={file}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert main(["eval", f"--workdir={tmp_path / 'run'}"]) == 0
    top1 = json.loads(capsys.readouterr().out.splitlines()[-1])["top1"]
    card = float(re.search(r"\| accuracy \| ([\d.]+)% top-1", (WEIGHTS / "README.md").read_text())[1])
    assert 100 * top1 == pytest.approx(card, abs=0.3)  # one image
