"""Compiles a trained network for inference. The fast form for the platform is chosen automatically.

Axes: B batch, N units, S stages, K classes (see ``rmn_jax``).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from rmn_jax import routing
from rmn_jax.models import RMN, Outputs
from rmn_jax.models.layers import NORM, ConditionalAttention
from rmn_jax.training.cloning import is_procedural


class Prediction(NamedTuple):
    """``logits`` [B, K] float32 and ``assignment`` [S, B] int32 (the unit at each stage; -1 if not routed)."""

    logits: jax.Array
    assignment: jax.Array


# XLA:CPU fuses first and then recognises few operations for its fast library, YNNPACK. These options offload each
# convolution and product separately.
_ONE_BY_ONE = ("LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ",".join(_ONE_BY_ONE)}


def compiler_options() -> dict[str, Any]:
    """XLA options for inference on the current platform, the same for plain and routed networks."""
    return dict(CPU_OPTIONS) if jax.default_backend() == "cpu" else {}


class CompiledNetwork(NamedTuple):
    """A network compiled for one input shape. Call it with images of exactly that shape.

    Attributes:
      compiled: the compiled program, called with ``(weights, images)``.
      weights: its variables, folded.
    """

    compiled: Any
    weights: Any

    def __call__(self, images: jax.Array) -> Prediction:
        """Predicts images [B, H, W, 3], normalised as in training, in the dtype that the network was compiled for."""
        return self.compiled(self.weights, images)


def compile_inference(model: RMN, variables: dict[str, Any], images: jax.ShapeDtypeStruct) -> CompiledNetwork:
    """Compiles a network in evaluation mode for one input shape.

    Each kernel is transformed once to the fastest form for its layer (``rmn_jax.ops.fold``). For a single image, each
    stage is a ``lax.switch`` over its units, whose variables are separate arrays: the branch reads the weights of its
    unit in place. (A slice of the stacked leaves would copy them first.) Larger batches use the routed convolutions.

    Args:
      model: plain or routed.
      variables: its variables. What is needed of them is copied, so they may be donated afterwards.
      images: shape [B, H, W, 3] and dtype of the images, which must be normalised as in training.

    Returns:
      A function of images of that shape.

    Raises:
      ValueError: a plain network with conditional attention (it has no condition), a network with the random router (an
        image has no fixed unit), or variables of another N.
    """
    if not model.routed and model.attention == "conditional":
        raise ValueError("a plain network with conditional attention cannot be compiled: it has no condition")
    if model.routed and routing.ROUTERS[model.router].needs_keys:
        raise ValueError(f"a network with the router {model.router!r} cannot be compiled: an image has no fixed unit")
    found = len(jax.tree.leaves(variables["memory"])[0]) if model.routed else 0
    if model.routed and found != model.num_units:
        raise ValueError(f"the variables are of {found} units, but the model has num_units={model.num_units}")
    model = model.clone(axis_name=None, folded=True)
    function: Callable
    weights: Any
    if images.shape[0] == 1 and (not model.routed or routing.ROUTERS[model.router].by_memory):
        function, weights = _single_image(model, variables, images)
    else:
        function, weights = functools.partial(_batch, model), _make_fold(model, images)(variables)

    lowered = jax.jit(function).lower(weights, images)
    try:
        compiled = lowered.compile(compiler_options=compiler_options())
    except jax.errors.JaxRuntimeError as error:  # this XLA may not know the option
        if not any(option in str(error) for option in CPU_OPTIONS):
            raise
        compiled = lowered.compile()
    return CompiledNetwork(compiled, weights)


def _make_fold(model: RMN, images: jax.ShapeDtypeStruct) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A compiled function of variables. It replaces leaves by the folded arrays that are made from them."""

    @jax.jit
    def folded_arrays(variables):
        # Only the folded arrays of this forward pass are used. The compiler removes the rest.
        return model.apply(variables, jnp.zeros(images.shape, images.dtype), mutable=["folded"])[1]["folded"]

    def fold(variables: dict[str, Any]) -> dict[str, Any]:
        folded = folded_arrays(variables)
        needed = {kind: _not_folded(tree, folded) for kind, tree in variables.items()}
        return {**needed, "folded": folded}

    return fold


def _not_folded(tree: dict[str, Any], folded: dict[str, Any]) -> dict[str, Any]:
    """Copies of the leaves that a folded network still reads."""
    kept: dict[str, Any] = {}
    for name, part in tree.items():
        if isinstance(part, dict):
            kept[name] = _not_folded(part, folded.get(name, {}))
        elif NORM not in folded and name not in folded:  # no leaf of a norm, only the bias of a convolution
            kept[name] = jnp.array(part, copy=True)
    return kept


class Pack(NamedTuple):
    """A tree of float arrays as few arrays.

    A call passes every array to the runtime one by one. For the thousands of vectors of N units this takes as long as a
    layer.

    Attributes:
      large: the leaves of ``LARGE`` or more values, in order.
      small: all other leaves, flattened and concatenated, a float32 vector.
    """

    large: tuple[jax.Array, ...]
    small: jax.Array


