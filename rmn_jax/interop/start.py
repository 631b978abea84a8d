"""Writes a run folder whose first checkpoint holds given weights: what ``rmn import`` leaves behind.

``config.json`` is written last. Without it the folder is not a run, so an interrupted import can be repeated.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.data.statistics import to_text
from rmn_jax.errors import UserError
from rmn_jax.files import write_file
from rmn_jax.models import build_model
from rmn_jax.training.checkpoint import Checkpoints, Position
from rmn_jax.training.ema import start_ema
from rmn_jax.training.networks import make_state
from rmn_jax.training.optimizer import make_optimizer
from rmn_jax.training.run_folder import CONFIG_FILE, DATASET_FILE, ORIGIN_FILE, describe_run, run_path
from rmn_jax.training.state import Phase, TrainState


def check_new(workdir: str | pathlib.Path) -> pathlib.Path:
    """The folder of a new run.

    Raises:
      UserError: it holds a run already, or it is a file.
    """
    folder = run_path(workdir)
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} already holds a run; give another --workdir.")
    return folder


def set_normalisation(config: ConfigDict, mean, std) -> None:
    """Sets ``config.data.mean`` and ``.std`` to those that the weights expect, where the configuration leaves them."""
    if not (config.data.mean or config.data.std):
        config.data.mean, config.data.std = to_text(mean), to_text(std)


def describe_data(
    config: ConfigDict, num_classes: int | None, fallback: tuple[str, ...] | None = None
) -> data.DatasetInfo:
    """The data set of a configuration with a given normalisation; if it is missing, a placeholder with K classes.

    Args:
      config: complete, with ``data.mean`` and ``data.std``.
      num_classes: K, for an import on a machine that does not have the data set; None reads K from the data.
      fallback: class names to use if there is neither data nor ``num_classes``.

    Raises:
      UserError: no data set and no number of classes, or a number that is not that of the data set.
    """
    try:
        info = data.describe(config.data)
    except UserError as error:
        names = tuple(f"class {label}" for label in range(num_classes)) if num_classes else fallback
        if names is None:
            raise UserError(f"{error} To import without the data set, give --num_classes.") from None
        return data.placeholder(config.data, names)
    if num_classes not in (None, info.num_classes):
        raise UserError(
            f"--num_classes is {num_classes}, but the data set {info.name} has {info.num_classes} classes; "
            "leave the argument out."
        )
    return info


def begin_run(
    folder: pathlib.Path,
    config: ConfigDict,
    info: data.DatasetInfo,
    phase: Phase,
    fill: Callable[[dict[str, Any]], dict[str, Any]],
    origin: dict[str, Any],
) -> None:
    """Makes the run folder.

    Args:
      folder: without a run.
      config: of the run.
      info: of its data set.
      phase: the last completed phase. Training continues with the next.
      fill: initial variables of the network of that phase -> its variables with the weights. It raises UserError
        for weights that do not fit; nothing is written then.
      origin: what the weights were, for ``origin.json``; the result of ``fill`` may have added to it.

    Raises:
      UserError: the folder cannot be written, and what ``fill`` raises.
    """
    model = build_model(config, info.num_classes, info.image_shape[0], routed=phase.routed)
    optimizer = make_optimizer(config, steps_per_epoch=1)  # the state does not depend on the schedule
    state = make_state(config, model, optimizer, info.image_shape, jax.random.key(config.seed))
    state = _with_variables(state, jax.tree.map(jnp.asarray, fill(state.variables)), optimizer, config.ema)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without the data set: it may be known only when training begins.
        record = describe_run(config, None)
        Checkpoints(folder, config.checkpoint.keep, print, record).save(state, Position(0, phase))
        write_file(folder / DATASET_FILE, json.dumps(info._asdict(), indent=2) + "\n")
        write_file(folder / ORIGIN_FILE, json.dumps(origin, indent=2) + "\n")
        write_file(folder / CONFIG_FILE, configuration.to_json(config))
    except OSError as error:
        raise UserError(f"cannot write to --workdir {folder}: {error.strerror}; choose another folder.") from None


def _with_variables(state: TrainState, variables: dict[str, Any], optimizer, ema: float) -> TrainState:
    params = variables["params"]
    return state._replace(
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        memory=variables.get("memory", {}),
        opt_state=optimizer.init(params),
        ema=start_ema(params, ema),
    )
