"""Routed primitives on batches sorted by unit or laid out in tiles. All hand-written performance code is here."""

from rmn_jax.ops.choose import BACKENDS, backend_name, folded_form, wants_slots, wants_tiles
from rmn_jax.ops.conv import conv, routed_conv
from rmn_jax.ops.depthwise import depthwise, routed_depthwise
from rmn_jax.ops.fold import fold_kernel, folded_conv
from rmn_jax.ops.norm import (
    STATISTICS,
    affine,
    batch_moments,
    layer_norm,
    normalize,
    scale_and_shift,
    scale_rows,
    take_unit,
)
from rmn_jax.ops.window import Window

__all__ = [
    "BACKENDS",
    "STATISTICS",
    "Window",
    "affine",
    "backend_name",
    "batch_moments",
    "conv",
    "depthwise",
    "fold_kernel",
    "folded_conv",
    "folded_form",
    "layer_norm",
    "normalize",
    "routed_conv",
    "routed_depthwise",
    "scale_and_shift",
    "scale_rows",
    "take_unit",
    "wants_slots",
    "wants_tiles",
]
