"""The sides of one pass of one layer, compiled and checked: see ``benchmarks.gpu.conv``.

Axes: B batch, N units, H W height and width, C channels in, O channels out, L slots in a tile, V tiles (see
``rmn_jax``).
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.gpu.layers import Layer
from benchmarks.gpu.timing import first_line, out_of_memory
from rmn_jax.bench.measure import Compiled, compile_for, load_assignment
from rmn_jax.ops import conv, routed_conv
from rmn_jax.routing.layout import Sorted, Tiles, make_tiles, sort_by_unit, to_layout

# Largest relative distance from the plain convolution's result that counts as right. Two results that differ only by
# the rounding of bfloat16 are within a third of it.
WRONG = 2e-2


class Side(NamedTuple):
    """A compiled pass with its arguments bound, and further keys of its JSON line."""

    call: Callable[[], Any]
    notes: dict[str, Any]


class Sides(NamedTuple):
    """Sides by (side, load): ``ready`` to be timed, or ``settled`` without timing (keys of the JSON line instead)."""

    ready: dict[tuple[str, str], Side]
    settled: dict[tuple[str, str], dict[str, Any]]


class Rows(NamedTuple):
    """Inputs of a layer in one layout: x [B, H, W, C] and cotangent [B, OH, OW, O], or both in tiles."""

    x: jax.Array
    dy: jax.Array
    layout: Sorted | Tiles


def arrays(layer: Layer, batch: int, num_units: int, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random x [B, H, W, C], kernels [N, kh, kw, C, O] and cotangent [B, OH, OW, O] on the device."""
    x = noise((batch, layer.size, layer.size, layer.channels), dtype, 0)
    kernels = noise((num_units, *layer.kernel_shape()), dtype, 1) * 0.05
    return x, kernels, noise((batch, layer.out_size, layer.out_size, layer.features), dtype, 2)


