"""Checks of a configuration's values before a run begins."""

import difflib
import math

from ml_collections import ConfigDict

from rmn_jax import ops, routing
from rmn_jax.config.defaults import flatten
from rmn_jax.errors import UserError
from rmn_jax.models import ATTENTIONS, BACKBONES, create_backbone, parse_stages
from rmn_jax.models.build import backbone_options, import_module, option_names

OPTIMIZERS = ("sgd", "nesterov", "adamw", "lamb", "rmsprop")


def validate(config: ConfigDict, device_count: int, *, stored: bool = False) -> None:
    """Raises UserError for a value that no run can use, on ``device_count`` devices.

    Args:
      config: complete.
      device_count: number of devices of all hosts.
      stored: whether it is that of a run that exists. Earlier releases took values that a new run may not have: they
        shortened a warm-up that was longer than the run.
    """

    def check(good: bool, message: str) -> None:
        if not good:
            raise UserError(message)

    def one_of(key: str, choices) -> None:
        value = config
        for part in key.split("."):
            value = value[part]
        close = difflib.get_close_matches(str(value), list(choices), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if key in ("model.backbone", "model.router"):
            hint += " For one of your own, config.model.module names the module that registers it."
        check(value in choices, f"config.{key} is {value!r}; use one of {', '.join(sorted(choices))}.{hint}")

    _check_sizes(config)
    import_module(config.model.module)
    one_of("method", ("rmn", "plain"))
    one_of("model.backbone", BACKBONES)
    one_of("model.attention", ATTENTIONS)
    one_of("model.backend", ("auto", *ops.BACKENDS))
    one_of("model.router", routing.ROUTERS)
    one_of("model.metric", routing.METRICS)
    one_of("model.statistics", ops.STATISTICS)
    one_of("unit_gradient", ("share", "own"))
    one_of("optimizer.name", OPTIMIZERS)
    one_of("optimizer.weight_decay_on", ("all", "kernels"))
    one_of("learning_rate.scaling", ("none", "linear"))
    one_of("dtype", ("auto", "float32", "bfloat16"))
    check(
        config.model.num_units >= 1,
        f"config.model.num_units is {config.model.num_units}; it must be 1 or more.",
    )
    for key in ("batch_size", "eval_batch_size"):
        size = config[key]
        check(size >= 1, f"config.{key} is {size}; it must be 1 or more.")
        check(
            size % device_count == 0,
            f"config.{key} is {size}, which cannot be divided over {device_count} devices; "
            f"use a multiple of {device_count}.",
        )
    _check_microbatches_and_targets(config, device_count)
    if config.shard_units and device_count > 1 and config.method == "rmn":
        whole = "optimizer.clip_norm" if config.optimizer.clip_norm else "optimizer.name"
        check(
            not config.optimizer.clip_norm and config.optimizer.name != "lamb",
            f"config.{whole} is {flatten(config)[whole]!r}, which needs the norm of whole gradients, but "
            "config.shard_units splits them; leave one of the two out.",
        )
    check(config.revive_after >= 0, f"config.revive_after is {config.revive_after}; it must be 0 (off) or more.")
    check(
        not config.revive_after or config.model.router == "memory",
        f"config.revive_after is {config.revive_after}, but the {config.model.router} router routes without memories; "
        "set it to 0, or config.model.router to memory.",
    )
    check(config.epochs >= 1, f"config.epochs is {config.epochs}; it must be 1 or more.")
    if config.method == "rmn":
        check(
            0 <= config.stem_epochs < config.epochs,
            f"config.stem_epochs is {config.stem_epochs}; it must be from 0 to below config.epochs ({config.epochs}).",
        )
    check(0 <= config.seed < 2**32, f"config.seed is {config.seed}; it must be from 0 to 4294967295.")
    rate = config.learning_rate
    check(rate.warmup_epochs >= 0, f"config.learning_rate.warmup_epochs is {rate.warmup_epochs}; it must be 0 or more.")
    check(
        stored or rate.warmup_epochs <= config.epochs,
        f"config.learning_rate.warmup_epochs is {rate.warmup_epochs}, longer than the run of {config.epochs} epochs; "
        "set it to config.epochs or less.",
    )
    reference = rate.reference_batch
    check(reference >= 1, f"config.learning_rate.reference_batch is {reference}; it must be 1 or more.")
    _check_reals(config)
    for option, value in backbone_options(config).items():
        known = option_names(config.model.backbone)
        has = f"it has {', '.join(f'model.{name}' for name in known)}" if known else "it has no options"
        check(
            option in known,
            f"config.model.{option} is {value!r}, but {config.model.backbone} has no such option; {has}.",
        )
    stages = create_backbone(config.model.backbone, num_classes=2, image_size=64, **backbone_options(config)).stages
    parse_stages(config.model.routed_stages, len(stages))
    alpha = config.model.memory_momentum
    check(0 <= alpha <= 1, f"config.model.memory_momentum is {alpha}; it must lie between 0 and 1.")
    for key in ("every_epochs", "keep"):
        check(config.checkpoint[key] >= 1, f"config.checkpoint.{key} must be 1 or more.")
    minutes = config.checkpoint.every_minutes
    check(0 <= minutes < math.inf, f"config.checkpoint.every_minutes is {minutes}; it must be 0 (off) or more.")
    check(config.eval_every_epochs >= 1, "config.eval_every_epochs must be 1 or more.")


# Far above what any run uses, and far below what overflows or fills the memory before an error can be told.
_LARGEST = {"seed": 2**32 - 1, "model.width": 2**14, "model.num_units": 2**16, "data.image_size": 2**14}
_LARGEST_OTHER = 2**31 - 1


def _check_sizes(config: ConfigDict) -> None:
    for key, value in flatten(config).items():
        largest = _LARGEST.get(key, _LARGEST_OTHER)
        if isinstance(value, int) and value > largest:
            raise UserError(f"config.{key} is {str(value)[:30]}; it must be {largest} or less.")


def _check_reals(config: ConfigDict) -> None:
    """Raises UserError for a rate or weight out of range; NaN is out of every range."""
    values = flatten(config)
    rates = ("learning_rate.initial", "learning_rate.peak", "learning_rate.final")
    factors = ("learning_rate.stem_factor", "learning_rate.stages_factor", "learning_rate.head_factor")
    optimizer = ("optimizer.weight_decay", "optimizer.epsilon", "optimizer.clip_norm")
    for key in (*rates, *factors, *optimizer, "balance_loss"):
        if not 0 <= values[key] < math.inf:
            raise UserError(f"config.{key} is {values[key]}; it must be 0 or more, and finite.")
    if (
        not 0 < values["optimizer.adam_epsilon"] < math.inf
    ):  # at 0 a unit without inputs, and so gradient, divides 0 by 0
        raise UserError(f"config.optimizer.adam_epsilon is {values['optimizer.adam_epsilon']}; it must be above 0.")
    for key in ("optimizer.momentum", "optimizer.decay", "optimizer.beta1", "optimizer.beta2"):
        if not 0 <= values[key] < 1:
            raise UserError(f"config.{key} is {values[key]}; it must be 0 or more, and below 1.")


def _check_microbatches_and_targets(config: ConfigDict, device_count: int) -> None:
    for key in ("label_smoothing", "ema"):
        if not 0 <= config[key] < 1:
            raise UserError(f"config.{key} is {config[key]}; it must be 0 (off) or more, and below 1.")
    for key, usual in (("mixup", 0.2), ("cutmix", 1.0)):
        if not 0 <= config[key] < math.inf:
            raise UserError(f"config.{key} is {config[key]}; it must be 0 (off) or a positive number, say {usual}.")
    repeats = config.data.repeats
    if repeats < 1 or config.batch_size % repeats:
        raise UserError(
            f"config.batch_size is {config.batch_size}, not a multiple of config.data.repeats ({repeats}), the number "
            "of times that each image is in a batch."
        )
    if config.accumulation < 1:
        raise UserError(f"config.accumulation is {config.accumulation}; it must be 1 or more.")
    factors = {
        f"{device_count} devices": device_count,
        f"{config.accumulation} microbatches (config.accumulation)": config.accumulation,
        f"the pairs of {'mixup' if config.mixup else 'CutMix'}": 2 if config.mixup or config.cutmix else 1,
    }
    multiple = math.prod(factors.values())
    if config.batch_size % multiple:
        by = " times ".join(name for name, factor in factors.items() if factor > 1)
        raise UserError(
            f"config.batch_size is {config.batch_size}, which cannot be divided by {by}; use a multiple of {multiple}."
        )
