"""Batch normalisation over the inputs of each unit, by segment sums on sorted rows, tiles or slots; layer norm.

Axes: B batch, N units, H W height and width, C channels, L slots in a tile, V tiles, R slots (see ``rmn_jax``).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rmn_jax.routing.layout import Layout, Slots, Sorted, Tiles, assert_in_layout, merge_tiles, pixel_axes

# Whose batch statistics a unit normalises by in training, see ``batch_moments``.
STATISTICS = ("unit", "batch", "mixed")


class Moments(NamedTuple):
    """Batch statistics of each unit.

    Attributes:
      mean: [C] or [N, C] float32.
      variance: biased, as ``mean``.
      values: [] or [N] float32, number of values (rows times pixels) averaged; for "batch" and "mixed" also those of
        the whole batch.
    """

    mean: jax.Array
    variance: jax.Array
    values: jax.Array


def batch_moments(
    x: jax.Array,
    layout: Layout,
    axis_name: str | None = None,
    statistics: str = "unit",
    own_share: jax.Array | float = 1.0,
) -> Moments:
    """Mean and biased variance over the global batch and all pixels, for the inputs of each unit.

    One reduction over devices carries sum, sum of squares and count together.

    ``statistics`` says whose they are, for units j with n_j of the batch's n values:

    - "unit": the unit's own inputs.
    - "batch": all inputs of the batch; the same for every unit.
    - "mixed": first and second moment are ``w_j own + (1 - w_j) batch``, with ``w_j = r n_j / (n_j + n / N)``. r = 1
      equals adding n / N pseudo-values, distributed like the batch, to the unit's own. A unit with an even share of the
      batch weighs both alike. A small group takes nearly all from the batch, a unit without inputs takes all. r = 0 is
      "batch".

    Args:
      x: [B, H, W, C] sorted by unit, [L, H, W, V, C] in tiles, or [H, W, R, C] in slots.
      layout: the stage's layout; None takes the batch as one group (the plain layer).
      axis_name: mesh axis to sum over, or None on one device.
      statistics: one of ``STATISTICS``. Without a layout there is one group, and all are the same.
      own_share: [] r of "mixed", from 0 to 1.

    Returns:
      Moments of shape [N, C] with a layout, [C] without. A unit without inputs has 0 values, mean 0, variance 0.

    Raises:
      AssertionError: ``x`` is not in ``layout``.
    """
    assert_in_layout(x, layout)
    x = x.astype(jnp.float32)
    height, width = pixel_axes(layout)
    pixels = x.shape[height] * x.shape[width]
    if layout is None:
        # A column for the count lets one reduction carry all three.
        count = jnp.full((1,), x.shape[0] * pixels, jnp.float32)
        sums = jnp.concatenate([jnp.sum(x, (0, 1, 2)), jnp.sum(x * x, (0, 1, 2)), count])
    else:
        wide = merge_tiles(x)  # XLA fuses more with it
        each = [jnp.sum(values, (height, width)).reshape(-1, *x.shape[3:]) for values in (wide, wide * wide)]
        rows = jnp.concatenate(each, axis=-1)
        if isinstance(layout, Tiles):
            rows = jnp.sum(jnp.where(layout.valid[..., None], rows, 0.0), axis=0)
        elif isinstance(layout, Slots):
            rows = jnp.where(layout.valid[:, None], rows, 0.0)
        member = jax.nn.one_hot(layout.unit, layout.num_units, axis=0, dtype=jnp.float32)
        sums = jnp.matmul(member, rows, precision=jax.lax.Precision.HIGHEST)
        sums = jnp.concatenate([sums, (layout.group_sizes * pixels).astype(jnp.float32)[:, None]], axis=-1)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    if layout is not None and statistics != "unit":
        sums = _with_batch(sums, own_share if statistics == "mixed" else 0.0)
    total, squares, count = jnp.split(sums, [x.shape[-1], 2 * x.shape[-1]], axis=-1)
    divisor = jnp.maximum(count, 1.0)
    mean = total / divisor
    variance = jnp.maximum(squares / divisor - mean * mean, 0.0)
    return Moments(mean, variance, count[..., 0])


def _with_batch(sums: jax.Array, own_share: jax.Array | float) -> jax.Array:
    """Sums [N, 2 C + 1] of units (values, squares, count) -> as many values of the mixed distribution ("mixed")."""
    batch, own = jnp.sum(sums, axis=0, keepdims=True), sums[:, -1:]
    weight = own_share * own / (own + batch[:, -1:] / len(sums))
    means = weight * sums / jnp.maximum(own, 1.0) + (1.0 - weight) * batch / batch[:, -1:]
    return means * batch[:, -1:]


def normalize(x, mean, variance, scale, bias, layout: Layout, epsilon: float) -> jax.Array:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias``, with the vectors of each row's unit.

    Args:
      x: [B, H, W, C] sorted by unit, [L, H, W, V, C] in tiles, or [H, W, R, C] in slots.
      mean: [N, C] float32 with a layout, [C] without.
      variance: as ``mean``.
      scale: as ``mean``.
      bias: as ``mean``.
      layout: the stage's layout, or None.
      epsilon: added to the variance.

    Returns:
      As x, in x's dtype.
    """
    return scale_and_shift(x, *affine(mean, variance, scale, bias, epsilon), layout)


