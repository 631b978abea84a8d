"""A trained network and classes for image files, from a run's folder alone: no data set is needed.

Axes: B inputs, S stages, K classes (see ``rmn_jax``).
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.data.decode import UnreadableImage, read_image_file
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.errors import UserError
from rmn_jax.models import RMN, Outputs
from rmn_jax.train.checkpoint import Checkpoints
from rmn_jax.train.optimizer import make_optimizer
from rmn_jax.train.run import CONFIG_FILE, DATASET_FILE, build_model, state_shapes
from rmn_jax.train.step import example_keys

_BATCH = 64


class Trained(NamedTuple):
    """A network as a run left it.

    Attributes:
      model: plain or routed, for one device.
      variables: its ``params``, ``batch_stats`` and, when routed, ``memory``.
      info: of the data set it was trained on: class names, image shape, mean and standard deviation.
      stored_shape: (H, W, 3) that evaluation scales an image to; ``preprocess`` cuts the network's from its centre.
      preprocess: uint8 images [B, H, W, 3] of that shape -> what the network is fed.
    """

    model: RMN
    variables: dict[str, Any]
    info: data.DatasetInfo
    stored_shape: tuple[int, int, int]
    preprocess: data.Preprocess


def load_trained(workdir: str | pathlib.Path, warn=print) -> Trained:
    """The newest good checkpoint of a run, without its data set.

    Raises:
      UserError: no run there, or no checkpoint.
    """
    folder = pathlib.Path(workdir)
    config = configuration.from_json(folder / CONFIG_FILE)
    try:
        known = json.loads((folder / DATASET_FILE).read_text())
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in known.items()}
        info = data.DatasetInfo(**fields)
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{folder} does not say what it was trained on (no {DATASET_FILE}); run `rmn train` first."
        ) from None
    optimizer = make_optimizer(config, updates_per_epoch=1)  # for the form of its state only

    def target(position):
        model = build_model(config, info.num_classes, info.image_shape[0], routed=position.step > 1)
        return state_shapes(config, model, optimizer, info.image_shape)

    found = Checkpoints(folder, config.checkpoint.keep, warn).restore(target)
    if found is None:
        raise UserError(f"{folder} has no checkpoint yet; run `rmn train` first.")
    state, position = found
    model = build_model(config, info.num_classes, info.image_shape[0], routed=position.step > 1)
    variables = jax.tree.map(jax.numpy.asarray, state.eval_variables)
    shape = stored_shape(config.data.augment, info.image_shape)
    return Trained(model.clone(axis_name=None), variables, info, shape, data.make_preprocess(config.data, info))


def predict_files(trained: Trained, paths: Sequence[str | pathlib.Path], top: int = 5) -> Iterator[dict[str, Any]]:
    """For each image file ``{"file", "classes": [{"label", "name", "probability"}], "units": [S]}``, best class first.

    ``units`` is the way through the stages; empty for a plain network.

    Raises:
      UserError: a file that cannot be read as an image; it is named, and nothing is predicted.
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
        # A plain network with conditional attention draws a condition for each image, here by its place.
        keys = example_keys(jax.random.key(0), jax.numpy.arange(batch.shape[0]))
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
                "units": assignment[:, row].tolist() if trained.model.routed else [],
            }
