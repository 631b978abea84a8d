"""Every key of a run's configuration with its default; the pages in ``configs/`` set what differs."""

import difflib
import json
import math
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from rmn_jax import ops, routing
from rmn_jax.errors import UserError
from rmn_jax.models import ATTENTIONS, BACKBONES, ROUTERS

VARIANTS = ("rmn", "rmn_no_ca", "plain")
_KINDS = {int: "a whole number", float: "a number", str: "text"}


def default_config(variant: str = "rmn_no_ca") -> ConfigDict:
    """The paper's choices for ResNets on small images, and our own where the paper is silent.

    Args:
      variant: "rmn" (with conditional attention), "rmn_no_ca", or "plain" at the plain backbone's batch of 256.

    Returns:
      All keys there are, locked: a misspelt one is an error.

    Raises:
      UserError: another variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r} of a configuration; use one of {', '.join(VARIANTS)}.")
    config = ConfigDict()
    config.method = (
        "plain" if variant == "plain" else "rmn"
    )  # "rmn": four steps; "plain": the backbone alone ("Original")
    config.seed = 0
    config.epochs = 120  # all steps together
    config.stem_epochs = 40  # step 1; not used when plain
    config.batch_size = 256 if variant == "plain" else 1024  # global, over all devices; 256 x N/2
    config.eval_batch_size = 1024
    config.accumulation = 1  # parts of a batch taken one after another, where memory cannot hold it whole
    config.label_smoothing = 0.0
    config.mixup = 0.0  # alpha of its Beta distribution; 0 is off
    config.ema = 0.0  # decay of the parameters' moving average, which is then what is evaluated; 0 is off
    config.unit_gradient = "share"  # of the batch's mean loss, as the paper has it; "own": mean over a unit's inputs
    config.balance_loss = 0.01  # weight of the load-balancing loss; of the learned router only
    config.dtype = "auto"  # of convolutions: "float32", "bfloat16"; auto is bfloat16 on accelerators

    config.model = ConfigDict()
    config.model.backbone = "resnet18"
    config.model.width = 0  # channels of a ResNet's first stage; 0: as published
    config.model.num_units = 8  # N
    config.model.attention = (
        "conditional" if variant == "rmn" else "none"
    )  # "none", "se" (no condition), "conditional" (CA, eqs. 6-8)
    config.model.router = "memory"  # or, to compare with: "random", "hash", "learned" (rmn_jax/models/routers.py)
    config.model.metric = "euclidean"  # of features and memories (eq. 4); or "cosine"
    config.model.memory_momentum = 0.9  # alpha, eq. 9
    config.model.small_stem = "7x7"  # of ResNets on 32 and 64 pixels; "3x3" is what others often use
    config.model.backend = "auto"  # of routed convolutions, see rmn_jax/ops/conv.py

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "rmsprop"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-5  # coupled (L2), on all parameters
    config.optimizer.decay = 0.9  # rmsprop's average of squares
    config.optimizer.epsilon = 1e-3  # rmsprop

    config.learning_rate = ConfigDict()
    config.learning_rate.initial = 1e-5
    config.learning_rate.peak = 0.48
    config.learning_rate.final = 1e-5
    config.learning_rate.warmup_epochs = 5
    config.learning_rate.scaling = "none"  # "linear": peak is for reference_batch and grows with the batch
    config.learning_rate.reference_batch = 256

    config.data = ConfigDict()
    config.data.name = "tiny_imagenet"  # digits, cifar100, tiny_imagenet, imagenet2012, tfds:NAME, folder
    config.data.data_dir = ""  # "": TFDS_DATA_DIR or tfds's default folder
    config.data.path = ""  # of a folder of class folders
    config.data.classes = 0  # only the first so many classes; 0: all
    config.data.image_size = 0  # pixels; 0 is the data set's own
    config.data.augment = "crop_flip"  # none, crop, crop_flip, resized_crop_flip
    config.data.crop_padding = 4
    config.data.feed = "auto"  # "device", "stream"; auto goes by size
    config.data.workers = 2  # processes that decode streamed images; 0 decodes in the run's own
    config.data.skip_corrupt = 0  # how many unreadable images to skip before giving up

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.keep = 2
    config.eval_every_epochs = 1
    return config.lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Every key with its value, as ``"model.num_units": 8``."""

    def walk(tree: dict, prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in tree.items():
            flat.update(walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
        return flat

    return walk(config.to_dict(), "")


def set_from_text(config: ConfigDict, key: str, text: str) -> None:
    """Sets ``model.num_units``, say, to what was typed.

    Raises:
      UserError: no such key, or a value of another type.
    """
    known = flatten(default_config())
    if key not in known:
        inside = next((name for name in known if name.startswith(f"{key}.")), None)
        if inside is not None:
            raise UserError(f"config.{key} is a section; set a key in it, say --config.{inside}={known[inside]}")
        raise UserError(f"unknown key config.{key}.{_nearest(key)}")
    kind = type(known[key])
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"config.{key} is {text!r}; it must be {_KINDS[kind]}.") from None
    config.update_from_flattened_dict({key: value})


def misfit(config: ConfigDict) -> str:
    """What tells a configuration from one that ``default_config`` began: a key too many, too few or of another type.

    Returns:
      One line; empty if there is nothing.
    """
    known, found = flatten(default_config()), flatten(config)
    for key in sorted(found.keys() - known.keys()):
        return f"there is no key config.{key}.{_nearest(key)}"
    for key, default in known.items():
        if key not in found:
            return f"config.{key} is missing."
        value, kind = found[key], type(default)
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            return f"config.{key} is {value!r}; it must be {_KINDS[kind]}."
    return ""


def explain(error: Exception) -> str:
    """One line of what went wrong in setting keys; of a key that there is not, the one that was probably meant."""
    while error.args and isinstance(error.args[0], Exception):  # ConfigDict wraps a KeyError into an AttributeError
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    absent = re.match(r"""(?:Key )?["'](.+?)["']""", text) if isinstance(error, KeyError) else None
    if absent is None:
        return f"{type(error).__name__}: {' '.join(text.split())}"
    beside = re.search(r'Did you mean "(.+?)" instead', text)
    hint = f" Did you mean {beside[1]}?" if beside else _nearest(absent[1])
    return f"there is no key {absent[1]}.{hint}"


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, flatten(default_config()), n=1)
    return f" Did you mean config.{close[0]}?" if close else ""


