"""What the memories stand for: for each stage and memory, the images whose features lie nearest.

Axes: M images of a split, S stages, N units, C channels (see ``rmn_jax``).
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from rmn_jax.routing import unit_length
from rmn_jax.train.run import Run
from rmn_jax.train.state import TrainState
from rmn_jax.train.step import make_extract_step


class Routed(NamedTuple):
    """How a split went through the network.

    Attributes:
      pooled: S arrays [M, C] float32, GAP(f_{i-1}).
      assignment: [S, M] int32, the unit of each image at each stage.
      label: [M] int32.
      position: [M] int32, places in the split, increasing; those of images that cannot be read are left out.
    """

    pooled: list[np.ndarray]
    assignment: np.ndarray
    label: np.ndarray
    position: np.ndarray


def route_split(run: Run, state: TrainState, routed: bool = True, split: str = "eval") -> Routed:
    """Sends every image of a split ("eval" or "train") through the network, in evaluation mode."""
    extract = make_extract_step(run.model(routed), run.preprocess.evaluate, run.mesh)
    pooled, assignment, label, position = [], [], [], []
    for batch in run.dataset.eval_batches(split):
        found = jax.device_get((*extract(state.eval_variables, batch, run.eval_key), batch))
        mask = found[2]["mask"]
        pooled.append([stage[mask] for stage in found[0]])
        assignment.append(found[1][:, mask])
        label.append(found[2]["label"][mask])
        position.append(found[2]["index"][mask])
    stages = [np.concatenate(stage) for stage in zip(*pooled, strict=True)]
    return Routed(stages, np.concatenate(assignment, axis=1), np.concatenate(label), np.concatenate(position))


class Nearest(NamedTuple):
    """The images nearest to each memory.

    Attributes:
      position: [S, N, T] int, places in the split, the nearest first.
      distance: [S, N, T] float32, Euclidean.
      load: [S, N] int, images of the split that each unit got.
    """

    position: np.ndarray
    distance: np.ndarray
    load: np.ndarray


def nearest_images(routed: Routed, memory: dict[str, np.ndarray], top: int, metric: str = "euclidean") -> Nearest:
    """The ``top`` images nearest to each memory, stage by stage (supplementary material, memory analysis).

    ``metric`` is ``config.model.metric``: with "cosine" features and memories are brought to length 1 first.
    """
    position, distance, load = [], [], []
    for i, pooled in enumerate(routed.pooled):
        units = np.asarray(memory[f"memory{i + 1}"])
        if metric == "cosine":
            pooled, units = np.asarray(unit_length(jnp.asarray(pooled))), np.asarray(unit_length(jnp.asarray(units)))
        apart = np.linalg.norm(pooled[:, None].astype(np.float64) - units[None], axis=-1).T
        order = np.argsort(apart, axis=-1, kind="stable")[:, :top]
        position.append(routed.position[order])
        distance.append(np.take_along_axis(apart, order, axis=-1))
        load.append(np.bincount(routed.assignment[i], minlength=len(units)))
    return Nearest(np.stack(position), np.stack(distance).astype(np.float32), np.stack(load))


def images_at(run: Run, positions: np.ndarray, split: str = "eval") -> dict[int, np.ndarray]:
    """The uint8 images [H, W, 3] at these positions of a split."""
    wanted = {int(position) for position in np.ravel(positions)}
    found: dict[int, np.ndarray] = {}
    for batch in run.dataset.eval_batches(split):
        index, mask = jax.device_get((batch["index"], batch["mask"]))
        rows = [row for row, position in enumerate(index) if mask[row] and int(position) in wanted]
        if rows:
            images = jax.device_get(batch["image"][np.array(rows)])
            found.update({int(index[row]): image for row, image in zip(rows, images, strict=True)})
    return found


def draw(nearest: Nearest, images: dict[int, np.ndarray], path: pathlib.Path, title: str) -> pathlib.Path:
    """A page of all stages: a row a memory with its share of the split and its nearest images; a PNG at ``path``."""
    num_stages, num_units, top = nearest.position.shape
    figure = Figure(figsize=(num_stages * (0.52 * top + 0.8), 0.56 * num_units + 0.8), dpi=160)
    figure.suptitle(title, fontsize=11)
    columns = figure.subfigures(1, num_stages)
    for stage, column in enumerate(np.ravel(np.asarray(columns))):
        column.suptitle(f"stage {stage + 1}", fontsize=9, y=1 - 0.36 / figure.get_figheight())
        axes = column.subplots(num_units, top, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.12})
        column.subplots_adjust(left=0.15, right=0.98, top=1 - 0.66 / figure.get_figheight(), bottom=0.02)
        share = nearest.load[stage] / max(1, nearest.load[stage].sum())
        for unit in range(num_units):
            for place in range(top):
                axis = axes[unit, place]
                axis.imshow(images[int(nearest.position[stage, unit, place])], interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                for side in axis.spines.values():
                    side.set_visible(False)
            name = f"unit {unit + 1}\n" + (f"{share[unit]:.0%}" if nearest.load[stage, unit] else "dead")
            axes[unit, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
