"""Weights that others trained, brought into a network of this package."""

from rmn_jax.interop.torch_weights import ImportReport, load_torch_weights

__all__ = ["ImportReport", "load_torch_weights"]
