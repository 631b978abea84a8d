"""The trained network of a run folder. No data set is needed."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rmn_jax import data
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.errors import UserError
from rmn_jax.models import RMN, build_model
from rmn_jax.training.checkpoint import Checkpoints, Position
from rmn_jax.training.networks import state_shapes
from rmn_jax.training.optimizer import make_optimizer
from rmn_jax.training.run_folder import DATASET_FILE, describe_run, read_run


class Trained(NamedTuple):
    """The trained network of a run.

    Attributes:
      model: plain or routed, for one device.
      variables: its ``params``, ``batch_stats`` and, when routed, ``memory``.
      info: of the training data set: class names, image shape, mean and standard deviation.
      stored_shape: (H, W, 3) to which an image is resized. ``preprocess`` takes the network's centre crop of it.
      preprocess: uint8 images [B, H, W, 3] of ``stored_shape`` -> the network's input.
      config: of the run.
    """

    model: RMN
    variables: dict[str, Any]
    info: data.DatasetInfo
    stored_shape: tuple[int, int, int]
    preprocess: data.Preprocess
    config: ConfigDict


def load_trained(workdir: str | pathlib.Path, warn=print, best: bool = False) -> Trained:
    """The newest good checkpoint of a run, without its data set.

    Args:
      workdir: the run folder.
      warn: receives a line for each damaged checkpoint that is skipped.
      best: take the best checkpoint by held-out top-1 instead of the newest.

    Raises:
      UserError: no run there, or no checkpoint.
    """
    folder, config, known = read_run(workdir)
    if known is None:
        raise UserError(f"{folder} has no description of its training data ({DATASET_FILE}); run `rmn train` first.")
    info = known
    optimizer = make_optimizer(config, steps_per_epoch=1)  # the state does not depend on the schedule

    def model_at(position: Position) -> RMN:
        return build_model(config, info.num_classes, info.image_shape[0], routed=position.phase.routed)

    found = Checkpoints(folder, config.checkpoint.keep, warn, describe_run(config, info)).restore(
        lambda position: state_shapes(config, model_at(position), optimizer, info.image_shape), best
    )
    if found is None:
        raise UserError(f"{folder} has no checkpoint yet; run `rmn train` first.")
    state, position = found
    return Trained(
        model=model_at(position),
        variables=jax.tree.map(jnp.asarray, state.eval_variables),
        info=info,
        stored_shape=stored_shape(config.data.augment, info.image_shape),
        preprocess=data.make_preprocess(config.data, info),
        config=config,
    )
