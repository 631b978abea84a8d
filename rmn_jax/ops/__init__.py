"""The routed primitives on batches sorted by unit: the one home of hand-written performance code."""

from rmn_jax.ops.conv import conv, routed_conv
from rmn_jax.ops.norm import batch_moments, normalize

__all__ = ["batch_moments", "conv", "normalize", "routed_conv"]
