"""The configuration of a run: every key with its default. The pages in ``configs/`` set the keys that differ."""

import difflib
import json
import math
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from rmn_jax import ops, routing
from rmn_jax.errors import UserError
from rmn_jax.files import read_object
from rmn_jax.models import ATTENTIONS, BACKBONES, create_backbone, parse_stages
from rmn_jax.models.build import CONFIG_OPTIONS, backbone_options, option_names
from rmn_jax.ops.choose import RENAMED_BACKENDS

VARIANTS = ("rmn", "rmn_no_ca", "plain")
_KINDS = {int: "a whole number", float: "a number", str: "text"}
# Keys of earlier releases: old name to new name.
_RENAMED_KEYS = {"data.feed": "data.pipeline"}


def default_config(variant: str = "rmn_no_ca") -> ConfigDict:
    """The paper's choices for ResNets on small images, and ours where the paper does not say.

    Args:
      variant: "rmn" (with conditional attention), "rmn_no_ca", or "plain" at the plain backbone's batch of 256.

    Returns:
      All keys, locked: a misspelt key is an error.

    Raises:
      UserError: unknown variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r} of a configuration; use one of {', '.join(VARIANTS)}.")
    config = ConfigDict()
    # "rmn": the four phases; "plain": the backbone alone ("Original")
    config.method = "plain" if variant == "plain" else "rmn"
    config.seed = 0
    config.epochs = 120  # of all phases together
    config.stem_epochs = 40  # of phase 1; not used when plain
    config.batch_size = 256 if variant == "plain" else 1024  # over all devices; the paper's 256 N / 2
    config.eval_batch_size = 1024
    config.accumulation = 1  # microbatches of a batch, one after another, if memory cannot hold the batch
    config.label_smoothing = 0.0
    config.mixup = 0.0  # alpha of the Beta distribution; 0 is off
    config.ema = 0.0  # decay of the parameters' moving average, which is then evaluated; 0 is off
    config.unit_gradient = "share"  # of the batch's mean loss (the paper's); "own": of the mean over a unit's inputs
    config.balance_loss = 0.01  # weight of the router's auxiliary loss; only the learned router has one
    config.dtype = "auto"  # of convolutions: "float32" or "bfloat16"; auto is bfloat16 on accelerators

    config.model = ConfigDict()
    config.model.backbone = "resnet18"
    config.model.width = 0  # ResNets: channels of the first stage; 0: as published
    config.model.num_units = 8  # N
    config.model.routed_stages = "all"  # or "last", "last2" .., or numbers from 1: "3,4"; the others keep one copy
    # of batch norm in routed stages: "unit" (a unit's own), "batch" or "mixed" (docs/interpretations.md)
    config.model.statistics = "unit"
    # "none", "se" (no condition) or "conditional" (CA, eqs. 6-8)
    config.model.attention = "conditional" if variant == "rmn" else "none"
    config.model.router = "memory"  # or a baseline: "random", "hash", "learned" (rmn_jax/routing/routers.py)
    config.model.metric = "euclidean"  # of features and memories (eq. 4), or "cosine"
    config.model.memory_momentum = 0.9  # alpha, eq. 9
    config.model.small_stem = "7x7"  # ResNets at 64 pixels or less; others often use "3x3"
    config.model.backend = "auto"  # of routed convolutions: a name in BACKENDS of rmn_jax/ops/choose.py

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "rmsprop"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-5  # coupled (L2), on all parameters
    config.optimizer.decay = 0.9  # of rmsprop's mean square
    config.optimizer.epsilon = 1e-3  # rmsprop

    config.learning_rate = ConfigDict()
    config.learning_rate.initial = 1e-5
    config.learning_rate.peak = 0.48
    config.learning_rate.final = 1e-5
    config.learning_rate.warmup_epochs = 5
    config.learning_rate.scaling = "none"  # "linear": the peak is for reference_batch and proportional to the batch
    config.learning_rate.reference_batch = 256

    config.data = ConfigDict()
    config.data.name = "tiny_imagenet"  # digits, cifar100, tiny_imagenet, imagenet2012, tfds:NAME, folder
    config.data.data_dir = ""  # "": TFDS_DATA_DIR, or tfds's default folder
    config.data.path = ""  # of a folder of class folders
    config.data.classes = 0  # use only the first so many classes; 0: all
    config.data.image_size = 0  # pixels; 0: the size of the data set's images
    config.data.augment = "crop_flip"  # none, crop, crop_flip, resized_crop_flip
    config.data.crop_padding = 4
    config.data.mean = ""  # of each channel in 0..1, as "0.485,0.456,0.406"; "": of the training images
    config.data.std = ""  # likewise, the standard deviation
    config.data.pipeline = "auto"  # "device" (all images in device memory) or "stream"; auto chooses by size
    config.data.workers = 2  # processes that decode streamed images; 0 decodes in the main process
    config.data.skip_corrupt = 0  # how many unreadable images to skip before giving up

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.keep = 2
    config.eval_every_epochs = 1
    return config.lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Every key with its value, as in ``{"model.num_units": 8}``."""

    def walk(tree: dict, prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in tree.items():
            flat.update(walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
        return flat

    return walk(config.to_dict(), "")


def set_from_text(config: ConfigDict, key: str, text: str) -> None:
    """Sets a key to a value given as text.

    Args:
      config: is changed.
      key: for example "model.num_units".
      text: the value.

    Raises:
      UserError: no such key, or a value of another type.
    """
    known = flatten(default_config())
    key = _RENAMED_KEYS.get(key, key)
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


def use_current_names(config: ConfigDict) -> None:
    """Replaces values that an earlier release called by another name."""
    config.model.backend = RENAMED_BACKENDS.get(config.model.backend, config.model.backend)


def misfit(config: ConfigDict) -> str:
    """The first difference in form from ``default_config``: an unknown or missing key, or a value of another type.

    Returns:
      One line; empty if there is no difference.
    """
    known, found = flatten(default_config()), flatten(config)
    for key in sorted(found.keys() - known.keys()):
        return f"there is no key config.{key}.{_nearest(key)}"
    for key, default in known.items():
        if key not in found:
            return f"config.{key} is missing."
        value, kind = found[key], type(default)
        if not _fits(value, kind):
            return f"config.{key} is {value!r}; it must be {_KINDS[kind]}."
    return ""


def explain(error: Exception) -> str:
    """An exception from setting keys, as one line. For an unknown key it names the key that was probably meant."""
    while error.args and isinstance(error.args[0], Exception):  # ConfigDict wraps a KeyError into an AttributeError
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    absent = re.match(r"""(?:Key )?["'](.+?)["']""", text) if isinstance(error, KeyError) else None
    if absent is None:
        return f"{type(error).__name__}: {' '.join(text.split())}"
    renamed = {old.rpartition(".")[2]: new for old, new in _RENAMED_KEYS.items()}
    if absent[1] in renamed:
        return f"{absent[1]} is now called config.{renamed[absent[1]]}."
    beside = re.search(r'Did you mean "(.+?)" instead', text)
    hint = f" Did you mean {beside[1]}?" if beside else _nearest(absent[1])
    return f"there is no key {absent[1]}.{hint}"


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, flatten(default_config()), n=1)
    return f" Did you mean config.{close[0]}?" if close else ""


# Keys that may differ when a run goes on: the results do not depend on them.
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
    """Raises UserError for a value that no run can use, on ``device_count`` devices."""

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

    _check_sizes(config)
    one_of("method", ("rmn", "plain"))
    one_of("model.backbone", BACKBONES)
    one_of("model.attention", ATTENTIONS)
    one_of("model.backend", ("auto", *ops.BACKENDS))
    one_of("model.router", routing.ROUTERS)
    one_of("model.metric", routing.METRICS)
    one_of("model.statistics", ops.STATISTICS)
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
            f"config.{key} is {size}, which cannot be divided over {device_count} devices; "
            f"use a multiple of {device_count}.",
        )
    _check_microbatches_and_targets(config, device_count)
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
    for key in (*rates, "optimizer.weight_decay", "optimizer.epsilon", "balance_loss"):
        if not 0 <= values[key] < math.inf:
            raise UserError(f"config.{key} is {values[key]}; it must be 0 or more, and finite.")
    for key in ("optimizer.momentum", "optimizer.decay"):
        if not 0 <= values[key] < 1:
            raise UserError(f"config.{key} is {values[key]}; it must be 0 or more, and below 1.")


