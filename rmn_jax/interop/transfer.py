"""A run that begins from another run, plain or routed, or from its exported weights.

plain -> plain     training again, with the plain network
plain -> routed    phases 2 to 4
routed -> routed   phase 4 with the memories as they are, or phases 3 and 4: memories found anew on the new data
"""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax.data import DatasetInfo
from rmn_jax.errors import UserError
from rmn_jax.interop.start import begin_run, check_new, describe_data, set_normalisation
from rmn_jax.interop.weights_file import Weights, load_weights
from rmn_jax.training.state import Phase

MEMORIES = ("keep", "new")
# What makes the network; a routed run also has those of the second line.
_NETWORK = ("backbone", "width", "small_stem")
_ROUTED = ("num_units", "attention", "router", "metric", "routed_stages")


def transfer_run(
    *,
    source: str | Weights,
    workdir: str,
    config: ConfigDict | None = None,
    num_units: int | None = None,
    num_classes: int | None = None,
    fresh_head: bool = False,
    memories: str | None = None,
) -> tuple[dict[str, list[str]], str]:
    """Creates a run folder from another run.

    Args:
      source: a run folder, a file of ``rmn export --format=safetensors``, or what ``load_weights`` read.
      workdir: a folder without a run.
      config: of the new run; None is that of the source. ``stem_epochs`` becomes 0.
      num_units: N, to make an RMN of a plain run. A routed run keeps its N.
      num_classes: K, where the data set is not at hand.
      fresh_head: initialise the classifier. Also done if the classes differ.
      memories: of a routed run: "keep" (the default) goes on with phase 4, "new" with phase 3.

    Returns:
      ``{"loaded", "fresh"}`` with the paths of variables, and what happened to the head as a sentence.

    Raises:
      UserError: the weights do not fit the configuration, the folder holds a run already, or it cannot be written.
    """
    folder = check_new(workdir)
    weights = source if isinstance(source, Weights) else load_weights(source)
    config = _matching_config(config, weights, num_units)
    if memories not in (None, *MEMORIES):
        raise UserError(f"--memories is {memories!r}; use one of {', '.join(MEMORIES)}.")
    if memories is not None and not weights.routed:
        raise UserError(
            f"{weights.source} has no memories: a plain run goes through phases 2 and 3. Leave --memories out."
        )
    memories = memories or "keep"
    configuration.validate(config, device_count=1)
    info = describe_data(config, num_classes, weights.info.class_names if _same_data(config, weights) else None)
    fresh_head, head = _head(weights, info, fresh_head)
    report: dict[str, list[str]] = {"loaded": [], "fresh": []}
    phase = Phase.STEM if not weights.routed else Phase.CLONING if memories == "new" else Phase.MEMORIES

    def fill(variables: dict[str, Any]) -> dict[str, Any]:
        return _filled(variables, weights, fresh_head, report)

    begin_run(folder, config, info, phase, fill, {"from": weights.source, "memories": memories, "head": head})
    return report, head


def _matching_config(config: ConfigDict | None, weights: Weights, num_units: int | None) -> ConfigDict:
    """The new run's configuration; refuses a configuration of another network."""
    theirs = weights.config.model
    if config is None:
        config = weights.config.copy_and_resolve_references()
        if not weights.routed:
            config.method = "plain"
    for key in _NETWORK + (_ROUTED if weights.routed else ()):
        if config.model[key] != theirs[key]:
            raise UserError(
                f"{weights.source} has config.model.{key} {theirs[key]!r}, the new run {config.model[key]!r}; "
                f"set --config.model.{key}={theirs[key]}."
            )
    if weights.routed:
        config.method = "rmn"
        if num_units not in (None, theirs.num_units):
            raise UserError(f"{weights.source} has {theirs.num_units} units, and keeps them; leave --num_units out.")
    elif num_units is not None:
        config.method, config.model.num_units = "rmn", num_units
    config.stem_epochs = 0
    set_normalisation(config, weights.info.mean, weights.info.std)
    return config


def _same_data(config: ConfigDict, weights: Weights) -> bool:
    return all(config.data[key] == weights.config.data[key] for key in ("name", "path", "classes"))


def _head(weights: Weights, info: DatasetInfo, fresh_head: bool) -> tuple[bool, str]:
    """Whether to initialise the classifier, and a sentence about it."""
    old, new = weights.info.class_names, info.class_names
    if fresh_head:
        return True, f"the classifier was not loaded (--fresh_head): {len(new)} classes from initial values"
    if old == new:
        return False, f"the classifier was loaded: {len(new)} classes"
    many = f"{len(old)} classes there, {len(new)} in {info.name}" if len(old) != len(new) else "they have other names"
    return True, f"the classifier was not loaded, because the classes differ ({many}); it starts from initial values"


def _filled(variables: dict[str, Any], weights: Weights, fresh_head: bool, report: dict[str, list[str]]):
    """The variables with the weights. The head may keep initial values; so may attention that a plain run lacks."""

    def leaf(path, initial):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found, part = weights.arrays.get(name), name.split("/")[1]
        if part == "head" and fresh_head and (found is None or _is_classifier(name, variables)):
            report["fresh"].append(name)
            return initial
        if not weights.routed and part.startswith(("attention", "gate")):
            if found is None or found.shape != initial.shape:
                report["fresh"].append(name)
                return initial
        if found is not None and found.shape != initial.shape and part == "head" and _is_classifier(name, variables):
            raise UserError(
                f"{weights.source} has a classifier of {found.shape[-1]} classes, but a list of "
                f"{len(weights.info.class_names)} class names; add --fresh_head to begin with a new classifier."
            )
        if found is None or found.shape != initial.shape:
            has = "no" if found is None else f"a {found.shape}"
            raise UserError(
                f"{weights.source} has {has} {name}, the new run needs {tuple(initial.shape)}; "
                "give the image size and the model of the run it is from."
            )
        report["loaded"].append(name)
        return np.asarray(found)

    return jax.tree_util.tree_map_with_path(leaf, variables)


def _is_classifier(name: str, variables: dict[str, Any]) -> bool:
    """Whether a leaf is of the head's last linear layer (these are named in order)."""
    linear = (layer for layer, leaves in variables["params"]["head"].items() if "kernel" in leaves)
    return name.split("/")[2] == max(linear)
