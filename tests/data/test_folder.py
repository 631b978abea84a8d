import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmn_jax.data import folder, load
from rmn_jax.data.decode import fit
from rmn_jax.data.preprocess import make_preprocess
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


def move(root, **folders):
    """Copies the classes of ``root`` into new folders beside it: {folder: classes}; returns their common parent."""
    base = root.parent / "moved"
    for name, classes in folders.items():
        for each in classes:
            shutil.copytree(root / each, base / name / each)
    return base


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [
        ("Training", "Testing"),
        ("seg_train", "seg_test"),
        ("train", "test_set"),
        ("TRAIN", "Valid"),
        ("train_set", "dev"),
    ],
)
def test_usual_names_of_splits_are_known(train, evaluation, image_folder):
    root = move(image_folder, **{train: ["ant", "bee"], evaluation: ["bee"]})
    found = folder.open_image_set(str(root))
    assert found.class_names == ("ant", "bee") and (len(found.train), len(found.evaluation)) == (30, 20)


def one_class(root):
    return move(root, only=["bee"]) / "only"


def level_too_high(root):
    return move(root, photos=["ant", "bee"])


def doubled(root):
    return move(root, **{"train/train": ["ant", "bee"], "val/val": ["bee"]})


def unknown_splits(root):
    return move(root, part_a=["ant", "bee"], part_b=["ant", "bee"])


def unsorted_test(root):
    base = move(root, train=["ant", "bee"])
    shutil.copytree(root / "cat", base / "test")
    return base


def other_suffix(root):
    for file in (root / "cat").iterdir():
        file.rename(file.with_suffix(".gif"))
    shutil.rmtree(root / "bee")
    return root


REFUSED = {
    one_class: r"moved/only has only one class with images, 'bee'",
    level_too_high: r"one folder with images, photos/, .* set config.data.path to .*moved/photos",
    doubled: r"moved/train has one folder with images, train/",
    unknown_splits: r"part_a/ and part_b/, which hold folders of the same names.*rename them to train and val",
    unsorted_test: r"train/ with class folders, and test/ beside it. Its images are in no class folders",
    other_suffix: r"only one class .*skipped: 30 .gif images, which are not read .*without images \('cat'",
}


@pytest.mark.parametrize("layout", REFUSED, ids=lambda layout: layout.__name__)
def test_a_folder_that_would_be_less_than_what_was_given_is_refused(layout, image_folder):
    with pytest.raises(UserError, match=REFUSED[layout]):
        folder.open_image_set(str(layout(image_folder)))


def test_links_are_followed_and_a_ring_of_links_ends(image_folder, tmp_path):
    plain = folder.open_image_set(str(image_folder))
    elsewhere = tmp_path / "elsewhere"
    (image_folder / "bee").rename(elsewhere)
    (image_folder / "bee").symlink_to(elsewhere)  # a class
    (image_folder / "ant").rename(tmp_path / "more")
    (image_folder / "ant").mkdir()
    (image_folder / "ant" / "inner").symlink_to(tmp_path / "more")  # a folder of images in a class
    (image_folder / "cat" / "00.jpg").rename(tmp_path / "00.jpg")
    (image_folder / "cat" / "00.jpg").symlink_to(tmp_path / "00.jpg")  # an image
    (tmp_path / "more" / "ring").symlink_to(image_folder / "ant")
    found = folder.open_image_set(str(image_folder))
    assert found.class_names == plain.class_names
    assert (len(found.train), len(found.evaluation)) == (len(plain.train), len(plain.evaluation))


def test_what_is_passed_over_is_counted(image_folder):
    (image_folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(image_folder / "ant" / "00.jpg", image_folder / ".ipynb_checkpoints")
    (image_folder / "__MACOSX").mkdir()
    shutil.copy(image_folder / "ant" / "00.jpg", image_folder / "__MACOSX")
    shutil.copy(image_folder / "ant" / "00.jpg", image_folder / "loose.jpg")
    (image_folder / "bee" / "a.heic").write_bytes(b"x")
    (image_folder / "bee" / "notes.txt").write_text("x")
    (image_folder / "bee" / "gone.jpg").symlink_to(image_folder / "nothing")
    found = folder.open_image_set(str(image_folder))
    assert found.class_names == ("ant", "bee", "cat") and len(found.train) + len(found.evaluation) == 60
    for part in (
        "3 classes, 54 training and 6 evaluation images",
        "2 hidden",
        "1 images outside of class folders",
        "1 .heic images",
        "1 other files",
        "1 broken links",
    ):
        assert part in found.notes


def test_names_of_any_bytes_can_be_classes(image_folder, data_config):
    os.rename(image_folder / "ant", os.fsencode(image_folder) + b"/caf\xe9")
    (image_folder / "bee").rename(image_folder / "$x^2$")
    config = data_config(name="folder", path=str(image_folder), image_size=16)
    dataset = load(config, batch_size=8, eval_batch_size=4, seed=0, sharding=None)
    assert dataset.info.class_names == ("$x^2$", "caf\\xe9", "cat")
    "".join(dataset.info.class_names).encode()  # can be written
    assert "3 classes" in dataset.notes


def test_a_channel_without_variation_becomes_zero(image_folder, data_config):
    for number, file in enumerate(sorted(image_folder.rglob("*.jpg"))):
        pixels = np.full((8, 8, 3), (number, 7, 7), np.uint8)
        Image.fromarray(pixels).save(file.with_suffix(".png"))
        file.unlink()
    config = data_config(name="folder", path=str(image_folder), image_size=8)
    dataset = load(config, batch_size=8, eval_batch_size=4, seed=0, sharding=None)
    assert dataset.info.std[0] > 0 and dataset.info.std[1] == 0
    images = make_preprocess(config, dataset.info).evaluate(dataset.train_batch(0)["image"])
    assert np.isfinite(images).all() and np.abs(images[..., 1:]).max() < 1e-3
