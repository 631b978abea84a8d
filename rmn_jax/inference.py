"""Compiling a trained network for inference: what makes it fast on the platform, chosen without the user knowing.

Axes: B inputs, N units, S stages, K classes (see ``rmn_jax``).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from rmn_jax import routing
from rmn_jax.cloning import is_procedural
from rmn_jax.layers import ConditionalAttention
from rmn_jax.models import RMN, Outputs


class Prediction(NamedTuple):
    """``logits`` [B, K] float32 and ``assignment`` [S, B] int32 (the unit at each stage; -1 when plain)."""

    logits: jax.Array
    assignment: jax.Array


# XLA:CPU fuses element-wise operations into convolutions before it looks for convolutions that its fast library
# (YNNPACK) takes, and then finds few. Fusing convolutions with that library one by one finds all.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"}


def compiler_options() -> dict[str, Any]:
    """XLA's options for inference on the current platform; the same for plain and routed networks."""
    return dict(CPU_OPTIONS) if jax.default_backend() == "cpu" else {}


def compile_inference(
    model: RMN, variables: dict[str, Any], images: jax.ShapeDtypeStruct
) -> Callable[[jax.Array], Prediction]:
    """Compiles a network in evaluation mode for one shape of input.

    A single image goes through ``lax.switch`` over each stage's units with their parameters held apart: the branch
    taken reads its own weights in place, where slicing them out of the stacked leaves would copy them first. Larger
    batches go through the routed convolutions.

    Args:
      model: plain or routed; a plain network with conditional attention needs a condition and is refused.
      variables: its variables; they are kept by the returned function.
      images: shape [B, H, W, 3] and dtype of what it will be given, normalised as in training.

    Returns:
      A function of images of exactly that shape.

    Raises:
      ValueError: a plain network with conditional attention, or a randomly routed one.
    """
    if not model.routed and model.attention == "conditional":
        raise ValueError("a plain network with conditional attention has no condition of its own in inference")
    if model.routed and model.router == "random":
        raise ValueError("a randomly routed network has no unit of its own for an image in inference")
    model = model.clone(axis_name=None)
    if model.routed and model.router == "memory" and images.shape[0] == 1:
        apart = _apart(variables, model.num_units)
        function = lambda apart, x: _single(model, apart, x)  # noqa: E731
    else:
        apart = variables

        def function(variables, x):
            outputs = cast(Outputs, model.apply(variables, x))
            return Prediction(outputs.logits, outputs.assignment)

    lowered = jax.jit(function).lower(apart, images)
    try:
        compiled = lowered.compile(compiler_options=compiler_options())
    except jax.errors.JaxRuntimeError:  # an XLA that does not know the option
        compiled = lowered.compile()
    return lambda x: compiled(apart, x)


def _apart(variables: dict[str, Any], num_units: int) -> dict[str, Any]:
    """The variables with each unit's procedure as arrays of its own: ``{"shared", "units": (N trees), "memory"}``."""
    stacked = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    unit = lambda j: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, leaf: jnp.array(leaf[j]) if is_procedural(path) else None, stacked
    )
    shared = jax.tree_util.tree_map_with_path(lambda path, leaf: None if is_procedural(path) else leaf, stacked)
    return {
        "shared": shared,
        "units": tuple(unit(j) for j in range(num_units)),
        "memory": variables["memory"],
    }


def _part(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {collection: parts[name] for collection, parts in tree.items() if name in parts}


def _apply(module, variables: dict[str, Any], x: jax.Array) -> jax.Array:
    return module.apply(variables, x)


def _single(model: RMN, apart: dict[str, Any], image: jax.Array) -> Prediction:
    """One image, [1, H, W, 3], through the one procedure of each stage that its features choose."""
    shared, units, backbone = apart["shared"], apart["units"], model.backbone
    layers = model.plain_layers()
    x = _apply(backbone.stem(layers=layers), _part(shared, "stem"), image.astype(model.dtype))
    assignment = []
    for i, make_stage in enumerate(backbone.stages):
        unit = routing.nearest_unit(routing.global_average_pool(x), apart["memory"][f"memory{i + 1}"], model.metric)
        stage = make_stage(layers=layers)
        procedures = [functools.partial(stage.apply, _part(tree, f"stage{i + 1}")) for tree in units]
        x = jax.lax.switch(unit[0], procedures, x)
        if model.attention != "none":
            condition = model.num_units if model.attention == "conditional" else None
            attention = ConditionalAttention(condition)
            x = cast(jax.Array, attention.apply(_part(shared, f"attention{i + 1}"), x, unit))
        assignment.append(unit)
    logits = _apply(backbone.head(layers=layers), _part(shared, "head"), x)
    return Prediction(logits.astype(jnp.float32), jnp.stack(assignment))
