"""Decoding on the host: encoded images to uint8 RGB arrays of one size, with bad input caught early.

OpenCV decodes, because it was measured fastest (see ``docs/performance.md``). Pillow reads headers and decodes unusual
images. Grey images become RGB. Transparency is dropped. EXIF orientation is ignored, as in TensorFlow and torchvision.
"""

import io
import os

import cv2
import numpy as np
from PIL import Image

from rmn_jax.data.jpeg import first_rows, jpeg_size

# ImageNet's largest image has 22 million pixels. A decoded image takes three bytes for each pixel.
MAX_PIXELS = 100_000_000

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}

# An encoded image, or an array uint8 [H, W, C] that is already decoded.
Encoded = bytes | np.ndarray


class UnreadableImage(Exception):
    """An example that cannot be used. The message is the reason, without the name of the image."""


def image_size(data: bytes) -> tuple[int, int]:
    """(H, W) from the header, without decoding.

    Raises:
      UnreadableImage: the data has no image header.
    """
    size = jpeg_size(data) if data[:2] == b"\xff\xd8" else None
    if size is not None:
        return size
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"it is too large ({error})") from None
    except Exception as error:  # Pillow's plug-ins raise many kinds for a damaged or rare file
        raise UnreadableImage(f"it is not an image ({len(data)} bytes)") from error


def decode(data: Encoded, reduction: int = 1, rows: int | None = None) -> np.ndarray:
    """Decodes an image to uint8 RGB [H, W, 3].

    Args:
      data: an encoded JPEG, PNG, WebP, BMP or TIFF, or an array [H, W] or [H, W, 1 | 3 | 4], which is only converted to
        RGB.
      reduction: 1, 2, 4 or 8, the divisor of the decoded size. For a JPEG a reduction saves most of the work.
      rows: how many rows of the full size are needed, from the top. The result may then have fewer rows than the image;
        those it has are the same. For most JPEGs this saves the work on the others.

    Raises:
      UnreadableImage: the data is not an image, is truncated, or has more than ``MAX_PIXELS`` pixels (checked before
        decoding).
    """
    if isinstance(data, np.ndarray):
        return _as_rgb(data)
    if not data:
        raise UnreadableImage("it is empty or cannot be read")
    height, width = image_size(data)
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"it has {height} x {width} pixels; the limit is {MAX_PIXELS:,}")
    if data[:2] == b"\xff\xd8" and data[-2:] != b"\xff\xd9":
        _check_complete(data)
    part = None if rows is None else first_rows(data, rows)
    try:
        image = None if part is None else _decode_with_opencv(part, reduction)
        if image is None:
            image = _decode_with_opencv(data, reduction)
    except cv2.error as error:
        raise UnreadableImage(f"it cannot be decoded ({error.err})") from error
    return _decode_with_pillow(data) if image is None else image


def _decode_with_opencv(data: bytes | bytearray, reduction: int) -> np.ndarray | None:
    buffer = np.frombuffer(data, np.uint8)
    if reduction == 1:
        return cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    # OpenCV does not support RGB order together with a reduction.
    image = cv2.imdecode(buffer, _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def check_jpeg(data: bytes, size: tuple[int, int]) -> None:
    """Raises UnreadableImage unless ``data`` is a complete JPEG of ``size`` (H, W). Usually needs no decoding."""
    if data[:2] != b"\xff\xd8":
        raise UnreadableImage(f"it is not a JPEG ({len(data)} bytes)")
    found = image_size(data)
    if found != size:
        raise UnreadableImage(f"it has {found[0]} x {found[1]} pixels instead of {size[0]} x {size[1]}")
    if data[-2:] != b"\xff\xd9":
        _check_complete(data)


def check_label(label: int, num_classes: int) -> None:
    """Raises UnreadableImage if the label is out of range: the example is unusable, as with an unreadable image."""
    if not 0 <= label < num_classes:
        raise UnreadableImage(f"its label is {label}, outside 0..{num_classes - 1}")


def _check_complete(data: bytes) -> None:
    """Raises if a JPEG without end marker is truncated. OpenCV would fill the missing part with grey, silently."""
    _decode_with_pillow(data)


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # as in ``image_size``
        raise UnreadableImage(f"it cannot be decoded ({error})") from error


def _as_rgb(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise UnreadableImage(f"it is {image.dtype} of shape {image.shape}, not uint8 [H, W, C]")
    image = image if image.ndim == 3 else image[..., None]
    if image.shape[-1] == 1:
        return np.repeat(image, 3, axis=-1)
    if image.shape[-1] not in (3, 4):
        raise UnreadableImage(f"it has {image.shape[-1]} channels")
    return image[..., :3]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales uint8 [H, W, 3] to [height, width, 3]: area averaging to shrink, linear interpolation to enlarge."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales uint8 [H, W, 3] until it just covers [height, width], then crops the centre."""
    scale = max(height / image.shape[0], width / image.shape[1])
    covering = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    image = resize(image, *covering)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return image[top : top + height, left : left + width]


def read_image_file(path, shape: tuple[int, int, int]) -> np.ndarray:
    """One image file as evaluation sees it before normalisation: uint8 [*shape], scaled and centre-cropped.

    Raises:
      UnreadableImage: as ``decode``, or the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UnreadableImage(f"it cannot be read ({error.strerror})") from error
    return fit(decode(data), *shape[:2])


def available_cores() -> int:
    """Number of processor cores that this process may use. As many threads decode at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
