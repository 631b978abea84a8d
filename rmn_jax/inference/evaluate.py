"""Accuracy of a network on a folder of class folders: another data set, or the same one elsewhere.

Axes: M images, K classes (see ``rmn_jax``).
"""

from typing import NamedTuple

import jax
import numpy as np

from rmn_jax.data import folder
from rmn_jax.errors import UserError
from rmn_jax.inference.predict import Predictor, run_files


class Evaluation(NamedTuple):
    """Results over M images.

    Attributes:
      top1: share of the images whose first prediction is right.
      top5: share of the images whose class is among the first five.
      loss: mean cross entropy, in nats.
      confusion: [K, K] int, images by true class (rows) and predicted class (columns).
    """

    top1: float
    top5: float
    loss: float
    confusion: np.ndarray


def evaluate_folder(predictor: Predictor, path: str, split: str = "eval") -> Evaluation:
    """Evaluates a network on image files, see ``rmn_jax.data.folder.open_labelled``.

    Args:
      predictor: the network.
      path: the folder. Its classes are those of the network, by name, or some of them.
      split: "eval" or "train", where the folder has both. Without splits all images are taken.

    Raises:
      UserError: no such folder, no images, a class that the network does not have, or an image that cannot be read.
    """
    files, names = folder.open_labelled(path, split)
    known = {name: label for label, name in enumerate(predictor.class_names)}
    unknown = [name for name in names if name not in known]
    if unknown:
        few = ", ".join(predictor.class_names[:5]) + (", .." if len(known) > 5 else "")
        raise UserError(f"the network has no class {unknown[0]!r}, a folder in {path}; its classes are {few}.")
    labels = np.array([known[names[label]] for _, label in files])
    logits = np.concatenate([found for _, found, _ in run_files(predictor, [file for file, _ in files])])
    return summarise(logits, labels)


def summarise(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """The results for logits [M, K] and labels [M] int; among equal logits the lower class comes first."""
    num_classes = logits.shape[1]
    order = np.argsort(-logits, axis=1, kind="stable")
    rank = np.argmax(order == labels[:, None], axis=1)
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (labels, order[:, 0]), 1)
    return Evaluation(float((rank < 1).mean()), float((rank < 5).mean()), float(losses.mean()), confusion)
