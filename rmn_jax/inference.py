"""Compiling a trained network for inference: what makes it fast on the platform, chosen without the user knowing.

Axes: B inputs, N units, S stages, K classes (see ``rmn_jax``).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from rmn_jax import routing
from rmn_jax.cloning import is_procedural
from rmn_jax.layers import NORM, ConditionalAttention
from rmn_jax.models import RMN, Outputs


class Prediction(NamedTuple):
    """``logits`` [B, K] float32 and ``assignment`` [S, B] int32 (the unit at each stage; -1 when plain)."""

    logits: jax.Array
    assignment: jax.Array


# XLA:CPU fuses element-wise operations into convolutions and products before it looks for those that its fast library
# (YNNPACK) takes, and then finds few. Handing them over one by one finds all.
_ONE_BY_ONE = ("LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ",".join(_ONE_BY_ONE)}


def compiler_options() -> dict[str, Any]:
    """XLA's options for inference on the current platform; the same for plain and routed networks."""
    return dict(CPU_OPTIONS) if jax.default_backend() == "cpu" else {}


class CompiledNetwork(NamedTuple):
    """A network compiled for one shape of input: call it with images of exactly that shape.

    Attributes:
      compiled: the program, of ``(weights, images)``.
      weights: its prepared variables.
    """

    compiled: Any
    weights: Any

    def __call__(self, images: jax.Array) -> Prediction:
        """[B, H, W, 3], normalised as in training, of the dtype it was compiled for."""
        return self.compiled(self.weights, images)


def compile_inference(model: RMN, variables: dict[str, Any], images: jax.ShapeDtypeStruct) -> CompiledNetwork:
    """Compiles a network in evaluation mode for one shape of input.

    Kernels are brought into the form that is fastest for their layer once (``rmn_jax.ops.prepared``). A single image
    goes through ``lax.switch`` over each stage's units with their variables held apart: the branch taken reads its
    own weights in place, where slicing them out of the stacked leaves would copy them first. Larger batches go
    through the routed convolutions.

    Args:
      model: plain or routed; a plain network with conditional attention needs a condition and is refused.
      variables: its variables; what is needed of them is copied, so they may be donated afterwards.
      images: shape [B, H, W, 3] and dtype of what it will be given, normalised as in training.

    Returns:
      A function of images of that shape.

    Raises:
      ValueError: a plain network with conditional attention, a randomly routed one, or variables of another N.
    """
    if not model.routed and model.attention == "conditional":
        raise ValueError("a plain network with conditional attention has no condition of its own in inference")
    if model.routed and model.router == "random":
        raise ValueError("a randomly routed network has no unit of its own for an image in inference")
    if model.routed and len(variables["memory"]["memory1"]) != model.num_units:
        found = len(variables["memory"]["memory1"])
        raise ValueError(f"the variables are those of {found} units, the model has num_units={model.num_units}")
    model = model.clone(axis_name=None, prepared=True)
    function: Callable
    weights: Any
    if images.shape[0] == 1 and (model.router == "memory" or not model.routed):
        function, weights = _single_image(model, variables, images)
    else:
        function, weights = functools.partial(_batch, model), _prepare(model, images)(variables)

    lowered = jax.jit(function).lower(weights, images)
    try:
        compiled = lowered.compile(compiler_options=compiler_options())
    except jax.errors.JaxRuntimeError as error:  # an XLA that does not know the option?
        if not any(option in str(error) for option in CPU_OPTIONS):
            raise
        compiled = lowered.compile()
    return CompiledNetwork(compiled, weights)


def _prepare(model: RMN, images: jax.ShapeDtypeStruct) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A compiled function of variables that puts prepared arrays in the place of those that they are made from."""

    @jax.jit
    def prepared(variables):
        # Of this forward pass only the prepared arrays are used; the compiler leaves out the rest.
        return model.apply(variables, jnp.zeros(images.shape, images.dtype), mutable=["prepared"])[1]["prepared"]

    def run(variables: dict[str, Any]) -> dict[str, Any]:
        made = prepared(variables)
        needed = {kind: _unprepared(tree, made) for kind, tree in variables.items()}
        return {**needed, "prepared": made}

    return run


def _unprepared(tree: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Copies of the leaves that a network with prepared arrays still reads."""
    kept: dict[str, Any] = {}
    for name, part in tree.items():
        if isinstance(part, dict):
            kept[name] = _unprepared(part, made.get(name, {}))
        elif NORM not in made and name not in made:  # of a norm nothing is left, of a convolution the bias
            kept[name] = jnp.array(part, copy=True)
    return kept


