"""Convolution with one kernel and both gradients, each one matrix product over the patches of a tile (im2col).

With P the patches of a tile (one row for each output pixel, one column for each tap and channel): ``Y = P K``,
``dK = P^T dY``, and ``dX`` adds ``dY K^T`` back to the pixels it came from. On XLA:CPU this is as fast as its own
convolution or faster. It stays fast inside a loop and for a kernel that changes from tile to tile. XLA's own does not:
its convolution packs and transposes the kernel each time, and its kernel gradient is only fast at top level.

Axes: B inputs of a tile, H W height and width, C channels in, O channels out (see ``rmn_jax``).
"""

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.ops.window import Window

# From this many values (kh kw C O) on, a kernel is slow to pack for a product and to transpose.
LARGE_KERNEL = 2**17


def patches(x: jax.Array, window: Window, size: tuple[int, int]) -> jax.Array:
    """[B, H, W, C] -> [B * OH * OW, kh * kw * C] for outputs of ``size`` (OH, OW)."""
    if window.pointwise:
        return x.reshape(-1, x.shape[-1])
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    (out_height, out_width), strides = size, window.strides
    views = [
        padded[:, i : i + (out_height - 1) * strides + 1 : strides, j : j + (out_width - 1) * strides + 1 : strides]
        for i in range(window.height)
        for j in range(window.width)
    ]
    return jnp.concatenate(views, axis=-1).reshape(x.shape[0] * out_height * out_width, -1)


def output_size(x: jax.Array, window: Window) -> tuple[int, int]:
    """(OH, OW) of an input [B, H, W, C]."""
    reaches = (window.height, window.width)
    height, width = (
        (length + low + high - reach) // window.strides + 1
        for length, reach, (low, high) in zip(x.shape[1:3], reaches, window.padding, strict=True)
    )
    return height, width


def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """[B, H, W, C] with [kh, kw, C, O] -> [B, OH, OW, O]."""
    size = output_size(x, window)
    rows = jnp.matmul(patches(x, window, size), kernel.reshape(-1, kernel.shape[-1]))
    return rows.reshape(x.shape[0], *size, kernel.shape[-1])


def kernel_gradient(x: jax.Array, dy: jax.Array, window: Window) -> jax.Array:
    """[B, H, W, C] with [B, OH, OW, O] -> [kh, kw, C, O] in float32."""
    views, rows = patches(x, window, (dy.shape[1], dy.shape[2])), dy.reshape(-1, dy.shape[-1])
    # The product is fastest with its larger side on the right, but a large kernel is slow to transpose afterwards.
    transposed = rows.shape[1] < views.shape[1] and rows.shape[1] * views.shape[1] < LARGE_KERNEL
    left, right = (rows, views) if transposed else (views, rows)
    product = lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return (product.T if transposed else product).reshape(window.height, window.width, x.shape[-1], dy.shape[-1])


def input_gradient(dy: jax.Array, kernel: jax.Array, window: Window, size: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] with [kh, kw, C, O] -> [B, H, W, C], where ``size`` is the input's (H, W)."""
    batch, out_height, out_width, out_channels = dy.shape
    taps = kernel.reshape(-1, out_channels)
    columns = lax.dot_general(dy.reshape(-1, out_channels), taps, (((1,), (1,)), ((), ())))
    columns = columns.reshape(batch, out_height, out_width, window.height, window.width, -1)
    if window.pointwise:
        return columns[:, :, :, 0, 0]
    zero = jnp.zeros((), dy.dtype)
    sides = [low + length + high for length, (low, high) in zip(size, window.padding, strict=True)]
    spread = [(out - 1) * window.strides + 1 for out in (out_height, out_width)]
    between = window.strides - 1
    total = jnp.zeros((batch, *sides, columns.shape[-1]), dy.dtype)
    for i in range(window.height):
        for j in range(window.width):
            # At this tap, output pixel (r, c) sees padded input pixel (r * strides + i, c * strides + j).
            vertical, horizontal = (i, sides[0] - spread[0] - i, between), (j, sides[1] - spread[1] - j, between)
            part = lax.pad(columns[:, :, :, i, j], zero, ((0, 0, 0), vertical, horizontal, (0, 0, 0)))
            total = total + part
    (top, _), (left, _) = window.padding
    return total[:, top : top + size[0], left : left + size[1]]
