"""Weights in and out: torchvision, timm, other runs, and safetensors files of this package."""

from rmn_jax.interop.torch_weights import ImportReport, load_torch_weights

__all__ = ["ImportReport", "load_torch_weights"]
