"""The sides of one pass of one layer, compiled and checked: see ``benchmarks.gpu.conv``.

Axes: B inputs, N units, H W, C channels in, O channels out (see ``rmn_jax``).
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
from rmn_jax.dispatch import RoutePlan, Tiles, arrange, lay_out, make_plan
from rmn_jax.ops import conv, routed_conv

# Results that differ from the plain convolution's by more than this part of their length are wrong; two that
# differ by bfloat16's rounding alone are within a third of it.
WRONG = 2e-2


class Side(NamedTuple):
    """A compiled pass with its arguments, and what to note beside its time."""

    call: Callable[[], Any]
    notes: dict[str, Any]


class Sides(NamedTuple):
    """By (side, load): ``ready`` to be timed, or ``settled`` without: what to note instead."""

    ready: dict[tuple[str, str], Side]
    settled: dict[tuple[str, str], dict[str, Any]]


def arrays(layer: Layer, batch: int, num_units: int, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random x [B, H, W, C], kernels [N, kh, kw, C, O] and cotangent [B, OH, OW, O] on the device."""
    x = noise((batch, layer.size, layer.size, layer.channels), dtype, 0)
    kernels = noise((num_units, *layer.kernel_shape()), dtype, 1) * 0.05
    return x, kernels, noise((batch, layer.out_size, layer.out_size, layer.features), dtype, 2)


