import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmn_jax.data import folder, load
from rmn_jax.data.decode import fit
from rmn_jax.errors import UserError


def test_a_tenth_of_each_class_is_held_out_and_stays_when_images_are_added(image_folder):
    found = folder.open_image_set(str(image_folder))
    assert found.class_names == ("ant", "bee", "cat")
    assert len(found.train) == 9 + 18 + 27 and len(found.evaluation) == 1 + 2 + 3
    held_out = {found.evaluation.describe(i) for i in range(6)}
    assert not held_out & {found.train.describe(i) for i in range(54)}
    shutil.copy(image_folder / "ant" / "00.jpg", image_folder / "ant" / "new.jpg")
    again = folder.open_image_set(str(image_folder))
    moved = held_out - {again.evaluation.describe(i) for i in range(len(again.evaluation))}
    assert len(moved) <= 1 and again.fingerprint != found.fingerprint


def test_folders_for_training_and_evaluation_are_used_as_they_are(image_folder, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(image_folder, root / "train")
    shutil.copytree(image_folder / "bee", root / "val" / "bee")
    (root / "train" / "notes.txt").write_text("ignored")
    (root / "train" / "ant" / ".hidden.jpg").write_text("ignored")
    found = folder.open_image_set(str(root))
    assert len(found.train) == 60 and len(found.evaluation) == 20
    assert {label for _, label in found.evaluation.read(range(20))} == {1}


def test_without_evaluation_images_a_tenth_of_each_training_class_is_held_out(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "split" / "train")
    found, flat = (folder.open_image_set(str(root)) for root in (tmp_path / "split", image_folder))
    assert found.class_names == ("ant", "bee", "cat")
    assert (len(found.train), len(found.evaluation)) == (len(flat.train), len(flat.evaluation)) == (54, 6)
    held_out = [[Path(found.evaluation.describe(i)).name for i in range(6)] for found in (found, flat)]
    assert held_out[0] == held_out[1]


def test_a_class_may_be_called_train(image_folder):
    (image_folder / "ant").rename(image_folder / "train")
    assert folder.open_image_set(str(image_folder)).class_names == ("bee", "cat", "train")


def test_folders_that_could_be_classes_or_splits_are_refused(image_folder, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(image_folder, root / "test")
    with pytest.raises(UserError, match=r"has test/ with class folders but no train/; add .*split/train"):
        folder.open_image_set(str(root))
    (root / "test").rename(root / "train")
    shutil.copytree(image_folder / "ant", root / "dog")
    with pytest.raises(UserError, match=r"has train/ with class folders, and dog/ beside it"):
        folder.open_image_set(str(root))


def test_images_reach_the_network_with_their_class(image_folder, data_config):
    config = data_config(name="folder", path=str(image_folder), image_size=16)
    dataset = load(config, batch_size=8, eval_batch_size=4, seed=0, sharding=None)
    assert dataset.info.image_shape == (16, 16, 3) and not dataset.info.streamed
    files = folder.open_image_set(str(image_folder)).train
    batch = dataset.train_batch(1)
    for row in range(8):
        path = files.describe(int(batch["index"][row]))
        pixels = np.asarray(Image.open(io.BytesIO(Path(path).read_bytes())))
        np.testing.assert_array_equal(batch["image"][row], fit(pixels, 16, 16))
        assert dataset.info.class_names[int(batch["label"][row])] in path


@pytest.mark.parametrize("pipeline", ["device", "stream"])
def test_a_bad_image_is_named_and_skipped_if_the_config_says_so(image_folder, data_config, pipeline, caplog):
    bad = image_folder / "cat" / "05.jpg"
    bad.write_bytes(b"not an image")
    sources = folder.open_image_set(str(image_folder))
    in_train = str(bad) in {sources.train.describe(i) for i in range(len(sources.train))}
    config = data_config(name="folder", path=str(image_folder), image_size=16, pipeline=pipeline)
    with pytest.raises(UserError, match=r"cat/05\.jpg: it is not an image \(12 bytes\).*skip_corrupt"):
        dataset = load(config, batch_size=54, eval_batch_size=8, seed=0, sharding=None)
        dataset.train_batch(0)
        list(dataset.eval_batches())
    config.skip_corrupt = 1
    dataset = load(config, batch_size=54, eval_batch_size=8, seed=0, sharding=None)
    index = np.asarray(dataset.train_batch(0)["index"])
    counted = sum(int(batch["mask"].sum()) for split in ("train", "eval") for batch in dataset.eval_batches(split))
    assert counted == 59  # of 60
    assert len(np.unique(index)) == (53 if in_train else 54)
    assert caplog.text.count("05.jpg") == 1
    dataset.close()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda root: "", "config.data.path is empty"),
        (lambda root: str(root / "none"), "There is no folder"),
        (lambda root: str(root / "ant"), "has no class folders with images"),
    ],
)
def test_an_unusable_folder_is_one_line(image_folder, make, line):
    with pytest.raises(UserError, match=line):
        folder.open_image_set(make(image_folder))


def test_a_class_only_in_evaluation_is_refused(image_folder, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(image_folder, root / "train")
    shutil.copytree(image_folder / "bee", root / "test" / "dog")
    with pytest.raises(UserError, match="class 'dog' .* has no training images"):
        folder.open_image_set(str(root))


def test_images_of_different_sizes_need_an_image_size(image_folder, data_config):
    with pytest.raises(UserError, match=r"different sizes; set config\.data\.image_size"):
        load(
            data_config(name="folder", path=str(image_folder)),
            batch_size=4,
            eval_batch_size=4,
            seed=0,
            sharding=None,
        )
