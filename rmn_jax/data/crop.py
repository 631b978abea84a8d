"""The random resized crop on the host, for the stream pipeline. It decodes no more of an image than it needs.

The distribution is that of ``augmentation.random_resized_crop``. NumPy's generator draws it instead of JAX's.
"""

import math

import cv2
import numpy as np
from PIL import Image

from rmn_jax.data.augmentation import AREA, ATTEMPTS, RATIO
from rmn_jax.data.decode import Encoded, decode, image_size

# A window is averaged instead of interpolated if it shrinks by at least this factor.
_AREA_FROM = 2.5

Window = tuple[int, int, int, int]


def sample_window(
    generator: np.random.Generator,
    height: int,
    width: int,
    areas: tuple[float, float] = AREA,
    ratios: tuple[float, float] = RATIO,
) -> Window:
    """Draws the window (top, left, height, width) of a random resized crop, in whole pixels.

    The area is uniform in ``areas`` of the image, the aspect ratio log-uniform in ``ratios``, the position uniform. If
    ten draws do not fit, the result is the largest centred window with an allowed ratio.
    """
    # All numbers are drawn at once, so every image takes the same number of draws from the generator.
    draws = generator.random((ATTEMPTS, 4))
    low, high = math.log(ratios[0]), math.log(ratios[1])
    for area_draw, ratio_draw, top_draw, left_draw in draws:
        area = height * width * (areas[0] + (areas[1] - areas[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        window_height, window_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < window_height <= height and 0 < window_width <= width:
            top = int(top_draw * (height - window_height + 1))
            left = int(left_draw * (width - window_width + 1))
            return top, left, window_height, window_width
    window_height, window_width = min(height, round(width / ratios[0])), min(width, round(height * ratios[1]))
    window_height, window_width = max(1, window_height), max(1, window_width)
    return (height - window_height) // 2, (width - window_width) // 2, window_height, window_width


def reduction_for(window: Window, height: int, width: int) -> int:
    """The largest of 8, 4, 2, 1 at which the reduced window is at least [height, width]."""
    return next(r for r in (8, 4, 2, 1) if r == 1 or (window[2] >= r * height and window[3] >= r * width))


def random_resized_crop(
    data: Encoded,
    generator: np.random.Generator,
    height: int,
    width: int,
    areas: tuple[float, float] = AREA,
    ratios: tuple[float, float] = RATIO,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Decodes an image, crops a random window and scales it to uint8 [height, width, 3].

    A JPEG is decoded no further down than the window. One much larger than the target is decoded at 1/2, 1/4 or 1/8 of
    its size. The inverse cosine transform gives these sizes at almost no cost.

    Raises:
      UnreadableImage: as ``decode``.
    """
    size = data.shape[:2] if isinstance(data, np.ndarray) else image_size(data)
    window = sample_window(generator, size[0], size[1], areas, ratios)
    if isinstance(data, np.ndarray):
        return resize_window(decode(data), size, window, height, width, interpolation)
    reduction = reduction_for(window, height, width)
    image = decode(data, reduction, rows=window[0] + window[2])
    # Only of a JPEG rows may be missing.
    rows = max(len(image), -(-size[0] // reduction)) if data[:2] == b"\xff\xd8" else len(image)
    return resize_window(image, size, window, height, width, interpolation, rows)


def resize_window(
    image: np.ndarray,
    size: tuple[int, int],
    window: Window,
    height: int,
    width: int,
    interpolation: str = "bilinear",
    rows: int | None = None,
) -> np.ndarray:
    """Scales the window of an image to uint8 [height, width, 3].

    Args:
      image: the image, decoded at full or reduced size. Rows below the window may be missing.
      size: its full (H, W).
      window: (top, left, height, width), in pixels of the full size.
      height: of the result.
      width: of the result.
      interpolation: "bilinear" or "bicubic".
      rows: of the image if none is missing; None if none is.
    """
    vertical, horizontal = (image.shape[0] if rows is None else rows) / size[0], image.shape[1] / size[1]
    top, left = int(window[0] * vertical), int(window[1] * horizontal)
    bottom = max(top + 1, round((window[0] + window[2]) * vertical))
    right = max(left + 1, round((window[1] + window[3]) * horizontal))
    part = image[top:bottom, left:right]
    if interpolation == "bicubic":  # OpenCV's does not antialias
        return np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC))
    # Reduced decoding leaves a factor below 2 on one axis at least. Linear interpolation does that almost without
    # aliasing, while area averaging by 2.2 takes as long as decoding. Arrays and very large windows may shrink by more.
    shrinks_much = part.shape[0] >= _AREA_FROM * height or part.shape[1] >= _AREA_FROM * width
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if shrinks_much else cv2.INTER_LINEAR)
