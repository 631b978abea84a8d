"""The routed primitives on batches sorted by unit: the one home of hand-written performance code."""

from rmn_jax.ops.conv import BACKENDS, conv, routed_conv
from rmn_jax.ops.depthwise import depthwise, routed_depthwise
from rmn_jax.ops.norm import batch_moments, normalize

__all__ = ["BACKENDS", "batch_moments", "conv", "depthwise", "normalize", "routed_conv", "routed_depthwise"]
