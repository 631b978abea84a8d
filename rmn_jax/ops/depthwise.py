"""Depthwise convolution as a sum of shifted products, plain and with one kernel for each unit.

    y[b, h, w, c] = sum over taps (i, j) of x[b, s h + i - p, s w + j - p, c] k[b, i, j, c]

A tap multiplies each channel by one number, so one kernel for each row costs no more than a shared one. For sorted
rows, routed and plain are therefore the same function; the plain one has a kernel of one row. XLA:CPU's grouped
convolution is many times slower than these products (``docs/backbones.md`` has figures). On other platforms the plain
layer is the grouped convolution: it reads its input once; the gradient of the shifted products would read it about
once per two taps. A routed layer in tiles is a plain layer with more channels.

Axes: B batch, N units, H W height and width, C channels (see ``rmn_jax``).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.ops.conv import check_routed
from rmn_jax.ops.norm import take_unit
from rmn_jax.ops.window import Window, convolve
from rmn_jax.routing.layout import Slots, Sorted, Tiles, merge_tiles


def depthwise(x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int | None = None) -> jax.Array:
    """The plain depthwise convolution.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, 1, C].
      strides: in both directions, in pixels.
      padding: zeros on every side, in pixels; None means ``kh // 2``.

    Returns:
      [B, OH, OW, C] in x's dtype; products are summed in float32.

    Raises:
      ValueError: shapes that do not fit.
    """
    if kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(f"kernel {kernel.shape} does not fit x {x.shape}; want [kh, kw, 1, C]")
    window = Window.make(kernel.shape[0], kernel.shape[1], strides, padding)
    if jax.default_backend() == "cpu":
        return _taps(window, x, kernel[None, :, :, 0])
    return convolve(x, kernel, window, groups=x.shape[-1])


def routed_depthwise(
    x: jax.Array, kernel: jax.Array, layout: Sorted | Tiles | Slots, *, strides: int = 1, padding: int | None = None
) -> jax.Array:
    """Depthwise convolution of each row with the kernel of its unit.

    Args:
      x: [B, H, W, C] sorted by unit, [L, H, W, V, C] in tiles, or [H, W, R, C] in slots.
      kernel: [N, kh, kw, 1, C].
      layout: the stage's layout.
      strides: as in ``depthwise``.
      padding: as in ``depthwise``.

    Returns:
      [B, OH, OW, C], [L, OH, OW, V, C] or [OH, OW, R, C] in x's dtype, in the layout of x.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_routed(x, kernel, layout, (1, x.shape[-1]))
    rows = take_unit(kernel.reshape(layout.num_units, -1), layout)
    rows = rows.reshape(-1, *kernel.shape[1:3], x.shape[-1])
    window = Window.make(kernel.shape[1], kernel.shape[2], strides, padding)
    if isinstance(layout, Slots):
        # Slots side by side are one image of R C channels. The library's grouped convolution would have R C groups.
        wide = jnp.moveaxis(rows, 0, 2).reshape(1, *kernel.shape[1:3], -1)
        y = _taps(window, x.reshape(1, *x.shape[:2], -1), wide)[0]
        return y.reshape(*y.shape[:2], *x.shape[2:])
    if not isinstance(layout, Tiles):
        return _taps(window, x, rows)
    # Tiles side by side are one plain layer of V C channels.
    wide = jnp.moveaxis(rows, 0, 2).reshape(*kernel.shape[1:3], 1, -1)
    y = depthwise(merge_tiles(x), wide, strides=strides, padding=padding)
    return y.reshape(*y.shape[:3], *x.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _taps(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Images [B, H, W, C] and kernels [B or 1, kh, kw, C] -> [B, OH, OW, C]."""
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0))).astype(jnp.float32)
    height = (padded.shape[1] - window.height) // window.strides + 1
    width = (padded.shape[2] - window.width) // window.strides + 1
    total = jnp.zeros((x.shape[0], height, width, x.shape[-1]), jnp.float32)
    for i, j in _each(window):
        view = _view(padded, (i, j), (height, width), window.strides)
        total = total + view * kernel[:, None, None, i, j].astype(jnp.float32)
    return total.astype(x.dtype)


def _view(padded, tap: tuple[int, int], size: tuple[int, int], strides: int) -> jax.Array:
    """The pixels that a tap (i, j) sees: every ``strides``-th from (i, j) on, ``size`` = (OH, OW) of them."""
    (i, j), (height, width) = tap, size
    last_row, last_column = i + (height - 1) * strides + 1, j + (width - 1) * strides + 1
    return padded[:, i:last_row:strides, j:last_column:strides]


def _taps_forward(window, x, kernel):
    return _taps(window, x, kernel), (x, kernel)


def _taps_backward(window, residuals, cotangent):
    x, kernel = residuals
    dx = _input_gradient(window, cotangent, kernel, x.shape)
    return dx.astype(x.dtype), _kernel_gradient(window, x, cotangent, kernel)


def _input_gradient(window: Window, dy: jax.Array, kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, OH, OW, C] -> [B, H, W, C]: the same taps, rotated by 180 degrees, over the dilated cotangent."""
    sides = []
    for length, reach, out, (low, _) in zip(
        shape[1:3], (window.height, window.width), dy.shape[1:3], window.padding, strict=True
    ):
        spread = (out - 1) * window.strides + 1
        before = reach - 1 - low
        sides.append((before, length + reach - 1 - spread - before, window.strides - 1))
    spread_out = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
    turned = window._replace(strides=1, padding=((0, 0), (0, 0)))
    return _taps(turned, spread_out, jnp.flip(kernel, (1, 2)))


def _kernel_gradient(window: Window, x: jax.Array, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """A sum over pixels for each row and tap; rows that share a kernel [1, kh, kw, C] are then summed."""
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    if jax.default_backend() == "cpu":
        rows = lax.map(functools.partial(_taps_of_row, window), (padded, dy))
    else:
        wide, dy = padded.astype(jnp.float32), dy.astype(jnp.float32)
        taps = [
            jnp.sum(_view(wide, tap, (dy.shape[1], dy.shape[2]), window.strides) * dy, axis=(1, 2))
            for tap in _each(window)
        ]
        rows = jnp.stack(taps, axis=1)
    if kernel.shape[0] != x.shape[0]:
        rows = jnp.sum(rows, axis=0)
    return rows.reshape(kernel.shape).astype(kernel.dtype)


def _taps_of_row(window: Window, row: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Padded image [H, W, C] and cotangent [OH, OW, C] -> [kh kw, C] float32.

    XLA:CPU sums pixels one channel at a time, with a stride of C. A matrix product with ones sums all channels at
    once, and the products of one image stay in the cache: 7-8 times faster than the sum over the whole batch.
    """
    padded, dy = (side.astype(jnp.float32)[None] for side in row)
    height, width, channels = dy.shape[1:]
    ones = jnp.ones((height * width,), jnp.float32)
    return jnp.stack(
        [
            ones @ (_view(padded, tap, (height, width), window.strides) * dy).reshape(height * width, channels)
            for tap in _each(window)
        ]
    )


def _each(window: Window) -> list[tuple[int, int]]:
    return [(i, j) for i in range(window.height) for j in range(window.width)]


_taps.defvjp(_taps_forward, _taps_backward)
