import importlib.util
import io
import tarfile

import numpy as np
import pytest
from conftest import encode, photograph

from rmn_jax.data import load, official
from rmn_jax.data.prepare import prepare
from rmn_jax.errors import UserError

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="tfds's builders need TensorFlow (the extra `prepare`)",
)
# TensorFlow's imports warn. These tests are not about its warnings.
quiet = pytest.mark.filterwarnings("ignore")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _cifar_pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def _cifar_records(numbers: range) -> bytes:
    """Records as published: coarse label, fine label, then all red, green and blue values."""
    return b"".join(
        bytes([number % 20, number % 100]) + _cifar_pixels(number).transpose(2, 0, 1).tobytes() for number in numbers
    )


def _cifar_archive(path, train: bytes, extra: str | None = None):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {
            "train.bin": train,
            "test.bin": _cifar_records(range(100, 110)),
            "coarse_label_names.txt": "\n".join(f"group {n}" for n in range(20)).encode(),
            "fine_label_names.txt": "\n".join(f"kind {n}" for n in range(100)).encode(),
        }.items():
            _add(archive, f"cifar-100-binary/{name}", data)
        if extra:
            _add(archive, extra, b"x")
    return path


@pytest.fixture
def cifar(tmp_path):
    return _cifar_archive(tmp_path / "cifar-100-binary.tar.gz", _cifar_records(range(30)))


@needs_tensorflow
@quiet
@pytest.mark.parametrize("kind", ["archive", "unpacked", "parent"])
def test_cifar100_from_its_archive(cifar, tmp_path, data_config, kind):
    source = cifar
    if kind != "archive":
        with tarfile.open(cifar) as archive:
            archive.extractall(tmp_path / "out", filter="data")
        source = tmp_path / "out" / ("cifar-100-binary" if kind == "unpacked" else "")
    data_dir = tmp_path / "tfds"
    assert prepare("cifar100", str(source), str(data_dir)) == {"examples": {"train": 30, "test": 10}}
    assert [path.name for path in (data_dir / "cifar100").iterdir()] == ["3.0.2"]
    dataset = load(
        data_config(name="cifar100", data_dir=str(data_dir)),
        batch_size=30,
        eval_batch_size=5,
        seed=0,
        sharding=None,
    )
    assert dataset.info.class_names[42] == "kind 42"
    batch = dataset.train_batch(0)
    for image, label in zip(np.asarray(batch["image"]), np.asarray(batch["label"]), strict=True):
        np.testing.assert_array_equal(image, _cifar_pixels(int(label)))


def _unpack(source, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    folder = official._unpack_cifar(source, scratch)
    official._check_cifar_records(folder / "cifar-100-binary" / "train.bin")


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_a_truncated_cifar_archive(cifar, tmp_path, keep):
    cifar.write_bytes(cifar.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a complete archive .*download it again"):
        _unpack(cifar, tmp_path)


def test_a_cifar_archive_that_points_outside_is_refused(tmp_path):
    path = _cifar_archive(tmp_path / "cifar.tar.gz", _cifar_records(range(2)), extra="../evil")
    with pytest.raises(UserError, match="points outside its folder"):
        _unpack(path, tmp_path)
    assert not (tmp_path / "evil").exists()


def test_cifar_records_are_checked(tmp_path):
    with pytest.raises(UserError, match="has 6,147 bytes, not a multiple of 3074"):
        _unpack(_cifar_archive(tmp_path / "a.tar.gz", _cifar_records(range(2))[:-1]), tmp_path)
    records = bytearray(_cifar_records(range(3)))
    records[2 * 3074 + 1] = 100
    (tmp_path / "scratch" / "cifar-100-binary" / "train.bin").write_bytes(bytes(records))
    with pytest.raises(UserError, match=r"train\.bin, record 2: its labels \[2, 100\] are out of range"):
        official._check_cifar_records(tmp_path / "scratch" / "cifar-100-binary" / "train.bin")


def test_the_python_version_of_cifar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
        _add(archive, "cifar-100-python/train", b"pickle")
    with pytest.raises(UserError, match=r"not CIFAR-100's binary version; download cifar-100-binary\.tar\.gz"):
        _unpack(tmp_path / "cifar-100-python.tar.gz", tmp_path)


@pytest.fixture
def imagenet(tmp_path):
    """A folder with both archives: three classes of four training images, and five validation images."""
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "ILSVRC2012_img_train.tar", "w") as train:
        for number, class_id in enumerate(("n01440764", "n01443537", "n01484850")):  # the first three classes
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as images:
                for image in range(4):
                    pixels = photograph(10 * number + image, 300 + image, 400 - image)
                    _add(images, f"{class_id}_{image}.JPEG", encode(pixels, quality=90))
            _add(train, f"{class_id}.tar", inner.getvalue())
    with tarfile.open(source / "ILSVRC2012_img_val.tar", "w") as validation:
        for image in range(1, 6):
            name = f"ILSVRC2012_val_{image:08}.JPEG"
            _add(validation, name, encode(photograph(100 + image, 350, 300), quality=90))
    return source


@needs_tensorflow
@quiet
def test_imagenet_from_its_archives(imagenet, tmp_path, data_config):
    data_dir = tmp_path / "tfds"
    assert prepare("imagenet2012", str(imagenet), str(data_dir)) == {"examples": {"train": 12, "validation": 5}}
    config = data_config(
        name="imagenet2012", data_dir=str(data_dir), image_size=64, augment="resized_crop_flip", pipeline="stream"
    )
    dataset = load(config, batch_size=12, eval_batch_size=5, seed=0, sharding=None)
    assert dataset.info.num_classes == 1000 and dataset.info.class_names[0] == "n01440764"
    batch = dataset.train_batch(0)
    assert batch["image"].shape == (12, 64, 64, 3)
    assert sorted(np.asarray(batch["label"]).tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    [evaluated] = dataset.eval_batches()
    assert evaluated["image"].shape == (5, 73, 73, 3) and np.asarray(evaluated["mask"]).all()
    dataset.close()


def test_imagenet_needs_both_archives_complete(imagenet, tmp_path):
    train = imagenet / "ILSVRC2012_img_train.tar"
    data = train.read_bytes()
    train.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar is not a complete tar archive .*download it again"):
        official._imagenet(imagenet, tmp_path)
    train.unlink()
    with pytest.raises(UserError, match=r"has no ILSVRC2012_img_train\.tar; --source is the folder with"):
        official._imagenet(imagenet, tmp_path)


def test_without_tensorflow_the_error_names_the_extra(cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(official.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rmn-jax\[prepare\]'"):
        prepare("cifar100", str(cifar), str(tmp_path / "tfds"))
    assert list((tmp_path / "tfds").iterdir()) == []
