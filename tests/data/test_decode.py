import io
import struct

import numpy as np
import pytest
from conftest import encode, photograph
from PIL import Image

from rmn_jax.data import decode
from rmn_jax.data.decode import UnreadableImage


def _pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 90}), ("JPEG", {"progressive": True}), ("PNG", {})])
def test_pixels_are_pillow_s(kind, options):
    data = encode(photograph(0, 37, 53), kind, **options)
    np.testing.assert_array_equal(decode.decode(data), _pillow(data))
    assert decode.image_size(data) == (37, 53)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(photograph(1, 16, 20)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    decoded = decode.decode(buffer.getvalue())
    assert decoded.shape == (16, 20, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_grey_jpeg_has_three_equal_channels():
    data = encode(photograph(2, 16, 16)[..., 0], quality=95)
    decoded = decode.decode(data)
    np.testing.assert_array_equal(decoded, _pillow(data))
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 1])


def test_orientation_in_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = encode(photograph(3, 16, 32), quality=95, exif=exif)
    assert decode.decode(data).shape == (16, 32, 3)


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduction_divides_the_size(reduction):
    data = encode(photograph(4, 80, 48), quality=95)
    small = decode.decode(data, reduction)
    assert small.shape == (80 // reduction, 48 // reduction, 3)
    exact = np.asarray(Image.fromarray(_pillow(data)).reduce(reduction))
    assert np.abs(small.astype(int) - exact.astype(int)).mean() < 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not an image"),
        (b"\xff\xd8" + b"\x00" * 40, "not an image"),
        (encode(photograph(5, 64, 64), quality=95)[:900], "cannot be decoded"),
        (encode(photograph(5, 64, 64), "PNG")[:900], "cannot be decoded"),
    ],
    ids=["empty", "html", "magic only", "truncated JPEG", "truncated PNG"],
)
def test_a_bad_image_gives_the_reason(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode.decode(data)


def test_a_huge_jpeg_is_refused_by_its_header(monkeypatch):
    data = bytearray(encode(photograph(6, 8, 8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    monkeypatch.setattr(decode.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match="60000 x 60000 pixels; the limit is 100,000,000"):
        decode.decode(bytes(data))


def test_a_huge_png_is_refused_by_its_header(monkeypatch):
    data = bytearray(encode(photograph(6, 8, 8), "PNG"))
    data[16:24] = struct.pack(">II", 50000, 50000)
    monkeypatch.setattr(decode.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match="too large|not an image|pixels"):
        decode.decode(bytes(data))


def test_arrays_get_three_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for array in (grey, grey[..., None], np.repeat(grey[..., None], 4, axis=-1)):
        np.testing.assert_array_equal(decode.decode(array), np.repeat(grey[..., None], 3, axis=-1))
    with pytest.raises(UnreadableImage, match="float32"):
        decode.decode(np.zeros((3, 4, 3), np.float32))


def test_fit_covers_and_crops_the_centre():
    # 20 x 60 is twice too large for 10 x 10. It becomes 10 x 30, of which columns 10 to 20 remain.
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 200
    np.testing.assert_array_equal(decode.fit(image, 10, 10), np.full((10, 10, 3), 200, np.uint8))


def test_fit_does_not_change_an_image_of_the_right_size():
    image = photograph(7, 10, 12)
    np.testing.assert_array_equal(decode.fit(image, 10, 12), image)


def test_label_out_of_range_makes_an_example_unusable():
    decode.check_label(0, 10)
    for label in (-1, 10):
        with pytest.raises(UnreadableImage, match=rf"label is {label}, outside 0\.\.9"):
            decode.check_label(label, 10)


def test_read_image_file(tmp_path):
    data = encode(photograph(8, 40, 20), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    expected = decode.fit(_pillow(data), 8, 8)
    np.testing.assert_array_equal(decode.read_image_file(tmp_path / "a.png", (8, 8, 3)), expected)
    with pytest.raises(UnreadableImage, match="cannot be read"):
        decode.read_image_file(tmp_path / "b.png", (8, 8, 3))


@pytest.mark.parametrize("suffix", ["DDS", "TGA", "PPM", "GIF", "ICO", "PCX", "SGI", "TIFF"])
def test_a_damaged_image_of_a_rare_format_is_unreadable_and_nothing_else(suffix, rng):
    whole = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(whole, suffix)
    for _ in range(60):
        data = bytearray(whole.getvalue()[: rng.integers(4, len(whole.getvalue()))])
        for position in rng.integers(0, min(len(data), 140), 3):
            data[position] = rng.integers(256)
        try:
            assert decode.decode(bytes(data)).dtype == np.uint8
        except UnreadableImage:
            pass
