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
