"""Speed of the input on one core, several implementations in turn: ``python -m benchmarks.input``.

The images are JPEGs of 500x375 (ImageNet's usual size) at quality 90, windows of scikit-learn's two photographs. All
sides crop at random and resize to 224x224. Prints one JSON line for each side of each part:

1. ``decode``: decode, crop and resize from memory. This package; OpenCV (decode all, crop, resize); Pillow; and
   ``tf.image.decode_and_crop_jpeg`` with a resize.
2. ``pipelines``: from files to batches, see ``benchmarks.input_pipelines``. The ``stream`` pipeline of this package;
   PyTorch's DataLoader with torchvision, on Pillow, on Pillow-SIMD and on OpenCV.
3. ``tiny_imagenet``: Tiny ImageNet from ArrayRecord, read and decoded, if it is prepared.

What is not installed is skipped, with a line that says so.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import input_pipelines
from benchmarks.input_pipelines import Size, feed, summary
from benchmarks.input_side import SIDES, SIZE
from rmn_jax.bench.measure import report
from rmn_jax.data import crop, order

PARTS = ("decode", "pipelines", "tiny_imagenet")
# Images per second of a training step on one H100 (docs/performance.md), and of eight of them.
FED = (12_207, 8 * 12_207)


def photographs(count: int) -> list[bytes]:
    """JPEGs of 500x375: windows of two photographs, all different up to a count of 1,820."""
    images = [Image.fromarray(image) for image in load_sample_images().images]
    encoded = []
    for number in range(count):
        image = images[number % 2]
        left, top = 3 * number % 140, 5 * number % 52
        buffer = io.BytesIO()
        image.crop((left, top, left + 500, top + 375)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def _window(number: int) -> tuple[int, int, int, int]:
    return crop.sample_window(order.example_generator(0, 0, number), 375, 500)


def ours(data: bytes, number: int) -> np.ndarray:
    return crop.random_resized_crop(data, order.example_generator(0, 0, number), SIZE, SIZE)


def opencv(data: bytes, number: int) -> np.ndarray:
    top, left, height, width = _window(number)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(image[top : top + height, left : left + width], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def pillow(data: bytes, number: int) -> np.ndarray:
    top, left, height, width = _window(number)
    image = Image.open(io.BytesIO(data))
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))


def tensorflow() -> Callable[[bytes, int], np.ndarray] | None:
    """TensorFlow's implementation on one thread; None if it is not installed."""
    if importlib.util.find_spec("tensorflow") is None:
        return None
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    @tf.function
    def decode_and_crop(data, window):
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

    return lambda data, number: decode_and_crop(data, tf.constant(_window(number))).numpy()


def measure(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, np.ndarray]:
    """Images per CPU second of each side, [rounds], in turn. A side returns the number of images that it decoded."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, rounds):
        for name, side in sides.items():
            started = time.process_time()
            count = side()
            if turn >= 0:  # the first round is a warm-up
                rates[name].append(count / (time.process_time() - started))
    return {name: np.array(found) for name, found in rates.items()}


def decode_lines(images: list[bytes], rounds: int, fed: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The lines of part ``decode``."""
    sides = {"rmn_jax": ours, "opencv": opencv, "pillow": pillow, "tensorflow": tensorflow()}

    def run(side: Callable[[bytes, int], np.ndarray]) -> int:
        for number, data in enumerate(images):
            side(data, number)
        return len(images)

    with one_core():
        rates = measure({name: lambda side=side: run(side) for name, side in sides.items() if side}, rounds)
    for name, side in sides.items():
        line = {"part": "decode", "side": name}
        if side is None:
            yield {**line, "skipped": "not installed"}
            continue
        ratio = summary("ratio_to_rmn_jax", rates[name] / rates["rmn_jax"])
        found = summary("images_per_core_second", rates[name])
        yield {**line, "images": len(images), "rounds": rounds, **found, **ratio, **feed(rates[name], fed)}


def pipeline_lines(images: list[bytes], size: Size, pillow_simd: str, fed: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The lines of part ``pipelines``."""
    with tempfile.TemporaryDirectory() as folder:
        input_pipelines.write_folder(pathlib.Path(folder), images)
        yield from input_pipelines.lines(pathlib.Path(folder), list(SIDES), size, pillow_simd, fed)


def tiny_imagenet_lines(data_dir: str, rounds: int) -> Iterator[dict[str, Any]]:
    """The line of part ``tiny_imagenet``."""
    from rmn_jax.data import tfds_source
    from rmn_jax.data.decode import decode

    line = {"part": "tiny_imagenet"}
    if tfds_source.find("tiny_imagenet", data_dir) is None:
        yield {**line, "skipped": "not prepared"}
        return
    source = tfds_source.open_image_set("tiny_imagenet", data_dir).train

    def read_and_decode() -> int:
        for start in range(0, 8192, 256):
            for data, _ in source.read(range(start, start + 256)):
                decode(data)
        return 8192

    with one_core():
        yield {**line, **summary("images_per_core_second", measure({"": read_and_decode}, rounds)[""])}


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this process on one core, the same for all sides."""
    cv2.setNumThreads(1)
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if before is not None:
        os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--rounds", type=int, default=Size().rounds, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=Size().images, help="JPEG files (default: %(default)s)")
    parser.add_argument("--pillow_simd", default="", help="site-packages of an environment with Pillow-SIMD")
    parser.add_argument("--data_dir", default="", help="folder of the prepared Tiny ImageNet")
    parser.add_argument("--feed", type=int, nargs="*", default=FED, help="images/s to feed (default: %(default)s)")
    parser.add_argument("--out", help="JSON file for the lines, with machine, versions, command and date")
    arguments = parser.parse_args()
    fed = tuple(arguments.feed)

    def lines() -> Iterator[dict[str, Any]]:
        images = photographs(arguments.images)
        if "decode" in arguments.parts:
            yield from decode_lines(images, arguments.rounds, fed)
        if "pipelines" in arguments.parts:
            size = Size(images=arguments.images, rounds=arguments.rounds)
            yield from pipeline_lines(images, size, arguments.pillow_simd, fed)
        if "tiny_imagenet" in arguments.parts:
            yield from tiny_imagenet_lines(arguments.data_dir, arguments.rounds)

    report(lines(), arguments.out, shlex.join(["python", "-m", "benchmarks.input", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
