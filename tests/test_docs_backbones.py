"""The text of docs/backbones.md does what it says."""

import pathlib
import re

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def test_your_own_backbone_trains_through_the_four_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "backbones.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    definition = program[program.index("class Block") : program.index("BACKBONES[")]
    assert len([line for line in definition.splitlines() if line.strip()]) < 40

    from rmn_jax.models import BACKBONES

    before, names = dict(BACKBONES), {}
    try:
        exec(compile(program, "docs/backbones.md", "exec"), names)
    finally:
        BACKBONES.clear()
        BACKBONES.update(before)
    # 1,437 training images in batches of 128: 11 whole ones an epoch, 4 epochs.
    assert names["result"]["steps"] == 44
    # Ten classes, so chance is 0.1.
    assert names["result"]["top1"] > 0.3
    assert (tmp_path / "runs/tiny/config.json").is_file()
