"""The names of ``import rmn_jax``, in one place. ``rmn_jax`` loads them on first use; see docs/library.md."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.inference.export import export_run, load_exported
from rmn_jax.inference.features import extract_features
from rmn_jax.inference.trained import load_trained
from rmn_jax.models import BACKBONES, RMN, Backbone, create_backbone
from rmn_jax.models.build import initialise
from rmn_jax.routing import unit_length
from rmn_jax.training.cloning import clone
from rmn_jax.training.clustering import k_means

__all__ = [
    "RMN",
    "convert",
    "create_backbone",
    "export_run",
    "extract_features",
    "init",
    "initialise_memories",
    "load_exported",
    "load_trained",
    "register_backbone",
]


def register_backbone(name: str, build: Callable[..., Backbone]) -> None:
    """Makes a backbone known by name: the value of ``config.model.backbone``.

    Called in a module that ``config.model.module`` names, it makes the backbone known to every command on the run.

    Args:
      name: new, or that of the same function, also after it was defined again in a notebook.
      build: ``(num_classes, image_size, *, option=default) -> Backbone``.

    Raises:
      ValueError: another backbone has that name.
    """

    def origin(function: Callable) -> Any:
        return getattr(function, "__module__", None), getattr(function, "__qualname__", function)

    if origin(BACKBONES.get(name, build)) != origin(build):
        raise ValueError(f"there is a backbone {name!r} already")
    BACKBONES[name] = build


def init(model: RMN, seed: int, image_size: int) -> dict[str, Any]:
    """Fresh variables of a network, by one compiled program.

    Args:
      model: plain or routed.
      seed: of the random numbers.
      image_size: height and width of the images, in pixels.
    """
    key = jax.random.key(seed)
    images = jnp.zeros((1, image_size, image_size, 3))
    return dict(initialise(model, key, images, keys=jax.random.split(key, 1)))


def convert(model: RMN, variables: dict[str, Any]) -> tuple[RMN, dict[str, Any]]:
    """Phase 2: a plain network as a routed one that computes the same. Its memories are zero.

    Args:
      model: plain; its ``num_units`` is N.
      variables: its variables.

    Returns:
      The routed network and its variables. Go on with ``initialise_memories``.

    Raises:
      ValueError: the network is routed already.
    """
    if model.routed:
        raise ValueError("the network is routed already")
    routed = model.clone(routed=True)
    numbers = routed.stages_with_memories
    cloned = {kind: clone(tree, model.num_units, numbers) for kind, tree in variables.items()}
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    stages = jax.eval_shape(lambda v, x: _apply(model, v, x).pooled, variables, images)
    memory = {f"memory{number}": jnp.zeros((model.num_units, stages[number - 1].shape[-1])) for number in numbers}
    return routed, {**cloned, "memory": memory}


def initialise_memories(
    model: RMN, variables: dict[str, Any], images: np.ndarray | jax.Array, seed: int = 0
) -> dict[str, Any]:
    """Phase 3, right after ``convert``: the memories become k-means centres of what each stage receives.

    Args:
      model: routed.
      variables: its variables; all procedures of a stage are equal.
      images: [M, H, W, 3] float32, normalised, with M at least N.
      seed: of k-means.

    Returns:
      The variables with new memories.
    """
    step = jax.jit(lambda v, x: _apply(model, v, x).pooled)
    parts = [jax.device_get(step(variables, images[at : at + 256])) for at in range(0, len(images), 256)]
    memory = {}
    for number in model.stages_with_memories:
        features = np.concatenate([part[number - 1] for part in parts])
        if model.metric == "cosine":
            features = np.asarray(unit_length(jnp.asarray(features)))
        memory[f"memory{number}"] = jnp.asarray(k_means(features, model.num_units, seed))
    return {**variables, "memory": memory}


def _apply(model: RMN, variables: dict[str, Any], images: jax.Array) -> Any:
    return model.apply(variables, images, keys=jax.random.split(jax.random.key(0), images.shape[0]))
