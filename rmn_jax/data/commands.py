"""What the command line's `data` and `bench input` do."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.data.loading import load
from rmn_jax.data.prepare import prepare
from rmn_jax.data.preprocess import make_preprocess, normalise
from rmn_jax.data.types import Batch, Dataset, DatasetInfo
from rmn_jax.errors import UserError

__all__ = ["bench_input", "prepare", "show"]

_ROWS, _COLUMNS = 4, 8


def show(config_data, out_png: str | os.PathLike, seed: int = 0) -> Path:
    """Draws the first augmented training batch, with class names; returns the file written.

    Args:
        config_data: `config.data`.
        out_png: the figure's path, `.png` where it has no suffix; its folder is made. In a folder: `batch.png`.
        seed: the run's seed.

    Raises:
        UserError: as `load`, or the figure cannot be written.
    """
    count = _ROWS * _COLUMNS
    dataset = load(config_data, batch_size=count, eval_batch_size=count, seed=seed, sharding=None)
    try:
        batch = dataset.train_batch(0)
        keys = jax.random.split(jax.random.key(seed), count)
        images = jax.jit(make_preprocess(config_data, dataset.info).train)(keys, batch["image"])
        return _draw(
            _pixels(images, dataset.info),
            np.asarray(batch["label"]),
            dataset.info,
            config_data,
            _figure_path(out_png),
        )
    finally:
        dataset.close()


def _figure_path(out: str | os.PathLike) -> Path:
    """Returns the file that is written: matplotlib would add a missing suffix without telling."""
    path = Path(out)
    if path.is_dir() or os.fspath(out).endswith(os.sep):
        return path / "batch.png"
    return path if path.suffix else path.with_name(f"{path.name}.png")


def _pixels(images: jax.Array, info: DatasetInfo) -> np.ndarray:
    """Undoes `normalise`: float32 [B, H, W, C] back to 0..1."""
    zero, one = (np.asarray(normalise(jnp.full(3, value, jnp.uint8), info)) for value in (0, 255))
    return np.clip((np.asarray(images) - zero) / (one - zero), 0, 1)


def _draw(images: np.ndarray, labels: np.ndarray, info: DatasetInfo, config_data, path: Path) -> Path:
    # Imported here: matplotlib is slow to import, and only figures need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.35 * _COLUMNS, 1.62 * _ROWS + 0.6), dpi=150, layout="constrained")
    height, width, _ = info.image_shape
    padding = f", padding {config_data.crop_padding}" if config_data.augment.startswith("crop") else ""
    figure.suptitle(
        f"{info.name}: a training batch as the network sees it ({height} x {width}, {config_data.augment}{padding})",
        fontsize=11,
    )
    for axes, image, label in zip(figure.subplots(_ROWS, _COLUMNS).flat, images, labels, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_xlabel(_short_name(info.class_names[label]), fontsize=8, labelpad=3)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"The figure cannot be written to {path} ({error}).") from error
    return path


def _short_name(name: str, longest: int = 18) -> str:
    """Returns the first of the synonyms ('cougar, puma, ...' -> 'cougar'), cut to fit under its image."""
    name = name.split(",")[0]
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def bench_input(
    config_data,
    *,
    batch_size: int,
    seed: int = 0,
    seconds: float = 3.0,
    sharding: jax.sharding.Sharding | None = None,
    update: Callable[[Batch], object] | None = None,
) -> list[dict]:
    """Times each feeding path on the data set of `config_data`, beside the update that consumes it.

    Prints one JSON line a measurement, and returns them: `{"path", "images_per_second", ...}`. The paths are
    `device`, `stream` (with `workers` as in the config) and, if given, `update`; the device's line then has
    `share_of_update`, the time a batch takes to arrive over the time of its update.

    Args:
        config_data: `config.data`.
        batch_size: global batch.
        seed: of the order of examples.
        seconds: how long to measure each.
        sharding: as in `load`.
        update: does one update with a batch and returns its result, some pytree of arrays.
    """
    lines: list[dict] = []
    for feed in ("device", "stream"):
        variant = config_data.copy_and_resolve_references()
        with variant.unlocked():
            variant.feed = feed
        started = time.perf_counter()
        dataset = load(variant, batch_size=batch_size, eval_batch_size=batch_size, seed=seed, sharding=sharding)
        opened = time.perf_counter() - started
        try:
            batch_seconds = _time_batches(dataset, seconds)
            line = {"path": feed, "workers": variant.workers if feed == "stream" else None}
            lines.append({**line, **_rate(batch_seconds, batch_size), "seconds_to_open": round(opened, 2)})
            if update is not None and feed == "device":
                update_seconds = _time_update(dataset, update, seconds)
                lines[-1]["share_of_update"] = round(batch_seconds / update_seconds, 4)
                lines.append({"path": "update", **_rate(update_seconds, batch_size)})
        finally:
            dataset.close()
    for line in lines:
        print(json.dumps(line), flush=True)
    return lines


def _rate(batch_seconds: float, batch_size: int) -> dict:
    return {
        "images_per_second": round(batch_size / batch_seconds),
        "milliseconds_per_batch": round(1e3 * batch_seconds, 3),
        "batch_size": batch_size,
    }


def _updates(dataset: Dataset) -> Iterator[Batch]:
    update = 0
    while True:
        yield dataset.train_batch(update)
        update += 1


def _time_batches(dataset: Dataset, seconds: float) -> float:
    """Returns the seconds a batch takes to arrive, the first few left out."""
    batches = _updates(dataset)
    for _ in range(3):
        jax.block_until_ready(next(batches))
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        jax.block_until_ready(next(batches))
        count += 1
    return (time.perf_counter() - started) / count


def _time_update(dataset: Dataset, update: Callable[[Batch], object], seconds: float) -> float:
    """Returns the seconds an update takes on a batch that is there already, compilation left out."""
    batch = jax.block_until_ready(dataset.train_batch(0))
    for _ in range(3):  # a step may compile twice: its first result can be placed otherwise than its first input
        jax.block_until_ready(update(batch))
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        jax.block_until_ready(update(batch))
        count += 1
    return (time.perf_counter() - started) / count
