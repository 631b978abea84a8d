"""The programs of docs/backbones.md do what the page says."""

import pathlib
import re

import jax
import jax.numpy as jnp

from rmn_jax.models import BACKBONES
from rmn_jax.routing import ROUTERS

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "backbones.md"
# In the order of the page: how to add a backbone, how to add a router.
ADD_BACKBONE, ADD_ROUTER = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


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


def test_the_backbone_trains_through_the_four_phases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    definition = ADD_BACKBONE[ADD_BACKBONE.index("class Block") : ADD_BACKBONE.index("BACKBONES[")]
    assert len([line for line in definition.splitlines() if line.strip()]) < 40
    names = run(ADD_BACKBONE)
    # 1,437 training images in batches of 128: 11 full ones for each of 4 epochs.
    assert names["result"]["steps"] == 44
    # Ten classes, so chance is 0.1.
    assert names["result"]["top1"] > 0.3
    assert (tmp_path / "runs/tiny/config.json").is_file()


def test_the_router_sends_bright_images_to_units_with_a_high_number(monkeypatch):
    names = run(ADD_ROUTER)
    monkeypatch.setitem(ROUTERS, "brightness", names["Brightness"]())
    # sigmoid(-9), sigmoid(-0.5), sigmoid(0.5), sigmoid(9) are 0.0001, 0.38, 0.62, 0.9999; times 4 and rounded down.
    images = jnp.array([-9.0, -0.5, 0.5, 9.0])[:, None, None, None] * jnp.ones((1, 8, 8, 3))
    outputs, _ = jax.jit(names["model"].init_with_output)(jax.random.key(0), images)
    assert outputs.assignment.tolist() == [[0, 1, 2, 3]] * 3  # three stages
