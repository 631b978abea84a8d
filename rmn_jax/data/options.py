"""The augmentations of ``config.data``, read from its keys and checked."""

import math
from fractions import Fraction
from typing import Any, NamedTuple

from rmn_jax.errors import UserError

AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop_flip")
AUTO_AUGMENTS = ("none", "randaugment", "trivialaugment")
INTERPOLATIONS = ("bilinear", "bicubic")
# For callers that give a part of ``config.data``; the same as in ``rmn_jax.config``.
_DEFAULTS = {
    "crop_scale": "0.08,1",
    "crop_ratio": "3/4,4/3",
    "interpolation": "bilinear",
    "color_jitter": "",
    "auto_augment": "none",
    "randaugment_ops": 2,
    "randaugment_magnitude": 9,
    "random_erasing": 0.0,
    "repeats": 1,
}


class AugmentOptions(NamedTuple):
    """What a training image goes through, in this order; see ``docs/data.md``.

    Attributes:
      augment: crop and flip, one of ``AUGMENTATIONS``.
      crop_padding: pixels.
      crop_scale: least and largest area of a random resized crop, as a share of the image.
      crop_ratio: least and largest ratio of its width to its height.
      interpolation: of a random resized crop.
      color_jitter: strengths of brightness, contrast, saturation and hue.
      auto_augment: one of ``AUTO_AUGMENTS``.
      randaugment_ops: number of operations.
      randaugment_magnitude: from 0 to 30.
      random_erasing: probability.
      repeats: how often each image is in a batch.
    """

    augment: str
    crop_padding: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    interpolation: str
    color_jitter: tuple[float, float, float, float]
    auto_augment: str
    randaugment_ops: int
    randaugment_magnitude: int
    random_erasing: float
    repeats: int

    @property
    def changes_colors(self) -> bool:
        """Whether an image goes through operations on whole values from 0 to 255."""
        return any(self.color_jitter) or self.auto_augment != "none"


def augment_options(config_data) -> AugmentOptions:
    """The augmentations of ``config.data``.

    Raises:
      UserError: a value that is unknown or out of range.
    """
    config_data = {**_DEFAULTS, **config_data}
    _one_of(config_data, "augment", AUGMENTATIONS)
    _one_of(config_data, "auto_augment", AUTO_AUGMENTS)
    _one_of(config_data, "interpolation", INTERPOLATIONS)
    _whole(config_data, "crop_padding", 0, None)
    _whole(config_data, "randaugment_ops", 1, 14)
    _whole(config_data, "randaugment_magnitude", 0, 30)
    _whole(config_data, "repeats", 1, None)
    probability = config_data["random_erasing"]
    if not 0 <= probability <= 1:
        raise UserError(f"config.data.random_erasing is {probability}; it must be a probability, from 0 (off) to 1.")
    return AugmentOptions(
        config_data["augment"],
        config_data["crop_padding"],
        _range(config_data, "crop_scale", 1.0, "0.08,1"),
        _range(config_data, "crop_ratio", math.inf, "3/4,4/3"),
        config_data["interpolation"],
        _strengths(config_data["color_jitter"]),
        config_data["auto_augment"],
        config_data["randaugment_ops"],
        config_data["randaugment_magnitude"],
        probability,
        config_data["repeats"],
    )


def _one_of(config_data: dict[str, Any], key: str, choices: tuple[str, ...]) -> None:
    if config_data[key] not in choices:
        raise UserError(f"config.data.{key} is {config_data[key]!r}; use one of {', '.join(choices)}.")


def _whole(config_data: dict[str, Any], key: str, least: int, most: int | None) -> None:
    value = config_data[key]
    if value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UserError(f"config.data.{key} is {value}; it must be {bounds}.")


def _numbers(text: Any) -> list[float]:
    """The numbers of a text such as "0.08,1" or "3/4,4/3"; [] if it is not of that form."""
    try:
        found = [float(Fraction(part.strip())) for part in str(text).split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        return []
    return found if all(math.isfinite(number) for number in found) else []


def _range(config_data: dict[str, Any], key: str, most: float, example: str) -> tuple[float, float]:
    numbers = _numbers(config_data[key])
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= most:
        limit = "" if most == math.inf else f" of at most {most:g}"
        raise UserError(
            f"config.data.{key} is {config_data[key]!r}; it must be two positive numbers{limit}, the smaller "
            f"one first, as in {example!r}."
        )
    return numbers[0], numbers[1]


def _strengths(text: str) -> tuple[float, float, float, float]:
    if not text:
        return (0.0, 0.0, 0.0, 0.0)
    numbers = _numbers(text)
    if len(numbers) == 1:
        numbers = numbers * 3 + [0.0]
    if len(numbers) != 4 or min(numbers) < 0 or numbers[3] > 0.5:
        raise UserError(
            f"config.data.color_jitter is {text!r}; it must be empty (off), one strength for brightness, contrast and "
            "saturation, or four with that of the hue (at most 0.5), as in '0.4,0.4,0.4,0.1'."
        )
    return numbers[0], numbers[1], numbers[2], numbers[3]
