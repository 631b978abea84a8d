import json

import numpy as np
import pytest
from PIL import Image

from rmn_jax.data import commands
from rmn_jax.errors import UserError


def test_show_draws_a_grid(data_config, tmp_path):
    path = commands.show(data_config(augment="crop"), tmp_path / "new" / "batch.png", seed=0)
    assert path == tmp_path / "new" / "batch.png"
    with Image.open(path) as figure:
        assert figure.width > 1000 and figure.height > 800
        assert len(np.unique(np.asarray(figure.convert("L")))) > 15


@pytest.mark.parametrize(
    ("out", "written"), [("new/", "new/batch.png"), ("there", "there/batch.png"), ("batch", "batch.png")]
)
def test_show_tells_the_file_that_it_wrote(data_config, tmp_path, out, written):
    (tmp_path / "there").mkdir()
    path = commands.show(data_config(), f"{tmp_path}/{out}")
    assert path == tmp_path / written
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_show_says_when_it_cannot_write(data_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="figure cannot be written"):
        commands.show(data_config(), tmp_path / "file" / "batch.png")


@pytest.mark.parametrize(
    ("name", "short"), [("cougar, puma", "cougar"), ("a name that is far too long", "a name that is fa…")]
)
def test_names_are_short(name, short):
    assert commands._short_name(name) == short


def test_bench_prints_a_line_for_each_path(data_config, capsys):
    lines = commands.bench_input(data_config(), batch_size=32, seconds=0.05, update=lambda batch: batch["image"] + 1)
    assert [line["path"] for line in lines] == ["device", "update", "stream"]
    assert all(line["images_per_second"] > 0 for line in lines) and lines[0]["share_of_update"] > 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
