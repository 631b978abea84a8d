"""Where a stage's inputs are: the batch sorted by unit, or laid out in tiles of one unit each.

No input is dropped and no capacity exists: a unit's group is as long as its load. The plan is made once
per stage and shared by all its layers. Feature maps are in one of three arrangements:

    None       in the batch's order, [B, H, W, C]
    RoutePlan  sorted by unit, [B, H, W, C]: each unit's rows are consecutive
    Tiles      V tiles of L places side by side, [L, H, W, V, C]: a tile's rows are of one unit, some places nobody's

Axes: B inputs, N units, H W, C channels; L places to a tile, V tiles (see ``rmn_jax``).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The most inputs to a tile of a fixed length.
_LONGEST = 32
# What a place left empty costs against what a tile's own kernel does, in pixels of a feature map.
_KERNEL_COST = 2048


class RoutePlan(NamedTuple):
    """A stable sort of a batch by unit.

    Attributes:
      unit: [B] int32, the unit of each row of the sorted batch, non-decreasing.
      order: [B] int32, ``sorted[r] = batch[order[r]]``.
      inverse: [B] int32, ``batch[b] = sorted[inverse[b]]``.
      sizes: [N] int32, rows of each unit; their sum is B, some may be 0.
      offsets: [N] int32, the first row of each unit.
    """

    unit: jax.Array
    order: jax.Array
    inverse: jax.Array
    sizes: jax.Array
    offsets: jax.Array

    @property
    def num_units(self) -> int:
        """N."""
        return self.sizes.shape[0]


def make_plan(assignment: jax.Array, num_units: int) -> RoutePlan:
    """The plan that sorts a batch by its assignment ([B] int32, each in [0, N))."""
    order = jnp.argsort(assignment, stable=True).astype(jnp.int32)
    sizes = jnp.sum(jax.nn.one_hot(assignment, num_units, dtype=jnp.int32), axis=0)
    return RoutePlan(
        unit=assignment[order].astype(jnp.int32),
        order=order,
        inverse=invert(order),
        sizes=sizes,
        offsets=jnp.cumsum(sizes) - sizes,
    )


def invert(order: jax.Array) -> jax.Array:
    """The inverse of a permutation: [B] int32 -> [B] int32."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype), unique_indices=True)


class TileTable(NamedTuple):
    """The tiles that a sorted batch is cut into: ``unit``, first row ``low``, last row plus one ``high``; [V] int32."""

    unit: jax.Array
    low: jax.Array
    high: jax.Array


def tile_length(batch: int, num_units: int) -> int:
    """Inputs to a tile: the largest power of two, up to 32, that adds at most a quarter to the rows computed.

    What ``bound`` allows beyond the batch is N (L - 1) rows, so the tile shrinks with what a device is given.
    """
    length = _LONGEST
    while length > 1 and 4 * num_units * (length - 1) > batch:
        length //= 2
    return length


def bound(batch: int, num_units: int, length: int) -> int:
    """The most tiles that any load of ``batch`` rows over ``num_units`` can take: floor((B + N (L - 1)) / L).

    A group of n rows takes ceil(n / L) of them. The bound is known when a program is compiled.
    """
    return (batch + num_units * (length - 1)) // length


