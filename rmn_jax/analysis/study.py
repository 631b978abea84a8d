"""The memory analysis of a run: all results that ``rmn_jax.analysis.report`` writes as a figure, a page and numbers.

Axes: M images of a split, S stages, N units, T nearest images, K classes (see ``rmn_jax``).
"""

import datetime
from typing import Any, NamedTuple

import jax
import numpy as np

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.analysis import measures, memories
from rmn_jax.data.augmentation import centre_crop
from rmn_jax.training.extraction import Views, extract, views_of_an_image
from rmn_jax.training.progress import METRICS_FILE, read_metrics
from rmn_jax.training.run import Run
from rmn_jax.training.state import Phase, TrainState


class Study(NamedTuple):
    """Results of the memory analysis of one run on one split.

    Attributes:
      title: one line with the network and the data set.
      top1: accuracy of the analysed state in 0..1; None if the run has not evaluated that state.
      facts: further facts about the run, name to value, in the order shown.
      config: the resolved configuration as JSON.
      class_names: K names.
      assignment: [S, M] int, the unit of each image at each stage.
      label: [M] int.
      position: [M] int, positions in the split, increasing.
      nearest: the images nearest to each memory, and the load of each unit.
      images: these images by position in the split, uint8 [H, W, 3].
      information: for each stage, how much "class", "colour" and "edges" explain of the unit.
      history: for each epoch of phase 4, its number and the load [S, N] of training.
      stages: numbers of the routed stages, for names; S counts only these. Empty means 1 to S.
      views: for each stage, how many of a training image's augmented views go to one unit; empty if not known.
      churn: for each evaluation of phase 4 but the first, its epoch and the churn of each stage.
      names: of the nearest images, by position in the split: a file, or a split and record number; None if not known.
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
    stages: tuple[int, ...] = ()
    views: tuple[Views, ...] = ()
    churn: tuple[tuple[int, list[float]], ...] = ()
    names: dict[int, str] | None = None

    def number(self, stage: int) -> int:
        """The number, in the network, of the routed stage with this index."""
        return self.stages[stage] if self.stages else stage + 1


def study(run: Run, state: TrainState, top: int, split: str = "eval") -> Study:
    """Runs the memory analysis of a routed network.

    The split is read twice: once through the network, once for colours, edges and the images to show.

    Args:
      run: the run.
      state: of its routed network.
      top: T, the number of images for each memory.
      split: "eval" or "train".
    """
    extracted = extract(run, state.eval_variables, routed=True, split=split)
    stages = run.networks.routed_stages
    assignment = extracted.assignment[[stage - 1 for stage in stages]]
    nearest = memories.nearest_images(extracted, state.memory, top, run.config.model.metric)
    split_images = read_images(run, nearest.position, split)
    codes = {
        "class": extracted.label,
        "colour": measures.colour_bins(split_images.colour),
        "edges": measures.edge_bins(split_images.edges),
    }
    routed_lines = [line for line in read_metrics(run.workdir / METRICS_FILE) if Phase(line["phase"]).routed]
    step, model = int(state.step), run.config.model
    return Study(
        title=f"{model.backbone}, N = {model.num_units}, on {run.info.name}",
        top1=next((line.get("eval_top1") for line in routed_lines if line["step"] == step), None),
        facts=_facts(run, step, len(extracted.label)),
        config=configuration.to_json(run.config),
        class_names=tuple(run.info.class_names),
        stages=stages,
        assignment=assignment,
        label=extracted.label,
        position=extracted.position,
        nearest=nearest,
        images=split_images.shown,
        information=[
            {name: measures.information(units, values) for name, values in codes.items()} for units in assignment
        ],
        history=[(line["epoch"], np.array(line["load"])) for line in routed_lines],
        views=tuple(views_of_an_image(run, state.eval_variables)),
        churn=tuple((line["epoch"], line["churn"]) for line in routed_lines if line.get("churn")),
        names=_names(run, nearest.position, split),
    )


class SplitImages(NamedTuple):
    """The images of a split.

    Attributes:
      colour: [M, 3] float64, see ``measures.mean_colour``.
      edges: [M] float64, see ``measures.edge_energy``.
      shown: the images at the wanted positions, uint8 [H, W, 3], by position in the split.
    """

    colour: np.ndarray
    edges: np.ndarray
    shown: dict[int, np.ndarray]


def read_images(run: Run, positions: np.ndarray, split: str = "eval") -> SplitImages:
    """Reads every image of a split, cropped as in evaluation. Images that cannot be read are left out.

    Args:
      run: the run.
      positions: ints of any shape, positions in the split of the images to keep.
      split: "eval" or "train".
    """
    wanted = {int(position) for position in np.ravel(positions)}
    height, width, _ = run.info.image_shape
    colour, edges, shown = [], [], {}
    for batch in run.dataset.eval_batches(split):
        stored, index, mask = jax.device_get((batch["image"], batch["index"], batch["mask"]))
        images = np.stack([centre_crop(image, height, width) for image in stored])[mask]
        colour.append(measures.mean_colour(images))
        edges.append(measures.edge_energy(images))
        shown.update({int(at): image for at, image in zip(index[mask], images, strict=True) if int(at) in wanted})
    return SplitImages(np.concatenate(colour), np.concatenate(edges), shown)


def _names(run: Run, positions: np.ndarray, split: str) -> dict[int, str]:
    image_set = data.open_images(run.config.data)
    source = image_set.train if split == "train" else image_set.evaluation
    return {int(position): source.describe(int(position)) for position in np.unique(positions)}


def stage_results(found: Study) -> list[dict[str, Any]]:
    """For each routed stage its load, dead units, entropy, information, views and churn. Entropy is in nats."""
    return [
        {
            "stage": found.number(i),
            "load": load.tolist(),
            "dead_units": int((load == 0).sum()),
            "entropy": measures.entropy(found.assignment[i]),
            "information": {name: value._asdict() for name, value in found.information[i].items()},
            "views": found.views[i]._asdict() if found.views else None,
            "churn": [[epoch, shares[i]] for epoch, shares in found.churn],
        }
        for i, load in enumerate(found.nearest.load)
    ]


def _facts(run: Run, step: int, examples: int) -> dict[str, str]:
    config = run.config
    return {
        "images analysed": f"{examples:,}",
        "classes": f"{run.info.num_classes:,}",
        "epochs": f"{step // run.steps_per_epoch} of {config.epochs} (stem phase: {config.stem_epochs})",
        "batch size": f"{config.batch_size:,}",
        "attention": config.model.attention,
        "seed": str(config.seed),
        "analysed on": datetime.date.today().isoformat(),
    }
