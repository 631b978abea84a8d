"""Backbones by name, and the network that routes them."""

import difflib
from collections.abc import Callable

from rmn_jax.errors import UserError
from rmn_jax.models.efficientnet import efficientnet_b0
from rmn_jax.models.initial import initialise
from rmn_jax.models.resnet import resnet8, resnet10, resnet18, resnet50
from rmn_jax.models.rmn import ATTENTIONS, RMN, Backbone, Outputs
from rmn_jax.models.routers import ROUTERS
from rmn_jax.models.vgg import vgg16_bn

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet8": resnet8,
    "resnet10": resnet10,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16_bn": vgg16_bn,
    "efficientnet_b0": efficientnet_b0,
}


def create_backbone(name: str, num_classes: int, image_size: int, small_stem: str = "7x7", width: int = 0) -> Backbone:
    """The backbone of that name, shaped for square images of ``image_size`` pixels.

    Args:
      name: a key of ``BACKBONES``.
      num_classes: K.
      image_size: 64 or less drops the first two downsamplings.
      small_stem: "7x7" (the paper's multiply-adds) or "3x3", for small images.
      width: channels of a ResNet's first stage, which double from stage to stage; 0 is the published width.

    Raises:
      UserError: unknown name or stem, or a width for a backbone that has none.
    """
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"unknown backbone {name!r}{hint} Known: {', '.join(sorted(BACKBONES))}.")
    if small_stem not in ("7x7", "3x3"):
        raise UserError(f"unknown model.small_stem {small_stem!r}; use '7x7' or '3x3'.")
    if not width:
        return BACKBONES[name](num_classes, image_size, small_stem)
    if not name.startswith("resnet") or width < 0:
        raise UserError(f"model.width is {width} for {name}; it is for ResNets, and 1 or more (0: as published).")
    return BACKBONES[name](num_classes, image_size, small_stem, width)


__all__ = ["ATTENTIONS", "BACKBONES", "RMN", "ROUTERS", "Backbone", "Outputs", "create_backbone", "initialise"]