# Keys that may differ between a run and its continuation: they do not touch its numbers.
FREE_KEYS = (
    "checkpoint",
    "eval_every_epochs",
    "data.workers",
    "data.data_dir",
    "data.path",
    "data.skip_corrupt",
    "eval_batch_size",
)


def validate(config: ConfigDict, device_count: int) -> None:
    """Raises UserError for a value that no run could use."""

    def check(good: bool, message: str) -> None:
        if not good:
            raise UserError(message)

    def one_of(key: str, choices) -> None:
        value = config
        for part in key.split("."):
            value = value[part]
        close = difflib.get_close_matches(str(value), list(choices), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        check(value in choices, f"config.{key} is {value!r}; use one of {', '.join(sorted(choices))}.{hint}")

    one_of("method", ("rmn", "plain"))
    one_of("model.backbone", BACKBONES)
    one_of("model.attention", ATTENTIONS)
    one_of("model.backend", ("auto", *ops.BACKENDS))
    one_of("model.router", ROUTERS)
    one_of("model.metric", routing.METRICS)
    one_of("unit_gradient", ("share", "own"))
    one_of("optimizer.name", ("sgd", "rmsprop"))
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
            f"config.{key} is {size}, which does not divide over {device_count} devices; "
            f"use a multiple of {device_count}.",
        )
    _check_parts_and_targets(config, device_count)
    check(config.epochs >= 1, f"config.epochs is {config.epochs}; it must be 1 or more.")
    if config.method == "rmn":
        check(
            0 <= config.stem_epochs < config.epochs,
            f"config.stem_epochs is {config.stem_epochs}; it must be from 0 to below config.epochs ({config.epochs}).",
        )
    check(0 <= config.seed < 2**32, f"config.seed is {config.seed}; it must be from 0 to 4294967295.")
    rate = config.learning_rate
    check(rate.warmup_epochs >= 0, f"config.learning_rate.warmup_epochs is {rate.warmup_epochs}; it must be 0 or more.")
    reference = rate.reference_batch
    check(reference >= 1, f"config.learning_rate.reference_batch is {reference}; it must be 1 or more.")
    _check_reals(config)
    alpha = config.model.memory_momentum
    check(0 <= alpha <= 1, f"config.model.memory_momentum is {alpha}; it must lie between 0 and 1.")
    for key in ("every_epochs", "keep"):
        check(config.checkpoint[key] >= 1, f"config.checkpoint.{key} must be 1 or more.")
    check(config.eval_every_epochs >= 1, "config.eval_every_epochs must be 1 or more.")


