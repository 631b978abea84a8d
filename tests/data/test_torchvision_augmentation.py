"""Every augmentation against torchvision's on the same parameters: pixels within 2 of 255, magnitudes and labels equal.

The stored results of torchvision are compared everywhere; where it is installed, so is what it computes now.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_cases

from rmn_jax.data import augmentation, auto_augment, color
from rmn_jax.training.cutmix import mixed_rectangle


@functools.cache
def stored():
    with np.load(torchvision_cases.FILE) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(params=["stored", "installed"])
def cases(request):
    if request.param == "stored":
        return stored()
    pytest.importorskip("torchvision", reason="torchvision is not installed; its stored results are compared")
    return torchvision_cases.compute()


def both_images(function, cases, name):
    """The function of (image, parameters) for all cases and both images, and torchvision's results."""
    images, given = jnp.float32(cases["images"]), jnp.float32(cases[f"{name}_given"])
    every = jax.jit(jax.vmap(jax.vmap(function, (0, None)), (None, 0)))
    return np.asarray(every(images, given)), cases[f"{name}_out"].astype(np.float32)


def test_every_operation_of_randaugment_and_trivialaugment(cases):
    found, wanted = both_images(lambda x, p: auto_augment.apply(x, p[0].astype(jnp.int32), p[1]), cases, "operation")
    operations = cases["operation_given"][:, 0].astype(int)
    assert set(operations) == set(range(len(auto_augment.OPERATIONS)))
    assert (found == np.round(found)).all()
    for i, name in enumerate(auto_augment.OPERATIONS):
        worst = np.abs(found - wanted)[operations == i].max()
        assert worst <= (0 if i < 6 else 1), name  # geometric operations take the same pixels
    changed = np.abs(wanted - cases["images"]).max((1, 2, 3, 4)) > 0
    assert changed[operations > 0].all()  # or the comparison would show nothing


def test_magnitudes_and_signs(cases):
    for name, table in (
        ("randaugment", auto_augment.randaugment_magnitudes(torchvision_cases.HEIGHT, torchvision_cases.WIDTH)),
        ("trivialaugment", auto_augment.trivialaugment_magnitudes()),
    ):
        np.testing.assert_allclose(table, cases[f"{name}_magnitudes"], rtol=1e-5, atol=1e-5)
        signed = [i for i, value in enumerate(cases[f"{name}_signed"]) if value]
        assert signed == [i for i, operation in enumerate(auto_augment.OPERATIONS) if operation in auto_augment.SIGNED]


def test_color_jitter_in_any_order(cases):
    function = lambda x, p: color.apply_jitter(x, p[:4].astype(jnp.int32), p[4:], (1.0, 1.0, 1.0, 0.5))  # noqa: E731
    found, wanted = both_images(function, cases, "jitter")
    assert np.abs(found - wanted).max() <= 2
    assert np.abs(wanted - cases["images"]).max((1, 2, 3, 4)).min() > 50


def test_bicubic_crops(cases):
    function = lambda x, p: jnp.clip(augmentation.bicubic_window(x, p[:4], 8, 8), 0, 255)  # noqa: E731
    found, wanted = both_images(function, cases, "bicubic")
    assert np.abs(found - wanted).max() <= 1


def test_a_bilinear_crop_of_the_whole_image(cases):
    found, wanted = both_images(lambda x, p: augmentation.resize_window(x, p[:4], 8, 8), cases, "bilinear")
    assert np.abs(found - wanted).max() <= 1


def test_random_erasing(cases):
    found, wanted = both_images(lambda x, p: augmentation.erase(x, p.astype(jnp.int32)), cases, "erasing")
    np.testing.assert_array_equal(found, wanted)


def test_cutmix(cases):
    images = jnp.float32(cases["images"])
    for (share, row, column, weight), wanted in zip(cases["cutmix_given"], cases["cutmix_out"], strict=True):
        box = mixed_rectangle(jnp.float32(share), jnp.int32(row), jnp.int32(column), *images.shape[1:3])
        other = augmentation.inside(box, *images.shape[1:3])
        np.testing.assert_array_equal(jnp.where(other[None, ..., None], images[::-1], images), wanted)
        np.testing.assert_allclose(1 - jnp.mean(other), weight, rtol=1e-6)
