"""The weights in the repository that were trained on Tiny ImageNet have the accuracy of their cards."""

import json
import pathlib
import re

import pytest

from rmn_jax.cli.main import main

WEIGHTS = pathlib.Path(__file__).parents[3] / "weights"
CARD = re.compile(r"^## (tiny_\S+)\n.*?\| accuracy \| ([\d.]+)% top-1", re.DOTALL | re.MULTILINE)


def test_the_weights_have_the_accuracy_of_their_card(real_tiny_imagenet, tmp_path, capsys):
    _, data_dir = real_tiny_imagenet
    cards = CARD.findall((WEIGHTS / "README.md").read_text())
    assert len(cards) == 2
    for name, top1 in cards:
        workdir = tmp_path / name
        words = [f"--from={WEIGHTS / name}", f"--workdir={workdir}", f"--config.data.data_dir={data_dir}"]
        assert main(["import", *words]) == 0
        assert main(["eval", f"--workdir={workdir}", f"--config.data.data_dir={data_dir}"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])["top1"]
        assert 100 * found == pytest.approx(float(top1), abs=0.2)  # two of 1,000 images: rounding
