import io

import cv2
import numpy as np
import pytest
from conftest import encode, photograph
from PIL import Image
from sklearn.datasets import load_sample_images

from rmn_jax.data import crop, order


def _generator(position: int = 0) -> np.random.Generator:
    return order.example_generator(0, 0, position)


def test_windows_have_the_stated_areas_and_ratios_and_lie_inside():
    windows = np.array([crop.sample_window(_generator(i), 300, 400) for i in range(2000)])
    top, left, height, width = windows.T
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 300) & (left + width <= 400))
    areas, logs = np.meshgrid(np.linspace(0.08, 1, 1001), np.linspace(np.log(3 / 4), np.log(4 / 3), 1001))
    fits = (areas * 120_000 / np.exp(logs) <= 300**2) & (areas * 120_000 * np.exp(logs) <= 400**2)
    assert abs((height * width / 120_000).mean() - areas[fits].mean()) < 0.02  # standard error 0.005
    assert abs(np.log(width / height).mean() - logs[fits].mean()) < 0.015  # standard error 0.004


def test_positions_reach_both_ends():
    windows = np.array([crop.sample_window(_generator(i), 9, 9) for i in range(300)])
    assert windows[:, 0].min() == 0 and (windows[:, 0] + windows[:, 2]).max() == 9
    assert windows[:, 1].min() == 0 and (windows[:, 1] + windows[:, 3]).max() == 9


def test_window_falls_back_to_the_centre_when_none_fits():
    # 8% of a 10 x 1000 image is 25 high at the widest ratio. The fallback is 10 x round(10 * 4/3).
    assert crop.sample_window(_generator(), 10, 1000) == (0, (1000 - 13) // 2, 10, 13)


@pytest.mark.parametrize(
    ("window", "expected"),
    [((0, 0, 100, 100), 1), ((0, 0, 128, 128), 2), ((0, 0, 512, 300), 4), ((0, 0, 900, 512), 8)],
)
def test_reduction_never_goes_below_the_target(window, expected):
    assert crop.reduction_for(window, 64, 64) == expected


def test_crop_is_pillow_s_crop_and_resize():
    data = encode(photograph(0, 90, 120), quality=95)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    for position in range(20):
        found = crop.random_resized_crop(data, _generator(position), 32, 32)
        top, left, height, width = crop.sample_window(_generator(position), 90, 120)
        box = (left, top, left + width, top + height)
        expected = np.asarray(whole.resize((32, 32), Image.Resampling.BILINEAR, box=box))
        # At half size the window's edges are on every other pixel, which shifts the content by up to half a pixel.
        tolerance = 1 if crop.reduction_for((top, left, height, width), 32, 32) == 1 else 4
        assert np.abs(found.astype(int) - expected.astype(int)).mean() < tolerance


def test_reduced_decoding_shows_the_same_window():
    data = encode(photograph(1, 600, 800), quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for position in range(10):
        window = crop.sample_window(_generator(position), 600, 800)
        assert crop.reduction_for(window, 32, 32) > 1
        expected = crop.resize_window(whole, (600, 800), window, 32, 32)
        found = crop.random_resized_crop(data, _generator(position), 32, 32)
        assert np.abs(found.astype(int) - expected.astype(int)).mean() < 3


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("options", [{"subsampling": "4:2:0"}, {"subsampling": "4:4:4"}, {"progressive": True}])
def test_pixels_at_imagenets_size_are_within_1_of_the_reference_decoders(number, options):
    """The whole image by Pillow, then the window, then OpenCV's resize: a JPEG of 500x375, cropped to 224x224."""
    data = encode(load_sample_images().images[number][:375, :500], quality=90, **options)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    enlarged = 0
    for position in range(40):
        top, left, height, width = window = crop.sample_window(_generator(position), 375, 500)
        assert crop.reduction_for(window, 224, 224) == 1
        found = crop.random_resized_crop(data, _generator(position), 224, 224).astype(int)
        expected = cv2.resize(whole[top : top + height, left : left + width], (224, 224))
        assert np.abs(found - expected.astype(int)).max() <= 1
        if max(height, width) <= 224:  # where nothing shrinks, Pillow's filter is the same
            part = Image.fromarray(whole).crop((left, top, left + width, top + height))
            resized = np.asarray(part.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(found - resized).max() <= 1
            enlarged += 1
    assert enlarged > 3


def test_a_reduced_crop_is_that_of_the_reference_decoders_reduced_image():
    data = encode(load_sample_images().images[0][:421, :633], quality=90)
    used = set()
    for position in range(40):
        window = crop.sample_window(_generator(position), 421, 633)
        reduction = crop.reduction_for(window, 64, 64)
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (633 // reduction, 421 // reduction))
        assert image.size == (-(-633 // reduction), -(-421 // reduction))
        expected = crop.resize_window(np.asarray(image), (421, 633), window, 64, 64).astype(int)
        found = crop.random_resized_crop(data, _generator(position), 64, 64).astype(int)
        assert np.abs(found - expected).max() <= 1
        used.add(reduction)
    assert used == {2, 4}


def test_arrays_are_cropped_too():
    image = np.full((20, 30, 3), (5, 6, 7), np.uint8)
    np.testing.assert_array_equal(
        crop.random_resized_crop(image, _generator(), 4, 4), np.full((4, 4, 3), (5, 6, 7), np.uint8)
    )


def test_bicubic_is_pillow_s_of_the_window_and_scale_and_ratio_are_obeyed():
    image = np.asarray(photograph(0, 90, 120))
    found = crop.random_resized_crop(image, _generator(), 16, 16, (0.2, 0.3), (1.0, 1.0), "bicubic")
    top, left, height, width = crop.sample_window(_generator(), 90, 120, (0.2, 0.3), (1.0, 1.0))
    assert height == width and 0.19 < height * width / (90 * 120) < 0.31
    part = Image.fromarray(image[top : top + height, left : left + width])
    np.testing.assert_array_equal(found, np.asarray(part.resize((16, 16), Image.Resampling.BICUBIC)))
