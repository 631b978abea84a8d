import json
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import encode

from rmn_jax.data import load, tfds_source
from rmn_jax.errors import UserError


def _write(data_dir, name: str, splits: dict[str, list[dict]], features, file_format="array_record") -> None:
    """Writes a data set with tfds, from a builder made for the test."""

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            keys = ("image", "label") if "label" in features else None
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(examples) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Written.name = name
    tfds.disable_progress_bar()
    Written(data_dir=data_dir).download_and_prepare(file_format=file_format)


def _example(number: int, classes: int = 100) -> dict:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return {
        "id": f"train_{number:05}",
        "image": encode(pixels, "PNG"),
        "label": number % classes,
        "coarse_label": 1,
    }


@pytest.fixture
def cifar100(tmp_path):
    """A data_dir with 40 + 10 images that have the features of tfds's cifar100."""
    with tfds.testing.mock_data(num_examples=1):
        features = dict(tfds.builder("cifar100").info.features.items())
    splits = {"train": [_example(n) for n in range(40)], "test": [_example(n) for n in range(40, 50)]}
    _write(tmp_path / "tfds", "cifar100", splits, features)
    return tmp_path / "tfds"


def test_cifar100_as_tfds_describes_it(cifar100, data_config):
    config = data_config(name="cifar100", data_dir=str(cifar100))
    dataset = load(config, batch_size=40, eval_batch_size=10, seed=0, sharding=None)
    assert dataset.info.image_shape == (32, 32, 3) and dataset.info.num_classes == 100
    assert (dataset.info.train_examples, dataset.info.eval_examples) == (40, 10)
    batch = dataset.train_batch(0)
    expected = {n % 100: np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8) for n in range(40)}
    for image, label in zip(np.asarray(batch["image"]), np.asarray(batch["label"]), strict=True):
        np.testing.assert_array_equal(image, expected.pop(int(label)))
    assert not expected


def test_the_chosen_keys_fit_tfds_s_builders():
    # tfds's mock data are random images of the right shape, and need no TensorFlow.
    for name, shape, classes in (("cifar100", (32, 32, 3), 100), ("mnist", (28, 28, 1), 10)):
        with tfds.testing.mock_data(num_examples=3):
            builder = tfds.builder(name)
            image, label = tfds_source._keys(name, builder.info)
            for example in builder.as_data_source("train"):
                assert example[image].shape == shape and 0 <= example[label] < classes


def test_any_image_classification_set_by_name(tmp_path, data_config):
    features = {
        "image": tfds.features.Image(shape=(None, None, 1)),
        "label": tfds.features.ClassLabel(names=["no", "yes"]),
    }
    images = [np.full((20 + n, 30), 10 * n, np.uint8) for n in range(12)]
    examples = [{"image": encode(image, "PNG"), "label": n % 2} for n, image in enumerate(images)]
    _write(tmp_path, "grey", {"train": examples[:8], "validation": examples[8:], "test": examples[:1]}, features)
    config = data_config(name="tfds:grey", data_dir=str(tmp_path), image_size=16)
    dataset = load(config, batch_size=8, eval_batch_size=4, seed=0, sharding=None)
    assert dataset.info.class_names == ("no", "yes") and dataset.info.eval_examples == 4
    batch = dataset.train_batch(0)
    assert sorted(np.asarray(batch["image"])[:, 8, 8, 0].tolist()) == [10 * n for n in range(8)]
    assert batch["image"].shape == (8, 16, 16, 3)
    with pytest.raises(UserError, match=r"set config\.data\.image_size"):
        load(
            data_config(name="tfds:grey", data_dir=str(tmp_path)),
            batch_size=8,
            eval_batch_size=4,
            seed=0,
            sharding=None,
        )


def test_a_set_without_images_or_with_one_split_is_refused(tmp_path):
    _write(tmp_path, "words", {"train": [{"text": "a"}], "test": [{"text": "b"}]}, {"text": tfds.features.Text()})
    with pytest.raises(UserError, match="tfds:words does not say which of its features text are image and label"):
        tfds_source.open_image_set("tfds:words", str(tmp_path))
    features = {
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    example = {key: _example(1, 2)[key] for key in ("image", "label")}
    _write(tmp_path, "half", {"train": [example]}, features)
    with pytest.raises(UserError, match="has the splits train; `train` and `validation` or `test` are needed"):
        tfds_source.open_image_set("tfds:half", str(tmp_path))


def test_a_missing_set_names_the_command_that_builds_it(tmp_path):
    with pytest.raises(UserError, match=f"tfds build flowers --file_format=array_record --data_dir={tmp_path}"):
        tfds_source.open_image_set("tfds:flowers", str(tmp_path))


def test_sources_pickle_small_and_read_the_same(cifar100):
    source = tfds_source.open_image_set("cifar100", str(cifar100)).train
    before = source.read([3, 0])
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).read([3, 0]) == before
    assert source.describe(3).endswith("split train, record 3")


def test_the_fingerprint_depends_on_the_files(cifar100, tmp_path):
    first = tfds_source.open_image_set("cifar100", str(cifar100)).fingerprint
    shutil.copytree(cifar100, tmp_path / "moved")
    assert tfds_source.open_image_set("cifar100", str(tmp_path / "moved")).fingerprint == first
    labels = tmp_path / "moved" / "cifar100" / "3.0.2" / "label.labels.txt"
    if not labels.exists():
        labels.write_text("".join(f"class {n}\n" for n in range(100)))
    else:
        labels.write_text(labels.read_text().replace("0", "zero"))
    assert tfds_source.open_image_set("cifar100", str(tmp_path / "moved")).fingerprint != first


def test_a_missing_or_damaged_file_is_one_line(cifar100):
    folder = cifar100 / "cifar100" / "3.0.2"
    [train] = folder.glob("*train*")
    data = train.read_bytes()
    train.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"prepare it again"):
        tfds_source.open_image_set("cifar100", str(cifar100)).train.read(range(40))
    train.unlink()
    with pytest.raises(UserError, match=r"cifar100 is incomplete .*prepare it again"):
        tfds_source.open_image_set("cifar100", str(cifar100))


def test_a_label_out_of_range_names_its_record(cifar100, data_config):
    features = cifar100 / "cifar100" / "3.0.2" / "features.json"
    described = json.loads(features.read_text())
    described["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "20"
    features.write_text(json.dumps(described))
    for labels in features.parent.glob("label.labels.txt"):
        labels.unlink()
    config = data_config(name="cifar100", data_dir=str(cifar100))
    with pytest.raises(UserError, match=r"split train, record \d+: its label is \d+, outside 0\.\.19"):
        load(config, batch_size=10, eval_batch_size=10, seed=0, sharding=None)
