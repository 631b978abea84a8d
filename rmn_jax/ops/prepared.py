"""Convolution with kernels brought into another form once, for inference on CPU.

A trained network's kernels do not change, so what a convolution does to its kernel can be done beforehand. The forms:

    direct    as it is, through ``ops.conv`` and ``ops.routed_conv``
    product   ``Y^T = K^T P^T`` with P the patches and K^T [O, kh kw C] laid out in rows: few pixels under a large
              kernel, where reading the kernel is the cost and turning it would double that
    minimal   3x3 with stride 1: Winograd's F(2, 3) along the width, four products for two outputs instead of six

F(2, 3) only adds and halves, so its rounding is that of the direct form (the tests say how near); the forms that spare
more products do not have that. ``rmn_jax.ops.minimal`` does it along both axes, for training. Here its 16 arrays a
layer cost more to hand over, and to read when another unit's are in the cache, than the products that it spares.

Axes: B inputs, N units, H W, C channels in, O channels out (see ``rmn_jax``).
"""

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import RoutePlan
from rmn_jax.ops import loop, products
from rmn_jax.ops.conv import one_group
from rmn_jax.ops.window import Window, subsampled

FORMS = ("direct", "product", "minimal")
# Output pixels up to which one input's 3x3 convolution is faster as one product, by stride, as measured.
_FEW_PIXELS = {1: 64, 2: 256}
# Channels in from which the minimal form's sums are small beside its products.
_MANY_CHANNELS = 16


def choose_form(shape: tuple[int, ...], window: Window, dtype=jnp.float32) -> str:
    """The fastest form we know on the current platform.

    Args:
      shape: of the input, [B, H, W, C]; off the CPU also [L, H, W, V, C].
      window: the convolution's.
      dtype: of input and kernel; only float32 has other forms than "direct".

    Returns:
      One of ``FORMS``.
    """
    if jax.default_backend() != "cpu" or dtype != jnp.float32:
        return "direct"
    batch, height, width, channels = shape
    square = (window.height, window.width, window.padding) == (3, 3, ((1, 1), (1, 1)))
    pixels = -(-height // window.strides) * -(-width // window.strides)
    if batch == 1 and (window.height == window.width == 1 or (square and pixels <= _FEW_PIXELS.get(window.strides, 0))):
        return "product"
    if square and window.strides == 1 and channels >= _MANY_CHANNELS:
        return "minimal"
    return "direct"


def prepare(kernel: jax.Array, form: str) -> jax.Array:
    """[..., kh, kw, C, O] -> the form's kernel; leading axes (the units') stay.

    Returns:
      "direct": as it is; "product": [..., O, kh kw C]; "minimal": [..., 4, C, 3 O].
    """
    if form == "direct":
        return kernel
    *lead, height, width, channels, outputs = kernel.shape
    if form == "product":
        return jnp.swapaxes(kernel.reshape(*lead, height * width * channels, outputs), -1, -2)
    left, middle, right = kernel[..., :, 0, :, :], kernel[..., :, 1, :, :], kernel[..., :, 2, :, :]
    taps = (left, (left + middle + right) / 2, (left - middle + right) / 2, right)
    rows = jnp.stack([jnp.moveaxis(tap, -3, -2) for tap in taps], axis=-4)  # [..., 4, C, 3, O]
    return rows.reshape(*lead, 4, channels, 3 * outputs)


def prepared_conv(
    x: jax.Array, kernel: jax.Array, form: str, window: Window, plan: RoutePlan | None = None
) -> jax.Array:
    """The convolution of ``conv`` or, with a plan, of ``routed_conv``, from a kernel in another form than "direct".

    Args:
      x: [B, H, W, C], sorted by the plan where there is one.
      kernel: of ``prepare``; with a plan it has a leading axis N.
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
        kernel, plan = kernel[plan.unit[0]], None
    if form == "product":
        if plan is not None:
            raise ValueError("one product takes one kernel, not a routed batch's")
        return _product(x, kernel, window)
    if x.shape[0] == 1:
        return _minimal(x, kernel)
    if plan is None:
        return loop.map_tiles(x, kernel[None], one_group(x.shape[0]), _minimal)
    return loop.map_tiles(x, kernel, plan, _minimal)


def _product(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    x, window = subsampled(x, window)
    size = products.output_size(x, window)
    columns = lax.dot_general(kernel, products.patches(x, window, size), (((1,), (1,)), ((), ())))
    return columns.T.reshape(x.shape[0], *size, kernel.shape[0])


def _minimal(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] with [4, C, 3 O] -> [B, H, W, O].

    Outputs (r, 2t) and (r, 2t + 1) see the padded pixels d0 .. d3 from column 2t on, in rows r, r + 1 and r + 2. One
    product a combination of columns takes all three kernel rows at once; they are added up shifted.
    """
    batch, height, width, channels = x.shape
    pairs = -(-width // 2)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1 + 2 * pairs - width), (0, 0)))
    padded = padded.reshape(batch, height + 2, pairs + 1, 2, channels)
    d0, d1, d2, d3 = padded[:, :, :-1, 0], padded[:, :, :-1, 1], padded[:, :, 1:, 0], padded[:, :, 1:, 1]
    combined = jnp.stack([d0 - d2, d1 + d2, d2 - d1, d1 - d3]).reshape(4, -1, channels)
    parts = lax.dot_general(combined, kernel, (((2,), (1,)), ((0,), (0,))))
    parts = parts.reshape(4, batch, height + 2, pairs, 3, -1)
    sums = parts[:, :, :height, :, 0] + parts[:, :, 1:-1, :, 1] + parts[:, :, 2:, :, 2]
    even, odd = sums[0] + sums[1] + sums[2], sums[1] - sums[2] - sums[3]
    return jnp.stack([even, odd], axis=3).reshape(batch, height, 2 * pairs, -1)[:, :, :width]
