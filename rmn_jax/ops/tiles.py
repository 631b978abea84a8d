"""Backend "tiles": a routed layer is a grouped convolution with the tiles as groups. What GPUs run.

A stage lays its batch out once, [L, H, W, V, C] (``rmn_jax.routing.layout.Tiles``), and all its layers keep that
layout. Seen as [L, H, W, V C], each layer is a plain layer with more channels. A convolution has the tiles as its
groups. A norm or a depthwise convolution has one vector for each of the V C channels. Values of a unit are summed over
its tiles.

Padding slots hold zeros (or a bias, until the next norm resets them, see ``rmn_jax.ops.norm.broadcast_to_rows``). They
are not counted, not read back, and receive no gradient. A NaN in one unit's gradient spreads to all units, because the
sum over tiles is a product with zeros.

One forward pass on a GPU: the kernels [N, kh, kw, C, O] are gathered by the unit of each tile into [kh, kw, C, V O].
Then ``lax.conv_general_dilated`` with V groups, cuDNN's grouped convolution, computes [L, H, W, V C] ->
[L, OH, OW, V O]. From 256 channels a group on, cuDNN has no grouped kernel and convolves group by group.

Axes: B batch, N units, H W height and width, C channels in, O channels out, L slots in a tile, V tiles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rmn_jax.ops.window import Window, convolve
from rmn_jax.routing.layout import Tiles, merge_tiles


def forward(x: jax.Array, kernel: jax.Array, layout: Tiles, window: Window) -> jax.Array:
    """[L, H, W, V, C], [N, kh, kw, C, O] -> [L, OH, OW, V, O]."""
    return _grouped(x, kernel, layout, window)


def input_gradient(dy, kernel, layout: Tiles, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[L, OH, OW, V, O], [N, kh, kw, C, O] -> [L, H, W, V, C] of ``shape``.

    A strided layer is computed by polyphase decomposition. Pixels with the same remainder modulo the stride (a residue)
    see the same taps: their gradient is a plain convolution of the cotangent with these taps. (XLA would
    insert zeros between the pixels of the cotangent and convolve them too.)
    """
    transposed, unpadded, zero = jnp.swapaxes(kernel, 3, 4), (0, 0, 0), jnp.zeros((), dy.dtype)
    total = jnp.zeros(shape, dy.dtype)
    height, width = (_residues(shape, dy.shape, window, axis) for axis in (0, 1))
    for rows, columns in [(rows, columns) for rows in height for columns in width]:
        if rows.taps and columns.taps:
            taps = transposed[:, rows.first :: window.strides, columns.first :: window.strides][:, ::-1, ::-1]
            part = _grouped(dy, taps, layout, Window(rows.taps, columns.taps, 1, (rows.padding, columns.padding)))
            total = total + lax.pad(part, zero, (unpadded, rows.spread, columns.spread, unpadded, unpadded))
    return total


def kernel_gradient(x, dy, layout: Tiles, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """[L, H, W, V, C] and [L, OH, OW, V, O] -> [N, kh, kw, C, O] of ``shape``, float32."""
    num_tiles, (num_units, height, width, channels, features) = x.shape[3], shape
    kernels = jax.ShapeDtypeStruct((height, width, channels, num_tiles * features), x.dtype)
    pull = jax.linear_transpose(lambda kernels: convolve(merge_tiles(x), kernels, window, groups=num_tiles), kernels)
    of_tiles = pull(merge_tiles(dy))[0]
    # Tile and output channel first, as cuDNN stores kernels: the gradient of a tile is then contiguous.
    of_tiles = jnp.transpose(of_tiles.reshape(height, width, channels, num_tiles, features), (3, 4, 0, 1, 2))
    if jax.default_backend() == "cpu":  # has no bfloat16 product with a float32 sum
        of_tiles = of_tiles.astype(jnp.float32)
    member = jax.nn.one_hot(layout.unit, num_units, dtype=of_tiles.dtype)
    sums = jnp.einsum(
        "vn,vohwc->nohwc", member, of_tiles, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return jnp.transpose(sums, (0, 2, 3, 4, 1))


def _grouped(x: jax.Array, kernel: jax.Array, layout: Tiles, window: Window) -> jax.Array:
    """[L, H, W, V, C] with [N, kh, kw, C, O] -> [L, OH, OW, V, O], each tile with the kernel of its unit."""
    of_tiles = jnp.transpose(kernel, (0, 4, 1, 2, 3))[layout.unit]
    of_tiles = jnp.transpose(of_tiles, (2, 3, 4, 0, 1)).reshape(*kernel.shape[1:4], -1)
    y = convolve(merge_tiles(x), of_tiles, window, groups=x.shape[3])
    return y.reshape(*y.shape[:3], x.shape[3], -1)


class _Residue(NamedTuple):
    """The pixels a, a + s, a + 2s .. of an axis (s the stride), as a convolution of the cotangent.

    Attributes:
      first: the first tap that these pixels see; they see every s-th tap from there.
      taps: the number of these taps.
      padding: of the cotangent.
      spread: ``lax.pad`` configuration that puts the result at these pixels.
    """

    first: int
    taps: int
    padding: tuple[int, int]
    spread: tuple[int, int, int]


def _residues(shape: tuple[int, ...], out_shape: tuple[int, ...], window: Window, axis: int) -> list[_Residue]:
    """The residues of height (0) or width (1), for an input of ``shape`` and an output of ``out_shape``.

    dx[s q + a] = sum over t of dy[q + c - t] k[r + s t], where c, r = divmod(a + p, s) with p zeros before the input.
    """
    size, strides, before = (window.height, window.width)[axis], window.strides, window.padding[axis][0]
    length, out_length, residues = shape[1 + axis], out_shape[1 + axis], []
    for a in range(min(strides, length)):
        ahead, first = divmod(a + before, strides)
        taps, pixels = max(0, -(-(size - first) // strides)), -(-(length - a) // strides)
        left, right = taps - 1 - ahead, pixels + ahead - out_length
        # The same padding on both sides, or XLA pads in a separate pass. ``spread`` removes the excess.
        both = max(left, right, 0)
        low, high = a - (both - left) * strides, length - 1 - a - (pixels - 1 + both - right) * strides
        residues.append(_Residue(first, taps, (both, both), (low, high, strides - 1)))
    return residues
