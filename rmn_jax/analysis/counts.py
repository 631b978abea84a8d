"""Parameters and multiply-adds of a network, from shapes only: nothing is computed, no weights are drawn.

The convention is that of the paper and of torchvision: one multiply-add for each product of a convolution or linear
layer, none for biases, norms, activations and pooling. Only the active path counts. An input goes through one unit of
each stage, so a routed network costs as much as the plain one plus the distances to the memories.

Axes: B batch, N units, H W height and width, C channels (see ``rmn_jax``).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.models.rmn import RMN, Outputs


class Shapes(NamedTuple):
    """Shapes of a network.

    Attributes:
      outputs: as ``jax.ShapeDtypeStruct``.
      variables: as ``jax.ShapeDtypeStruct``.
      multiply_adds: on the active path, for one image.
    """

    outputs: Outputs
    variables: dict[str, Any]
    multiply_adds: int


def count_parameters(variables: dict[str, Any]) -> int:
    """Number of trained values: all leaves of the collection ``params``, of all units.

    Memories and the running statistics of batch norm are not trained and do not count.

    Args:
      variables: of a network, as arrays or ``jax.ShapeDtypeStruct``.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_multiply_adds(model: RMN, image_size: int) -> int:
    """Multiply-adds on the active path for one image.

    Args:
      model: plain or routed.
      image_size: height and width in pixels.

    Returns:
      The products of all convolutions and linear layers (with the two of conditional attention). When routed, N C
      more for the distances of each stage.
    """
    return trace_shapes(model, image_size).multiply_adds


def trace_shapes(model: RMN, image_size: int, *, batch: int = 1, train: bool = False) -> Shapes:
    """Initialises and runs a network on shapes only.

    Args:
      model: plain or routed.
      image_size: height and width in pixels.
      batch: B of the outputs. ``multiply_adds`` are for one image at any B.
      train: training mode, for example with dropout.
    """
    total = 0

    def count(next_call, args, kwargs, context):
        nonlocal total
        output = next_call(*args, **kwargs)
        if context.method_name == "__call__":
            total += _products_of_layer(context.module, output)
        return output

    def initialise():
        keys = jax.random.split(jax.random.key(0), batch)
        images = jnp.zeros((batch, image_size, image_size, 3), jnp.float32)
        with nn.intercept_methods(count):
            return model.init_with_output(keys[0], images, train=train, keys=keys)

    outputs, variables = jax.eval_shape(initialise)
    # A distance to a memory has a product for each of its C values.
    distances = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.get("memory", {})))
    return Shapes(outputs, variables, total // batch + distances)


def _products_of_layer(module: nn.Module, output: Any) -> int:
    """Multiply-adds of one call of a layer with a parameter ``kernel``; 0 for any other module.

    An output value is the sum of as many products as the kernel has entries for its channel: kh kw C for a
    convolution, kh kw for a depthwise one (kernel [kh, kw, 1, C]), C for a linear layer.
    """
    if not module.has_variable("params", "kernel"):
        return 0
    shape: tuple[int, ...] = module.get_variable("params", "kernel").shape
    if getattr(module, "num_units", None) is not None:
        shape = shape[1:]
    return math.prod(output.shape) * math.prod(shape[:-1])
