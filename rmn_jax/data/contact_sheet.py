"""Each augmentation alone, applied to a few images: one labelled row for each, for ``rmn data show --each``."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.data import augmentation, auto_augment, color
from rmn_jax.data.options import INTERPOLATIONS, AugmentOptions
from rmn_jax.data.specs import DatasetInfo

Row = tuple[str, Callable[[jax.Array, jax.Array], jax.Array]]
_SHOWN_JITTER = (0.4, 0.4, 0.4, 0.1)  # where the configuration has none


def rows(options: AugmentOptions, info: DatasetInfo) -> Iterator[Row]:
    """Labels, and functions of (key, float32 image [H, W, 3] of whole values in 0..255) -> the same shape, in 0..255.

    Strengths are those of the configuration; where it has none, usual ones. An operation of RandAugment has the
    configured magnitude with a positive sign.
    """
    height, width, _ = info.image_shape
    areas, ratios = options.crop_scale, options.crop_ratio
    yield "original", lambda key, image: image
    yield "flip", lambda key, image: image[:, ::-1]
    padding = options.crop_padding
    yield f"crop, padding {padding}", lambda key, image: augmentation.pad_and_crop(key, image, padding)
    crop = partial(augmentation.random_resized_crop, height=height, width=width, areas=areas, ratios=ratios)
    for name in INTERPOLATIONS:
        yield f"resized crop, {name}", partial(crop, interpolation=name)
    strengths = options.color_jitter if any(options.color_jitter) else _SHOWN_JITTER
    label = ", ".join(f"{strength:g}" for strength in strengths)
    yield f"color_jitter\n{label}", lambda key, image: color.jitter(key, image, strengths)
    magnitude = options.randaugment_magnitude
    tables = auto_augment.randaugment_magnitudes(height, width)
    table = jnp.asarray(tables[:, magnitude])
    for i, name in enumerate(auto_augment.OPERATIONS[1:], start=1):
        label = f"{name} ({magnitude})" if np.ptp(tables[i]) else name
        yield label, partial(_operation, operation=jnp.int32(i), magnitude=table[i])
    number = options.randaugment_ops
    yield (
        f"randaugment {number} x {magnitude}",
        lambda key, image: auto_augment.randaugment(key, image, number, magnitude),
    )
    yield "trivialaugment", lambda key, image: auto_augment.trivialaugment(key, image)
    yield (
        "random_erasing",
        lambda key, image: augmentation.erase(image, augmentation.sample_erasure(key, height, width)),
    )


def _operation(key: jax.Array, image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    del key
    return auto_augment.apply(image, operation, magnitude)
