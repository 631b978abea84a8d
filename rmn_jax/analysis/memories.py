"""The images nearest to each memory of each stage, and a figure of them.

Axes: M images of a split, S stages, N units, C channels, T nearest images (see ``rmn_jax``).
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from rmn_jax.routing import unit_length
from rmn_jax.training.extraction import Extracted

# With more units than the first number the figure has the fullest units of each stage only, and at most the second.
_MANY, _SHOWN = 16, 32


class Nearest(NamedTuple):
    """The images nearest to each memory.

    Attributes:
      position: [S, N, T] int, positions in the split, nearest first; S counts routed stages here.
      distance: [S, N, T] float32, Euclidean.
      load: [S, N] int, number of images of the split that each unit received.
      assignment: [S, N, T] int, the unit that each of these images goes to.
    """

    position: np.ndarray
    distance: np.ndarray
    load: np.ndarray
    assignment: np.ndarray

    @property
    def other(self) -> np.ndarray:
        """[S, N, T] bool: the images that go to another unit, except those of dead units, which own none."""
        units = np.arange(self.load.shape[1])[None, :, None]
        return (self.assignment != units) & (self.load > 0)[..., None]


def nearest_images(extracted: Extracted, memory: dict[str, np.ndarray], top: int, metric: str = "euclidean") -> Nearest:
    """The images nearest to each memory, for each stage (supplementary material, memory analysis).

    Args:
      extracted: features and assignments of a split.
      memory: ``memory1`` .. ``memoryS`` (of routed stages), [N, C] float32.
      top: T.
      metric: ``config.model.metric``. For "cosine", features and memories are first scaled to length 1.
    """
    position, distance, load, assignment = [], [], [], []
    for i, pooled in enumerate(extracted.pooled):
        if f"memory{i + 1}" not in memory:
            continue
        units = np.asarray(memory[f"memory{i + 1}"])
        if metric == "cosine":
            pooled, units = np.asarray(unit_length(jnp.asarray(pooled))), np.asarray(unit_length(jnp.asarray(units)))
        wide = pooled.astype(np.float64)  # unit by unit: [M, N, C] would be gigabytes
        distances = np.stack([np.linalg.norm(wide - unit, axis=-1) for unit in units])
        order = np.argsort(distances, axis=-1, kind="stable")[:, :top]
        position.append(extracted.position[order])
        distance.append(np.take_along_axis(distances, order, axis=-1))
        load.append(np.bincount(extracted.assignment[i], minlength=len(units)))
        assignment.append(extracted.assignment[i][order])
    return Nearest(np.stack(position), np.stack(distance).astype(np.float32), np.stack(load), np.stack(assignment))


def draw(
    nearest: Nearest,
    images: dict[int, np.ndarray],
    path: pathlib.Path,
    title: str,
    stages: Sequence[int] | None = None,
) -> pathlib.Path:
    """Draws a PNG: a column for each stage, a row for each memory with the unit's share and its nearest images.

    Of many units each stage has its fullest, in this order, and says how many it has.

    A dashed frame marks an image that goes to another unit, as on the page.

    Args:
      nearest: what to show.
      images: uint8 [H, W, 3], by position in the split.
      path: the file; its folder is created if absent.
      title: of the figure.
      stages: numbers of the stages; None is 1, 2, ..

    Returns:
      ``path``.
    """
    num_stages, num_units, top = nearest.position.shape
    rows = num_units
    if num_units > _MANY:
        rows = min(_SHOWN, max(1, int((nearest.load > 0).sum(axis=1).max())))
    height = 0.56 * rows + 0.8
    figure = Figure(figsize=(num_stages * (0.52 * top + 0.8), height), dpi=160)
    figure.suptitle(title, fontsize=11, y=1 - 0.1 / height)
    columns = figure.subfigures(1, num_stages)
    for stage, column in enumerate(np.ravel(np.asarray(columns))):
        load = nearest.load[stage]
        head, units = f"stage {stages[stage] if stages else stage + 1}", np.arange(num_units)
        if rows < num_units:
            units = np.argsort(-load, kind="stable")[:rows]
            head += f": the fullest {rows} of {num_units} units, {(load == 0).sum()} dead"
        column.suptitle(head, fontsize=9, y=1 - 0.36 / height)
        axes = column.subplots(rows, top, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.12})
        column.subplots_adjust(left=0.15, right=0.98, top=1 - 0.66 / height, bottom=0.1 / height)
        share = load / max(1, load.sum())
        for row, unit in enumerate(units):
            for rank in range(top):
                axis = axes[row, rank]
                axis.imshow(images[int(nearest.position[stage, unit, rank])], interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                marked = bool(nearest.other[stage, unit, rank])
                for side in axis.spines.values():
                    side.set(visible=marked, linestyle=(0, (2, 1.5)), linewidth=1, color="red")
            label = f"unit {unit}\n" + (f"{share[unit]:.0%}" if load[unit] else "dead")
            axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
