"""A trained network, and its predictions for image files, from a run folder. No data set is needed.

Axes: B batch, S stages (see ``rmn_jax``).
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.data.decode import UnreadableImage, read_image_file
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.errors import UserError
from rmn_jax.models import RMN, Outputs, build_model
from rmn_jax.training.checkpoint import Checkpoints, Position
from rmn_jax.training.networks import state_shapes
from rmn_jax.training.optimizer import make_optimizer
from rmn_jax.training.run import CONFIG_FILE, DATASET_FILE
from rmn_jax.training.step import example_keys

_BATCH = 64


class Trained(NamedTuple):
    """The trained network of a run.

    Attributes:
      model: plain or routed, for one device.
      variables: its ``params``, ``batch_stats`` and, when routed, ``memory``.
      info: of the training data set: class names, image shape, mean and standard deviation.
      stored_shape: (H, W, 3) to which an image is resized. ``preprocess`` takes the network's centre crop of it.
      preprocess: uint8 images [B, H, W, 3] of ``stored_shape`` -> the network's input.
    """

    model: RMN
    variables: dict[str, Any]
    info: data.DatasetInfo
    stored_shape: tuple[int, int, int]
    preprocess: data.Preprocess


def load_trained(workdir: str | pathlib.Path, warn=print) -> Trained:
    """The newest good checkpoint of a run, without its data set.

    Args:
      workdir: the run folder.
      warn: receives a line for each damaged checkpoint that is passed over.

    Raises:
      UserError: no run there, or no checkpoint.
    """
    folder = pathlib.Path(workdir)
    config = configuration.from_json(folder / CONFIG_FILE)
    info = _read_info(folder)
    optimizer = make_optimizer(config, steps_per_epoch=1)  # the state does not depend on the schedule

    def model_at(position: Position) -> RMN:
        return build_model(config, info.num_classes, info.image_shape[0], routed=position.phase.routed)

    found = Checkpoints(folder, config.checkpoint.keep, warn).restore(
        lambda position: state_shapes(config, model_at(position), optimizer, info.image_shape)
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
    )


def _read_info(folder: pathlib.Path) -> data.DatasetInfo:
    try:
        known = json.loads((folder / DATASET_FILE).read_text())
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in known.items()}
        return data.DatasetInfo(**fields)
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{folder} has no description of its training data ({DATASET_FILE}); run `rmn train` first."
        ) from None


def predict_files(trained: Trained, paths: Sequence[str | pathlib.Path], top: int = 5) -> Iterator[dict[str, Any]]:
    """Predicts image files.

    Args:
      trained: the network.
      paths: image files.
      top: number of classes for each image.

    Yields:
      For each file ``{"file", "classes": [{"label", "name", "probability"}], "units"}``. The most probable class comes
      first. ``units`` are the image's units at the S stages, None where a stage is not routed; a plain network has
      none.

    Raises:
      UserError: a file cannot be read as an image. The message names it, and nothing is predicted.
    """
    images = []
    for path in paths:
        try:
            images.append(read_image_file(path, trained.stored_shape))
        except (UnreadableImage, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{path} cannot be read as an image: {reason}.") from None

    @jax.jit
    def run(variables, batch):
        # A plain network with conditional attention draws a condition for each image, here from its row in the batch.
        keys = example_keys(jax.random.key(0), jnp.arange(batch.shape[0]))
        outputs = cast(Outputs, trained.model.apply(variables, trained.preprocess.evaluate(batch), keys=keys))
        return jax.nn.softmax(outputs.logits), outputs.assignment

    for start in range(0, len(images), _BATCH):
        batch = np.stack(images[start : start + _BATCH])
        probability, assignment = jax.device_get(run(trained.variables, batch))
        for row in range(len(batch)):
            best = np.argsort(-probability[row], kind="stable")[:top]
            yield {
                "file": str(paths[start + row]),
                "classes": [
                    {
                        "label": int(label),
                        "name": trained.info.class_names[label],
                        "probability": round(float(probability[row, label]), 6),
                    }
                    for label in best
                ],
                "units": _units(trained.model, assignment[:, row].tolist()),
            }


def _units(model: RMN, assignment: list[int]) -> list[int | None]:
    routed = model.stages_with_memories
    return [unit if i + 1 in routed else None for i, unit in enumerate(assignment)] if routed else []