class Pack(NamedTuple):
    """A tree of floats as few arrays: the ``large`` ones, and all others end to end in ``small`` [M] float32.

    A call hands every array to the runtime one by one, which for the thousands of vectors of N units takes as long as
    a layer.
    """

    large: tuple[jax.Array, ...]
    small: jax.Array


LARGE = 2**14  # values


def pack(tree: Any) -> Pack:
    """A tree's leaves in order, those of fewer than ``LARGE`` values end to end."""
    leaves = jax.tree.leaves(tree)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < LARGE]
    large = tuple(leaf for leaf in leaves if leaf.size >= LARGE)
    return Pack(large, jnp.concatenate([jnp.zeros(0, jnp.float32), *small]))


def unpack(packed: Pack, like: Any) -> Any:
    """The tree again; ``like`` is that tree or one of its shapes."""
    leaves, treedef = jax.tree.flatten(like)
    large, found, start = list(packed.large), [], 0
    for leaf in leaves:
        size = math.prod(leaf.shape)
        if size >= LARGE:
            found.append(large.pop(0))
        else:
            found.append(packed.small[start : start + size].reshape(leaf.shape).astype(leaf.dtype))
            start += size
    return jax.tree.unflatten(treedef, found)


class _Apart(NamedTuple):
    """A network's variables part by part, with a tuple of packed units for each stage (one unit when plain)."""

    stem: dict[str, Any]
    stages: list[tuple[Pack, ...]]
    attentions: list[dict[str, Any]]
    head: dict[str, Any]
    memories: list[jax.Array]


def _single_image(model: RMN, variables: dict[str, Any], images: jax.ShapeDtypeStruct) -> tuple[Callable, _Apart]:
    """The function of ``(weights, image)`` for one image, and its weights."""
    prepare = _prepare(model.clone(routed=False, attention="none"), images)
    trained: dict[str, Any] = {name: variables[name] for name in ("params", "batch_stats") if name in variables}

    def unit(j: int) -> dict[str, Any]:
        own = lambda path, leaf: leaf[j] if model.routed and is_procedural(path) else leaf  # noqa: E731
        return prepare(jax.tree_util.tree_map_with_path(own, trained))

    units = [unit(j) for j in range(model.num_units if model.routed else 1)]
    part = lambda tree, name: {kind: parts[name] for kind, parts in tree.items() if name in parts}  # noqa: E731
    copy = functools.partial(jnp.array, copy=True)
    stages = range(1, len(model.backbone.stages) + 1)
    apart = _Apart(
        stem=part(units[0], "stem"),
        stages=[tuple(pack(part(tree, f"stage{i}")) for tree in units) for i in stages],
        attentions=[jax.tree.map(copy, part(trained, f"attention{i}")) for i in stages],
        head=part(units[0], "head"),
        memories=[copy(variables["memory"][f"memory{i}"]) for i in stages] if model.routed else [],
    )
    like = [jax.eval_shape(lambda tree: tree, part(units[0], f"stage{i}")) for i in stages]
    return functools.partial(_single, model, like), apart


def _single(model: RMN, like: list[Any], weights: _Apart, image: jax.Array) -> Prediction:
    """One image, [1, H, W, 3], through the one procedure of each stage that its features choose."""
    backbone, layers = model.backbone, model.plain_layers()
    x = _apply(backbone.stem(layers=layers), weights.stem, image.astype(model.dtype))
    assignment = []
    for i, make_stage in enumerate(backbone.stages):
        stage, unit = make_stage(layers=layers), jnp.full((1,), -1, jnp.int32)
        procedure = lambda own, x, stage=stage, i=i: _apply(stage, unpack(own, like[i]), x)  # noqa: E731
        if model.routed:
            unit = routing.nearest_unit(routing.global_average_pool(x), weights.memories[i], model.metric)
            x = jax.lax.switch(unit[0], [functools.partial(procedure, own) for own in weights.stages[i]], x)
        else:
            x = procedure(weights.stages[i][0], x)
        if model.attention != "none":
            attention = ConditionalAttention(model.num_units if model.attention == "conditional" else None)
            x = _apply(attention, weights.attentions[i], x, unit)
        assignment.append(unit)
    logits = _apply(backbone.head(layers=layers), weights.head, x)
    return Prediction(logits.astype(jnp.float32), jnp.stack(assignment))


def _batch(model: RMN, weights: dict[str, Any], images: jax.Array) -> Prediction:
    outputs = cast(Outputs, model.apply(weights, images))
    return Prediction(outputs.logits, outputs.assignment)


def _apply(module, variables: dict[str, Any], *inputs: jax.Array) -> jax.Array:
    return cast(jax.Array, module.apply(variables, *inputs))
