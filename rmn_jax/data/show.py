"""Figures of the augmented images: one training batch, or each augmentation alone."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.data import augmentation, contact_sheet
from rmn_jax.data.loading import load
from rmn_jax.data.options import augment_options
from rmn_jax.data.preprocess import make_preprocess, normalise
from rmn_jax.data.specs import DatasetInfo
from rmn_jax.files import save_figure

_ROWS, _COLUMNS = 4, 8
Mixing = Callable[[jax.Array, jax.Array], jax.Array]


def show(config_data, out_png: str | os.PathLike, seed: int = 0) -> Path:
    """Draws the first augmented training batch with its class names and returns the path of the file.

    Args:
      config_data: ``config.data``.
      out_png: path of the figure. ``.png`` is added where there is no suffix; missing folders are created. For a
        folder, the file is ``batch.png`` in it.
      seed: the run's seed.

    Raises:
      UserError: as ``load``, or the figure cannot be written.
    """
    count, config_data = _ROWS * _COLUMNS, _each_once(config_data)
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
            out_png,
        )
    finally:
        dataset.close()


def show_each(config_data, out_png: str | os.PathLike, seed: int = 0, mixings: dict[str, Mixing] | None = None) -> Path:
    """Draws some training images under each augmentation alone, one labelled row for each; returns the file's path.

    Args:
      config_data: ``config.data``, which gives the strengths.
      out_png: as in ``show``; in a folder, the file is ``augmentations.png``.
      seed: the run's seed.
      mixings: further rows by label: functions of (keys [B], images [B, H, W, 3]) that mix neighbouring images.

    Raises:
      UserError: as ``show``.
    """
    config_data = _each_once(config_data)
    dataset = load(config_data, batch_size=_COLUMNS, eval_batch_size=_COLUMNS, seed=seed, sharding=None)
    try:
        info, options = dataset.info, augment_options(config_data)
        preprocess = make_preprocess(config_data, info)
        batch = dataset.train_batch(0)["image"]
        stored = jnp.float32(_centred(batch, info))
        keys = jax.random.split(jax.random.key(seed), _COLUMNS)
        sheet = [(label, jax.jit(jax.vmap(one))(keys, stored)) for label, one in contact_sheet.rows(options, info)]
        sheet += [(label, jax.jit(mixing)(keys, stored)) for label, mixing in (mixings or {}).items()]
        sheet.append(("as configured", 255 * _pixels(jax.jit(preprocess.train)(keys, batch), info)))
        return _draw_rows([(label, np.asarray(row) / 255) for label, row in sheet], info, out_png)
    finally:
        dataset.close()


def _each_once(config_data):
    """``config.data`` without repeated augmentation: a figure has as many images as it has places."""
    if config_data.get("repeats", 1) > 1:
        config_data = config_data.copy_and_resolve_references()
        config_data.repeats = 1
    return config_data


def _centred(images: jax.Array, info: DatasetInfo) -> jax.Array:
    height, width, _ = info.image_shape
    return jax.vmap(lambda image: augmentation.centre_crop(image, height, width))(images)


def _draw_rows(rows: list[tuple[str, np.ndarray]], info: DatasetInfo, out_png: str | os.PathLike) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * _COLUMNS + 2.2, 1.1 * len(rows) + 0.5), dpi=100, layout="constrained")
    height, width, _ = info.image_shape
    figure.suptitle(f"{info.name}: each augmentation alone ({height} x {width})", fontsize=11)
    gap = max(1, width // 16)
    for axes, (label, images) in zip(figure.subplots(len(rows), 1), rows, strict=True):
        # One picture for each row: a subplot for each image takes ten times as long.
        apart = np.pad(np.clip(images, 0, 1), ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=1)
        axes.imshow(np.concatenate(list(apart), axis=1)[:, :-gap], interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center", labelpad=6)
    return save_figure(figure, out_png, "augmentations.png")


def _pixels(images: jax.Array, info: DatasetInfo) -> np.ndarray:
    """The inverse of ``normalise``: float32 [B, H, W, C] -> the same shape, in 0..1."""
    zero, one = (np.asarray(normalise(jnp.full(3, value, jnp.uint8), info)) for value in (0, 255))
    return np.clip((np.asarray(images) - zero) / (one - zero), 0, 1)


def _draw(images: np.ndarray, labels: np.ndarray, info: DatasetInfo, config_data, out_png) -> Path:
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
    return save_figure(figure, out_png, "batch.png")


def _short_name(name: str, longest: int = 18) -> str:
    """The first of the synonyms ('cougar, puma, ...' -> 'cougar'), truncated to fit under its image."""
    name = name.split(",")[0]
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
