"""Parameters and multiply-adds of a network, from its shapes alone: nothing is computed, no weight is drawn.

The convention is the paper's (and torchvision's): one multiply-add for each product of a convolution or
linear layer, nothing for biases, norms, activations and pooling. Only the active path counts: an input goes
through one unit a stage, so a routed network costs what the plain one does plus its distances to the
memories.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.models.rmn import RMN, Outputs


class Shapes(NamedTuple):
    """A network's ``outputs`` and ``variables`` as ``jax.ShapeDtypeStruct``, and its ``multiply_adds``."""

    outputs: Outputs
    variables: dict[str, Any]
    multiply_adds: int


def count_parameters(variables: dict[str, Any]) -> int:
    """Number of trained values: all leaves of the collection ``params``, those of all units included.

    Memories and batch norm's running statistics are not trained and do not count.

    Args:
      variables: of a network, as arrays or as ``jax.ShapeDtypeStruct``.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_multiply_adds(model: RMN, image_size: int) -> int:
    """Multiply-adds on the active path for one image.

    Args:
      model: plain or routed.
      image_size: height and width in pixels.

    Returns:
      Those of convolutions and linear layers (conditional attention's two included) and, when routed, N C for
      each stage's distances.
    """
    return trace_shapes(model, image_size).multiply_adds


def trace_shapes(model: RMN, image_size: int, *, batch: int = 1, train: bool = False) -> Shapes:
    """Initialises and runs ``model`` on shapes alone.

    Args:
      model: plain or routed.
      image_size: height and width in pixels.
      batch: B of the outputs; ``multiply_adds`` are for one image whatever B.
      train: whether dropout and the like are there.
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
    distances = count_memory_values(variables)
    return Shapes(outputs, variables, total // batch + distances)


def count_memory_values(variables: dict[str, Any]) -> int:
    """Values in all memories, N C summed over stages; 0 for a plain network."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.get("memory", {})))


def _products_of_layer(module: nn.Module, output: Any) -> int:
    """Multiply-adds of one call of a layer that owns a ``kernel``, 0 for any other module.

    Each output value sums as many products as the kernel has entries for its channel: kh kw C for a
    convolution, kh kw for a depthwise one (kernel [kh, kw, 1, C]), C for a linear layer.
    """
    if not module.has_variable("params", "kernel"):
        return 0
    shape: tuple[int, ...] = module.get_variable("params", "kernel").shape
    if getattr(module, "num_units", None) is not None:
        shape = shape[1:]
    return math.prod(output.shape) * math.prod(shape[:-1])
