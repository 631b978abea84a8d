"""Small data sets made by the tests, and the real Tiny ImageNet if the environment variable names it."""

import fcntl
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from rmn_jax.data.prepare import prepare

REAL = "RMN_TINY_IMAGENET"


@pytest.fixture
def data_config():
    """Makes a ``config.data`` with overrides."""

    def make(**overrides) -> ConfigDict:
        settings = {
            "name": "digits",
            "data_dir": "",
            "path": "",
            "classes": 0,
            "image_size": 0,
            "augment": "none",
            "crop_padding": 1,
            "pipeline": "auto",
            "workers": 0,
            "skip_corrupt": 0,
        }
        return ConfigDict({**settings, **overrides})

    return make


@pytest.fixture
def eight_way():
    """A sharding of the batch axis over eight devices."""
    if jax.device_count() < 8:
        pytest.skip("needs eight (simulated) devices")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def encode(pixels: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    """Encodes with Pillow; the package decodes with OpenCV."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    """An image uint8 [height, width, 3] with smooth content, which JPEG preserves well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def image_folder(tmp_path):
    """A folder of three classes with 10, 20 and 30 images of different sizes."""
    root = tmp_path / "images"
    for label, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True)
        for number in range(10 * (label + 1)):
            pixels = photograph(100 * label + number, 20 + number, 24 + label)
            (root / name / f"{number:02}.jpg").write_bytes(encode(pixels, quality=95))
    return root


# Not sorted, as in the real file.
CLASS_IDS = [f"n{(61_803_399 * number) % 100_000_000:08}" for number in range(200)]


def tiny_pixels(class_number: int, number: int) -> np.ndarray:
    """An image of the small Tiny ImageNet: one colour, which encodes class and number."""
    return np.full((64, 64, 3), (class_number, 40 * number, 255 - class_number), np.uint8)


@pytest.fixture
def small_tiny_imagenet(tmp_path):
    """A folder as Tiny ImageNet's: 200 classes with two training images each, and 20 validation images."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(CLASS_IDS) + "\n")
    (root / "words.txt").write_text("".join(f"{i}\tthing {n}, item {n}\n" for n, i in sorted(enumerate(CLASS_IDS))))
    for number, class_id in enumerate(CLASS_IDS):
        folder = root / "train" / class_id / "images"
        folder.mkdir(parents=True)
        names = [f"{class_id}_{image}.JPEG" for image in range(2)]
        for image, name in enumerate(names):
            (folder / name).write_bytes(encode(tiny_pixels(number, image), quality=95))
        boxes = "".join(f"{name}\t0\t0\t63\t63\n" for name in names)
        (root / "train" / class_id / f"{class_id}_boxes.txt").write_text(boxes)
    lines = []
    for number in range(20):
        class_number = 10 * number
        # Every fifth is greyscale; of the real images, about one in sixty.
        pixels = np.full((64, 64), 7 * number, np.uint8) if number % 5 == 0 else tiny_pixels(class_number, 3)
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(encode(pixels, quality=95))
        lines.append(f"val_{number}.JPEG\t{CLASS_IDS[class_number]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def real_tiny_imagenet(tmp_path_factory):
    """(unpacked folder, data_dir) of the real Tiny ImageNet, prepared once for all test processes."""
    if REAL not in os.environ:
        pytest.skip(f"set {REAL} to a folder with Tiny ImageNet (unpack.py, the zip or tiny-imagenet-200)")
    given = Path(os.environ[REAL])
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "tiny_imagenet.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (given / "unpack.py").is_file():
            subprocess.run([sys.executable, given / "unpack.py", shared], check=True, capture_output=True)
            given = shared / "tiny-imagenet-200"
        prepare("tiny_imagenet", str(given), str(shared / "tfds"))
    return given, shared / "tfds"
