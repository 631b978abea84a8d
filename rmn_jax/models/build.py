"""Networks by name: the backbones, the network of a configuration, and fresh variables."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.errors import UserError
from rmn_jax.models.convnext import convnext_tiny
from rmn_jax.models.efficientnet import efficientnet_b0
from rmn_jax.models.mobilenet import mobilenet_v2
from rmn_jax.models.resnet import resnet8, resnet10, resnet18, resnet34, resnet50, resnet101
from rmn_jax.models.rmn import RMN, Backbone
from rmn_jax.models.vgg import vgg16_bn

if TYPE_CHECKING:  # the core runs without ml_collections
    from ml_collections import ConfigDict

# To add a backbone, write a function (num_classes, image_size, **options) -> Backbone and list it here, or register it
# from outside (docs/backbones.md).
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet8": resnet8,
    "resnet10": resnet10,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "vgg16_bn": vgg16_bn,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
    "convnext_tiny": convnext_tiny,
}
# Options of backbones that a configuration has keys for, with the value that leaves the backbone's own default.
CONFIG_OPTIONS: dict[str, Any] = {"small_stem": "7x7", "width": 0}


def import_module(name: str) -> None:
    """Imports the module of ``config.model.module``, which registers backbones or routers of one's own.

    Args:
      name: as in an import statement; empty for none.

    Raises:
      UserError: Python does not find the module, or it cannot be loaded.
    """
    if not name:
        return
    told = f"config.model.module is {name!r}"
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{told}; it must be a module as in an import statement, say my_backbones (not a file).")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{told}, which imports {error.name}, and Python does not find that.") from None
        raise UserError(
            f"{told}, which Python does not find; install it, or set PYTHONPATH to the folder that holds it."
        ) from None
    except (Exception, SystemExit) as error:  # it is arbitrary Python
        text = " ".join(str(error).split())
        raise UserError(f"{told}, which cannot be loaded: {type(error).__name__}: {text}") from None


def create_backbone(name: str, num_classes: int, image_size: int, **options: Any) -> Backbone:
    """The backbone of that name, for square images of ``image_size`` pixels.

    Args:
      name: a key of ``BACKBONES``.
      num_classes: K.
      image_size: in pixels. Small images change some backbones, see their functions.
      **options: of that backbone, see its function. ResNets and ConvNeXt have ``width``, ResNets but
        for ResNet-8 also ``small_stem``.

    Raises:
      UserError: unknown name, an option that the backbone does not have, or a value that it cannot use.
    """
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"unknown backbone {name!r}; use one of {', '.join(sorted(BACKBONES))}.{hint}")
    known = option_names(name)
    for option, value in options.items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has no options"
            raise UserError(f"{name} has no option {option} (given as {value!r}); {has}.")
    return BACKBONES[name](num_classes, image_size, **options)


def option_names(name: str) -> tuple[str, ...]:
    """The options of a backbone: the keyword-only arguments of its function. None for an unknown name."""
    parameters = inspect.signature(BACKBONES[name]).parameters if name in BACKBONES else {}
    return tuple(key for key, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY)


def backbone_options(config: "ConfigDict") -> dict[str, Any]:
    """The options of ``config.model`` that differ from the backbone's own default."""
    return {key: config.model[key] for key, unset in CONFIG_OPTIONS.items() if config.model[key] != unset}


def parse_stages(text: str, num_stages: int) -> tuple[int, ...] | None:
    """The routed stages that ``config.model.routed_stages`` names.

    Args:
      text: "all"; "last", or "last2" for the last two; or numbers from 1, as in "3,4".
      num_stages: S of the backbone.

    Returns:
      The numbers of the stages in order; None for all of them.

    Raises:
      UserError: not of this form, a stage that the backbone does not have, or a stage named twice.
    """
    last = re.fullmatch(r"last(\d*)", text)
    named: Sequence[int] = ()
    if text == "all":
        return None
    if last:
        count = int(last[1] or 1)
        named = range(num_stages - count + 1, num_stages + 1)
    elif re.fullmatch(r"\d+( *, *\d+)*", text):
        named = sorted(int(number) for number in text.split(","))
    if not named or len(set(named)) < len(named) or named[0] < 1 or named[-1] > num_stages:
        raise UserError(
            f"config.model.routed_stages is {text!r}; this backbone has the stages 1 to {num_stages}: "
            'use "all", "last", "last2" (the last two), or numbers such as "3,4", each once.'
        )
    return None if len(named) == num_stages else tuple(named)


def build_model(
    config: "ConfigDict", num_classes: int, image_size: int, routed: bool, axis_name: str | None = None
) -> RMN:
    """The network of a configuration (see ``rmn_jax.config``).

    Args:
      config: complete.
      num_classes: K.
      image_size: height and width of the images, in pixels.
      routed: False builds the plain backbone.
      axis_name: mesh axis of the global batch, for use inside ``shard_map``; or None.

    Raises:
      UserError: see ``create_backbone`` and ``parse_stages``.
    """
    backbone = create_backbone(config.model.backbone, num_classes, image_size, **backbone_options(config))
    return RMN(
        backbone,
        num_units=config.model.num_units,
        routed=routed,
        attention=config.model.attention,
        axis_name=axis_name,
        dtype=compute_dtype(config),
        backend=config.model.backend,
        router=config.model.router,
        metric=config.model.metric,
        routed_stages=parse_stages(config.model.routed_stages, len(backbone.stages)),
        statistics=config.model.statistics,
    )


def compute_dtype(config: "ConfigDict"):
    """The compute type of convolutions: as configured; "auto" is bfloat16 on accelerators and float32 on CPU."""
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)


def initialise(model: nn.Module, key: jax.Array, images: jax.Array, **arguments: Any) -> dict[str, Any]:
    """``model.init(key, images, **arguments)`` as one compiled program.

    On CPU it is compiled without optimisation: it runs once, and to optimise one random generator for each leaf takes
    far longer than to draw the numbers. Not for use inside another transformation; call ``model.init`` there.

    Args:
      model: a network.
      key: random key.
      images: [B, H, W, 3]; only their shape counts.
      **arguments: further arguments of ``model.init``.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(model.init, compiler_options=options)(key, images, **arguments)
