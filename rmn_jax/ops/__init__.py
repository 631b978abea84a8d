"""The routed primitives on batches sorted by unit or laid out in tiles: the home of hand-written performance code."""

from rmn_jax.ops.conv import BACKENDS, conv, default_backend, routed_conv
from rmn_jax.ops.depthwise import depthwise, routed_depthwise
from rmn_jax.ops.norm import affine, batch_moments, normalize, scale_and_shift
from rmn_jax.ops.prepared import choose_form, prepare, prepared_conv
from rmn_jax.ops.window import Window

__all__ = [
    "BACKENDS",
    "Window",
    "affine",
    "batch_moments",
    "choose_form",
    "conv",
    "default_backend",
    "depthwise",
    "normalize",
    "prepare",
    "prepared_conv",
    "routed_conv",
    "routed_depthwise",
    "scale_and_shift",
]