def tile_table(plan: RoutePlan, batch: int, length: int) -> TileTable:
    """The tiles of all groups in order; those that a load leaves unused have ``low == high``."""
    tiles = -(-plan.sizes // length)
    ends = jnp.cumsum(tiles)
    visit = jnp.arange(bound(batch, plan.num_units, length), dtype=jnp.int32)
    unit = jnp.searchsorted(ends, visit, side="right", method="compare_all")
    unit = jnp.minimum(unit, plan.num_units - 1).astype(jnp.int32)
    low = plan.offsets[unit] + (visit - (ends - tiles)[unit]) * length
    high = jnp.minimum(low + length, plan.offsets[unit] + plan.sizes[unit])
    used = visit < ends[-1]
    return TileTable(unit, jnp.where(used, low, 0), jnp.where(used, high, 0))


class Tiles(NamedTuple):
    """Where the rows of a batch are in tiles.

    Attributes:
      unit: [V] int32, the unit of each tile.
      rows: [L, V] int32, the batch's row at each place; B where a place is nobody's.
      home: [B, 2] int32, each row's place: (within the tile, tile).
      sizes: [N] int32, rows of each unit.
    """

    unit: jax.Array
    rows: jax.Array
    home: jax.Array
    sizes: jax.Array

    @property
    def num_units(self) -> int:
        """N."""
        return self.sizes.shape[0]

    @property
    def owned(self) -> jax.Array:
        """[L, V] bool, whether a place is somebody's."""
        return self.rows < self.home.shape[0]


def lay_out(plan: RoutePlan, pixels: int) -> Tiles:
    """The tiles of a batch that ``plan`` sorts, for a stage whose input maps have so many ``pixels``."""
    batch = plan.unit.shape[0]
    length = places_to_a_tile(batch, plan.num_units, pixels)
    tiles = tile_table(plan, batch, length)
    sorted_row = tiles.low + jnp.arange(length, dtype=jnp.int32)[:, None]
    rows = jnp.where(sorted_row < tiles.high, plan.order.at[sorted_row].get(mode="clip"), batch)
    used = -(-plan.sizes // length)
    within = jnp.arange(batch, dtype=jnp.int32) - plan.offsets[plan.unit]
    tile = (jnp.cumsum(used) - used)[plan.unit] + within // length
    home = jnp.stack([within % length, tile], axis=-1)[plan.inverse]
    return Tiles(tiles.unit, rows, home, plan.sizes)


def places_to_a_tile(batch: int, num_units: int, pixels: int) -> int:
    """L for a stage whose input maps have ``pixels``: a power of two, no more than ``tile_length``.

    Up to N (L - 1) places are nobody's, and B / L kernels are copied, one a tile. What either costs beside the
    arithmetic follows from the pixels; the length is where their sum is least, by a rough estimate.
    """
    least = math.sqrt(_KERNEL_COST * batch / (num_units * pixels))
    return min(2 ** max(0, round(math.log2(least))), tile_length(batch, num_units))


Arrangement = RoutePlan | Tiles | None


def arrange(x: jax.Array, source: Arrangement, target: Arrangement) -> jax.Array:
    """Feature maps moved from one arrangement to another; places that are nobody's become zeros.

    The gradient is the move back, a gather as well, not a scatter-add. What was at nobody's places gets none.

    Args:
      x: as ``source`` has it, [B, H, W, C] or [L, H, W, V, C].
      source: how x is arranged.
      target: how the result is, of the same batch.

    Raises:
      ValueError: from a plan to tiles or back; a network has one or the other.
    """
    if isinstance(source, Tiles) or isinstance(target, Tiles):
        if isinstance(source, RoutePlan) or isinstance(target, RoutePlan):
            raise ValueError("a sorted batch is not laid out, nor tiles sorted: arrange it in the batch's order first")
        return _move(x, source, target)
    if source is None:
        return x if target is None else permute(x, target.order, target.inverse)
    if target is None:
        return permute(x, source.inverse, source.order)
    return permute(x, _at(source.inverse, target.order), _at(target.inverse, source.order))


def merge_tiles(x: jax.Array) -> jax.Array:
    """Tiles side by side as more channels, [L, H, W, V, C] -> [L, H, W, V C]; [B, H, W, C] stays as it is."""
    return x.reshape(*x.shape[:3], -1)


def take_rows(values: jax.Array, target: Arrangement) -> jax.Array:
    """One value a row, [B], as ``target`` has its rows, [B] or [L, V]; places that are nobody's have some row's."""
    if target is None:
        return values
    return values[target.order if isinstance(target, RoutePlan) else jnp.minimum(target.rows, len(values) - 1)]


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """``x[order]`` along the first axis, whose gradient is the gather by ``inverse``, not a scatter-add."""
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
def _move(x: jax.Array, source: Tiles | None, target: Tiles | None) -> jax.Array:
    if source is None:
        assert target is not None
        places = target.rows[..., None]
    elif target is None:
        places = source.home
    else:
        home = source.home.at[target.rows].get(mode="clip")
        places = jnp.where(target.owned[..., None], home, len(source.rows))
    along = (0,) if source is None else (0, 3)
    offsets = (1, 2, 3) if target is None else (1, 2, 4)
    dimensions = lax.GatherDimensionNumbers(offset_dims=offsets, collapsed_slice_dims=along, start_index_map=along)
    sizes = tuple(1 if axis in along else length for axis, length in enumerate(x.shape))
    return lax.gather(x, places, dimensions, sizes, mode=lax.GatherScatterMode.FILL_OR_DROP, fill_value=0)


def _move_forward(x, source, target):
    return _move(x, source, target), (source, target)


def _move_backward(residuals, cotangent):
    source, target = residuals
    return _move(cotangent, target, source), _no_gradient(source), _no_gradient(target)


def _no_gradient(integers):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), integers)


_move.defvjp(_move_forward, _move_backward)
