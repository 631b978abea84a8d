"""The keys of augmentation: their forms, their defaults, and one line for a value that cannot be used."""

import pytest

from rmn_jax.config import default_config
from rmn_jax.data.options import _DEFAULTS, augment_options
from rmn_jax.data.preprocess import make_preprocess
from rmn_jax.errors import UserError

WRONG = {
    "augment": ["mixup", "randaugment"],
    "auto_augment": ["autoaugment", ""],
    "interpolation": ["nearest"],
    "crop_scale": ["", "0.5", "0.5,0.1", "0,1", "0.1,1.5", "a,b", "1/0,1", "nan,1", "0.1,0.2,0.3"],
    "crop_ratio": ["", "1", "2,1", "-1,2", "0.5,inf"],
    "color_jitter": ["-0.1", "0.1,0.2", "0.4,0.4,0.4,0.6", "nan", "x"],
    "randaugment_ops": [0, -1, 15],
    "randaugment_magnitude": [-1, 31],
    "random_erasing": [-0.1, 1.1, float("nan")],
    "repeats": [0, -2],
    "crop_padding": [-1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_value_is_one_line_that_names_the_key(key, value):
    config = default_config()
    config.data[key] = value
    with pytest.raises(UserError, match=rf"config\.data\.{key} is ") as error:
        augment_options(config.data)
    assert "\n" not in str(error.value)


def test_everything_new_is_off_by_default_and_the_defaults_are_those_of_the_configuration():
    data = default_config().data
    assert {key: data[key] for key in _DEFAULTS} == _DEFAULTS
    options = augment_options({"augment": "crop_flip", "crop_padding": 4})
    assert options == augment_options(data)
    assert not options.changes_colors and options.random_erasing == 0 and options.repeats == 1
    assert (options.crop_scale, options.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))


def test_forms_of_the_text_keys():
    config = default_config()
    config.data.update({"color_jitter": "0.4", "crop_scale": "1/3, 0.5", "crop_ratio": "1,1"})
    options = augment_options(config.data)
    assert options.color_jitter == (0.4, 0.4, 0.4, 0.0)
    assert (options.crop_scale, options.crop_ratio) == ((1 / 3, 0.5), (1.0, 1.0))
    config.data.color_jitter = "0.1,0.2,0.3,0.5"
    assert augment_options(config.data).color_jitter == (0.1, 0.2, 0.3, 0.5)


def test_make_preprocess_checks_too(data_config):
    with pytest.raises(UserError, match="config.data.auto_augment is 'rand'"):
        make_preprocess(data_config(auto_augment="rand"), None)
