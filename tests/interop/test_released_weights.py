"""The weights in the repository are small, and those of the digits have the accuracy that their card says."""

import json
import pathlib
import re

import pytest

from rmn_jax.cli.main import main

WEIGHTS = pathlib.Path(__file__).parent.parent.parent / "weights"
CARDS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", (WEIGHTS / "README.md").read_text(), re.DOTALL | re.MULTILINE))


def test_each_file_has_a_card_and_is_small():
    files = {file.name: file for file in WEIGHTS.glob("*.safetensors")}
    assert files.keys() == CARDS.keys()
    for name, card in CARDS.items():
        assert files[name].stat().st_size < 3e6
        for row in ("network", "data", "accuracy", "licence", "made by"):
            assert f"| {row} | " in card, (name, row)


# Those of Tiny ImageNet need its images: tests/data/tiny_imagenet/test_weights.py.
@pytest.mark.parametrize("name", [name for name in CARDS if name.startswith("digits")])
def test_the_weights_have_the_accuracy_of_their_card(name, tmp_path, capsys):
    assert main(["import", f"--from={WEIGHTS / name}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert main(["eval", f"--workdir={tmp_path / 'run'}"]) == 0
    top1 = json.loads(capsys.readouterr().out.splitlines()[-1])["top1"]
    card = float(re.search(r"\| accuracy \| ([\d.]+)% top-1", CARDS[name])[1])
    assert 100 * top1 == pytest.approx(card, abs=0.3)  # one image