def noise(shape: tuple[int, ...], dtype, seed: int) -> jax.Array:
    """Normal values, repeated after a prime number of them: drawing them all would take long to compile."""
    few = jnp.asarray(np.random.default_rng(seed).standard_normal(min(math.prod(shape), 1_048_573), np.float32), dtype)
    return jnp.tile(few, -(-math.prod(shape) // few.size))[: math.prod(shape)].reshape(shape)


def build(
    layer: Layer, which: str, given: tuple, num_units: int, loads: Collection[str], wanted: set[tuple[str, str]]
) -> Sides:
    """The plain side in any case, and those ``wanted``: ("lax", "") and (backend, load).

    Args:
      layer: its shapes.
      which: "fwd", "dgrad", "wgrad" or "together".
      given: from ``arrays``.
      num_units: N.
      loads: all loads.
      wanted: what to build.
    """
    x, kernels, dy = given
    plans = {load: make_plan(jnp.sort(load_assignment(load, x.shape[0], num_units)), num_units) for load in loads}
    own_conv, library = functools.partial(conv, strides=layer.strides), functools.partial(_library_conv, layer)
    plain = _compiled(which, own_conv, x, kernels[0], dy)
    sides = Sides({("plain", ""): Side(functools.partial(plain.call, x, kernels[0], dy), _cost(plain))}, {})
    if ("lax", "") in wanted:
        if _program(which, library, x, kernels[0], dy) == _program(which, own_conv, x, kernels[0], dy):
            sides.settled["lax", ""] = {"same_program_as": "plain"}
        else:
            side = _compiled(which, library, x, kernels[0], dy)
            sides.ready["lax", ""] = Side(functools.partial(side.call, x, kernels[0], dy), _cost(side))
    for backend in sorted({side for side, load in wanted if load}):
        own = [load for load in plans if (backend, load) in wanted]
        routed = functools.partial(_routed_conv, layer, backend)
        try:
            # In a network a stage's rows are arranged once, for all its layers: that is no part of a layer's time.
            arranged = {load: _arranged(layer, backend, x, dy, plans[load]) for load in own}
            its_x, its_dy, its_plan = arranged[own[0]]
            side = _compiled(which, routed, its_x, kernels, its_dy, its_plan)
            differences = [
                difference_from_plain(side.call, plain.call, x, kernels, dy, plans[load], *arranged[load])
                for load in own
            ]
        except Exception as error:  # a backend that cannot do this layer must not end the run
            if out_of_memory(error):
                raise
            sides.settled.update({(backend, load): {"failed": first_line(error)} for load in own})
            continue
        for load, difference in zip(own, differences, strict=True):
            notes = {"difference": float(f"{difference:.2g}"), "right": bool(difference < WRONG)}
            its_x, its_dy, its_plan = arranged[load]
            call = functools.partial(side.call, its_x, kernels, its_dy, its_plan)
            sides.ready[backend, load] = Side(call, {**_cost(side), **notes})
    return sides


def _arranged(layer: Layer, backend: str, x, dy, plan: RoutePlan) -> tuple[jax.Array, jax.Array, RoutePlan | Tiles]:
    """Rows and cotangent as the backend has them within the layer's stage; the rows are sorted as they are."""
    if backend != "tiles":
        return x, dy, plan
    tiles = lay_out(plan, (layer.stage_size or layer.size) ** 2)
    move = jax.jit(arrange)
    return move(x, None, tiles), move(dy, None, tiles), tiles


def _routed_conv(layer: Layer, backend: str, x, kernel, plan: RoutePlan | Tiles):
    return routed_conv(x, kernel, plan, strides=layer.strides, backend=backend)


def _library_conv(layer: Layer, x, kernel):
    padding = (layer.kernel // 2, layer.kernel // 2)
    strides = (layer.strides, layer.strides)
    return lax.conv_general_dilated(x, kernel, strides, (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _passes(which: str, function: Callable) -> Callable:
    """``(x, kernel, dy, *more)`` -> the results of a pass of ``function(x, kernel, *more)``."""

    def run(x, kernel, dy, *more):
        if which == "fwd":
            return function(x, kernel, *more)
        if which == "dgrad":
            return jax.vjp(lambda x: function(x, kernel, *more), x)[1](dy)[0]
        if which == "wgrad":
            return jax.vjp(lambda kernel: function(x, kernel, *more), kernel)[1](dy)[0]
        output, pull = jax.vjp(lambda x, kernel: function(x, kernel, *more), x, kernel)
        return output, *pull(dy)

    return run


def _compiled(which: str, function: Callable, *arguments) -> Compiled:
    return compile_for(_passes(which, function), *arguments)


def _program(which: str, function: Callable, *arguments) -> str:
    return jax.jit(_passes(which, function)).lower(*arguments).as_text()


def _cost(compiled: Compiled) -> dict[str, Any]:
    megabytes = round(compiled.temporary_bytes / 1e6, 1)
    return {"compile_seconds": round(compiled.seconds, 2), "temporary_megabytes": megabytes}


def difference_from_plain(
    routed: Callable, plain: Callable, x, kernels, dy, plan: RoutePlan, its_x, its_dy, its_plan: RoutePlan | Tiles
) -> float:
    """The largest relative distance, over a pass's results, from the plain pass of each unit's rows alone.

    Where a result is not a number, it is not a number. The last three are what ``routed`` takes, from ``_arranged``.
    """
    found = jax.tree.leaves(routed(its_x, kernels, its_dy, its_plan))
    if isinstance(its_plan, Tiles):
        found = [arrange(leaf, its_plan, None) if len(leaf) == len(its_plan.rows) else leaf for leaf in found]
    one = kernels.shape[1:]
    expected = [jnp.zeros(leaf.shape, jnp.float32) for leaf in found]
    for unit in range(plan.num_units):
        own_x, own_dy = (_rows_of(unit, rows, plan) for rows in (x, dy))
        for k, part in enumerate(jax.tree.leaves(plain(own_x, kernels[unit], own_dy))):
            expected[k] = _put(expected[k], part, unit) if part.shape == one else _add(expected[k], part)
    return float(jnp.max(jnp.stack([_distance(a, b) for a, b in zip(found, expected, strict=True)])))


@jax.jit
def _rows_of(unit, rows, plan: RoutePlan):
    return jnp.where((plan.unit == unit)[:, None, None, None], rows, 0)


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
