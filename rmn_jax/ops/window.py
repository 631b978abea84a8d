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


def convolve(x: jax.Array, kernel: jax.Array, window: Window, groups: int = 1) -> jax.Array:
    """[B, H, W, C] with [kh, kw, C / groups, O] -> [B, OH, OW, O]; channels in and out are in so many groups."""
    if window.pointwise and groups == 1:
        return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0])
    strides = (window.strides, window.strides)
    return lax.conv_general_dilated(
        x, kernel, strides, window.padding, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


def input_gradient(dy: jax.Array, kernel: jax.Array, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] with [kh, kw, C, O] -> [B, H, W, C], where ``shape`` is the input's.

    The transpose as JAX writes it: what XLA:GPU hands to cuDNN's backward convolution, in a loop's body too.
    """
    x = jax.ShapeDtypeStruct(shape, dy.dtype)
    return jax.linear_transpose(lambda x: convolve(x, kernel, window), x)(dy)[0]


def kernel_gradient(x: jax.Array, dy: jax.Array, window: Window) -> jax.Array:
    """[B, H, W, C] with [B, OH, OW, O] -> [kh, kw, C, O] in x's dtype; see ``input_gradient``."""
    kernel = jax.ShapeDtypeStruct((window.height, window.width, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: convolve(x, kernel, window), kernel)(dy)[0]
