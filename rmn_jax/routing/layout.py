"""Batch layouts: batch order, rows sorted by unit, tiles that each hold rows of one unit, or slots.

A layout is made once for each stage and shared by all its layers. No input is dropped and there is no capacity factor:
a unit's group is as long as its load. Feature maps are in one of four layouts:

    None    batch order, [B, H, W, C]
    Sorted  rows sorted by unit, [B, H, W, C]: the rows of one unit are consecutive
    Tiles   V tiles of L slots, [L, H, W, V, C]: all rows of a tile belong to one unit; unused slots are padding
    Slots   R slots sorted by unit, pixels first, [H, W, R, C]: each unit's slots are padded to a multiple of 8

Axes: B batch, N units, H W height and width, C channels, L slots in a tile, V tiles, R slots (see ``rmn_jax``).
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Most slots in a tile.
_LONGEST = 32
# Slots in a group: the rows of the smallest block of shared memory that Hopper's tensor cores read.
GROUP = 8
# Cost of copying a kernel for one more tile, in padding pixels. Sets the tile length.
_KERNEL_COST = 2048


class Sorted(NamedTuple):
    """A stable sort of a batch by unit.

    Attributes:
      unit: [B] int32, the unit of each row of the sorted batch, non-decreasing.
      order: [B] int32, ``sorted[r] = batch[order[r]]``.
      inverse: [B] int32, ``batch[b] = sorted[inverse[b]]``.
      group_sizes: [N] int32, rows of each unit; they sum to B, and some may be 0.
      offsets: [N] int32, the first row of each unit.
    """

    unit: jax.Array
    order: jax.Array
    inverse: jax.Array
    group_sizes: jax.Array
    offsets: jax.Array

    @property
    def num_units(self) -> int:
        """N."""
        return self.group_sizes.shape[0]


def sort_by_unit(assignment: jax.Array, num_units: int) -> Sorted:
    """The sorted layout of a batch.

    Args:
      assignment: [B] int32, the unit of each row, in [0, N).
      num_units: N.

    Raises:
      AssertionError: ``assignment`` is not a vector of integers.
    """
    chex.assert_rank(assignment, 1)
    chex.assert_type(assignment, int)
    order = jnp.argsort(assignment, stable=True).astype(jnp.int32)
    group_sizes = jnp.sum(assignment[:, None] == jnp.arange(num_units), axis=0, dtype=jnp.int32)
    return Sorted(
        unit=assignment[order].astype(jnp.int32),
        order=order,
        inverse=invert(order),
        group_sizes=group_sizes,
        offsets=jnp.cumsum(group_sizes) - group_sizes,
    )


def already_sorted(layout: Sorted) -> Sorted:
    """The layout of a batch that is already in the order of ``layout``: its order is the identity."""
    rows = jnp.arange(layout.unit.shape[0], dtype=jnp.int32)
    return layout._replace(order=rows, inverse=rows)


def single_group(batch: int) -> Sorted:
    """The layout of a batch of B rows that all belong to one unit (N = 1)."""
    rows = jnp.arange(batch, dtype=jnp.int32)
    return Sorted(
        unit=jnp.zeros_like(rows),
        order=rows,
        inverse=rows,
        group_sizes=jnp.array([batch], jnp.int32),
        offsets=jnp.zeros(1, jnp.int32),
    )


def invert(order: jax.Array) -> jax.Array:
    """The inverse of a permutation: [B] int32 -> [B] int32."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype), unique_indices=True)


class TileTable(NamedTuple):
    """The tiles of a sorted batch: ``unit``, first row ``low``, last row plus one ``high``; each [V] int32."""

    unit: jax.Array
    low: jax.Array
    high: jax.Array


def tile_length(batch: int, num_units: int) -> int:
    """Slots in a tile: the largest power of two, at most 32, with at most a quarter more rows than the batch.

    ``max_tiles`` allows N (L - 1) rows beyond the batch, so a smaller batch has shorter tiles.
    """
    length = _LONGEST
    while length > 1 and 4 * num_units * (length - 1) > batch:
        length //= 2
    return length


