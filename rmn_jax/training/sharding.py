"""Unit-sharded state (``config.shard_units``): the leaves of routed stages split over the mesh.

Data-parallel training keeps N copies of every stage, with momentum and EMA, on each of D devices. Here a device keeps
1 / D of them. A stage's leaves are gathered where the stage begins (``all_gather``). Their gradients come back by the
transpose (``psum_scatter``), which sums them over the devices too. The optimizer updates each device's part.

The optimizer must be elementwise: a transformation that needs the norm of a whole leaf or of all gradients would see
one part of it.

Axes: N units, D devices (see ``rmn_jax``).
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rmn_jax.training.cloning import is_procedural, names_from_stage
from rmn_jax.training.state import TrainState

AXIS = "data"  # of the mesh


def split_axis(shape: tuple[int, ...], devices: int) -> int | None:
    """The axis along which a leaf is split: the first that D divides, units before all others. None: it stays whole."""
    if devices == 1:
        return None
    return next((axis for axis, size in enumerate(shape) if size and size % devices == 0), None)


def unit_specs(state: TrainState, stages: Collection[int], devices: int) -> TrainState:
    """How a state is split: a ``PartitionSpec`` for each leaf; ``P()`` is a copy on every device.

    Parameters, EMA and optimizer state of routed stages are split. A leaf of the optimizer is split as the parameter of
    the same path, if it has its shape.

    Args:
      state: of the routed network; its shapes are enough.
      stages: numbers of the routed stages.
      devices: D.
    """

    def split(path, leaf) -> P:
        axis = split_axis(leaf.shape, devices) if is_procedural(path, stages) else None
        return P() if axis is None else P(*(None,) * axis, AXIS)

    shapes = {names_from_stage(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}

    def as_parameter(path, leaf) -> P:
        return split(path, leaf) if shapes.get(names_from_stage(path)) == leaf.shape else P()

    whole = jax.tree.map(lambda _: P(), state)
    return whole._replace(
        params=jax.tree_util.tree_map_with_path(split, state.params),
        opt_state=jax.tree_util.tree_map_with_path(as_parameter, state.opt_state),
        ema=jax.tree_util.tree_map_with_path(split, state.ema),
    )


def bytes_per_device(state: Any, specs: Any, devices: int) -> int:
    """Bytes of a state on each device."""
    sizes = jax.tree.map(lambda leaf: leaf.size * leaf.dtype.itemsize, state)
    parts = jax.tree.map(lambda size, spec: size // (1 if _axis_of(spec) is None else devices), sizes, specs)
    return sum(jax.tree.leaves(parts))


def describe_split(state: TrainState, stages: Collection[int], devices: int) -> str:
    """A line for people: the state on each device, and the routed leaves that stay whole.

    Args:
      state: of the routed network; its shapes are enough.
      stages: numbers of the routed stages.
      devices: D.
    """
    if devices == 1:
        return "config.shard_units: there is one device, so nothing is split"
    specs = unit_specs(state, stages, devices)
    before, after = (bytes_per_device(state, each, devices) for each in (jax.tree.map(lambda _: P(), state), specs))
    routed = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if is_procedural(path, stages)
    ]
    whole = [f"{name} {list(leaf.shape)}" for name, leaf in routed if split_axis(leaf.shape, devices) is None]
    line = f"config.shard_units: each of {devices} devices holds {_size(after)} of the state, not {_size(before)}"
    if whole:
        more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
        line += f"; {whole[0]}{more} of {len(routed)} routed leaves stay whole: no axis can be divided by {devices}"
    return line


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _axis_of(spec: P) -> int | None:
    return spec.index(AXIS) if AXIS in spec else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(part: jax.Array, axis: int, dtype) -> jax.Array:
    """A whole leaf in ``dtype``, from the devices' parts of it. Its gradient is summed in the part's own dtype."""
    return _all_gather(part, axis, dtype)


def _all_gather(part, axis, dtype):
    return jax.lax.all_gather(part.astype(dtype), AXIS, axis=axis, tiled=True)


def _gather_forward(part, axis, dtype):
    # Not ``_gather``: the policy of ``jax.checkpoint`` must see the ``all_gather``.
    return _all_gather(part, axis, dtype), jnp.zeros((0,), part.dtype)


def _gather_backward(axis, dtype, like, gradient):
    return (jax.lax.psum_scatter(gradient.astype(like.dtype), AXIS, scatter_dimension=axis, tiled=True),)


_gather.defvjp(_gather_forward, _gather_backward)


class StageGather:
    """Gathers the leaves of a stage where it begins, see ``rmn_jax.models.RMN.gather``.

    Args:
      specs: of the parameters, from ``unit_specs``.
      dtype: compute type. Kernels, which the layers cast to it anyway, travel in it; other leaves in their own type.
    """

    def __init__(self, specs: Mapping[str, Any], dtype: Any):
        self._specs, self._dtype = specs, dtype

    def again(self, parts: Any, x: jax.Array) -> bool:
        """Whether the backward pass gathers a stage's parameters again, rather than keeps the whole ones till then.

        For the second gather ``jax.checkpoint`` separates the two passes. The compiler then stores feature maps that it
        would otherwise compute anew: about one for each layer. So it pays where the parameters are larger than these.

        Args:
          parts: of the stage's parameters, on this device.
          x: input of the stage.
        """
        leaves = jax.tree.leaves(parts)
        layers = sum(leaf.ndim > 2 for leaf in leaves)
        return sum(leaf.size for leaf in leaves) * jax.lax.axis_size(AXIS) > layers * x.size

    def __call__(self, stage: str, params: Any) -> Any:
        """The whole leaves of ``stage``, from this device's parts."""

        def whole(path, part, spec):
            axis = _axis_of(spec)
            if axis is None:
                return part
            return _gather(part, axis, self._dtype if getattr(path[-1], "key", "") == "kernel" else part.dtype)

        return jax.tree_util.tree_map_with_path(whole, params, self._specs[stage])


def sum_gradients(gradients: Any, others: Any, specs: Any) -> tuple[Any, Any]:
    """The sums over devices of gradients and of other values, in one reduction.

    Args:
      gradients: of the parameters. Those of split leaves are sums already.
      others: a pytree of values.
      specs: of the parameters.
    """
    is_whole = jax.tree.map(lambda spec: _axis_of(spec) is None, specs, is_leaf=lambda leaf: isinstance(leaf, P))
    own = jax.tree.map(lambda whole, leaf: leaf if whole else None, is_whole, gradients)
    summed, others = jax.lax.psum((own, others), AXIS)
    leaves = iter(jax.tree.leaves(summed))
    return jax.tree.map(lambda whole, leaf: next(leaves) if whole else leaf, is_whole, gradients), others


def own_units(factor: jax.Array, spec: P) -> jax.Array:
    """The part of [N] factors, one for each unit, that belongs to this device's part of a leaf."""
    if _axis_of(spec) != 0:
        return factor
    count = factor.shape[0] // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(factor, jax.lax.axis_index(AXIS) * count, count)
