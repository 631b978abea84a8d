"""Decoding in part gives the pixels of decoding in full, by Pillow, and says nothing."""

import io

import numpy as np
import pytest
from conftest import encode, photograph
from PIL import Image

from rmn_jax.data.crop import random_resized_crop
from rmn_jax.data.decode import UnreadableImage, decode
from rmn_jax.data.jpeg import first_rows, jpeg_size


def _pillow(data: bytes, reduction: int = 1) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if reduction > 1:
        image.draft("RGB", (image.width // reduction, image.height // reduction))
    return np.asarray(image.convert("RGB"))


def _noise(height: int, width: int) -> np.ndarray:
    """Noise over a photograph: no two rows are alike, and blocks have all frequencies."""
    noise = np.random.default_rng(0).integers(0, 120, (height, width, 3))
    return (photograph(0, height, width) // 2 + noise).astype(np.uint8)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "grey"])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_the_rows_that_are_decoded_are_pillow_s(subsampling, reduction, capfd):
    pixels = _noise(120, 72)
    grey = subsampling == "grey"
    data = encode(pixels[..., 0] if grey else pixels, quality=90, **({} if grey else {"subsampling": subsampling}))
    whole = _pillow(data, reduction).astype(int)
    heights = set()
    for rows in range(1, 121):
        part = decode(data, reduction, rows)
        needed = -(-rows // reduction)
        assert part.shape[1:] == whole.shape[1:] and len(part) >= needed
        assert np.abs(part[:needed].astype(int) - whole[:needed]).max() <= 1
        heights.add(len(part))
    assert len(heights) > 5 and max(heights) == len(whole)
    assert capfd.readouterr() == ("", "")


def test_blocks_of_16_rows_with_two_more():
    data = encode(photograph(0, 100, 40), subsampling="4:2:0")
    assert [jpeg_size(first_rows(data, rows)) for rows in (1, 14, 15, 78)] == [(16, 40), (16, 40), (32, 40), (80, 40)]
    assert first_rows(data, 95) is None and first_rows(data, 100) is None


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {"exif": b"Exif\0\0\xff\xd9"}])
def test_other_jpegs_are_decoded_in_full(options, capfd):
    data = encode(photograph(1, 90, 60), **options)
    assert first_rows(data, 10) is None
    np.testing.assert_array_equal(decode(data, rows=10), _pillow(data))
    assert capfd.readouterr() == ("", "")


def test_a_scan_for_each_color_is_decoded_in_full():
    # The header of the scan states one color of three.
    data = bytearray(encode(photograph(1, 90, 60)))
    data[data.index(b"\xff\xda") + 4] = 1
    assert first_rows(bytes(data), 10) is None


@pytest.mark.parametrize("kind", ["PNG", "WebP"])
def test_other_formats_are_decoded_in_full(kind):
    data = encode(photograph(2, 30, 40), kind)
    assert first_rows(data, 3) is None and decode(data, rows=3).shape == (30, 40, 3)


def test_headers_that_end_early_are_no_headers():
    data = encode(photograph(3, 90, 60))
    for length in range(2, data.index(b"\xff\xda") + 12):
        assert first_rows(data[:length], 10) is None
        assert jpeg_size(data[:length]) in (None, (90, 60))


def test_damaged_rows_are_those_of_decoding_in_full():
    data = bytearray(encode(_noise(96, 64), quality=90))
    start = data.index(b"\xff\xda") + 20
    for position in np.random.default_rng(0).integers(start, len(data) - 2, 20):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        np.testing.assert_array_equal(decode(bytes(damaged), rows=40)[:40], decode(bytes(damaged))[:40])
    # Data that end before the last row needed: all of the image is decoded, as without ``rows``.
    short = bytes(data[: start + 500]) + b"\xff\xd9"
    np.testing.assert_array_equal(decode(short, rows=60)[:60], decode(short)[:60])


def test_a_damaged_header_is_an_unreadable_image_or_decoded():
    rng = np.random.default_rng(0)
    files = [encode(photograph(4, 60, 50)), encode(photograph(5, 60, 50)[..., 0])]
    refused = 0
    for number in range(600):
        damaged = bytearray(files[number % 2])
        for position in rng.integers(2, damaged.index(b"\xff\xda") + 12, 3):
            damaged[position] = rng.choice([0, 1, 255, rng.integers(256)])
        try:
            random_resized_crop(bytes(damaged), np.random.default_rng(number), 8, 8)
        except UnreadableImage:
            refused += 1
    assert 100 < refused < 600
    # No color's sampling factor may be zero.
    frame = files[0].index(b"\xff\xc0")
    zero = bytearray(files[0])
    for color in range(3):
        zero[frame + 11 + 3 * color] = 0
    assert first_rows(bytes(zero), 10) is None
    with pytest.raises(UnreadableImage):
        decode(bytes(zero), rows=10)
