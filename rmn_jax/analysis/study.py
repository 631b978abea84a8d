"""The memory analysis of a run, gathered: what ``rmn_jax.analysis.report`` writes as a figure, a page and numbers.

Axes: M images of a split, S stages, N units, T nearest images, K classes (see ``rmn_jax``).
"""

import datetime
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from rmn_jax import config as configuration
from rmn_jax.analysis import measures, memories
from rmn_jax.data.augment import centre_crop
from rmn_jax.train.run import Run
from rmn_jax.train.state import TrainState


class Study(NamedTuple):
    """What the memories of a trained network stand for.

    Attributes:
      title: one line that says which network on which data.
      top1: accuracy of the analysed state in 0..1, None if the run has not evaluated it.
      facts: what else to know of the run, name to value, in the order shown.
      config: the resolved configuration as JSON.
      class_names: K.
      assignment: [S, M] int, the unit of each image at each stage.
      label: [M] int.
      position: [M] int, places in the split, increasing.
      nearest: the images nearest to each memory, and the loads.
      images: those images by their place in the split, uint8 [H, W, 3].
      information: of each stage, what "class", "colour" and "edges" tell of the unit.
      history: of each routed epoch, its number and the load [S, N] of training.
    """

    title: str
    top1: float | None
    facts: dict[str, str]
    config: str
    class_names: tuple[str, ...]
    assignment: np.ndarray
    label: np.ndarray
    position: np.ndarray
    nearest: memories.Nearest
    images: dict[int, np.ndarray]
    information: list[dict[str, measures.Information]]
    history: list[tuple[int, np.ndarray]]


def study(run: Run, state: TrainState, top: int, split: str = "eval") -> Study:
    """Sends a split through a routed network and gathers the analysis, with ``top`` images a memory.

    The split is read twice: once through the network, once for the images' looks.
    """
    routed = memories.route_split(run, state, split=split)
    nearest = memories.nearest_images(routed, state.memory, top, run.config.model.metric)
    looks = survey(run, nearest.position, split)
    codes = {
        "class": routed.label,
        "colour": measures.colour_bins(looks.colour),
        "edges": measures.edge_bins(looks.edges),
    }
    routed_lines = [line for line in read_metrics(run.workdir / "metrics.jsonl") if line["step"] > 1]
    model = run.config.model
    return Study(
        title=f"{model.backbone}, N = {model.num_units}, on {run.info.name}",
        top1=next((line.get("eval_top1") for line in routed_lines if line["update"] == int(state.update)), None),
        facts=_facts(run, int(state.update), len(routed.label)),
        config=configuration.to_json(run.config),
        class_names=tuple(run.info.class_names),
        assignment=routed.assignment,
        label=routed.label,
        position=routed.position,
        nearest=nearest,
        images=looks.images,
        information=[
            {name: measures.information(units, values) for name, values in codes.items()} for units in routed.assignment
        ],
        history=[(line["epoch"], np.array(line["load"])) for line in routed_lines],
    )


class Looks(NamedTuple):
    """How the M images of a split look: ``colour`` [M, 3], ``edges`` [M] (see ``measures``), and some of the images."""

    colour: np.ndarray
    edges: np.ndarray
    images: dict[int, np.ndarray]


def survey(run: Run, positions: np.ndarray, split: str = "eval") -> Looks:
    """Looks at every image of a split as evaluation cuts it, and keeps those at ``positions``."""
    wanted = {int(position) for position in np.ravel(positions)}
    height, width, _ = run.info.image_shape
    colour, edges, kept = [], [], {}
    for batch in run.dataset.eval_batches(split):
        stored, index, mask = jax.device_get((batch["image"], batch["index"], batch["mask"]))
        images = np.stack([centre_crop(image, height, width) for image in stored])[mask]
        colour.append(measures.mean_colour(images))
        edges.append(measures.edge_energy(images))
        kept.update({int(at): image for at, image in zip(index[mask], images, strict=True) if int(at) in wanted})
    return Looks(np.concatenate(colour), np.concatenate(edges), kept)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``: none without the file, and without a line that is being written."""
    lines: list[dict[str, Any]] = []
    try:
        for text in path.read_text().splitlines():
            lines.append(json.loads(text))
    except (FileNotFoundError, ValueError):
        pass
    return lines


def stages(found: Study) -> list[dict[str, Any]]:
    """The analysis in numbers: of each stage ``load``, ``dead_units``, ``entropy`` and ``information``, all in nats."""
    return [
        {
            "stage": i + 1,
            "load": load.tolist(),
            "dead_units": int((load == 0).sum()),
            "entropy": measures.entropy(found.assignment[i]),
            "information": {name: value._asdict() for name, value in found.information[i].items()},
        }
        for i, load in enumerate(found.nearest.load)
    ]


def _facts(run: Run, update: int, examples: int) -> dict[str, str]:
    config = run.config
    return {
        "images analysed": f"{examples:,}",
        "classes": f"{run.info.num_classes:,}",
        "epochs": f"{update // run.updates_per_epoch} of {config.epochs} (stem {config.stem_epochs})",
        "batch": f"{config.batch_size:,}",
        "attention": config.model.attention,
        "seed": str(config.seed),
        "analysed on": datetime.date.today().isoformat(),
    }