def affine(mean, variance, scale, bias, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Factor and shift that make ``normalize`` one multiplication and one addition; shapes as ``mean``."""
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    return factor, bias - mean * factor


def layer_norm(x, scale, bias, layout: Layout, epsilon: float) -> jax.Array:
    """Normalises the channels of each pixel, then ``* scale + bias`` with the vectors of each row's unit.

    Mean and variance are those of one pixel of one row. So they need no statistics, and no other row. Padding becomes
    zeros.

    Args:
      x: [B, H, W, C] sorted by unit, [L, H, W, V, C] in tiles, or [H, W, R, C] in slots.
      scale: [N, C] float32 with a layout, [C] without.
      bias: as ``scale``.
      layout: the stage's layout, or None.
      epsilon: added to the variance.

    Returns:
      As x, in x's dtype; computed in float32.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return scale_and_shift(centred * jax.lax.rsqrt(variance + epsilon), scale, bias, layout).astype(x.dtype)


def scale_and_shift(x: jax.Array, factor: jax.Array, shift: jax.Array, layout: Layout) -> jax.Array:
    """``x * factor + shift``, with the vectors of each row's unit ([N, C], or [C] without a layout); in x's dtype."""
    assert_in_layout(x, layout)
    if layout is not None:
        chex.assert_shape([factor, shift], (layout.num_units, x.shape[-1]))
        factor, shift = broadcast_to_rows(factor, layout), broadcast_to_rows(shift, layout)
    return (merge_tiles(x).astype(jnp.float32) * factor + shift).astype(x.dtype).reshape(x.shape)


def scale_rows(x: jax.Array, factor: jax.Array, layout: Layout) -> jax.Array:
    """``x * factor``, as ``scale_and_shift`` without a shift."""
    assert_in_layout(x, layout)
    if layout is not None:
        chex.assert_shape(factor, (layout.num_units, x.shape[-1]))
        factor = broadcast_to_rows(factor, layout)
    return (merge_tiles(x).astype(jnp.float32) * factor).astype(x.dtype).reshape(x.shape)


def broadcast_to_rows(values: jax.Array, layout: Sorted | Tiles | Slots) -> jax.Array:
    """The vector of each row's unit, to broadcast over pixels: [N, C] -> [B, 1, 1, C], or [L, 1, 1, V C] in tiles.

    In slots: [R, C].

    Padding gets zeros. The norms of a unit without inputs would otherwise magnify padding until it overflows.
    """
    rows = take_unit(values, layout)
    if isinstance(layout, Slots):
        return jnp.where(layout.valid[:, None], rows, 0.0)
    if isinstance(layout, Tiles):
        rows = jnp.where(layout.valid[..., None], rows, 0.0).reshape(len(layout.row_of_slot), -1)
    return rows[:, None, None, :]


def take_unit(values: jax.Array, layout: Sorted | Tiles | Slots) -> jax.Array:
    """The vector of the unit of each sorted row, of each tile or of each slot: [N, C] -> [B, C], [V, C] or [R, C].

    A product with the one-hot membership, not a gather. Its gradient is then a product as well. A gather's would be a
    scatter-add, which is slow and on some devices not reproducible.
    """
    member = jax.nn.one_hot(layout.unit, layout.num_units, dtype=values.dtype)
    return jnp.matmul(member, values, precision=jax.lax.Precision.HIGHEST)