def _check_microbatches_and_targets(config: ConfigDict, device_count: int) -> None:
    for key in ("label_smoothing", "ema"):
        if not 0 <= config[key] < 1:
            raise UserError(f"config.{key} is {config[key]}; it must be 0 (off) or more, and below 1.")
    if not 0 <= config.mixup < float("inf"):
        raise UserError(f"config.mixup is {config.mixup}; it must be 0 (off) or a positive number, say 0.2.")
    if config.accumulation < 1:
        raise UserError(f"config.accumulation is {config.accumulation}; it must be 1 or more.")
    factors = {
        f"{device_count} devices": device_count,
        f"{config.accumulation} microbatches (config.accumulation)": config.accumulation,
        "the pairs of mixup": 2 if config.mixup else 1,
    }
    multiple = math.prod(factors.values())
    if config.batch_size % multiple:
        by = " times ".join(name for name, factor in factors.items() if factor > 1)
        raise UserError(
            f"config.batch_size is {config.batch_size}, which cannot be divided by {by}; use a multiple of {multiple}."
        )


def to_json(config: ConfigDict) -> str:
    """The resolved configuration, as stored in the run folder."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_dict(stored: dict[str, Any], source: str) -> ConfigDict:
    """A stored configuration, also of an earlier release: new keys get their defaults, renamed ones are mapped.

    Raises:
      UserError: it is not a configuration; ``source`` is where it is from.
    """
    config = default_config()
    try:
        config.update(_with_new_names(stored))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{source} is not a run's configuration: {explain(error)}") from None
    wrong = misfit(config)
    if wrong:
        raise UserError(f"{source} is not a run's configuration: {wrong}")
    return config


def from_json(path: pathlib.Path) -> ConfigDict:
    """Reads a stored configuration, also of an earlier release: new keys get their defaults, renamed ones are mapped.

    Raises:
      UserError: no such file, or not a configuration.
    """
    try:
        stored = read_object(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no run (no {path.name}); give the folder of `rmn train`.") from None
    except ValueError as error:
        raise UserError(f"{path} {error}; put the file of the run back.") from None
    wrong = _wrong_type(stored)
    if wrong:
        raise UserError(f"{path} is not a run's configuration: {wrong}")
    return from_dict(stored, str(path))


def _wrong_type(stored: dict[str, Any], known: dict[str, Any] | None = None, before: str = "config.") -> str:
    """The first stored value of another type than the default's, as one line; unknown keys are left to ``misfit``."""
    for key, default in (known or default_config().to_dict()).items():
        value = stored.get(key, default)
        if isinstance(default, dict) and isinstance(value, dict):
            inside = _wrong_type(value, default, f"{before}{key}.")
            if inside:
                return inside
        elif isinstance(default, dict):
            return f"{before}{key} is {value!r}; it must be a section."
        elif not _fits(value, type(default)):
            return f"{before}{key} is {value!r}; it must be {_KINDS[type(default)]}."
    return ""


