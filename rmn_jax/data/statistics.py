"""Mean and standard deviation per channel, computed from the training images, not copied from habit."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rmn_jax.errors import UserError

_FILE = "rmn_statistics.json"

# Images read on the streamed path: enough to know the mean to about 0.001 (images differ by about 0.15 in
# their own mean, over the root of 20,000), and half a minute on a few cores. A set on the device is counted
# whole.
SAMPLE = 20_000

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def compute(chunks: Iterable[np.ndarray]) -> Statistics:
    """Returns (mean, std) over all pixels, each a tuple of 3 in 0..1 units, of uint8 chunks [n, H, W, 3].

    Exact: the pixels are counted by value, in integers.
    """
    values = np.arange(256, dtype=np.float64) / 255
    counts = np.zeros((3, 256), np.int64)
    for chunk in chunks:
        for channel in range(3):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    total = counts.sum(axis=1)
    if not total.all():
        raise UserError("None of the training images can be read.")
    mean = (counts @ values) / total
    variance = (counts @ values**2) / total - mean**2
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 0)).tolist())


def load_or_compute(folder: Path | None, key: str, compute_now: Callable[[], Statistics]) -> Statistics:
    """Returns the statistics stored in `folder` under `key`; else computes them and stores them if it can.

    `key` names the data set's fingerprint and the image size. A folder that cannot be written is no error.
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
    partial = path.with_name(f"{_FILE}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(stored, indent=1))
        partial.replace(path)
    except OSError:
        pass
    return mean, std
