"""From encoded images to uint8 RGB arrays of one size, on the host; bad input is caught early.

OpenCV decodes (measured fastest, see `docs/data.md`); Pillow reads headers and judges whatever looks unusual.
Grey images become RGB, transparency is dropped, EXIF orientation is ignored (as TensorFlow and torchvision
do).
"""

import io
import os
import struct

import cv2
import numpy as np
from PIL import Image

# ImageNet's largest image has 22 million pixels. A decoded image takes three bytes a pixel.
MAX_PIXELS = 100_000_000

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


Encoded = bytes | np.ndarray


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason, without the image's name."""


def image_size(data: bytes) -> tuple[int, int]:
    """Returns (H, W) from the header, without decoding.

    Raises:
        UnreadableImage: the header is not an image's.
    """
    size = _jpeg_size(data) if data[:2] == b"\xff\xd8" else None
    if size is not None:
        return size
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"it is too large ({error})") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(f"it is not an image ({len(data)} bytes)") from error


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Reads (H, W) from a JPEG's frame header, ten times as fast as Pillow; None if it is not found."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding between segments
            position += 1
        elif marker in _START_OF_FRAME:
            return struct.unpack_from(">HH", data, position + 5)
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def decode(data: Encoded, reduction: int = 1) -> np.ndarray:
    """Decodes an image to uint8 RGB [H, W, 3]; an array [H, W] or [H, W, 1 | 3 | 4] only becomes RGB.

    Args:
        data: an encoded JPEG, PNG, WebP, BMP or TIFF, or a decoded array.
        reduction: 1, 2, 4 or 8: decodes at a fraction of the size, which for JPEG saves most of the work.

    Raises:
        UnreadableImage: not an image, cut short, or of more than `MAX_PIXELS` pixels (checked before
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
    try:
        image = _decode_with_opencv(data, reduction)
    except cv2.error as error:
        raise UnreadableImage(f"it cannot be decoded ({error.err})") from error
    return _decode_with_pillow(data) if image is None else image


def _decode_with_opencv(data: bytes, reduction: int) -> np.ndarray | None:
    buffer = np.frombuffer(data, np.uint8)
    if reduction == 1:
        return cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    # OpenCV refuses RGB order together with a reduction.
    image = cv2.imdecode(buffer, _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def check_jpeg(data: bytes, size: tuple[int, int]) -> None:
    """Checks, without decoding the usual case, that `data` is a whole JPEG of `size` (H, W).

    Raises:
        UnreadableImage: it is not.
    """
    if data[:2] != b"\xff\xd8":
        raise UnreadableImage(f"it is not a JPEG ({len(data)} bytes)")
    found = image_size(data)
    if found != size:
        raise UnreadableImage(f"it has {found[0]} x {found[1]} pixels instead of {size[0]} x {size[1]}")
    if data[-2:] != b"\xff\xd9":
        _check_complete(data)


def check_label(label: int, num_classes: int) -> None:
    """Raises UnreadableImage when an example's label is out of range: the example cannot be used either."""
    if not 0 <= label < num_classes:
        raise UnreadableImage(f"its label is {label}, outside 0..{num_classes - 1}")


def _check_complete(data: bytes) -> None:
    """Raises when a JPEG without end marker is cut short: OpenCV fills it up with grey and says nothing."""
    _decode_with_pillow(data)


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
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
    """Scales uint8 [H, W, 3] to [height, width, 3]: area-averaging downwards, linear upwards."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales uint8 [H, W, 3] until it just covers [height, width], then cuts out the centre."""
    scale = max(height / image.shape[0], width / image.shape[1])
    covering = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    image = resize(image, *covering)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return image[top : top + height, left : left + width]


def read_image_file(path, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads one image file as a data set stores it for evaluation: uint8 [*shape], scaled and cut at the centre.

    Raises:
        UnreadableImage: as `decode`, or when the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UnreadableImage(f"it cannot be read ({error.strerror})") from error
    return fit(decode(data), *shape[:2])


def available_cores() -> int:
    """Returns the number of processor cores this process may use: as many threads decode at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
