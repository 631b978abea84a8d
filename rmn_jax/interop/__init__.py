"""Pretrained weights of torchvision and timm."""

from rmn_jax.interop.torch_weights import ImportReport, load_torch_weights

__all__ = ["ImportReport", "load_torch_weights"]
