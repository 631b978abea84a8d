"""Depthwise convolution as a sum of shifted products, plain and with one kernel a unit.

    y[b, h, w, c] = sum over taps (i, j) of x[b, s h + i - p, s w + j - p, c] k[b, i, j, c]

A tap multiplies each channel by one number, so a row's own kernel costs no more than a shared one: for sorted rows
routed and plain are the same function, the plain one with a kernel of one row. XLA:CPU is many times slower at its
grouped convolution than at these products (``docs/backbones.md`` has figures). On other platforms the plain layer is
that grouped convolution, which reads its input once, where the products' gradient reads it once for every second tap;
and so is the routed layer of a stage in tiles, which is a plain one of more channels.

Axes: B inputs, N units, H W, C channels (see ``rmn_jax``).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import RoutePlan, Tiles, merge_tiles
from rmn_jax.ops.norm import of_own_unit
from rmn_jax.ops.window import Window, convolve


def depthwise(x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int | None = None) -> jax.Array:
    """The plain depthwise convolution.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, 1, C].
      strides: step in both directions, in pixels.
      padding: zeros on every side; None means ``kh // 2``.

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
    x: jax.Array, kernel: jax.Array, plan: RoutePlan | Tiles, *, strides: int = 1, padding: int | None = None
) -> jax.Array:
    """Depthwise convolution of each row with its own unit's kernel.

    Args:
      x: [B, H, W, C], sorted by ``plan``, or [L, H, W, V, C], laid out by it.
      kernel: [N, kh, kw, 1, C].
      plan: the stage's route plan or tiles.
      strides: as in ``depthwise``.
      padding: as in ``depthwise``.

    Returns:
      [B, OH, OW, C] or [L, OH, OW, V, C] in x's dtype, as x is arranged.

    Raises:
      ValueError: shapes that do not fit.
    """
    channels, arranged = x.shape[-1], x.ndim == (5 if isinstance(plan, Tiles) else 4)
    if not arranged or kernel.ndim != 5 or kernel.shape[3:] != (1, channels) or kernel.shape[0] != plan.num_units:
        raise ValueError(
            f"kernel {kernel.shape} does not fit x {x.shape} and {plan.num_units} units; want [N, kh, kw, 1, C]"
        )
    rows = of_own_unit(kernel.reshape(plan.num_units, -1), plan)
    rows = rows.reshape(-1, *kernel.shape[1:3], channels)
    if not isinstance(plan, Tiles):
        return _taps(Window.make(kernel.shape[1], kernel.shape[2], strides, padding), x, rows)
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
    """What a tap (i, j) sees: every ``strides``-th pixel from (i, j) on, ``size`` = (OH, OW) of them."""
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
    """[B, OH, OW, C] -> [B, H, W, C]: the same taps, turned by 180 degrees, over the spread-out cotangent."""
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
    """For each row and tap a sum over pixels; rows that share a kernel [1, kh, kw, C] are then added up."""
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

    XLA:CPU adds up pixels one channel at a time, at a stride of C. A product with ones does it for all
    channels at once, and one image's products stay in the cache: 7-8 times faster than the sum over the whole
    batch.
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
