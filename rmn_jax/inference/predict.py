"""Predictions for image files, from a run folder or an exported network. No data set is needed.

Axes: B batch, S stages, K classes (see ``rmn_jax``).
"""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.data.decode import UnreadableImage, available_cores, read_image_file
from rmn_jax.data.folder import SUFFIXES
from rmn_jax.errors import UserError
from rmn_jax.inference.export import Exported
from rmn_jax.inference.trained import Trained, load_trained
from rmn_jax.models import Outputs
from rmn_jax.training.step import example_keys

__all__ = ["Predictor", "find_images", "load_trained", "make_predictor", "predict_files"]

_BATCH = 64


class Predictor(NamedTuple):
    """A network that predicts image files.

    Attributes:
      run: uint8 images [B, *stored_shape] -> logits [B, K], units [S, B].
      class_names: K names.
      stored_shape: (H, W, 3) to which an image file is scaled and cropped.
      routed: whether it has units.
    """

    run: Callable[[np.ndarray], tuple[Any, Any]]
    class_names: tuple[str, ...]
    stored_shape: tuple[int, int, int]
    routed: bool


def make_predictor(network: Trained | Exported) -> Predictor:
    """The predictor of a trained run or of an exported network."""
    if isinstance(network, Exported):
        about, call = network.about, network.call

        def run_exported(images: np.ndarray) -> tuple[Any, Any]:
            found = call(images)
            return found["logits"], found["units"]

        return Predictor(run_exported, tuple(about["class_names"]), tuple(about["stored_shape"]), about["routed"])
    trained = network

    @jax.jit
    def run(variables, batch):
        # A plain network with conditional attention draws a condition for each image, here from its row in the batch.
        keys = example_keys(jax.random.key(0), jnp.arange(batch.shape[0]))
        outputs = cast(Outputs, trained.model.apply(variables, trained.preprocess.evaluate(batch), keys=keys))
        return outputs.logits, outputs.assignment

    return Predictor(
        lambda images: run(trained.variables, images),
        trained.info.class_names,
        trained.stored_shape,
        trained.model.routed,
    )


def find_images(words: Iterable[str | pathlib.Path]) -> Iterator[pathlib.Path]:
    """Expands files and folders to image files, sorted within a folder.

    Raises:
      UserError: a folder without images.
    """
    for word in words:
        path = pathlib.Path(word)
        if not path.is_dir():
            yield path
            continue
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise UserError(f"{path} has no images ({', '.join(SUFFIXES)}).")
        yield from files


def predict_files(
    network: Trained | Exported | Predictor,
    paths: Iterable[str | pathlib.Path],
    top: int = 5,
    unreadable: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Predicts image files, a batch at a time: ``paths`` may be endless.

    Args:
      network: the network.
      paths: image files.
      top: number of classes for each image.
      unreadable: receives a line for each file that is not an image; None raises UserError at the first.

    Yields:
      For each file ``{"file", "classes": [{"label", "name", "probability"}], "units"}``. The most probable class comes
      first. ``units`` are the image's units at the S stages, from 0, None where a stage is not routed; empty for a
      plain network.

    Raises:
      UserError: a file cannot be read as an image, and ``unreadable`` is None.
    """
    predictor = network if isinstance(network, Predictor) else make_predictor(network)
    for names, logits, units in run_files(predictor, paths, unreadable):
        probability = np.asarray(jax.nn.softmax(logits))
        for row, name in enumerate(names):
            yield _line(predictor, str(name), probability[row], units[:, row], top)


def run_files(
    predictor: Predictor, paths: Iterable[str | pathlib.Path], unreadable: Callable[[str], None] | None = None
) -> Iterator[tuple[list[str | pathlib.Path], np.ndarray, np.ndarray]]:
    """Runs image files through a network, see ``predict_files``; yields files, logits [B, K] and units [S, B]."""
    rows = 0  # of the first batch; a smaller last one is padded to it, because each shape is compiled
    with ThreadPoolExecutor(available_cores()) as pool:
        for block in _blocks(paths):
            found = list(pool.map(lambda path: _read(path, predictor.stored_shape), block))
            for error in (each for each in found if isinstance(each, str)):
                if unreadable is None:
                    raise UserError(error)
                unreadable(error)
            names = [path for path, each in zip(block, found, strict=True) if not isinstance(each, str)]
            images = [each for each in found if not isinstance(each, str)]
            if not images:
                continue
            rows = max(rows, len(images))
            batch = np.stack(images + [np.zeros_like(images[0])] * (rows - len(images)))
            logits, assignment = jax.device_get(predictor.run(batch))
            yield names, np.asarray(logits)[: len(names)], np.asarray(assignment)[:, : len(names)]


def _blocks(paths: Iterable[str | pathlib.Path]) -> Iterator[list[str | pathlib.Path]]:
    each = iter(paths)
    while block := list(itertools.islice(each, _BATCH)):
        yield block


def _read(path: str | pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray | str:
    """The image, or why it cannot be read."""
    try:
        return read_image_file(path, shape)
    except (UnreadableImage, OSError) as error:
        return f"{path} cannot be read as an image: {getattr(error, 'strerror', None) or error}."


def _line(predictor: Predictor, name: str, probability: np.ndarray, units: np.ndarray, top: int) -> dict[str, Any]:
    best: Sequence[int] = np.argsort(-probability, kind="stable")[:top].tolist()
    classes = [
        {"label": label, "name": predictor.class_names[label], "probability": round(float(probability[label]), 6)}
        for label in best
    ]
    return {"file": name, "classes": classes, "units": _units(units) if predictor.routed else []}


def _units(units: np.ndarray) -> list[int | None]:
    """The units of one image; None where a stage is not routed (-1)."""
    return [None if unit < 0 else unit for unit in units.tolist()]
