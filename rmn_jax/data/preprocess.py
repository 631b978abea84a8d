"""Augmentation and normalisation: uint8 batches to the network's input, inside the jitted step."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmn_jax.data import augmentation, auto_augment, color
from rmn_jax.data.options import AugmentOptions, augment_options
from rmn_jax.data.specs import DatasetInfo

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
    """The two functions for the augmentations of ``config_data``.

    In the stream pipeline the workers have already done the random resized crop; what follows it is left.

    Raises:
      UserError: see ``augment_options``.
    """
    options = augment_options(config_data)
    height, width, _ = info.image_shape

    def augment_one(key: jax.Array, image: jax.Array) -> jax.Array:
        image = _cropped_and_flipped(key, image, options, info)
        return _colored(key, image, options) if options.changes_colors else image

    def train(keys: jax.Array, images: jax.Array) -> jax.Array:
        images = normalise(jax.vmap(augment_one)(keys, images), info)
        if options.random_erasing > 0:
            images = jax.vmap(partial(_erased, probability=options.random_erasing))(keys, images)
        return images

    def evaluate(images: jax.Array) -> jax.Array:
        return normalise(jax.vmap(lambda image: augmentation.centre_crop(image, height, width))(images), info)

    return Preprocess(train, evaluate)


# Further draws of an image fold one of these into its key. So the crop does not depend on what follows it.
_JITTER, _AUTO, _ERASING = 2, 3, 4


def _cropped_and_flipped(key: jax.Array, image: jax.Array, options: AugmentOptions, info: DatasetInfo) -> jax.Array:
    height, width, _ = info.image_shape
    crop_key, flip_key = jax.random.split(key)
    if options.augment in ("crop", "crop_flip"):
        image = augmentation.pad_and_crop(crop_key, image, options.crop_padding)
    elif options.augment == "resized_crop_flip" and not info.streamed:
        image = augmentation.random_resized_crop(
            crop_key, image, height, width, options.crop_scale, options.crop_ratio, options.interpolation
        )
    return augmentation.flip(flip_key, image) if options.augment.endswith("flip") else image


def _colored(key: jax.Array, image: jax.Array, options: AugmentOptions) -> jax.Array:
    """Colour jitter and the automatic augmentation; these take and give whole values, in float32."""
    image = jnp.round(image.astype(jnp.float32))
    if any(options.color_jitter):
        image = color.jitter(jax.random.fold_in(key, _JITTER), image, options.color_jitter)
    auto_key = jax.random.fold_in(key, _AUTO)
    if options.auto_augment == "randaugment":
        image = auto_augment.randaugment(auto_key, image, options.randaugment_ops, options.randaugment_magnitude)
    elif options.auto_augment == "trivialaugment":
        image = auto_augment.trivialaugment(auto_key, image)
    return image


def _erased(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Random erasing of a normalised image: 0 is the mean colour."""
    happens_key, rectangle_key = jax.random.split(jax.random.fold_in(key, _ERASING))
    rectangle = augmentation.sample_erasure(rectangle_key, image.shape[0], image.shape[1])
    erased = augmentation.erase(image, rectangle)
    return jnp.where(jax.random.bernoulli(happens_key, probability), erased, image)
