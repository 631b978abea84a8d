"""Convolution with kernels brought into another form once, for inference on CPU.

A trained network's kernels do not change, so what a convolution does to its kernel can be done beforehand. The forms:

    direct    as it is, through ``ops.conv`` and ``ops.routed_conv``
    product   ``Y^T = K^T P^T`` with P the patches and K^T [O, kh kw C] laid out in rows: few pixels under a large
              kernel, where reading the kernel is the cost and turning it would double that
    minimal   3x3 with stride 1: Winograd's F(2x2, 3x3) (``rmn_jax.ops.minimal``)

Axes: B inputs, N units, H W, C channels in, O channels out (see ``rmn_jax``).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import RoutePlan
from rmn_jax.ops import loop, minimal, products
from rmn_jax.ops.conv import one_group
from rmn_jax.ops.window import Window, subsampled

FORMS = ("direct", "product", "minimal")
# Output pixels up to which one input's 3x3 convolution is faster as one product, by stride, as measured.
_FEW_PIXELS = {1: 64, 2: 256}
# Pixels of one input up to which the minimal form's sums stay in the cache.
_MANY_PIXELS = 2**14


def choose_form(shape: tuple[int, ...], window: Window, dtype=jnp.float32) -> str:
    """The fastest form we know on the current platform.

    Args:
      shape: of the input, [B, H, W, C].
      window: the convolution's.
      dtype: of input and kernel; only float32 has other forms than "direct".

    Returns:
      One of ``FORMS``.
    """
    batch, height, width, channels = shape
    if jax.default_backend() != "cpu" or dtype != jnp.float32:
        return "direct"
    square = (window.height, window.width, window.padding) == (3, 3, ((1, 1), (1, 1)))
    pixels = -(-height // window.strides) * -(-width // window.strides)
    if batch == 1 and (window.height == window.width == 1 or (square and pixels <= _FEW_PIXELS.get(window.strides, 0))):
        return "product"
    if minimal.fits(window, channels, dtype) and height * width <= _MANY_PIXELS:
        return "minimal"
    return "direct"


def prepare(kernel: jax.Array, form: str) -> Any:
    """[..., kh, kw, C, O] -> the form's kernel; leading axes (the units') stay.

    Returns:
      "direct": as it is; "product": [..., O, kh kw C]; "minimal": 16 x [..., C, O].
    """
    if form == "direct":
        return kernel
    *lead, height, width, channels, outputs = kernel.shape
    if form == "product":
        return jnp.swapaxes(kernel.reshape(*lead, height * width * channels, outputs), -1, -2)
    return minimal.combined_taps(kernel)


def prepared_conv(x: jax.Array, kernel: Any, form: str, window: Window, plan: RoutePlan | None = None) -> jax.Array:
    """The convolution of ``conv`` or, with a plan, of ``routed_conv``, from a kernel in another form than "direct".

    Args:
      x: [B, H, W, C], sorted by the plan where there is one.
      kernel: of ``prepare``; with a plan each array has a leading axis N.
      form: what ``choose_form`` said.
      window: the convolution's.
      plan: the stage's route plan, or None.

    Returns:
      [B, OH, OW, O].

    Raises:
      ValueError: the form is "direct" or unknown, or is "product" with a plan and several inputs.
    """
    if form not in ("product", "minimal"):
        raise ValueError(f"unknown or direct form {form!r}; use ops.conv or ops.routed_conv")
    if plan is not None and x.shape[0] == 1:  # a routed batch of one: its unit's kernel
        unit = plan.unit[0]
        kernel, plan = jax.tree.map(lambda leaf: leaf[unit], kernel), None
    if form == "product":
        if plan is not None:
            raise ValueError("one product takes one kernel, not a routed batch's")
        return _product(x, kernel, window)
    if x.shape[0] == 1:
        return minimal.convolve(x, kernel)
    if plan is None:
        return loop.map_tiles(x, jax.tree.map(lambda leaf: leaf[None], kernel), one_group(x.shape[0]), minimal.convolve)
    return loop.map_tiles(x, kernel, plan, minimal.convolve)


def _product(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    x, window = subsampled(x, window)
    size = products.output_size(x, window)
    columns = lax.dot_general(kernel, products.patches(x, window, size), (((1,), (1,)), ((), ())))
    return columns.T.reshape(x.shape[0], *size, kernel.shape[0])
