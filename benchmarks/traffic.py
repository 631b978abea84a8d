"""Arithmetic and sums over devices of a training step, from the shapes of a routed network.

The sums are checked against the compiled step (``tests/training/test_lowered.py``).

Axes: B batch, N units, S stages, H W height and width, C channels (see ``rmn_jax``).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.analysis.counts import count_parameters, trace_shapes
from rmn_jax.models import RMN

_FLOAT32 = 4


class Network(NamedTuple):
    """The numbers of a routed network that decide how it scales.

    Attributes:
      num_units: N.
      shared_operations: of the forward pass outside the stages, for one image; a multiply-add is two.
      stage_operations: the same for each stage.
      shared_parameters: number of parameters outside the stages.
      routed_parameters: number of parameters in the stages, of all units together.
      shared_norms: channels of each batch norm outside the stages.
      routed_norms: channels of each batch norm in the stages.
      memories: channels C of each stage's input.
      stage_inputs: H W C of each stage's input.
    """

    num_units: int
    shared_operations: float
    stage_operations: tuple[float, ...]
    shared_parameters: int
    routed_parameters: int
    shared_norms: tuple[int, ...]
    routed_norms: tuple[int, ...]
    memories: tuple[int, ...]
    stage_inputs: tuple[int, ...]


def describe(model: RMN, image_size: int) -> Network:
    """The ``Network`` of a routed model, from its shapes alone."""
    model = model.clone(axis_name=None)
    operations, inputs = _forward(model.clone(routed=False), image_size)
    shapes = trace_shapes(model, image_size)
    stages = [f"stage{i + 1}" for i in range(len(model.backbone.stages))]
    params = shapes.variables["params"]
    routed = count_parameters({"params": {name: params[name] for name in stages}})
    norms = {name: _norm_channels(leaves) for name, leaves in shapes.variables.get("batch_stats", {}).items()}
    return Network(
        num_units=model.num_units,
        shared_operations=sum(value for name, value in operations.items() if name not in stages),
        stage_operations=tuple(operations[name] for name in stages),
        shared_parameters=count_parameters({"params": params}) - routed,
        routed_parameters=routed,
        shared_norms=tuple(c for name, channels in norms.items() if name not in stages for c in channels),
        routed_norms=tuple(c for name in stages for c in norms.get(name, ())),
        memories=tuple(pooled.shape[-1] for pooled in shapes.outputs.pooled),
        stage_inputs=tuple(math.prod(inputs[name][1:]) for name in stages),
    )


def _forward(plain: RMN, image_size: int) -> tuple[dict[str, float], dict[str, tuple[int, ...]]]:
    """Operations and input shape of each part (``stem``, ``stage1`` .., ``head``) for one image."""
    operations: dict[str, float] = {}
    inputs: dict[str, tuple[int, ...]] = {}

    def note(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or not module.path:
            return output
        if len(module.path) == 1:
            inputs[module.path[0]] = args[0].shape
        if module.has_variable("params", "kernel"):
            kernel = module.get_variable("params", "kernel").shape
            products = math.prod(output.shape) * math.prod(kernel[:-1])
            operations[module.path[0]] = operations.get(module.path[0], 0.0) + 2.0 * products
        return output

    def initialise():
        keys = jax.random.split(jax.random.key(0), 1)
        with nn.intercept_methods(note):
            return plain.init(keys[0], jnp.zeros((1, image_size, image_size, 3)), keys=keys)

    jax.eval_shape(initialise)
    return operations, inputs


def _norm_channels(leaves: Any) -> tuple[int, ...]:
    """The channels of every batch norm in a part of the network."""
    paths = jax.tree_util.tree_leaves_with_path(leaves)
    return tuple(leaf.shape[-1] for path, leaf in paths if getattr(path[-1], "key", None) == "mean")


class Reduction(NamedTuple):
    """A sum over devices: its name, its size in bytes, and whether the step waits for it (``blocking``)."""

    name: str
    bytes: int
    blocking: bool = True


def data_parallel_reductions(network: Network, gradient_bytes: int = 4) -> list[Reduction]:
    """All sums over devices of a data-parallel step.

    A batch norm sums (sum, sum of squares, count) in the forward pass and its gradient in the backward pass: N (2 C +
    1) values each time. The gradients are summed together with the loss and the number of correct predictions, the
    memories together with their numbers of inputs.
    """
    units = network.num_units
    norms = [2 * c + 1 for c in network.shared_norms] + [units * (2 * c + 1) for c in network.routed_norms]
    found = [Reduction(name, values * _FLOAT32) for name in ("norm forward", "norm backward") for values in norms]
    gradients = (network.shared_parameters + network.routed_parameters) * gradient_bytes + 2 * _FLOAT32
    memories = sum(units * (c + 1) for c in network.memories) * _FLOAT32
    return [*found, Reduction("gradients", gradients, False), Reduction("memories", memories, False)]
