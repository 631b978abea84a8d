"""Convolution with one kernel, and its gradients, as single XLA operations that fit into a loop body.

Axes: B batch, H W height and width, C channels in, O channels out (see ``rmn_jax``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Window(NamedTuple):
    """Geometry of a convolution, in pixels.

    Attributes:
      height: of the kernel.
      width: of the kernel.
      strides: in both directions.
      padding: zeros as ((top, bottom), (left, right)).
    """

    height: int
    width: int
    strides: int
    padding: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def make(cls, height: int, width: int, strides: int, padding: int | None) -> "Window":
        """A window with the same padding on all sides, half the kernel if ``padding`` is None."""
        vertical, horizontal = (height // 2, width // 2) if padding is None else (padding, padding)
        return cls(height, width, strides, ((vertical, vertical), (horizontal, horizontal)))

    @property
    def pointwise(self) -> bool:
        """Whether it is a 1x1 kernel on every pixel: a matrix product over pixels."""
        return (self.height, self.width, self.strides, self.padding) == (1, 1, 1, ((0, 0), (0, 0)))


def subsampled(x: jax.Array, window: Window) -> tuple[jax.Array, Window]:
    """A strided 1x1 convolution reads every ``strides``-th pixel: takes those pixels, and leaves a pointwise window."""
    unpadded_point = window.height == window.width == 1 and window.padding == ((0, 0), (0, 0))
    if not unpadded_point or window.strides == 1:
        return x, window
    return x[:, :: window.strides, :: window.strides], window._replace(strides=1)


def convolve(x: jax.Array, kernel: jax.Array, window: Window, groups: int = 1) -> jax.Array:
    """[B, H, W, C] with [kh, kw, C / groups, O] -> [B, OH, OW, O], with the channels in ``groups``."""
    if window.pointwise and groups == 1:
        return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0])
    strides = (window.strides, window.strides)
    return lax.conv_general_dilated(
        x, kernel, strides, window.padding, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


def input_gradient(dy: jax.Array, kernel: jax.Array, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, O] with [kh, kw, C, O] -> [B, H, W, C], where ``shape`` is the input's.

    JAX's own transpose. XLA:GPU maps it to cuDNN's backward convolution, inside a loop body too.
    """
    x = jax.ShapeDtypeStruct(shape, dy.dtype)
    return jax.linear_transpose(lambda x: convolve(x, kernel, window), x)(dy)[0]


def kernel_gradient(x: jax.Array, dy: jax.Array, window: Window) -> jax.Array:
    """[B, H, W, C] with [B, OH, OW, O] -> [kh, kw, C, O] in x's dtype; see ``input_gradient``."""
    kernel = jax.ShapeDtypeStruct((window.height, window.width, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: convolve(x, kernel, window), kernel)(dy)[0]
