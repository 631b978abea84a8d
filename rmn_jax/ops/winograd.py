"""Winograd's F(2x2, 3x3): the 3x3 convolution of stride 1 and its gradients, with 4 products for 9 of the direct form.

The image is split into squares of 2 x 2 outputs. Each square sees 4 x 4 padded pixels. Along either axis, two outputs
y0, y1 of four pixels d0 .. d3 under three taps g0 .. g2 take four products instead of six:

    m0 = (d0 - d2) g0    m1 = (d1 + d2) (g0 + g1 + g2) / 2    m2 = (d2 - d1) (g0 - g1 + g2) / 2    m3 = (d1 - d3) g2
    y0 = m0 + m1 + m2,  y1 = m1 - m2 - m3

Both axes together make 16 products, each a matrix product over squares and channels. The kernel gradient is the
transpose of the same bilinear form. The form only adds and halves, so it rounds like the direct form (the tests say how
nearly). Forms for larger squares save more products but round worse.

Axes: B batch, H W height and width, C channels in, O channels out, 16 combinations (see ``rmn_jax``).
"""

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.ops.window import Window

# From this many input channels on, the sums cost little beside the products, as measured.
_MANY_CHANNELS = 32


def fits(window: Window, channels: int, dtype) -> bool:
    """Whether a convolution has this form and is faster in it: 3x3, stride 1, padding 1, float32, many channels."""
    square = (window.height, window.width, window.strides) == (3, 3, 1) and window.padding == ((1, 1), (1, 1))
    return square and channels >= _MANY_CHANNELS and dtype == jnp.float32


def combined_taps(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """[..., 3, 3, C, O] -> 16 x [..., C, O], the input of ``convolve``; leading axes (the units') stay.

    16 arrays, because each is one side of its own product; a slice of one larger array would be copied first.
    """

    def combine(g0, g1, g2):
        return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2

    lines = [combine(*(kernel[..., row, column, :, :] for row in range(3))) for column in range(3)]
    return tuple(taps for row in range(4) for taps in combine(*(line[row] for line in lines)))


def convolve(x: jax.Array, taps: tuple[jax.Array, ...]) -> jax.Array:
    """[B, H, W, C] with 16 x [C, O] -> [B, H, W, O]."""
    products = [jnp.matmul(pixels, tap) for pixels, tap in zip(_combined_pixels(x), taps, strict=True)]
    return _outputs(products, x.shape)


def input_gradient(dy: jax.Array, taps: tuple[jax.Array, ...]) -> jax.Array:
    """[B, H, W, O] with 16 x [C, O] of the kernel rotated by 180 degrees -> [B, H, W, C]."""
    products = [
        lax.dot_general(pixels, tap, (((1,), (1,)), ((), ())))
        for pixels, tap in zip(_combined_pixels(dy), taps, strict=True)
    ]
    return _outputs(products, dy.shape)


def _outputs(products: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """16 x [squares, O] -> [B, H, W, O], with B, H and W of ``shape``."""
    batch, height, width, _ = shape

    def combine(m0, m1, m2, m3):
        return m0 + m1 + m2, m1 - m2 - m3

    lines = zip(*(combine(*products[column::4]) for column in range(4)), strict=True)
    squares = jnp.stack([jnp.stack(combine(*line), axis=1) for line in lines], axis=1)  # [squares, 2, 2, O]
    down, across = -(-height // 2), -(-width // 2)
    squares = squares.reshape(batch, down, across, 2, 2, -1)
    return jnp.swapaxes(squares, 2, 3).reshape(batch, 2 * down, 2 * across, -1)[:, :height, :width]


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """[B, H, W, C] with [B, H, W, O] -> [3, 3, C, O]."""
    products = [
        lax.dot_general(pixels, outputs, (((0,), (0,)), ((), ())))
        for pixels, outputs in zip(_combined_pixels(x), _combined_outputs(dy), strict=True)
    ]

    def combine(m0, m1, m2, m3):
        return m0 + (m1 + m2) / 2, (m1 - m2) / 2, (m1 + m2) / 2 + m3

    rows = combine(*(jnp.stack(combine(*products[4 * row : 4 * row + 4])) for row in range(4)))
    return jnp.stack(rows)


def _combined_pixels(x: jax.Array) -> list[jax.Array]:
    """[B, H, W, C] -> 16 x [squares, C]."""
    batch, height, width, channels = x.shape
    down, across = -(-height // 2), -(-width // 2)
    padded = jnp.pad(x, ((0, 0), (1, 1 + 2 * down - height), (1, 1 + 2 * across - width), (0, 0)))
    padded = padded.reshape(batch, down + 1, 2, across + 1, 2, channels)

    def combine(d0, d1, d2, d3):
        return d0 - d2, d1 + d2, d2 - d1, d1 - d3

    rows = combine(padded[:, :-1, 0], padded[:, :-1, 1], padded[:, 1:, 0], padded[:, 1:, 1])
    return [
        both.reshape(-1, channels)
        for row in rows
        for both in combine(row[:, :, :-1, 0], row[:, :, :-1, 1], row[:, :, 1:, 0], row[:, :, 1:, 1])
    ]


def _combined_outputs(dy: jax.Array) -> list[jax.Array]:
    """[B, H, W, O] -> 16 x [squares, O]."""
    batch, height, width, channels = dy.shape
    dy = jnp.pad(dy, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    dy = dy.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels)

    def combine(y0, y1):
        return y0, y0 + y1, y0 - y1, -y1

    rows = combine(dy[:, :, 0], dy[:, :, 1])
    return [both.reshape(-1, channels) for row in rows for both in combine(row[:, :, :, 0], row[:, :, :, 1])]
