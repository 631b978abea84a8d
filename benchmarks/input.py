"""Speed of decoding on one core, several implementations in turn: ``python -m benchmarks.input [--data_dir=DIR]``.

Prints one JSON line for each implementation, the median of five rounds:

1. JPEGs of ImageNet's size, decode and random resized crop to 224x224: ours; OpenCV (decode all, crop, resize); Pillow;
   and ``tf.image.decode_and_crop_jpeg`` with a resize, if TensorFlow is installed. The images are windows of
   scikit-learn's two photographs, 500x375 (ImageNet's usual size), at quality 90.
2. Tiny ImageNet from ArrayRecord, read and decoded, if it is prepared.
"""

import argparse
import importlib.util
import io
import json
import os
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from rmn_jax.data import crop, order

SIZE = 224
ROUNDS = 5


def photographs(count: int = 48) -> list[bytes]:
    """JPEGs of 500x375: windows of two photographs, all different."""
    encoded = []
    for number in range(count):
        image = Image.fromarray(load_sample_images().images[number % 2])
        left, top = 3 * number % 100, 2 * number % 50
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


def measure(sides: dict[str, Callable[[], int]]) -> list[dict]:
    """Times all implementations in turn, ``ROUNDS`` times. Each returns the number of images that it decoded."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(ROUNDS + 1):
        for name, side in sides.items():
            started = time.process_time()
            count = side()
            if round_number:  # the first round is a warm-up
                rates[name].append(count / (time.process_time() - started))
    return [
        {
            "way": name,
            "images_per_core_second": round(statistics.median(found)),
            "spread": [round(min(found)), round(max(found))],
        }
        for name, found in rates.items()
    ]


def crops() -> list[dict]:
    images = photographs()
    sides = {"ours": ours, "opencv": opencv, "pillow": pillow, "tensorflow": tensorflow()}

    def run(side):
        for number, data in enumerate(images):
            side(data, number)
        return len(images)

    return measure({name: lambda side=side: run(side) for name, side in sides.items() if side is not None})


def tiny_imagenet(data_dir: str) -> list[dict]:
    from rmn_jax.data import tfds_source
    from rmn_jax.data.decode import decode

    source = tfds_source.open_image_set("tiny_imagenet", data_dir).train

    def read_and_decode() -> int:
        for start in range(0, 8192, 256):
            for data, _ in source.read(range(start, start + 256)):
                decode(data)
        return 8192

    return measure({"tiny_imagenet": read_and_decode})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="", help="folder of the prepared Tiny ImageNet")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):  # the same single core for all
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    lines = crops()
    from rmn_jax.data import tfds_source

    if tfds_source.find("tiny_imagenet", arguments.data_dir) is not None:
        lines += tiny_imagenet(arguments.data_dir)
    for line in lines:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
