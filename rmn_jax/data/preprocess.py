"""From uint8 batches to what the network is fed: augmentation and normalisation, to be jitted."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmn_jax.data import augment
from rmn_jax.data.types import DatasetInfo
from rmn_jax.errors import UserError

AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop_flip")

# The part of the image's side that evaluation keeps when training uses random resized crops (224 of 256).
EVALUATION_FRACTION = 0.875


class Preprocess(NamedTuple):
    """Two pure functions.

    Attributes:
        train: (keys, key array [B]; images, uint8 [B, H, W, C]) -> float32 [B, *image_shape], augmented.
        evaluate: (images, uint8 [B, H, W, C]) -> float32 [B, *image_shape].
    """

    train: Callable[[jax.Array, jax.Array], jax.Array]
    evaluate: Callable[[jax.Array], jax.Array]


def stored_shape(augmentation: str, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the shape (H, W, C) at which images lie on the device for this augmentation.

    Random resized crops are taken from images whose central 87.5% is what evaluation sees; every other
    augmentation works at the network's own size.
    """
    if augmentation != "resized_crop_flip":
        return image_shape
    height, width, channels = image_shape
    return round(height / EVALUATION_FRACTION), round(width / EVALUATION_FRACTION), channels


def normalise(images: jax.Array, info: DatasetInfo) -> jax.Array:
    """Maps 0..255 to zero mean and unit variance per channel over the training split; float32."""
    mean = jnp.asarray(info.mean, jnp.float32) * 255
    std = jnp.asarray(info.std, jnp.float32) * 255
    return (images.astype(jnp.float32) - mean) / std


def make_preprocess(config_data, info: DatasetInfo) -> Preprocess:
    """Builds the two functions for `config_data.augment` and `config_data.crop_padding`.

    On the streamed path the random resized crop has been done by the workers, and only the flip is left.

    Raises:
        UserError: unknown augmentation, or a negative padding.
    """
    augmentation, padding = config_data.augment, config_data.crop_padding
    if augmentation not in AUGMENTATIONS:
        raise UserError(f"config.data.augment is {augmentation!r}; use one of {', '.join(AUGMENTATIONS)}.")
    if padding < 0:
        raise UserError(f"config.data.crop_padding is {padding}; it must be 0 or more.")
    height, width, _ = info.image_shape

    def augment_one(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        if augmentation in ("crop", "crop_flip"):
            image = augment.pad_and_crop(crop_key, image, padding)
        elif augmentation == "resized_crop_flip" and not info.streamed:
            image = augment.random_resized_crop(crop_key, image, height, width)
        return augment.flip(flip_key, image) if augmentation.endswith("flip") else image

    def train(keys: jax.Array, images: jax.Array) -> jax.Array:
        return normalise(jax.vmap(augment_one)(keys, images), info)

    def evaluate(images: jax.Array) -> jax.Array:
        return normalise(jax.vmap(lambda image: augment.centre_crop(image, height, width))(images), info)

    return Preprocess(train, evaluate)
