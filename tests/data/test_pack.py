"""Packing and unpacking: the same images and labels, small parts, and damage that is noticed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from rmn_jax.data import digits, load
from rmn_jax.data.decode import decode
from rmn_jax.data.folder import open_image_set
from rmn_jax.data.pack import INDEX, pack, unpack
from rmn_jax.errors import UserError

LIMIT = 300_000  # bytes in a part, for several parts of the digits


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The first three digits, packed at their own size: folder and report."""
    from ml_collections import ConfigDict

    folder = tmp_path_factory.mktemp("packed")
    settings = {"name": "digits", "data_dir": "", "path": "", "classes": 3, "image_size": 0, "augment": "none"}
    return folder, pack(ConfigDict(settings), folder, part_bytes=LIMIT)


def test_unpacked_images_and_labels_are_those_that_were_packed(packed, tmp_path):
    folder, report = packed
    parts = sorted(folder.glob("part-*.tar"))
    assert report["parts"] == len(parts) > 1 and report["classes"] == 3
    assert all(part.stat().st_size <= LIMIT for part in parts)
    assert report["bytes"] == sum(part.stat().st_size for part in parts)
    out = tmp_path / "images"
    assert unpack(folder, out) == {"out": str(out), "images": report["images"], "classes": 3}
    found = open_image_set(str(out))
    for split, source in (("train", found.train), ("eval", found.evaluation)):
        images, labels = digits.load_arrays()[split]
        images, labels = images[labels < 3], labels[labels < 3]
        order = np.argsort(labels, kind="stable")  # a folder is read class by class
        assert len(source) == len(order) == report["images"][split]
        for row, (data, label) in zip(order, source.read(range(len(source))), strict=True):
            assert label == labels[row]
            np.testing.assert_array_equal(decode(data), images[row])


def test_images_are_scaled_as_a_run_stores_them(data_config, image_folder, tmp_path):
    config = data_config(name="folder", path=str(image_folder), image_size=16, augment="resized_crop_flip")
    pack(config, tmp_path / "parts", ("eval",))
    unpack(tmp_path / "parts", tmp_path / "out")
    (tmp_path / "out" / "val").rename(tmp_path / "out" / "train")
    data, _ = open_image_set(str(tmp_path / "out")).train.read([0])[0]
    assert decode(data).shape == (18, 18, 3)  # 16 / 0.875
    # Without a size the files are copied.
    pack(data_config(name="folder", path=str(image_folder)), tmp_path / "as_is", ("train",))
    unpack(tmp_path / "as_is", tmp_path / "copied")
    copied = {file.read_bytes() for file in (tmp_path / "copied").rglob("*.jpg")}
    assert copied and copied <= {file.read_bytes() for file in image_folder.rglob("*.jpg")}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / INDEX).unlink(), "holds no packed data set"),
        (lambda folder: (folder / INDEX).write_text("{"), "is damaged; copy it again"),
        (lambda folder: (folder / INDEX).write_text("[]"), "is damaged; copy it again"),
        (lambda folder: (folder / "part-001.tar").unlink(), "part-001.tar is missing"),
        (lambda folder: (folder / "part-000.tar").write_bytes(b"x" * 1024), "part-000.tar is damaged"),
    ],
    ids=["no index", "cut index", "other index", "missing part", "damaged part"],
)
def test_what_is_missing_or_damaged_is_one_line_and_nothing_is_left(packed, tmp_path, damage, message):
    folder = tmp_path / "parts"
    folder.mkdir()
    for file in packed[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    with pytest.raises(UserError, match=message):
        unpack(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_folders_are_not_overwritten(packed, data_config, tmp_path):
    with pytest.raises(UserError, match="already holds a packed data set"):
        pack(data_config(), packed[0])
    with pytest.raises(UserError, match="exists already"):
        unpack(packed[0], tmp_path)
    with pytest.raises(UserError, match="more than a part holds"):
        pack(data_config(), tmp_path / "small", part_bytes=10_500)
    index = json.loads((packed[0] / INDEX).read_text())
    assert {"name", "bytes", "sha256"} == index["parts"][0].keys()


BLOCKED = """
import sys
BLOCKED = ("tensorflow_datasets", "grain", "array_record", "importlib_resources")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not on this machine")
sys.meta_path.insert(0, Block())
from rmn_jax.cli.main import main
import experiments.ladder
sys.exit(main(sys.argv[1:]))
"""


def test_an_unpacked_folder_trains_where_tfds_grain_and_array_record_are_missing(packed, tmp_path):
    out = tmp_path / "images"
    unpack(packed[0], out)
    settings = {"data.name": "folder", "data.path": out, "data.image_size": 8, "epochs": 2, "model.width": 4}
    words = [f"--config.{key}={value}" for key, value in settings.items()]
    command = ["train", "--config=configs/digits.py:plain", f"--workdir={tmp_path / 'run'}", *words]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["epochs"] == 2


def test_load_reads_the_unpacked_folder_on_the_device(packed, data_config, tmp_path):
    unpack(packed[0], tmp_path / "images")
    config = data_config(name="folder", path=str(tmp_path / "images"), image_size=8)
    dataset = load(config, batch_size=32, eval_batch_size=32, seed=0)
    assert dataset.info.num_classes == 3 and not dataset.info.streamed
    assert dataset.info.class_names == ("0000_0", "0001_1", "0002_2")
