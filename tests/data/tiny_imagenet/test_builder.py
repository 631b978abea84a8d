import io
import json
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rmn_jax.data import load, tfds_source
from rmn_jax.data.prepare import prepare
from rmn_jax.errors import UserError


def _decoded(path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def _by_id(data_dir, split: str) -> dict[str, dict]:
    """A split, read and decoded by tfds."""
    builder = tfds.builder_from_directory(tfds_source.find("tiny_imagenet", str(data_dir)))
    return {example["id"].decode(): example for example in builder.as_data_source(split)}


@pytest.fixture
def zipped(small_tiny_imagenet, tmp_path):
    path = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted(small_tiny_imagenet.rglob("*")):
            out.write(file, file.relative_to(small_tiny_imagenet.parent))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_all_published_images_are_in_the_data_set(small_tiny_imagenet, tmp_path, kind, request):
    source = small_tiny_imagenet if kind == "folder" else request.getfixturevalue("zipped")
    counts = prepare("tiny_imagenet", str(source), str(tmp_path / "tfds"))
    assert counts == {"examples": {"train": 400, "validation": 20}}
    class_ids = (small_tiny_imagenet / "wnids.txt").read_text().split()
    assert class_ids != sorted(class_ids)
    train = _by_id(tmp_path / "tfds", "train")
    assert len(train) == 400
    for label, class_id in enumerate(class_ids):
        for number in range(2):
            example = train[f"{class_id}_{number}"]
            assert example["label"] == label
            path = small_tiny_imagenet / "train" / class_id / "images" / f"{class_id}_{number}.JPEG"
            np.testing.assert_array_equal(example["image"], _decoded(path))
    validation = _by_id(tmp_path / "tfds", "validation")
    assert {name: example["label"] for name, example in validation.items()} == {f"val_{n}": 10 * n for n in range(20)}
    grey = validation["val_5"]["image"]
    assert grey.shape == (64, 64, 3) and (grey == 35).all()


def test_class_names_are_readable_and_ids_are_kept(small_tiny_imagenet, tmp_path, data_config):
    prepare("tiny_imagenet", str(small_tiny_imagenet), str(tmp_path / "tfds"))
    builder_dir = tfds_source.find("tiny_imagenet", str(tmp_path / "tfds"))
    labels = (builder_dir / "label.labels.txt").read_text().split()
    assert labels == (small_tiny_imagenet / "wnids.txt").read_text().split()
    assert json.loads((builder_dir / "metadata.json").read_text())["class_names"][7] == "thing 7, item 7"
    config = data_config(name="tiny_imagenet", data_dir=str(tmp_path / "tfds"))
    info = load(config, batch_size=8, eval_batch_size=8, seed=0, sharding=None).info
    assert (
        info.image_shape == (64, 64, 3) and info.num_classes == 200 and info.class_names[199] == "thing 199, item 199"
    )


def _damage(root, kind: str) -> str:
    """Damages the folder and returns a part of the expected error."""
    first = (root / "wnids.txt").read_text().split()[0]
    image = root / "train" / first / "images" / f"{first}_1.JPEG"
    if kind == "truncated image":
        image.write_bytes(image.read_bytes()[:300])
        return f"{first}_1.JPEG: it"
    if kind == "not an image":
        image.write_bytes(b"hello")
        return f"{first}_1.JPEG: it is not a JPEG"
    if kind == "wrong size":
        Image.new("RGB", (32, 64)).save(image)
        return f"{first}_1.JPEG: it has 64 x 32 pixels instead of 64 x 64"
    if kind == "missing image":
        image.unlink()
        return f"{first}_1.JPEG is missing, and 0 other images"
    if kind == "unknown label":
        annotations = root / "val" / "val_annotations.txt"
        annotations.write_text(annotations.read_text() + "val_0.JPEG\tn99999999\t0\t0\t1\t1\n")
        return "line 21: its label is not in wnids.txt"
    if kind == "few classes":
        (root / "wnids.txt").write_text(first + "\n")
        return "names 1 classes instead of 200"
    (root / "words.txt").write_text("n00000001\tnothing\n")
    return "words.txt has no name for"


@pytest.mark.parametrize(
    "kind",
    ["truncated image", "not an image", "wrong size", "missing image", "unknown label", "few classes", "no names"],
)
def test_damage_is_one_line_and_leaves_nothing(small_tiny_imagenet, tmp_path, kind):
    line = _damage(small_tiny_imagenet, kind)
    with pytest.raises(UserError) as caught:
        prepare("tiny_imagenet", str(small_tiny_imagenet), str(tmp_path / "tfds"))
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "tfds").rglob("*")) == []


def test_the_real_data_set_is_complete(real_tiny_imagenet):
    folder, data_dir = real_tiny_imagenet
    assert prepare("tiny_imagenet", str(folder), str(data_dir)) == {
        "examples": {"train": 100_000, "validation": 10_000}
    }
    for split, each in (("train", 500), ("validation", 50)):
        source = tfds_source.open_image_set("tiny_imagenet", str(data_dir))
        source = source.train if split == "train" else source.evaluation
        labels = [
            label for start in range(0, len(source), 1000) for _, label in source.read(range(start, start + 1000))
        ]
        np.testing.assert_array_equal(np.bincount(labels), np.full(200, each))


def test_known_real_images_have_their_published_pixels_class_and_name(real_tiny_imagenet, data_config):
    folder, data_dir = real_tiny_imagenet
    class_ids = (folder / "wnids.txt").read_text().split()
    annotated = dict(line.split("\t")[:2] for line in (folder / "val" / "val_annotations.txt").read_text().splitlines())
    words = dict(line.split("\t") for line in (folder / "words.txt").read_text().splitlines())
    config = data_config(name="tiny_imagenet", data_dir=str(data_dir), pipeline="stream")
    dataset = load(config, batch_size=8, eval_batch_size=100, seed=0, sharding=None)
    builder = tfds.builder_from_directory(tfds_source.find("tiny_imagenet", str(data_dir)))
    skip = {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_data_source("validation", decoders=skip)
    batch = next(iter(dataset.eval_batches()))
    names = [f"{examples[row]['id'].decode()}.JPEG" for row in range(100)]
    for row, name in enumerate(names):
        np.testing.assert_array_equal(batch["image"][row], _decoded(folder / "val" / "images" / name))
        label = int(batch["label"][row])
        assert class_ids[label] == annotated[name] and dataset.info.class_names[label] == words[annotated[name]]
    images = [Image.open(io.BytesIO((folder / "val" / "images" / name).read_bytes())) for name in names]
    assert "L" in {image.mode for image in images}  # about two of a hundred images are greyscale
    dataset.close()
