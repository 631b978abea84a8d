"""The backbones whose weights can be imported. The names of their layers are with the backbones."""

from rmn_jax.errors import UserError
from rmn_jax.models import BACKBONES, create_backbone
from rmn_jax.models.names import LibraryNames

# Normalisation of the images that published weights of both libraries were trained on: of each channel in 0..1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def importable() -> list[str]:
    """The backbones that have names in torchvision and timm, sorted."""
    return sorted(name for name in BACKBONES if _names(name) is not None)


def library_names(backbone: str, reason: str = "no weights can be imported for {!r}") -> LibraryNames:
    """The names of a backbone's layers in torchvision and timm.

    Args:
      backbone: its name in ``BACKBONES``.
      reason: the beginning of the error; ``{!r}`` is the backbone.

    Raises:
      UserError: no such backbone, or one that the libraries do not have.
    """
    names = _names(backbone) if backbone in BACKBONES else None
    if names is None:
        raise UserError(f"{reason.format(backbone)}; known: {', '.join(importable())}.")
    return names


def _names(backbone: str) -> LibraryNames | None:
    return create_backbone(backbone, 2, 224).names  # they depend neither on the classes nor on the size
