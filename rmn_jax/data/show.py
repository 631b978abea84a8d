"""A figure of one augmented training batch."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.data.loading import load
from rmn_jax.data.preprocess import make_preprocess, normalise
from rmn_jax.data.specs import DatasetInfo
from rmn_jax.files import save_figure

_ROWS, _COLUMNS = 4, 8


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
            out_png,
        )
    finally:
        dataset.close()


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
