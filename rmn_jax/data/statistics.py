"""Mean and standard deviation of each channel, computed from the training images."""

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rmn_jax.errors import UserError
from rmn_jax.files import write_file

_FILE = "rmn_statistics.json"

# Images that the stream pipeline reads; this takes half a minute on a few cores. The error of the mean is about 0.001:
# the images' means have a standard deviation of about 0.15, divided by the root of 20,000. The device pipeline counts
# all images.
SAMPLE = 20_000

# Mean and standard deviation, one value for each channel, in 0..1.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def compute(chunks: Iterable[np.ndarray]) -> Statistics:
    """Mean and standard deviation over all pixels, 3 values each in 0..1, of uint8 chunks [n, H, W, 3].

    The counts are exact: the pixels are counted by value, in integers.

    Raises:
      UserError: there are no pixels.
    """
    values = np.arange(256, dtype=np.float64) / 255
    counts = np.zeros((3, 256), np.int64)
    for chunk in chunks:
        for channel in range(3):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    total = counts.sum(axis=1)
    if not total.all():
        raise UserError("None of the training images can be read; check the files of the data set.")
    mean = (counts @ values) / total
    variance = (counts @ values**2) / total - mean**2
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 0)).tolist())


def load_or_compute(folder: Path | None, key: str, compute_now: Callable[[], Statistics]) -> Statistics:
    """The statistics stored in ``folder`` under ``key``; if there are none, computes and stores them.

    Args:
      folder: a folder that cannot be written is no error; None stores nothing.
      key: the fingerprint of the data set and the image size.
      compute_now: computes the statistics.
    """
    if folder is None:
        return compute_now()
    path = folder / _FILE
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        stored = {}
    if key in stored:
        return tuple(stored[key]["mean"]), tuple(stored[key]["std"])
    mean, std = compute_now()
    stored[key] = {"mean": mean, "std": std}
    with contextlib.suppress(OSError):
        write_file(path, json.dumps(stored, indent=1))
    return mean, std