def _fits(value: Any, kind: type) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float) if kind is float else kind)


def _with_new_names(stored: dict[str, Any]) -> ConfigDict:
    """A stored configuration under today's keys and backend names."""
    found = ConfigDict(stored)
    for old, new in _RENAMED_KEYS.items():
        section, _, key = old.rpartition(".")
        if key in found.get(section, {}):
            value = found[section][key]
            del found[section][key]
            found.update_from_flattened_dict({new: value})
    model = found.get("model", {})
    if "backend" in model:
        use_current_names(found)
    # Backbones without these options used to ignore them.
    for option, unset in CONFIG_OPTIONS.items():
        if option in model and option not in option_names(model.get("backbone", "")):
            model[option] = unset
    return found


def differences(one: ConfigDict, other: ConfigDict) -> list[str]:
    """The keys in which two configurations differ, as lines with both values; without ``FREE_KEYS``."""
    a, b = binding(one), binding(other)
    return [
        f"config.{key} is {a.get(key)!r} in the run folder, {b.get(key)!r} now"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def adopt_normalisation(config: ConfigDict, stored: ConfigDict) -> None:
    """Takes over the normalisation of a stored run where a page leaves it open: imported weights bring their own."""
    if not (config.data.mean or config.data.std):
        config.data.mean, config.data.std = stored.data.mean, stored.data.std


def binding(config: ConfigDict) -> dict[str, Any]:
    """The keys that the results depend on, with their values: all but ``FREE_KEYS``, flat as in ``flatten``."""
    free = lambda key: any(key == name or key.startswith(name + ".") for name in FREE_KEYS)  # noqa: E731
    return {key: value for key, value in flatten(config).items() if not free(key)}
