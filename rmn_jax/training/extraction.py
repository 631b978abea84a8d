"""Features and assignments of a whole split, for k-means (phase 3) and for the memory analysis.

Axes: M images of a split, S stages, C channels (see ``rmn_jax``).
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmn_jax.training.run import Run


class Extracted(NamedTuple):
    """A split as a network sees it, without images that cannot be read.

    Attributes:
      pooled: S arrays [M, C_{i-1}] float32, GAP(f_{i-1}).
      assignment: [S, M] int32, the unit of each image at each stage, or the condition when plain.
      label: [M] int32.
      position: [M] int32, positions in the split, increasing.
    """

    pooled: list[np.ndarray]
    assignment: np.ndarray
    label: np.ndarray
    position: np.ndarray


class Views(NamedTuple):
    """Whether the augmented views of an image go to the same unit, at one stage.

    Attributes:
      share: fraction of an image's views that go to its most frequent unit, averaged over images.
      chance: the same if each view went to a unit at random, by the units' loads.
      inputs: number of training images looked at.
      views: number of views of each image.
    """

    share: float
    chance: float
    inputs: int
    views: int


def extract(
    run: Run, variables: dict[str, Any], *, routed: bool, split: str = "eval", batch_size: int | None = None
) -> Extracted:
    """Runs every image of a split through a network in evaluation mode, without augmentation.

    Args:
      run: the run.
      variables: of its plain or routed network.
      routed: which of the two.
      split: "eval" or "train".
      batch_size: global batch; None is that of evaluation. The last bits of the features depend on it.
    """
    step = run.networks.extract_step(routed)
    parts = []
    for batch in run.dataset.eval_batches(split, batch_size):
        pooled, assignment = step(variables, batch, run.eval_key)
        found: Any = (pooled, jax.numpy.swapaxes(assignment, 0, 1), batch["label"], batch["index"], batch["mask"])
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(found, tiled=True)
        *arrays, mask = jax.device_get(found)
        parts.append(jax.tree.map(lambda rows, mask=mask: np.asarray(rows)[mask], arrays))
    pooled, assignment, label, position = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    return Extracted(list(pooled), assignment.swapaxes(0, 1), label, position)


def views_of_an_image(run: Run, variables: dict[str, Any], views: int = 16) -> list[Views]:
    """For each routed stage, how many of an image's augmented views go to one unit, in evaluation mode.

    The images are the first training batch of the run, drawn from the whole split. At a share of 1 an image stays with
    one unit, whatever its crop, and the other units of the stage never learn from it.

    Args:
      run: the run.
      variables: of its routed network.
      views: random views of each image.
    """
    step, batch = run.networks.extract_step(routed=True, augmented=True), run.dataset.train_batch(0)
    found = []
    for view in range(views):
        assignment: Any = step(variables, batch, jax.random.fold_in(run.key, view))[1]
        if jax.process_count() > 1:
            assignment = multihost_utils.process_allgather(jax.numpy.swapaxes(assignment, 0, 1), tiled=True).swapaxes(
                0, 1
            )
        found.append(np.asarray(jax.device_get(assignment)))
    distinct = len(found[0][0]) // run.config.data.repeats  # copies of an image follow all images
    units = np.stack(found)[..., :distinct]  # [views, S, B]
    return [_views(units[:, stage - 1], run.config.model.num_units) for stage in run.networks.routed_stages]


def _views(units: np.ndarray, num_units: int) -> Views:
    """``Views`` of one stage, from the units [views, B]."""

    def share(of: np.ndarray) -> float:
        counts = np.stack([np.sum(of == unit, axis=0) for unit in range(num_units)])
        return float(np.mean(counts.max(axis=0)) / len(of))

    # Views dealt to the images at random have the loads of the stage, and nothing else.
    shuffled = np.random.default_rng(0).permutation(units.reshape(-1)).reshape(units.shape)
    return Views(share(units), share(shuffled), units.shape[1], len(units))
