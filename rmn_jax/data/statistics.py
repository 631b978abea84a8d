"""Mean and standard deviation of each channel, computed from the training images."""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rmn_jax.errors import UserError
from rmn_jax.files import read_object, write_file

FILE = "rmn_statistics.json"

_log = logging.getLogger(__name__)

# Images that the stream pipeline reads; this takes half a minute on a few cores. The error of the mean is about 0.001:
# the images' means have a standard deviation of about 0.15, divided by the root of 20,000. The device pipeline counts
# all images.
SAMPLE = 20_000

# Mean and standard deviation, one value for each channel, in 0..1.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def given(config_data) -> Statistics | None:
    """The mean and standard deviation of ``config_data.mean`` and ``.std``; None if both are empty.

    Raises:
      UserError: only one of them is set, or one is not three finite numbers; a deviation must be above 0.
    """
    if not (config_data.get("mean") or config_data.get("std")):
        return None
    for key in ("mean", "std"):
        if not config_data[key]:
            raise UserError(f"config.data.{key} is empty; set config.data.mean and config.data.std both, or neither.")
    mean, std = _three_numbers(config_data, "mean"), _three_numbers(config_data, "std")
    if min(std) <= 0:
        raise UserError(f"config.data.std is {config_data.std!r}; each deviation must be above 0.")
    return mean, std


def _three_numbers(config_data, key: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in config_data[key].split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise UserError(
            f"config.data.{key} is {config_data[key]!r}; it must be three numbers, one for each channel in 0..1, "
            'for example "0.485,0.456,0.406".'
        )
    return numbers


def to_text(values: Iterable[float]) -> str:
    """Three numbers as the text of ``config.data.mean``."""
    return ",".join(f"{value:.9g}" for value in values)


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
    path = folder / FILE
    try:
        stored = read_object(path)
    except (FileNotFoundError, ValueError):
        stored = {}
    known = _checked(stored.get(key))
    if known is not None:
        return known
    if key in stored:
        _log.warning("%s: the statistics of %s are damaged; they are computed again.", path, key)
    mean, std = compute_now()
    stored[key] = {"mean": mean, "std": std, "digest": _digest(mean, std)}
    if path.exists() and not path.is_file():
        return mean, std  # a pipe would wait for a reader
    with contextlib.suppress(OSError):
        write_file(path, json.dumps(stored, indent=1))
    return mean, std


def _checked(entry: Any) -> Statistics | None:
    """A stored entry as statistics; None if it is none, or was edited. Entries of release 0.2 have no digest."""
    if not isinstance(entry, dict):
        return None
    values = [entry.get(name) for name in ("mean", "std")]
    for value in values:
        if not isinstance(value, list) or not value:
            return None
        if not all(type(number) in (int, float) and 0 <= number <= 1 for number in value):
            return None
    mean, std = (tuple(map(float, value)) for value in values if isinstance(value, list))
    if entry.get("digest", _digest(mean, std)) != _digest(mean, std):
        return None
    return mean, std


def _digest(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    return hashlib.blake2b(repr((mean, std)).encode(), digest_size=8).hexdigest()
