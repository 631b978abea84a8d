"""Backend "tiles": in a stage laid out in tiles of one unit each, a routed layer is one grouped convolution a pass.

A batch is laid out once a stage, [L, H, W, V, C] (``rmn_jax.dispatch.Tiles``), and stays so from layer to layer. Seen
as [L, H, W, V C] the layers are the plain ones over more channels: a convolution has the tiles as its groups, a norm or
a depthwise convolution a vector for each of V C channels, and what belongs to a unit is summed over its tiles.

Places that are nobody's hold zeros, or a bias until the norm behind it brings them back (``broadcast_to_rows``); they
are left out where rows are counted, never read back, and have no gradient. What is not a number in one unit's gradient
becomes so in all.

Axes: B inputs, N units, H W, C channels in, O channels out; L inputs to a tile, V tiles (see ``rmn_jax``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.dispatch import Tiles, merge_tiles
from rmn_jax.ops.window import Window, convolve


def forward(x: jax.Array, kernel: jax.Array, tiles: Tiles, window: Window) -> jax.Array:
    """[L, H, W, V, C], [N, kh, kw, C, O] -> [L, OH, OW, V, O]."""
    return _convolve(x, kernel, tiles, window)


def input_gradient(dy, kernel, tiles: Tiles, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[L, OH, OW, V, O], [N, kh, kw, C, O] -> [L, H, W, V, C] of ``shape``.

    A strided layer goes phase by phase: pixels of the same remainder by the stride see the same taps, and are a plain
    convolution of the cotangent with those. (XLA would put zeros between the cotangent's pixels and convolve them too.)
    """
    turned, as_is, zero = jnp.swapaxes(kernel, 3, 4), (0, 0, 0), jnp.zeros((), dy.dtype)
    total = jnp.zeros(shape, dy.dtype)
    height, width = (_phases(shape, dy.shape, window, axis) for axis in (0, 1))
    for rows, columns in [(rows, columns) for rows in height for columns in width]:
        if rows.taps and columns.taps:
            own = turned[:, rows.first :: window.strides, columns.first :: window.strides][:, ::-1, ::-1]
            phase = _convolve(dy, own, tiles, Window(rows.taps, columns.taps, 1, (rows.padding, columns.padding)))
            total = total + lax.pad(phase, zero, (as_is, rows.spread, columns.spread, as_is, as_is))
    return total


def kernel_gradient(x, dy, tiles: Tiles, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[L, H, W, V, C] and [L, OH, OW, V, O] -> [N, kh, kw, C, O] of ``shape``, float32."""
    number, (num_units, height, width, channels, features) = x.shape[3], shape
    kernels = jax.ShapeDtypeStruct((height, width, channels, number * features), x.dtype)
    pull = jax.linear_transpose(lambda kernels: convolve(merge_tiles(x), kernels, window, groups=number), kernels)
    of_tiles = pull(merge_tiles(dy))[0]
    # By tile and output channel, as cuDNN holds kernels: a tile's is one piece of memory.
    of_tiles = jnp.transpose(of_tiles.reshape(height, width, channels, number, features), (3, 4, 0, 1, 2))
    if jax.default_backend() == "cpu":  # which has no product of bfloat16 summed in float32
        of_tiles = of_tiles.astype(jnp.float32)
    of_unit = jax.nn.one_hot(tiles.unit, num_units, dtype=of_tiles.dtype)
    sums = jnp.einsum(
        "vn,vohwc->nohwc", of_unit, of_tiles, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return jnp.transpose(sums, (0, 2, 3, 4, 1))


class _Phase(NamedTuple):
    """The pixels a, a + s, a + 2s .. of an axis, s the stride, as a convolution of the cotangent.

    ``first``: the first tap that they see, and every s-th from there, ``taps`` in all; ``padding`` of the cotangent;
    ``spread``: what puts them in their places, as ``lax.pad`` takes it.
    """

    first: int
    taps: int
    padding: tuple[int, int]
    spread: tuple[int, int, int]


def _phases(shape: tuple[int, ...], out_shape: tuple[int, ...], window: Window, axis: int) -> list[_Phase]:
    """The phases of height (0) or width (1), for an input of ``shape`` and an output of ``out_shape``.

    dx[s q + a] = sum over t of dy[q + c - t] k[r + s t], where c, r = divmod(a + p, s) for p zeros before the input.
    """
    size, strides, before = (window.height, window.width)[axis], window.strides, window.padding[axis][0]
    length, out_length, phases = shape[1 + axis], out_shape[1 + axis], []
    for a in range(min(strides, length)):
        ahead, first = divmod(a + before, strides)
        taps, pixels = max(0, -(-(size - first) // strides)), -(-(length - a) // strides)
        left, right = taps - 1 - ahead, pixels + ahead - out_length
        both = max(left, right, 0)  # alike on both sides, or XLA pads beforehand; what is too much is cut off later
        low, high = a - (both - left) * strides, length - 1 - a - (pixels - 1 + both - right) * strides
        phases.append(_Phase(first, taps, (both, both), (low, high, strides - 1)))
    return phases


def _convolve(x: jax.Array, kernel: jax.Array, tiles: Tiles, window: Window) -> jax.Array:
    """[L, H, W, V, C] with [N, kh, kw, C, O] -> [L, OH, OW, V, O], each tile with its unit's."""
    own = jnp.transpose(kernel, (0, 4, 1, 2, 3))[tiles.unit]
    own = jnp.transpose(own, (2, 3, 4, 0, 1)).reshape(*kernel.shape[1:4], -1)
    y = convolve(merge_tiles(x), own, window, groups=x.shape[3])
    return y.reshape(*y.shape[:3], x.shape[3], -1)