def _check_reals(config: ConfigDict) -> None:
    """Written so that nan, which is neither below nor above anything, is refused too."""
    values = flatten(config)
    rates = ("learning_rate.initial", "learning_rate.peak", "learning_rate.final")
    for key in (*rates, "optimizer.weight_decay", "optimizer.epsilon", "balance_loss"):
        if not 0 <= values[key] < math.inf:
            raise UserError(f"config.{key} is {values[key]}; it must be 0 or more, and finite.")
    for key in ("optimizer.momentum", "optimizer.decay"):
        if not 0 <= values[key] < 1:
            raise UserError(f"config.{key} is {values[key]}; it must be 0 or more, and below 1.")


def _check_parts_and_targets(config: ConfigDict, device_count: int) -> None:
    for key in ("label_smoothing", "ema"):
        if not 0 <= config[key] < 1:
            raise UserError(f"config.{key} is {config[key]}; it must be 0 (off) or more, and below 1.")
    if not 0 <= config.mixup < float("inf"):
        raise UserError(f"config.mixup is {config.mixup}; it must be 0 (off) or a positive number, say 0.2.")
    if config.accumulation < 1:
        raise UserError(f"config.accumulation is {config.accumulation}; it must be 1 or more.")
    factors = {
        f"{device_count} devices": device_count,
        f"{config.accumulation} parts of config.accumulation": config.accumulation,
        "the pairs of mixup": 2 if config.mixup else 1,
    }
    multiple = math.prod(factors.values())
    if config.batch_size % multiple:
        by = " times ".join(name for name, factor in factors.items() if factor > 1)
        raise UserError(
            f"config.batch_size is {config.batch_size}, which does not divide by {by}; use a multiple of {multiple}."
        )


def to_json(config: ConfigDict) -> str:
    """The resolved configuration as it is stored in a run's folder."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(path: pathlib.Path) -> ConfigDict:
    """Reads a stored configuration; keys that came into being since get their defaults.

    Raises:
      UserError: no such file, or not a configuration.
    """
    config = default_config()
    try:
        config.update(ConfigDict(json.loads(path.read_text())))
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no run (no {path.name}); give the folder of `rmn train`.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a run's configuration: {explain(error)}") from None
    wrong = misfit(config)
    if wrong:
        raise UserError(f"{path} is not a run's configuration: {wrong}")
    return config


def differences(one: ConfigDict, other: ConfigDict) -> list[str]:
    """What two configurations disagree on, as ``key: a != b``, leaving out ``FREE_KEYS``."""
    a, b = binding(one), binding(other)
    return [
        f"config.{key}: {a.get(key)!r} there, {b.get(key)!r} here"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def binding(config: ConfigDict) -> dict[str, Any]:
    """What a run's numbers depend on: every key but ``FREE_KEYS``, flat (``"model.num_units": 8``)."""
    free = lambda key: any(key == name or key.startswith(name + ".") for name in FREE_KEYS)  # noqa: E731
    return {key: value for key, value in flatten(config).items() if not free(key)}
