"""Augmentation and normalisation: uint8 batches to the network's input, inside the jitted step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmn_jax.data import augmentation
from rmn_jax.data.specs import DatasetInfo
from rmn_jax.errors import UserError

AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop_flip")

# Share of the image's side that evaluation keeps if training uses random resized crops (224 of 256).
EVALUATION_FRACTION = 0.875


class Preprocess(NamedTuple):
    """Two pure functions from the images of a ``Batch`` to the network's input.

    Attributes:
      train: (keys [B], images uint8 [B, H, W, C]) -> float32 [B, *image_shape], augmented and normalised.
      evaluate: (images uint8 [B, H, W, C]) -> float32 [B, *image_shape], centre-cropped and normalised.
    """

    train: Callable[[jax.Array, jax.Array], jax.Array]
    evaluate: Callable[[jax.Array], jax.Array]


def check_augmentation(config_data) -> None:
    """Raises UserError if ``config_data.augment`` is unknown or ``config_data.crop_padding`` is negative."""
    if config_data.augment not in AUGMENTATIONS:
        raise UserError(f"config.data.augment is {config_data.augment!r}; use one of {', '.join(AUGMENTATIONS)}.")
    if config_data.crop_padding < 0:
        raise UserError(f"config.data.crop_padding is {config_data.crop_padding}; it must be 0 or more.")


def stored_shape(augment: str, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Shape (H, W, C) of the images before cropping, for an augmentation and the network's (H, W, C).

    Images for random resized crops are larger: evaluation sees their central 87.5%. For the other augmentations it is
    the network's shape.
    """
    if augment != "resized_crop_flip":
        return image_shape
    height, width, channels = image_shape
    return round(height / EVALUATION_FRACTION), round(width / EVALUATION_FRACTION), channels


def normalise(images: jax.Array, info: DatasetInfo) -> jax.Array:
    """Normalises 0..255 to mean 0 and variance 1 of each channel over the training split, in float32.

    A channel without variation becomes 0.
    """
    mean = jnp.asarray(info.mean, jnp.float32) * 255
    std = jnp.asarray(info.std, jnp.float32) * 255
    return (images.astype(jnp.float32) - mean) / jnp.where(std > 0, std, 1)


def make_preprocess(config_data, info: DatasetInfo) -> Preprocess:
    """The two functions for ``config_data.augment`` and ``config_data.crop_padding``.

    In the stream pipeline the workers have already done the random resized crop; only the flip is left.

    Raises:
      UserError: an unknown augmentation, or a negative padding.
    """
    check_augmentation(config_data)
    augment, padding = config_data.augment, config_data.crop_padding
    height, width, _ = info.image_shape

    def augment_one(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        if augment in ("crop", "crop_flip"):
            image = augmentation.pad_and_crop(crop_key, image, padding)
        elif augment == "resized_crop_flip" and not info.streamed:
            image = augmentation.random_resized_crop(crop_key, image, height, width)
        return augmentation.flip(flip_key, image) if augment.endswith("flip") else image

    def train(keys: jax.Array, images: jax.Array) -> jax.Array:
        return normalise(jax.vmap(augment_one)(keys, images), info)

    def evaluate(images: jax.Array) -> jax.Array:
        return normalise(jax.vmap(lambda image: augmentation.centre_crop(image, height, width))(images), info)

    return Preprocess(train, evaluate)
