"""One kernel's convolution and its gradients, as single XLA operations that fit into a loop body.

Axes: B inputs, H W, C channels in, O channels out (see ``rmn_jax``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Window(NamedTuple):
    """A square-strided window: kernel ``height`` and ``width``, ``strides``, and ``padding`` by side, in pixels."""

    height: int
    width: int
    strides: int
    padding: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def make(cls, height: int, width: int, strides: int, padding: int | None) -> "Window":
        """A window whose sides are padded alike, by half the kernel where ``padding`` is None."""
        vertical, horizontal = (height // 2, width // 2) if padding is None else (padding, padding)
        return cls(height, width, strides, ((vertical, vertical), (horizontal, horizontal)))

    @property
    def pointwise(self) -> bool:
        """True for a 1x1 kernel on every pixel: a matrix product over rows of pixels."""
        return (self.height, self.width, self.strides, self.padding) == (1, 1, 1, ((0, 0), (0, 0)))


def subsampled(x: jax.Array, window: Window) -> tuple[jax.Array, Window]:
    """A strided 1x1 convolution reads one pixel in ``strides``: take those, and the rest is pointwise."""
    unpadded_point = window.height == window.width == 1 and window.padding == ((0, 0), (0, 0))
    if not unpadded_point or window.strides == 1:
        return x, window
    return x[:, :: window.strides, :: window.strides], window._replace(strides=1)


def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """[B, H, W, C] with [kh, kw, C, O] -> [B, OH, OW, O]."""
    if window.pointwise:
        return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0])
    strides = (window.strides, window.strides)
    return lax.conv_general_dilated(x, kernel, strides, window.padding, dimension_numbers=_LAYOUT)


def flipped(kernel: jax.Array) -> jax.Array:
    """The kernel of the input gradient: [..., kh, kw, C, O] -> [..., kh, kw, O, C], turned by 180 degrees."""
    return jnp.swapaxes(jnp.flip(kernel, (-4, -3)), -1, -2)


def convolve_flipped(dy: jax.Array, kernel: jax.Array, window: Window, size: tuple[int, ...]) -> jax.Array:
    """Input gradient with an already ``flipped`` kernel [kh, kw, O, C]; ``size`` is the input's (H, W)."""
    if window.pointwise:
        return jnp.einsum("bhwo,oc->bhwc", dy, kernel[0, 0])
    sides = []
    for length, reach, out, (low, _) in zip(
        size, (window.height, window.width), dy.shape[1:3], window.padding, strict=True
    ):
        spread = (out - 1) * window.strides + 1
        before = reach - 1 - low
        sides.append((before, length + reach - 1 - spread - before))
    dilation = (window.strides, window.strides)
    return lax.conv_general_dilated(dy, kernel, (1, 1), sides, lhs_dilation=dilation, dimension_numbers=_LAYOUT)


def input_gradient(dy: jax.Array, kernel: jax.Array, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] with [kh, kw, C, O] -> [B, H, W, C], where ``shape`` is the input's."""
    return convolve_flipped(dy, flipped(kernel), window, shape[1:3])


def kernel_gradient(x: jax.Array, dy: jax.Array, window: Window) -> jax.Array:
    """[B, H, W, C] with [B, OH, OW, O] -> [kh, kw, C, O] in float32: one matrix product a tap.

    XLA:CPU does not bring the convolution that autodiff writes here into its fast form inside a loop, and is
    slow at it outside; products of shifted views are fast everywhere.
    """
    batch, out_height, out_width, out_channels = dy.shape
    step = window.strides
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    rows = dy.reshape(-1, out_channels)
    taps = []
    for i in range(window.height):
        for j in range(window.width):
            view = padded[:, i : i + (out_height - 1) * step + 1 : step, j : j + (out_width - 1) * step + 1 : step]
            view = view.reshape(-1, x.shape[-1])
            taps.append(lax.dot_general(view, rows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32))
    return jnp.stack(taps).reshape(window.height, window.width, x.shape[-1], out_channels)
