import numpy as np
import pytest

from rmn_jax.data import digits, load, loading
from rmn_jax.data.sources import ArraySource, ImageSet
from rmn_jax.errors import UserError


def _load(config, **sizes):
    return load(config, **{"batch_size": 16, "eval_batch_size": 16, "seed": 0, "sharding": None, **sizes})


def test_digits_facts(data_config):
    info = _load(data_config()).info
    assert (info.name, info.num_classes, info.image_shape) == ("digits", 10, (8, 8, 3))
    assert (info.train_examples, info.eval_examples) == (1437, 360)
    assert info.class_names == tuple("0123456789")
    pixels = digits.load_arrays()["train"][0] / 255
    np.testing.assert_allclose(info.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(info.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)


def test_digits_are_scaled_to_image_size(data_config):
    dataset = _load(data_config(image_size=16))
    assert dataset.info.image_shape == (16, 16, 3) and dataset.train_batch(0)["image"].shape == (
        16,
        16,
        16,
        3,
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"name": "digit"}, r"Unknown data set 'digit': use one of digits, cifar100, .*tfds:NAME"),
        ({"pipeline": "disk"}, r"config\.data\.pipeline is 'disk'; use one of auto, device, stream"),
        ({"augment": "cut"}, r"config\.data\.augment is 'cut'"),
        ({"crop_padding": -1}, r"config\.data\.crop_padding is -1"),
        ({"image_size": -1}, r"config\.data\.image_size is -1"),
        ({"workers": -2}, r"config\.data\.workers is -2"),
        ({"skip_corrupt": -1}, r"config\.data\.skip_corrupt is -1"),
    ],
)
def test_unusable_settings_are_one_line(data_config, overrides, line):
    with pytest.raises(UserError, match=line):
        _load(data_config(**overrides))


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"eval_batch_size": 0}])
def test_batch_sizes_are_positive(data_config, sizes):
    with pytest.raises(UserError, match="batch_size is 0; it must be 1 or more"):
        _load(data_config(), **sizes)


def test_a_batch_larger_than_the_data_set(data_config):
    with pytest.raises(UserError, match="1437 training images, fewer than one batch of 2000"):
        _load(data_config(), batch_size=2000)


@pytest.mark.parametrize("name", ["tiny_imagenet", "cifar100", "imagenet2012"])
def test_a_missing_data_set_names_the_command_that_prepares_it(data_config, tmp_path, name):
    with pytest.raises(UserError, match=f"prepare it with: rmn data prepare {name} --source PATH"):
        _load(data_config(name=name, data_dir=str(tmp_path)))


def test_the_pipeline_depends_on_the_decoded_size(data_config):
    # 350,000 images of 64 x 64 x 3 bytes are 4.30e9, just over 4 GiB = 4.29e9; 349,000 are under.
    image = np.zeros((1, 64, 64, 3), np.uint8)
    for examples, pipeline in ((349_000, "device"), (350_000, "stream")):
        images = np.broadcast_to(image, (examples, 64, 64, 3))
        source = ArraySource(images[1:], np.zeros(examples - 1, np.int32), "made")
        held_out = ArraySource(images[:1], np.zeros(1, np.int32), "made")
        image_set = ImageSet("made", ("a",), (64, 64), source, held_out, "0", None)
        assert loading.choose_pipeline(data_config(), image_set, (64, 64, 3)) == pipeline
    assert loading.choose_pipeline(data_config(pipeline="device"), image_set, (64, 64, 3)) == "device"
