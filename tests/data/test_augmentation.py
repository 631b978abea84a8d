import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.data import augmentation


def _image(height: int, width: int) -> jax.Array:
    return jnp.arange(1, height * width * 3 + 1, dtype=jnp.uint8).reshape(height, width, 3)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest():
    image = _image(3, 4)
    keys = jax.random.split(jax.random.key(0), 400)
    flipped = jax.vmap(augmentation.flip, (0, None))(keys, image)
    mirrored = np.all(np.asarray(flipped) == np.asarray(image)[:, ::-1], axis=(1, 2, 3))
    same = np.all(np.asarray(flipped) == np.asarray(image), axis=(1, 2, 3))
    assert np.all(mirrored ^ same)
    assert 150 < mirrored.sum() < 250  # 200 expected, standard deviation 10


def test_pad_and_crop_gives_each_of_the_nine_windows_by_hand():
    # Padding 1 on a 2 x 2 image: the window starts at row and column 0, 1 or 2 of the 4 x 4 padded image.
    image = jnp.array([[[1], [2]], [[3], [4]]], jnp.uint8)
    padded = [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
    windows = {tuple(padded[r + i][c + j] for i in range(2) for j in range(2)) for r in range(3) for c in range(3)}
    keys = jax.random.split(jax.random.key(1), 300)
    cropped = np.asarray(jax.vmap(augmentation.pad_and_crop, (0, None, None))(keys, image, 1))
    found, counts = np.unique(cropped.reshape(300, 4), axis=0, return_counts=True)
    assert {tuple(window.tolist()) for window in found} == windows
    assert counts.min() > 15  # 33 expected, standard deviation 5.4


def test_pad_and_crop_without_padding_changes_nothing():
    image = _image(5, 4)
    np.testing.assert_array_equal(augmentation.pad_and_crop(jax.random.key(0), image, 0), image)


def test_windows_have_the_stated_areas_and_ratios_and_lie_inside():
    keys = jax.random.split(jax.random.key(2), 2000)
    windows = np.asarray(jax.vmap(augmentation.sample_window, (0, None, None))(keys, 300, 400))
    top, left, height, width = windows.T
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 300.01) & (left + width <= 400.01))
    area, ratio = height * width / (300 * 400), width / height
    assert area.min() >= 0.0799 and area.max() <= 1.0001
    assert ratio.min() >= 0.7499 and ratio.max() <= 1.3334
    # The mean of the draws is that of all areas and ratios, on a fine grid, whose window fits.
    areas, logs = np.meshgrid(np.linspace(0.08, 1, 1001), np.linspace(np.log(3 / 4), np.log(4 / 3), 1001))
    fits = (areas * 120_000 / np.exp(logs) <= 300**2) & (areas * 120_000 * np.exp(logs) <= 400**2)
    assert abs(area.mean() - areas[fits].mean()) < 0.02  # standard error 0.005
    assert abs(np.log(ratio).mean() - logs[fits].mean()) < 0.015  # standard error 0.004


def test_window_falls_back_to_the_centre_when_none_fits():
    # A 10 x 1000 image: 8% of its area at ratio 4/3 is 25 high. The fallback is 10 high, 10 * 4/3 wide, centred.
    window = augmentation.sample_window(jax.random.key(0), 10, 1000)
    np.testing.assert_allclose(window, [0, (1000 - 40 / 3) / 2, 10, 40 / 3], rtol=1e-5)


def test_resize_of_a_whole_pixel_window_is_a_plain_crop():
    image = _image(6, 7)
    cropped = augmentation.resize_window(image, jnp.array([1.0, 2.0, 3.0, 4.0]), 3, 4)
    np.testing.assert_allclose(cropped, np.asarray(image)[1:4, 2:6], atol=1e-4)


def test_resize_halves_a_ramp_exactly():
    # Linear interpolation keeps a linear ramp, with any antialiasing: pixel centres x -> 2 x + 0.5.
    ramp = jnp.broadcast_to(jnp.arange(16, dtype=jnp.float32)[None, :, None] * 10, (16, 16, 3))
    halved = augmentation.resize_window(ramp, jnp.array([4.0, 4.0, 8.0, 8.0]), 4, 4)
    expected = 10 * (4 + 2 * np.arange(4) + 0.5)
    np.testing.assert_allclose(halved[1, 1:3, 0], expected[1:3], rtol=1e-5)


def test_random_resized_crop_of_one_colour_is_that_colour():
    image = jnp.full((40, 30, 3), jnp.array([10, 20, 30], jnp.uint8))
    out = augmentation.random_resized_crop(jax.random.key(3), image, 8, 8)
    assert out.shape == (8, 8, 3)
    np.testing.assert_allclose(out, np.broadcast_to([10.0, 20.0, 30.0], (8, 8, 3)), rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "top", "left"), [(4, 4, 1, 0), (3, 2, 1, 1), (6, 4, 0, 0)])
def test_centre_crop_by_hand(height, width, top, left):
    image = _image(6, 4)
    expected = np.asarray(image)[top : top + height, left : left + width]
    np.testing.assert_array_equal(augmentation.centre_crop(image, height, width), expected)


@pytest.mark.parametrize("window", [(1.5, 1.5, 0.2, 0.2), (0.0, 0.0, 1.0, 1.0), (3.9, 3.9, 0.05, 0.05)])
def test_a_bicubic_crop_below_a_pixel_is_that_of_a_pixel(window):
    image = _image(4, 4)
    found = np.asarray(augmentation.bicubic_window(image, jnp.array(window), 2, 2))
    assert np.isfinite(found).all() and found.min() >= 1 and found.max() <= 48
