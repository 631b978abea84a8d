import jax
import numpy as np
import pytest

from rmn_jax.data import DatasetInfo, make_preprocess
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.errors import UserError

INFO = DatasetInfo(
    name="made",
    num_classes=2,
    image_shape=(8, 8, 3),
    class_names=("a", "b"),
    mean=(0.5, 0.25, 0.0),
    std=(0.5, 0.25, 1.0),
    train_examples=4,
    eval_examples=4,
    fingerprint="0",
)


def _images(count: int = 16, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_evaluation_normalises_by_hand(data_config):
    images = np.zeros((1, 8, 8, 3), np.uint8)
    images[0, 0, 0] = 255
    out = make_preprocess(data_config(), INFO).evaluate(images)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0, 0, 0], [(1 - 0.5) / 0.5, (1 - 0.25) / 0.25, 1.0], rtol=1e-6)
    np.testing.assert_allclose(out[0, 1, 1], [-1.0, -1.0, 0.0], atol=1e-6)


def test_without_augmentation_training_sees_the_images_of_evaluation(data_config):
    preprocess = make_preprocess(data_config(augment="none"), INFO)
    images = _images()
    keys = jax.random.split(jax.random.key(0), len(images))
    np.testing.assert_array_equal(preprocess.train(keys, images), preprocess.evaluate(images))


@pytest.mark.parametrize("augmentation", ["crop", "crop_flip", "resized_crop_flip"])
def test_each_example_depends_on_its_key_alone(data_config, augmentation):
    side = stored_shape(augmentation, INFO.image_shape)[0]
    images = _images(side=side)
    keys = jax.random.split(jax.random.key(1), len(images))
    train = jax.jit(make_preprocess(data_config(augment=augmentation), INFO).train)
    whole, half = train(keys, images), train(keys[8:], images[8:])
    assert whole.shape == (16, 8, 8, 3)
    np.testing.assert_allclose(whole[8:], half, atol=1e-5)
    assert not np.allclose(whole, train(jax.random.split(jax.random.key(2), 16), images))


ADDED = {
    "jitter": {"color_jitter": "0.4,0.4,0.4,0.1"},
    "randaugment": {"auto_augment": "randaugment", "randaugment_magnitude": 20},
    "trivialaugment": {"auto_augment": "trivialaugment"},
    "erasing": {"random_erasing": 0.5},
}


@pytest.mark.parametrize("name", ADDED)
def test_an_added_augmentation_depends_on_the_key_alone_and_leaves_the_crop_as_it_was(data_config, name):
    images, keys = _images(), jax.random.split(jax.random.key(1), 16)
    train = jax.jit(make_preprocess(data_config(augment="crop_flip", **ADDED[name]), INFO).train)
    whole = np.asarray(train(keys, images))
    np.testing.assert_array_equal(whole, train(keys, images))
    np.testing.assert_allclose(whole[8:], train(keys[8:], images[8:]), atol=1e-5)
    cropped = np.asarray(make_preprocess(data_config(augment="crop_flip"), INFO).train(keys, images))
    changed = np.abs(whole - cropped).max((1, 2, 3)) > 1e-4
    assert changed.sum() >= 4
    if name == "erasing":
        same = np.isclose(whole, cropped).all(-1)
        assert (same | (whole == 0).all(-1)).all()  # what is not the crop is the mean colour
        assert 3 <= changed.sum() <= 13  # 8 expected, standard deviation 2
    assert not np.allclose(whole, train(jax.random.split(jax.random.key(2), 16), images))


def test_scale_ratio_and_interpolation_reach_the_crop(data_config):
    side = stored_shape("resized_crop_flip", INFO.image_shape)[0]
    images, keys = _images(8, side=side), jax.random.split(jax.random.key(1), 8)
    settings = {"augment": "resized_crop_flip", "crop_scale": "1,1", "crop_ratio": "1,1"}
    whole = np.asarray(make_preprocess(data_config(**settings), INFO).train(keys, images))
    # The window is the whole image: every crop is the resized image, perhaps mirrored.
    other = np.asarray(make_preprocess(data_config(**settings), INFO).train(keys[::-1], images))
    assert all(
        np.allclose(a, b, atol=1e-3) or np.allclose(a, b[:, ::-1], atol=1e-3) for a, b in zip(whole, other, strict=True)
    )
    cubic = np.asarray(make_preprocess(data_config(**settings, interpolation="bicubic"), INFO).train(keys, images))
    assert 0.01 < np.abs(cubic - whole).mean() < 0.5


def test_crop_does_not_flip(data_config):
    # A gradient from left to right keeps its direction under any crop.
    ramp = np.broadcast_to(np.arange(100, 180, 10, dtype=np.uint8)[None, None, :, None], (64, 8, 8, 3))
    keys = jax.random.split(jax.random.key(0), 64)
    cropped = np.asarray(make_preprocess(data_config(augment="crop"), INFO).train(keys, ramp))
    assert np.all(np.diff(cropped[:, 3, 1:7, 0], axis=1) > 0)
    flipped = np.asarray(make_preprocess(data_config(augment="crop_flip"), INFO).train(keys, ramp))
    assert np.any(np.diff(flipped[:, 3, 1:7, 0], axis=1) < 0)


def test_streamed_images_are_already_cropped_and_only_flipped(data_config):
    images = _images(64)
    preprocess = make_preprocess(data_config(augment="resized_crop_flip"), INFO._replace(streamed=True))
    out = np.asarray(preprocess.train(jax.random.split(jax.random.key(0), 64), images))
    plain = np.asarray(preprocess.evaluate(images))
    mirrored = [bool(np.allclose(one, other[:, ::-1])) for one, other in zip(out, plain, strict=True)]
    same = [bool(np.allclose(one, other)) for one, other in zip(out, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and any(mirrored) and any(same)


def test_evaluation_with_resized_crops_sees_the_central_seven_eighths(data_config):
    assert stored_shape("resized_crop_flip", (224, 224, 3)) == (256, 256, 3)
    images = _images(2, side=9)
    out = make_preprocess(data_config(augment="resized_crop_flip"), INFO).evaluate(images)
    plain = make_preprocess(data_config(), INFO).evaluate(images[:, :8, :8])  # (9 - 8) // 2 = 0
    np.testing.assert_array_equal(out, plain)


@pytest.mark.parametrize(("key", "value"), [("augment", "mixup"), ("crop_padding", -1)])
def test_unusable_settings_are_named(data_config, key, value):
    with pytest.raises(UserError, match=f"config.data.{key}"):
        make_preprocess(data_config(**{key: value}), INFO)
