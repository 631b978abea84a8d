import numpy as np
import pytest
from PIL import Image

from rmn_jax.data.show import _short_name, show, show_each
from rmn_jax.errors import UserError


def test_show_draws_a_grid(data_config, tmp_path):
    path = show(data_config(augment="crop"), tmp_path / "new" / "batch.png", seed=0)
    assert path == tmp_path / "new" / "batch.png"
    with Image.open(path) as figure:
        assert figure.width > 1000 and figure.height > 800
        assert len(np.unique(np.asarray(figure.convert("L")))) > 15


@pytest.mark.parametrize(
    ("out", "written"), [("new/", "new/batch.png"), ("there", "there/batch.png"), ("batch", "batch.png")]
)
def test_show_returns_the_path_of_the_file(data_config, tmp_path, out, written):
    (tmp_path / "there").mkdir()
    path = show(data_config(), f"{tmp_path}/{out}")
    assert path == tmp_path / written
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_figure_that_cannot_be_written_is_one_line(data_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="figure cannot be written"):
        show(data_config(), tmp_path / "file" / "batch.png")


@pytest.mark.parametrize(
    ("name", "short"), [("cougar, puma", "cougar"), ("a name that is far too long", "a name that is fa…")]
)
def test_names_are_short(name, short):
    assert _short_name(name) == short


def test_show_each_draws_a_row_for_each_augmentation(data_config, tmp_path):
    mixings = {"second": lambda keys, images: images[::-1]}
    path = show_each(data_config(augment="crop", auto_augment="randaugment"), tmp_path / "each", mixings=mixings)
    assert path == tmp_path / "each.png"
    with Image.open(path) as figure:
        # original, flip, 3 crops, jitter, 13 operations, 2 policies, erasing, one mixing, as configured: 24 rows.
        assert figure.height == round((1.1 * 24 + 0.5) * 100)
        assert len(np.unique(np.asarray(figure.convert("L")))) > 15