def max_tiles(batch: int, num_units: int, length: int) -> int:
    """The most tiles that any load of B rows over N units needs: floor((B + N (L - 1)) / L).

    A group of n rows needs ceil(n / L) tiles. The result is static: it is known at compile time.
    """
    return (batch + num_units * (length - 1)) // length


def tile_table(layout: Sorted, batch: int, length: int) -> TileTable:
    """The tiles of all groups, in order. Tiles that a load does not use have ``low == high``."""
    tiles = -(-layout.group_sizes // length)
    ends = jnp.cumsum(tiles)
    index = jnp.arange(max_tiles(batch, layout.num_units, length), dtype=jnp.int32)
    unit = jnp.searchsorted(ends, index, side="right", method="compare_all")
    unit = jnp.minimum(unit, layout.num_units - 1).astype(jnp.int32)
    low = layout.offsets[unit] + (index - (ends - tiles)[unit]) * length
    high = jnp.minimum(low + length, layout.offsets[unit] + layout.group_sizes[unit])
    used = index < ends[-1]
    return TileTable(unit, jnp.where(used, low, 0), jnp.where(used, high, 0))


class Tiles(NamedTuple):
    """A batch in V tiles of L slots.

    Attributes:
      unit: [V] int32, the unit of each tile.
      row_of_slot: [L, V] int32, the batch row in each slot; B for padding.
      slot_of_row: [B, 2] int32, the slot of each row as (slot in its tile, tile).
      group_sizes: [N] int32, rows of each unit.
    """

    unit: jax.Array
    row_of_slot: jax.Array
    slot_of_row: jax.Array
    group_sizes: jax.Array

    @property
    def num_units(self) -> int:
        """N."""
        return self.group_sizes.shape[0]

    @property
    def valid(self) -> jax.Array:
        """[L, V] bool, False for padding."""
        return self.row_of_slot < self.slot_of_row.shape[0]


def make_tiles(layout: Sorted, pixels: int) -> Tiles:
    """The tiles of a batch.

    Args:
      layout: the same batch sorted by unit.
      pixels: H W of the stage's input maps, which sets the length of a tile.
    """
    batch = layout.unit.shape[0]
    length = slots_per_tile(batch, layout.num_units, pixels)
    tiles = tile_table(layout, batch, length)
    sorted_row = tiles.low + jnp.arange(length, dtype=jnp.int32)[:, None]
    row_of_slot = jnp.where(sorted_row < tiles.high, layout.order.at[sorted_row].get(mode="clip"), batch)
    used = -(-layout.group_sizes // length)
    rank = jnp.arange(batch, dtype=jnp.int32) - layout.offsets[layout.unit]  # of a row within its unit's group
    tile = (jnp.cumsum(used) - used)[layout.unit] + rank // length
    slot_of_row = jnp.stack([rank % length, tile], axis=-1)[layout.inverse]
    return Tiles(tiles.unit, row_of_slot, slot_of_row, layout.group_sizes)


def slots_per_tile(batch: int, num_units: int, pixels: int) -> int:
    """L for a stage whose input maps have H W = ``pixels``: a power of two, at most ``tile_length``.

    Up to N (L - 1) slots are padding, and B / L kernels are copied, one for each tile. L makes the sum of the two
    costs smallest, by a rough estimate.
    """
    best = math.sqrt(_KERNEL_COST * batch / (num_units * pixels))
    return min(2 ** max(0, round(math.log2(best))), tile_length(batch, num_units))


class Slots(NamedTuple):
    """A batch in R slots sorted by unit, in groups of 8 consecutive slots that belong to one unit.

    A feature map is [H, W, R, C]. The 8 rows of a block that tensor cores read are then 8 rows of one unit at one
    pixel. A convolution shifts pixels, which are the leading axes, so that such a block is aligned for every tap.

    Attributes:
      unit: [R] int32, the unit of each slot, also of padding.
      row_of_slot: [R] int32, the batch row in each slot; B for padding.
      slot_of_row: [B] int32, the slot of each row.
      group_sizes: [N] int32, rows of each unit.
    """

    unit: jax.Array
    row_of_slot: jax.Array
    slot_of_row: jax.Array
    group_sizes: jax.Array

    @property
    def num_units(self) -> int:
        """N."""
        return self.group_sizes.shape[0]

    @property
    def valid(self) -> jax.Array:
        """[R] bool, False for padding."""
        return self.row_of_slot < self.slot_of_row.shape[0]

    @property
    def unit_of_group(self) -> jax.Array:
        """[R / 8] int32, the unit of each group of 8 slots, non-decreasing."""
        return self.unit[::GROUP]


def num_slots(batch: int, num_units: int) -> int:
    """R: the most slots that any load of B rows over N units needs, 8 floor((B + 7 min(B, N)) / 8).

    A unit of n > 0 rows has 8 ceil(n / 8) <= n + 7 slots. B = 1,024 rows of N = 8 units have 1,080.
    """
    return GROUP * max_tiles(batch, min(batch, num_units), GROUP)


def make_slots(layout: Sorted) -> Slots:
    """The slots of a batch, given the same batch sorted by unit."""
    batch = layout.unit.shape[0]
    tiles = tile_table(layout, batch, GROUP)
    groups = num_slots(batch, layout.num_units) // GROUP
    unit, low, high = (field[:groups, None] for field in tiles)  # those beyond are not used by any load
    sorted_row = low + jnp.arange(GROUP, dtype=jnp.int32)
    row_of_slot = jnp.where(sorted_row < high, layout.order.at[sorted_row].get(mode="clip"), batch).reshape(-1)
    padded = GROUP * -(-layout.group_sizes // GROUP)
    rank = jnp.arange(batch, dtype=jnp.int32) - layout.offsets[layout.unit]  # of a row within its unit's group
    slot_of_row = ((jnp.cumsum(padded) - padded)[layout.unit] + rank)[layout.inverse]
    unit = jnp.broadcast_to(unit, (groups, GROUP)).reshape(-1)
    return Slots(unit, row_of_slot, slot_of_row.astype(jnp.int32), layout.group_sizes)


# The layout of a feature map; None is batch order.
Layout = Sorted | Tiles | Slots | None


def assert_in_layout(x: jax.Array, layout: Layout) -> None:
    """Raises AssertionError unless ``x`` is a feature map in ``layout``.

    Args:
      x: [B, H, W, C] in batch order or sorted, [L, H, W, V, C] in tiles, [H, W, R, C] in slots.
      layout: the layout it should be in.
    """
    chex.assert_rank(x, 5 if isinstance(layout, Tiles) else 4)
    if isinstance(layout, Tiles):
        chex.assert_axis_dimension(x, 0, layout.row_of_slot.shape[0])
        chex.assert_axis_dimension(x, 3, layout.row_of_slot.shape[1])
    elif isinstance(layout, Slots):
        chex.assert_axis_dimension(x, 2, layout.row_of_slot.shape[0])
    elif layout is not None:
        chex.assert_axis_dimension(x, 0, layout.unit.shape[0])


def to_layout(x: jax.Array, source: Layout, target: Layout) -> jax.Array:
    """Moves feature maps from one layout to another; padding becomes zeros.

    The VJP is the inverse gather, not a scatter-add. Padding receives no gradient.

    Args:
      x: feature maps in ``source``, [B, H, W, C], [L, H, W, V, C] or [H, W, R, C].
      source: the layout of ``x``.
      target: the layout of the result, for the same batch.

    Returns:
      [B, H, W, C], [L, H, W, V, C] or [H, W, R, C], in x's dtype.

    Raises:
      ValueError: one layout is ``Sorted`` and the other is ``Tiles`` or ``Slots``; a network has sorted rows or not.
      AssertionError: ``x`` is not in ``source``.
    """
    assert_in_layout(x, source)
    if isinstance(source, Tiles | Slots) or isinstance(target, Tiles | Slots):
        if isinstance(source, Sorted) or isinstance(target, Sorted):
            raise ValueError("cannot go between sorted rows and tiles or slots directly; go through batch order (None)")
        return _move(x, source, target)
    if source is None:
        return x if target is None else permute(x, target.order, target.inverse)
    if target is None:
        return permute(x, source.inverse, source.order)
    return permute(x, _at(source.inverse, target.order), _at(target.inverse, source.order))


def merge_tiles(x: jax.Array) -> jax.Array:
    """Tiles side by side as channels, [L, H, W, V, C] -> [L, H, W, V C]; other maps are returned as they are."""
    return x.reshape(*x.shape[:3], -1)


def pixel_axes(layout: Layout) -> tuple[int, int]:
    """The axes of height and width of a feature map in ``layout``."""
    return (0, 1) if isinstance(layout, Slots) else (1, 2)


def over_pixels(rows: jax.Array, layout: Layout) -> jax.Array:
    """One vector for each row, shaped to broadcast over the pixels of a feature map in ``layout``.

    [B, C] -> [B, 1, 1, C], in tiles [L, V, C] -> [L, 1, 1, V, C], in slots [R, C] -> [1, 1, R, C].
    """
    return jnp.expand_dims(rows, pixel_axes(layout))


def take_rows(values: jax.Array, target: Layout) -> jax.Array:
    """One value for each row, [B] in batch order -> [B], [L, V] or [R] in ``target``. Padding has some row's value."""
    if target is None:
        return values
    return values[target.order if isinstance(target, Sorted) else jnp.minimum(target.row_of_slot, len(values) - 1)]


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """``x[order]`` along the first axis. The VJP is the gather by ``inverse``, not a scatter-add."""
    return _at(x, order)


def _at(values: jax.Array, order: jax.Array) -> jax.Array:
    return values.at[order].get(unique_indices=True, mode="promise_in_bounds")


def _permute_forward(x, order, inverse):
    return permute(x, order, inverse), (order, inverse)


def _permute_backward(residuals, cotangent):
    order, inverse = residuals
    return permute(cotangent, inverse, order), _no_gradient(order), _no_gradient(inverse)


permute.defvjp(_permute_forward, _permute_backward)


@jax.custom_vjp
def _move(x: jax.Array, source: Tiles | Slots | None, target: Tiles | Slots | None) -> jax.Array:
    if target is None:
        assert source is not None
        slots = source.slot_of_row
    elif source is None:
        slots = target.row_of_slot
    else:
        slots = source.slot_of_row.at[target.row_of_slot].get(mode="clip")
        valid = target.valid[..., None] if isinstance(source, Tiles) else target.valid
        slots = jnp.where(valid, slots, len(source.row_of_slot))
    gathered, rows = _row_axes(source), _row_axes(target)
    offsets = tuple(axis for axis in range(3 + len(rows)) if axis not in rows)
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=offsets, collapsed_slice_dims=gathered, start_index_map=gathered
    )
    slices = tuple(1 if axis in gathered else length for axis, length in enumerate(x.shape))
    if not isinstance(source, Tiles):
        slots = slots[..., None]
    return lax.gather(x, slots, dimensions, slices, mode=lax.GatherScatterMode.FILL_OR_DROP, fill_value=0)


def _row_axes(layout: Tiles | Slots | None) -> tuple[int, ...]:
    """The axes of a feature map along which its rows lie."""
    return (0, 3) if isinstance(layout, Tiles) else (2,) if isinstance(layout, Slots) else (0,)


def _move_forward(x, source, target):
    return _move(x, source, target), (source, target)


def _move_backward(residuals, cotangent):
    source, target = residuals
    return _move(cotangent, target, source), _no_gradient(source), _no_gradient(target)


def _no_gradient(integers):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), integers)


_move.defvjp(_move_forward, _move_backward)