def noise(shape: tuple[int, ...], dtype, seed: int) -> jax.Array:
    """Normal values, repeated after a prime number of them, because drawing all of them takes long to compile."""
    few = jnp.asarray(np.random.default_rng(seed).standard_normal(min(math.prod(shape), 1_048_573), np.float32), dtype)
    return jnp.tile(few, -(-math.prod(shape) // few.size))[: math.prod(shape)].reshape(shape)


def build(
    layer: Layer, which: str, given: tuple, num_units: int, loads: Collection[str], wanted: set[tuple[str, str]]
) -> Sides:
    """Compiles the plain side and the ``wanted`` sides.

    Args:
      layer: its shapes.
      which: "fwd", "dgrad", "wgrad" or "together".
      given: from ``arrays``.
      num_units: N.
      loads: all loads.
      wanted: ("lax", "") and (backend, load).
    """
    x, kernels, dy = given
    assignments = {load: jnp.sort(load_assignment(load, x.shape[0], num_units)) for load in loads}  # of sorted rows
    rows = {load: Rows(x, dy, sort_by_unit(assignment, num_units)) for load, assignment in assignments.items()}
    plain_conv, library = functools.partial(conv, strides=layer.strides), functools.partial(_library_conv, layer)
    plain = _compiled(which, plain_conv, x, kernels[0], dy)
    sides = Sides({("plain", ""): Side(functools.partial(plain.call, x, kernels[0], dy), _cost(plain))}, {})
    if ("lax", "") in wanted:
        if _program(which, library, x, kernels[0], dy) == _program(which, plain_conv, x, kernels[0], dy):
            sides.settled["lax", ""] = {"same_program_as": "plain"}
        else:
            side = _compiled(which, library, x, kernels[0], dy)
            sides.ready["lax", ""] = Side(functools.partial(side.call, x, kernels[0], dy), _cost(side))
    for backend in sorted({side for side, load in wanted if load}):
        measured = [load for load in loads if (backend, load) in wanted]
        routed = functools.partial(_routed_conv, layer, backend)
        try:
            # A network moves its rows once for all layers of a stage, so the move is not part of a layer's time.
            moved = {load: _move(layer, backend, rows[load]) for load in measured}
            first = moved[measured[0]]
            side = _compiled(which, routed, first.x, kernels, first.dy, first.layout)
            differences = [
                difference_from_plain(side.call, plain.call, kernels, rows[load], moved[load]) for load in measured
            ]
        except Exception as error:  # a backend that cannot compute this layer must not end the run
            if out_of_memory(error):
                raise
            sides.settled.update({(backend, load): {"failed": first_line(error)} for load in measured})
            continue
        for load, difference in zip(measured, differences, strict=True):
            notes = {"difference": float(f"{difference:.2g}"), "right": bool(difference < WRONG)}
            call = functools.partial(side.call, moved[load].x, kernels, moved[load].dy, moved[load].layout)
            sides.ready[backend, load] = Side(call, {**_cost(side), **notes})
    return sides


def _move(layer: Layer, backend: str, rows: Rows) -> Rows:
    """Sorted rows in the layout that the backend has within the layer's stage."""
    if backend != "tiles":
        return rows
    tiles = make_tiles(rows.layout, (layer.stage_size or layer.size) ** 2)
    move = jax.jit(to_layout)
    return Rows(move(rows.x, None, tiles), move(rows.dy, None, tiles), tiles)


def _routed_conv(layer: Layer, backend: str, x, kernel, layout: Sorted | Tiles):
    return routed_conv(x, kernel, layout, strides=layer.strides, backend=backend)


def _library_conv(layer: Layer, x, kernel):
    padding = (layer.kernel // 2, layer.kernel // 2)
    strides = (layer.strides, layer.strides)
    return lax.conv_general_dilated(x, kernel, strides, (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _passes(which: str, function: Callable) -> Callable:
    """``(x, kernel, dy, *layout)`` -> the results of a pass of ``function(x, kernel, *layout)``."""

    def run(x, kernel, dy, *layout):
        if which == "fwd":
            return function(x, kernel, *layout)
        if which == "dgrad":
            return jax.vjp(lambda x: function(x, kernel, *layout), x)[1](dy)[0]
        if which == "wgrad":
            return jax.vjp(lambda kernel: function(x, kernel, *layout), kernel)[1](dy)[0]
        output, pull = jax.vjp(lambda x, kernel: function(x, kernel, *layout), x, kernel)
        return output, *pull(dy)

    return run


def _compiled(which: str, function: Callable, *arguments) -> Compiled:
    return compile_for(_passes(which, function), *arguments)


def _program(which: str, function: Callable, *arguments) -> str:
    return jax.jit(_passes(which, function)).lower(*arguments).as_text()


def _cost(compiled: Compiled) -> dict[str, Any]:
    megabytes = round(compiled.temporary_bytes / 1e6, 1)
    return {"compile_seconds": round(compiled.seconds, 2), "temporary_megabytes": megabytes}


def difference_from_plain(routed: Callable, plain: Callable, kernels: jax.Array, rows: Rows, moved: Rows) -> float:
    """How far a routed pass is from the plain pass of the rows of each unit alone.

    Args:
      routed: compiled pass, of ``moved`` and kernels.
      plain: compiled pass, of batch and one kernel.
      kernels: [N, kh, kw, C, O].
      rows: the sorted batch.
      moved: the same batch in the layout of ``routed``.

    Returns:
      The largest relative distance over the results of the pass. NaN if a result has a NaN.
    """
    found = jax.tree.leaves(routed(moved.x, kernels, moved.dy, moved.layout))
    if isinstance(moved.layout, Tiles):
        found = [leaf if leaf.shape == kernels.shape else to_layout(leaf, moved.layout, None) for leaf in found]
    expected = [jnp.zeros(leaf.shape, jnp.float32) for leaf in found]
    for unit in range(rows.layout.num_units):
        x, dy = (_rows_of(unit, values, rows.layout) for values in (rows.x, rows.dy))
        for k, part in enumerate(jax.tree.leaves(plain(x, kernels[unit], dy))):
            is_kernel = part.shape == kernels.shape[1:]
            expected[k] = _put(expected[k], part, unit) if is_kernel else _add(expected[k], part)
    return float(jnp.max(jnp.stack([_distance(a, b) for a, b in zip(found, expected, strict=True)])))


@jax.jit
def _rows_of(unit, rows, layout: Sorted):
    return jnp.where((layout.unit == unit)[:, None, None, None], rows, 0)


@functools.partial(jax.jit, donate_argnums=0)
def _put(total, part, unit):
    return total.at[unit].set(part.astype(jnp.float32))


@functools.partial(jax.jit, donate_argnums=0)
def _add(total, part):
    return total + part.astype(jnp.float32)


@jax.jit
def _distance(found, expected):
    norm = lambda values: jnp.sqrt(jnp.sum(jnp.square(values)))  # noqa: E731
    return norm(found.astype(jnp.float32) - expected) / norm(expected)
