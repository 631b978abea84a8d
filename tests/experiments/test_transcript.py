"""The page of the transcript has the commands of the script that writes it, and they are commands of today."""

import json
import re
import shlex

import numpy as np
from PIL import Image

from experiments import transcript
from rmn_jax.cli.main import make_parser
from rmn_jax.data.digits import load_arrays

PAGE = transcript.PAGE.read_text(encoding="utf-8")


def test_the_page_has_the_commands_and_texts_of_the_script():
    assert re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE) == [command for _, command in transcript.COMMANDS]
    found = re.findall(r"^(.*)\n\n```console", PAGE, re.MULTILINE)
    assert found == [text for text, _ in transcript.COMMANDS]


def test_each_command_is_one_that_the_command_line_takes():
    for _, command in transcript.COMMANDS:
        program, *typed = shlex.split(command)
        if program == "rmn":
            arguments, rest = make_parser().parse_known_args(typed)
            assert all(word.startswith("--config.") and arguments.takes_overrides for word in rest)


def test_the_page_tells_of_the_network_in_the_repository(tmp_path):
    # 360 held-out digits; the accuracy is that of the card, the table's rows are classes, both ways to predict agree.
    outputs = re.split(r"^\$ .*\n", PAGE, flags=re.MULTILINE)
    evaluated = json.loads(outputs[2].splitlines()[0])
    card = (transcript.ROOT / "weights" / "README.md").read_text()
    assert f"{evaluated['top1']:.2%} top-1" in card and evaluated["examples"] == 360
    rows = [line.split(",") for line in outputs[3].splitlines()[1:11]]
    table = np.array([[int(cell) for cell in row[3:]] for row in rows])
    assert np.trace(table) / 360 == evaluated["top1"] and table.sum() == 360
    predicted = [json.loads(line) for line in outputs[4].splitlines() if line.startswith("{")]
    exported = [line.split(",") for line in outputs[6].splitlines()[1 : 1 + transcript.DIGITS]]
    for one, other in zip(predicted, exported, strict=True):
        assert [one["file"], one["classes"][0]["name"]] == [other[0], other[2]]
        assert " ".join(map(str, one["units"])) == other[-1]
    transcript.prepare(tmp_path)
    for number, line in enumerate(predicted):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / line["file"])), load_arrays()["eval"][0][number])