LARGE = 2**14  # values


def pack(tree: Any) -> Pack:
    """Packs the leaves of a tree, see ``Pack``."""
    leaves = jax.tree.leaves(tree)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < LARGE]
    large = tuple(leaf for leaf in leaves if leaf.size >= LARGE)
    return Pack(large, jnp.concatenate([jnp.zeros(0, jnp.float32), *small]))


def unpack(packed: Pack, shapes: Any) -> Any:
    """The tree that was packed; ``shapes`` is that tree, as arrays or ``jax.ShapeDtypeStruct``."""
    leaves, treedef = jax.tree.flatten(shapes)
    large, found, start = list(packed.large), [], 0
    for leaf in leaves:
        size = math.prod(leaf.shape)
        if size >= LARGE:
            found.append(large.pop(0))
        else:
            found.append(packed.small[start : start + size].reshape(leaf.shape).astype(leaf.dtype))
            start += size
    return jax.tree.unflatten(treedef, found)


class _Parts(NamedTuple):
    """The folded variables of a network by part, with those of each unit separate.

    Attributes:
      stem: variables of the stem.
      stages: for each stage the packed variables of its N units (of one unit when it is not routed).
      attentions: for each stage the variables of its attention; empty without attention.
      head: variables of the head.
      memories: by number of routed stage [N, C] float32; empty when plain.
    """

    stem: dict[str, Any]
    stages: list[tuple[Pack, ...]]
    attentions: list[dict[str, Any]]
    head: dict[str, Any]
    memories: dict[int, jax.Array]


def _single_image(model: RMN, variables: dict[str, Any], images: jax.ShapeDtypeStruct) -> tuple[Callable, _Parts]:
    """The function of ``(weights, image)`` for one image, and its weights."""
    fold = _make_fold(model.clone(routed=False, attention="none"), images)
    trained: dict[str, Any] = {name: variables[name] for name in ("params", "batch_stats") if name in variables}

    def plain_network_of(unit: int) -> dict[str, Any]:
        of_unit = lambda path, leaf: leaf[unit] if is_procedural(path, routed) else leaf  # noqa: E731
        return fold(jax.tree_util.tree_map_with_path(of_unit, trained))

    routed = model.stages_with_memories
    units = [plain_network_of(unit) for unit in range(model.num_units if routed else 1)]
    part = lambda tree, name: {kind: parts[name] for kind, parts in tree.items() if name in parts}  # noqa: E731
    copy = functools.partial(jnp.array, copy=True)
    stages = range(1, len(model.backbone.stages) + 1)
    weights = _Parts(
        stem=part(units[0], "stem"),
        stages=[tuple(pack(part(tree, f"stage{i}")) for tree in (units if i in routed else units[:1])) for i in stages],
        attentions=[jax.tree.map(copy, part(trained, f"attention{i}")) for i in stages],
        head=part(units[0], "head"),
        memories={i: copy(variables["memory"][f"memory{i}"]) for i in routed},
    )
    shapes = [jax.eval_shape(lambda tree: tree, part(units[0], f"stage{i}")) for i in stages]
    return functools.partial(_single, model, shapes), weights


def _single(model: RMN, shapes: list[Any], weights: _Parts, image: jax.Array) -> Prediction:
    """Predicts one image, [1, H, W, 3], with one unit of each stage: that of the nearest memory.

    Args:
      model: folded.
      shapes: of each stage, the variables of one unit.
      weights: see ``_Parts``.
      image: normalised as in training.
    """
    backbone, layers = model.backbone, model.plain_layers()
    x = _apply(backbone.stem(layers=layers), weights.stem, image.astype(model.dtype))
    assignment = []
    for i, make_stage in enumerate(backbone.stages):
        stage, unit = make_stage(layers=layers), jnp.full((1,), -1, jnp.int32)
        procedure = lambda packed, x, stage=stage, i=i: _apply(stage, unpack(packed, shapes[i]), x)  # noqa: E731
        if i + 1 in weights.memories:
            unit = routing.nearest_unit(routing.global_average_pool(x), weights.memories[i + 1], model.metric)
            x = jax.lax.switch(unit[0], [functools.partial(procedure, packed) for packed in weights.stages[i]], x)
        else:
            x = procedure(weights.stages[i][0], x)
        if model.attention != "none":
            condition = model.num_units if model.attention == "conditional" and i + 1 in weights.memories else None
            attention = ConditionalAttention(condition)
            x = _apply(attention, weights.attentions[i], x, unit)
        assignment.append(unit)
    logits = _apply(backbone.head(layers=layers), weights.head, x)
    return Prediction(logits.astype(jnp.float32), jnp.stack(assignment))


def _batch(model: RMN, weights: dict[str, Any], images: jax.Array) -> Prediction:
    outputs = cast(Outputs, model.apply(weights, images))
    return Prediction(outputs.logits, outputs.assignment)


def _apply(module, variables: dict[str, Any], *inputs: jax.Array) -> jax.Array:
    return cast(jax.Array, module.apply(variables, *inputs))
