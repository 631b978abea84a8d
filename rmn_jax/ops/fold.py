"""Convolution with folded kernels: transformed once, for inference on CPU.

The kernels of a trained network do not change, so what a convolution does to its kernel can be done once. The forms:

    direct    unchanged, through ``ops.conv`` and ``ops.routed_conv``
    im2col    ``Y^T = K^T P^T`` with the patches P, and K^T [O, kh kw C] stored by rows: for few pixels and a large
              kernel, where the cost is to read the kernel, and to transpose it would double that cost
    winograd  3x3 with stride 1: F(2, 3) along the width, four products for two outputs instead of six

F(2, 3) only adds and halves, so it rounds like the direct form (the tests say how nearly); Winograd forms for larger
tiles save more products but round worse. ``rmn_jax.ops.winograd`` applies it along both axes, for training. Here the
16 arrays of that form cost more to pass and to read than the products that it saves.

Axes: B batch, N units, H W height and width, C channels in, O channels out (see ``rmn_jax``).
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.ops import im2col, loop
from rmn_jax.ops.window import Window, subsampled
from rmn_jax.routing.layout import Sorted, single_group

FORMS = ("direct", "im2col", "winograd")


def fold_kernel(kernel: jax.Array, form: str) -> jax.Array:
    """[..., kh, kw, C, O] -> the kernel in ``form``; leading axes (the units') stay.

    Returns:
      "direct": unchanged; "im2col": [..., O, kh kw C]; "winograd": [..., 4, C, 3 O].
    """
    if form == "direct":
        return kernel
    *lead, height, width, channels, outputs = kernel.shape
    if form == "im2col":
        return jnp.swapaxes(kernel.reshape(*lead, height * width * channels, outputs), -1, -2)
    left, middle, right = kernel[..., :, 0, :, :], kernel[..., :, 1, :, :], kernel[..., :, 2, :, :]
    taps = (left, (left + middle + right) / 2, (left - middle + right) / 2, right)
    rows = jnp.stack([jnp.moveaxis(tap, -3, -2) for tap in taps], axis=-4)  # [..., 4, C, 3, O]
    return rows.reshape(*lead, 4, channels, 3 * outputs)


def folded_conv(x: jax.Array, kernel: jax.Array, form: str, window: Window, layout: Sorted | None = None) -> jax.Array:
    """``ops.conv`` or, with a layout, ``ops.routed_conv``, with a folded kernel.

    Args:
      x: [B, H, W, C], sorted by unit where there is a layout.
      kernel: from ``fold_kernel``; with a layout it has a leading axis N.
      form: "im2col" or "winograd", see ``rmn_jax.ops.choose.folded_form``.
      window: of the convolution.
      layout: the stage's layout, or None.

    Returns:
      [B, OH, OW, O].

    Raises:
      ValueError: the form is "direct" or unknown, or is "im2col" with a layout and several inputs.
      AssertionError: x is not a feature map [B, H, W, C].
    """
    chex.assert_rank(x, 4)
    if form not in ("im2col", "winograd"):
        raise ValueError(f"unknown or direct form {form!r}; use ops.conv or ops.routed_conv")
    if layout is not None and x.shape[0] == 1:  # a routed batch of one: the kernel of its unit
        kernel, layout = kernel[layout.unit[0]], None
    if form == "im2col":
        if layout is not None:
            raise ValueError("the form 'im2col' has one kernel, a routed batch has several")
        return _im2col(x, kernel, window)
    if x.shape[0] == 1:
        return _winograd(x, kernel)
    if layout is None:
        return loop.map_tiles(x, kernel[None], single_group(x.shape[0]), _winograd)
    return loop.map_tiles(x, kernel, layout, _winograd)


def _im2col(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    x, window = subsampled(x, window)
    size = im2col.output_size(x, window)
    columns = lax.dot_general(kernel, im2col.patches(x, window, size), (((1,), (1,)), ((), ())))
    return columns.T.reshape(x.shape[0], *size, kernel.shape[0])


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] with [4, C, 3 O] -> [B, H, W, O].

    Outputs (r, 2t) and (r, 2t + 1) see the padded pixels d0 .. d3 from column 2t on, in rows r, r + 1 and r + 2. One
    product for each combination of columns takes all three kernel rows at once; the results are added with a shift.
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
