"""Every key of a run's configuration with its default, and how text and stored values set them."""

import difflib
import re
from typing import Any

from ml_collections import ConfigDict

from rmn_jax.errors import UserError
from rmn_jax.ops.choose import RENAMED_BACKENDS

VARIANTS = ("rmn", "rmn_no_ca", "plain")
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
TRUTH = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
# Keys of earlier releases: old name to new name.
RENAMED_KEYS = {"data.feed": "data.pipeline"}


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
    config.batch_size = 256 if variant == "plain" else 1024  # global; the paper: 256 N / 2
    config.eval_batch_size = 1024
    config.accumulation = 1  # microbatches of a batch, one after another, if memory cannot hold the batch
    config.label_smoothing = 0.0
    config.mixup = 0.0  # alpha of the Beta distribution; 0 is off
    config.cutmix = 0.0  # likewise; with mixup too, each image takes one of the two
    config.ema = 0.0  # decay of the parameters' moving average, which is then evaluated; 0 is off
    config.unit_gradient = "share"  # of the batch's mean loss (the paper's); "own": of the mean over a unit's inputs
    config.balance_loss = 0.01  # weight of the router's auxiliary loss; only the learned router has one
    config.revive_after = 0  # epochs without inputs after which a unit begins again as half of the fullest; 0 is off
    config.shard_units = False  # True: parameters, momentum and EMA of units split over devices (docs/scaling.md)
    config.dtype = "auto"  # of convolutions: "float32" or "bfloat16"; auto is bfloat16 on accelerators

    config.model = ConfigDict()
    config.model.backbone = "resnet18"
    config.model.module = ""  # imported first: your own module that registers a backbone or a router
    config.model.width = 0  # ResNets and ConvNeXt: channels of the first stage; 0: as published
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
    config.optimizer.name = "sgd"  # or "nesterov", "adamw", "lamb", "rmsprop"
    config.optimizer.momentum = 0.9  # sgd, nesterov and rmsprop
    config.optimizer.weight_decay = 1e-5  # coupled (L2); decoupled in adamw and lamb
    config.optimizer.weight_decay_on = "all"  # parameters; or "kernels": not on the scales of norms and the biases
    config.optimizer.decay = 0.9  # of rmsprop's mean square
    config.optimizer.epsilon = 1e-3  # rmsprop
    config.optimizer.beta1 = 0.9  # adamw and lamb: of the mean gradient
    config.optimizer.beta2 = 0.999  # adamw and lamb: of the mean square
    config.optimizer.adam_epsilon = 1e-8  # adamw and lamb
    config.optimizer.clip_norm = 0.0  # largest norm of the whole gradient; 0 is off
    config.optimizer.freeze = ""  # patterns of parameters that are not trained: "stem,stage1/*/conv?"

    config.learning_rate = ConfigDict()
    config.learning_rate.initial = 1e-5
    config.learning_rate.peak = 0.48
    config.learning_rate.final = 1e-5
    config.learning_rate.warmup_epochs = 5  # at most config.epochs
    config.learning_rate.scaling = "none"  # "linear": the peak is for reference_batch and proportional to the batch
    config.learning_rate.reference_batch = 256
    config.learning_rate.stem_factor = 1.0  # the rate of the stem is so many times the schedule's
    config.learning_rate.stages_factor = 1.0  # of the stages with their attention
    config.learning_rate.head_factor = 1.0

    config.data = ConfigDict()
    config.data.name = "tiny_imagenet"  # digits, cifar100, tiny_imagenet, imagenet2012, tfds:NAME, folder
    config.data.data_dir = ""  # "": TFDS_DATA_DIR, or tfds's default folder
    config.data.path = ""  # of a folder of class folders
    config.data.classes = 0  # use only the first n classes; 0: all
    config.data.image_size = 0  # pixels; 0: the size of the data set's images
    config.data.augment = "crop_flip"  # none, crop, crop_flip, resized_crop_flip
    config.data.crop_padding = 4
    config.data.crop_scale = "0.08,1"  # of a resized crop: least and largest share of the image's area
    config.data.crop_ratio = "3/4,4/3"  # of a resized crop: least and largest width over height
    config.data.interpolation = "bilinear"  # of a resized crop, or "bicubic"
    config.data.color_jitter = ""  # brightness, contrast, saturation and hue, as "0.4,0.4,0.4,0.1"; "": off
    config.data.auto_augment = "none"  # "randaugment" or "trivialaugment"
    config.data.randaugment_ops = 2
    config.data.randaugment_magnitude = 9  # 0 to 30
    config.data.random_erasing = 0.0  # probability; 0 is off
    config.data.repeats = 1  # how often each image is in a batch, each time augmented anew
    config.data.mean = ""  # of each channel in 0..1, as "0.485,0.456,0.406"; "": of the training images
    config.data.std = ""  # likewise, the standard deviation
    config.data.pipeline = "auto"  # "device" (all images in device memory) or "stream"; auto chooses by size
    config.data.workers = 2  # processes that decode streamed images; 0 decodes in the main process
    config.data.skip_corrupt = 0  # how many unreadable images to skip before giving up

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.every_minutes = 0.0  # also within an epoch; 0 is off
    config.checkpoint.keep = 2  # of the newest; the best one is kept beside them
    config.eval_every_epochs = 1
    config.tensorboard = False  # also writes the metrics for TensorBoard (pip install 'rmn_jax[tensorboard]')
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
    key = RENAMED_KEYS.get(key, key)
    if key not in known:
        inside = next((name for name in known if name.startswith(f"{key}.")), None)
        if inside is not None:
            raise UserError(f"config.{key} is a section; set a key in it, say --config.{inside}={known[inside]}")
        raise UserError(f"unknown key config.{key}.{_nearest(key)}")
    kind = type(known[key])
    try:
        value = TRUTH[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UserError(f"config.{key} is {text!r}; it must be {TYPE_NAMES[kind]}.") from None
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
        if not fits(value, kind):
            return f"config.{key} is {value!r}; it must be {TYPE_NAMES[kind]}."
    return ""


def explain(error: Exception) -> str:
    """An exception from setting keys, as one line. For an unknown key it names the key that was probably meant."""
    while error.args and isinstance(error.args[0], Exception):  # ConfigDict wraps a KeyError into an AttributeError
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    absent = re.match(r"""(?:Key )?["'](.+?)["']""", text) if isinstance(error, KeyError) else None
    if absent is None:
        return f"{type(error).__name__}: {' '.join(text.split())}"
    renamed = {old.rpartition(".")[2]: new for old, new in RENAMED_KEYS.items()}
    if absent[1] in renamed:
        return f"{absent[1]} is now called config.{renamed[absent[1]]}."
    beside = re.search(r'Did you mean "(.+?)" instead', text)
    hint = f" Did you mean {beside[1]}?" if beside else _nearest(absent[1])
    return f"there is no key {absent[1]}.{hint}"


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, flatten(default_config()), n=1)
    return f" Did you mean config.{close[0]}?" if close else ""


def fits(value: Any, kind: type) -> bool:
    """Whether a value may stand for a default of this type: a whole number fits a float, a bool only a bool."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
