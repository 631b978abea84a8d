"""A value that no run can use is refused in one line that says what to do. Stored configurations stay readable."""

import json

import pytest

from rmn_jax.cli.pages import load_config
from rmn_jax.config import default_config, flatten, from_json, set_from_text, to_json, validate
from rmn_jax.errors import UserError

# The batch is 1024 = 8 devices x 128. Microbatches need a multiple of 8 x accumulation, and of twice that with mixup.
REFUSED = {
    "label_smoothing": ({"label_smoothing": 1.0}, "config.label_smoothing is 1.0"),
    "ema": ({"ema": 1.0}, "config.ema is 1.0"),
    "negative mixup": ({"mixup": -0.1}, "config.mixup is -0.1"),
    "negative CutMix": ({"cutmix": -1.0}, "config.cutmix is -1.0"),
    "uneven pairs of CutMix": ({"accumulation": 128, "cutmix": 1.0}, "pairs of CutMix; use a multiple of 2048"),
    "no microbatches": ({"accumulation": 0}, "config.accumulation is 0"),
    "uneven microbatches": ({"accumulation": 3}, "use a multiple of 24"),
    "a negative seed": ({"seed": -1}, "config.seed is -1"),
    "a seed beyond 32 bits": ({"seed": 2**32}, "config.seed is 4294967296"),
    "a negative warm-up": ({"learning_rate": {"warmup_epochs": -1}}, "config.learning_rate.warmup_epochs is -1"),
    "a reference batch of 0": ({"learning_rate": {"reference_batch": 0}}, "config.learning_rate.reference_batch is 0"),
    "a negative rate": ({"learning_rate": {"peak": -0.1}}, "config.learning_rate.peak is -0.1"),
    "a rate of NaN": ({"learning_rate": {"peak": float("nan")}}, "config.learning_rate.peak is nan"),
    "momentum of one": ({"optimizer": {"momentum": 1.0}}, "config.optimizer.momentum is 1.0"),
    "negative momentum": ({"optimizer": {"momentum": -0.9}}, "config.optimizer.momentum is -0.9"),
    "a decay of one": ({"optimizer": {"decay": 1.0}}, "config.optimizer.decay is 1.0"),
    "a negative weight decay": ({"optimizer": {"weight_decay": -1e-5}}, "config.optimizer.weight_decay is -1e-05"),
    "a warm-up longer than the run": (
        {"epochs": 3, "stem_epochs": 1},
        "config.learning_rate.warmup_epochs is 5, longer than the run of 3 epochs; set it to config.epochs or less.",
    ),
    "an unknown optimizer": (
        {"optimizer": {"name": "adam"}},
        "config.optimizer.name is 'adam'; use one of adamw, lamb, nesterov, rmsprop, sgd. Did you mean 'adamw'?",
    ),
    "an unknown choice of decay": ({"optimizer": {"weight_decay_on": "kernel"}}, "Did you mean 'kernels'?"),
    "a negative largest norm": ({"optimizer": {"clip_norm": -1.0}}, "config.optimizer.clip_norm is -1.0"),
    "an infinite largest norm": ({"optimizer": {"clip_norm": float("inf")}}, "config.optimizer.clip_norm is inf"),
    "beta of one": ({"optimizer": {"beta2": 1.0}}, "config.optimizer.beta2 is 1.0"),
    "no epsilon": ({"optimizer": {"adam_epsilon": 0.0}}, "config.optimizer.adam_epsilon is 0.0; it must be above 0."),
    "a negative factor": ({"learning_rate": {"stem_factor": -0.1}}, "config.learning_rate.stem_factor is -0.1"),
    "a factor of NaN": ({"learning_rate": {"head_factor": float("nan")}}, "config.learning_rate.head_factor is nan"),
    "an infinite balance loss": ({"balance_loss": float("inf")}, "config.balance_loss is inf"),
    "a balance loss of NaN": ({"balance_loss": float("nan")}, "config.balance_loss is nan"),
    "split units and clipping": (
        {"shard_units": True, "optimizer": {"clip_norm": 1.0}},
        "config.optimizer.clip_norm is 1",
    ),
    "split units and lamb": ({"shard_units": True, "optimizer": {"name": "lamb"}}, "config.optimizer.name is 'lamb'"),
    "uneven pairs": ({"accumulation": 128, "mixup": 0.2}, "pairs of mixup; use a multiple of 2048"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_value_is_one_line(values, message):
    config = default_config()
    config.update(values)
    with pytest.raises(UserError) as error:
        validate(config, device_count=8)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_stored_run_may_have_a_warm_up_that_a_new_run_may_not():
    config = default_config()
    config.epochs, config.stem_epochs = 3, 1
    validate(config, device_count=8, stored=True)
    config.learning_rate.warmup_epochs = 3  # as long as the run
    validate(config, device_count=8)


def test_with_one_device_the_message_does_not_mention_devices():
    config = default_config()
    config.accumulation = 3
    with pytest.raises(UserError, match=r"divided by 3 microbatches \(config\.accumulation\); use a multiple of 3\."):
        validate(config, device_count=1)


def test_a_misspelt_key_is_an_error():
    config = default_config()
    with pytest.raises(AttributeError, match="num_units"):
        config.model.num_unit = 3
    with pytest.raises(AttributeError, match="batch_size"):
        config.copy_and_resolve_references().batchsize = 3


def test_every_value_is_a_number_or_text_or_a_truth_value():
    assert {type(value) for value in flatten(default_config()).values()} == {int, float, str, bool}


def test_a_truth_value_is_true_or_false_and_nothing_else():
    config = default_config()
    for text, value in {"True": True, "false": False, "1": True, "0": False}.items():
        set_from_text(config, "tensorboard", text)
        assert config.tensorboard is value
    for text in ("yes", "2", ""):
        with pytest.raises(UserError, match="config.tensorboard is .*; it must be True or False."):
            set_from_text(config, "tensorboard", text)


def test_checkpoints_by_the_clock_are_off_or_after_a_positive_time():
    config = default_config()
    assert config.checkpoint.every_minutes == 0
    for minutes in (-1.0, float("nan"), float("inf")):
        config.checkpoint.every_minutes = minutes
        with pytest.raises(UserError, match="config.checkpoint.every_minutes is .*; it must be 0"):
            validate(config, device_count=1)


def test_a_stored_configuration_gets_defaults_for_new_keys_and_unknown_keys_are_refused(tmp_path):
    path = tmp_path / "config.json"
    stored = json.loads(to_json(default_config())) | {"epochs": 7}
    del stored["model"]["metric"]
    path.write_text(json.dumps(stored))
    assert from_json(path).epochs == 7 and from_json(path).model.metric == "euclidean"
    for wrong, line in (
        ({"epoch": 7}, "there is no key epoch. Did you mean epochs?"),
        ({"epochs": "seven"}, "epochs"),
        ({"epochs": None}, "config.epochs is None; it must be a whole number."),
        ({"model": 3}, "not a run's configuration"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError) as error:
            from_json(path)
        assert line in str(error.value) and "\n" not in str(error.value) and "\\" not in str(error.value)


def test_accumulation_mixup_average_and_smoothing_go_together():
    config = default_config()
    config.update({"label_smoothing": 0.1, "ema": 0.9999, "mixup": 0.2, "accumulation": 64})
    validate(config, device_count=8)


def test_accumulation_mixup_average_and_smoothing_are_off_by_default():
    config = default_config()
    assert (config.accumulation, config.mixup, config.ema, config.label_smoothing) == (1, 0, 0, 0)


def test_a_page_may_return_a_frozen_configuration(tmp_path):
    page = tmp_path / "page.py"
    lines = ["from ml_collections import FrozenConfigDict", "from rmn_jax.config import default_config"]
    page.write_text("\n".join([*lines, "get_config = lambda: FrozenConfigDict(default_config())"]))
    assert load_config(str(page), ["--config.epochs=50"]).epochs == 50
