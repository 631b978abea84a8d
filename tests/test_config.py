"""Values that no run could use are refused in one line that says what to do."""

import pytest

from rmn_jax.config import default_config, validate
from rmn_jax.errors import UserError

# 1024 = 8 devices x 128; a batch in parts needs a multiple of 8 x accumulation, of twice that with mixup.
REFUSED = {
    "label_smoothing": ({"label_smoothing": 1.0}, "config.label_smoothing is 1.0"),
    "ema": ({"ema": 1.0}, "config.ema is 1.0"),
    "negative mixup": ({"mixup": -0.1}, "config.mixup is -0.1"),
    "no parts": ({"accumulation": 0}, "config.accumulation is 0"),
    "uneven parts": ({"accumulation": 3}, "use a multiple of 24"),
    "a negative seed": ({"seed": -1}, "config.seed is -1"),
    "a seed beyond 32 bits": ({"seed": 2**32}, "config.seed is 4294967296"),
    "less than no warm-up": ({"learning_rate": {"warmup_epochs": -1}}, "config.learning_rate.warmup_epochs is -1"),
    "scaled by nothing": ({"learning_rate": {"reference_batch": 0}}, "config.learning_rate.reference_batch is 0"),
    "uneven pairs": ({"accumulation": 128, "mixup": 0.2}, "pairs of mixup; use a multiple of 2048"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_value_is_one_line(values, message):
    config = default_config()
    config.update(values)
    with pytest.raises(UserError) as error:
        validate(config, device_count=8)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_all_together_is_allowed():
    config = default_config()
    config.update({"label_smoothing": 0.1, "ema": 0.9999, "mixup": 0.2, "accumulation": 64})
    validate(config, device_count=8)


def test_all_are_off_by_default():
    config = default_config()
    assert (config.accumulation, config.mixup, config.ema, config.label_smoothing) == (1, 0, 0, 0)
