"""Rows that were measured elsewhere, from the lines their runs wrote: the same tables as for one's own runs.

    python -m experiments.measured                    # shows the tables of the published files
    python -m experiments.measured --source FOLDER    # makes the files again, from FOLDER/*/*.jsonl

Two sets, both of 2026-11-27 and of the code at e694492 (release 0.1):

    h100_32x32              ResNet-18 on 100 classes of Tiny ImageNet at 32x32, one NVIDIA H100
    cpu_resized_crops       ResNet-10 on 20 classes at 16x16 with random resized crops, 2 CPU cores

Every row is one run with seed 0. A run that was stopped counts up to its last evaluation; its name says so.
"""

import argparse
import json
import pathlib
import sys
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import suite
from experiments.runs import result_of_lines
from rmn_jax.errors import UserError
from rmn_jax.files import write_file
from rmn_jax.training.progress import read_metrics


class Measured(NamedTuple):
    """One run: its file, its name in the file (of a file with several runs) and its configuration."""

    name: str
    file: str
    run: str | None
    config: ConfigDict


class Set(NamedTuple):
    """Rows measured together.

    Attributes:
      about: provenance, as in any results file; ``note`` says what the configurations do not.
      num_classes: of the data.
      image_size: in pixels.
      train_examples: of the data.
      rows: the runs.
    """

    about: dict[str, Any]
    num_classes: int
    image_size: int
    train_examples: int
    rows: list[Measured]


def h100() -> Set:
    """CIFAR-100's size: 50,000 training and 5,000 held-out images."""
    page = argparse.Namespace(backbone="resnet18", benchmark="cifar100")

    def config(variant: str, **settings: Any) -> ConfigDict:
        usual = {"epochs": 75, "stem_epochs": 25, "eval_every_epochs": 2, "dtype": "bfloat16"}
        data = {"data__name": "tiny_imagenet", "data__classes": 100, "data__image_size": 32}
        return suite.paper_config(page, variant, **usual, **data, **settings)

    about = {
        "commit": "e694492",
        "date": "2026-11-27",
        "device": "NVIDIA H100 80GB HBM3",
        "devices": 1,
        "processor": "16 cores",
        "jax": "0.11.2",
        "flax": "0.12.10",
        "note": "The 100 classes are every second one of Tiny ImageNet's, sorted by identifier; 5,000 held-out images.",
    }
    folder = "h100-2026-11-27"
    rows = [
        Measured("Original, batch 256", f"{folder}/orig256.jsonl", None, config("plain")),
        Measured("Original with SE, batch 256", f"{folder}/se256.jsonl", None, config("plain", model__attention="se")),
        Measured("Original, batch 1024", f"{folder}/orig1024.jsonl", None, config("plain", batch_size=1024)),
        Measured("RMN, batch 1024", f"{folder}/rmn.jsonl", None, config("rmn_no_ca")),
        Measured("RMN with CA, batch 1024", f"{folder}/rmnca.jsonl", None, config("rmn")),
    ]
    return Set(about, 100, 32, 50_000, rows)


def cpu() -> Set:
    """CPU scale with random resized crops. Two lines of a copy of the code stood for today's keys."""

    def config(variant: str, **settings: Any) -> ConfigDict:
        usual = {"epochs": 90, "stem_epochs": 30, "data__augment": "resized_crop_flip", "batch_size": 256}
        return suite.cpu_config(variant, **(usual | settings))

    about = {
        "commit": "e694492",
        "date": "2026-11-27",
        "device": "cpu",
        "devices": 1,
        "processor": "2 cores",
        "jax": "0.10.2",
        "note": "1,000 held-out images. Rows with routed_stages or statistics: two lines were changed in a copy of the "
        "code; the configuration names the keys that now do the same.",
    }
    rows = {
        "Original": ("original", config("plain")),
        "Original with SE": ("original_se", config("plain", model__attention="se")),
        "RMN": ("rmn", config("rmn_no_ca")),
        "RMN with CA": ("rmn_ca", config("rmn")),
        "RMN, last two stages routed": ("rmn_last_two_stages", config("rmn_no_ca", model__routed_stages="last2")),
        "RMN, last stage routed": ("rmn_last_stage", config("rmn_no_ca", model__routed_stages="last")),
        "RMN, statistics of the batch": ("rmn_global_statistics", config("rmn_no_ca", model__statistics="batch")),
        "RMN, cloned at epoch 75": ("rmn_cloned_at_75", config("rmn_no_ca", stem_epochs=75)),
    }
    file = "cpu-2026-11-27/curves.jsonl"
    return Set(about, 20, 16, 10_000, [Measured(name, file, run, found) for name, (run, found) in rows.items()])


SETS = {"h100_32x32": h100, "cpu_resized_crops": cpu}


def summary_of(name: str, source: pathlib.Path) -> dict[str, Any]:
    """The content of a results file, from the lines in ``source``.

    Raises:
      UserError: a file is missing, or has no evaluation of a run.
    """
    measured = SETS[name]()
    rows, found = [], {}
    for run in measured.rows:
        lines = read_lines(source / run.file, run.run)
        steps = measured.train_examples // run.config.batch_size
        result = result_of_lines(lines, run.config, measured.num_classes, measured.image_size, steps)
        if len(result["load"]) > 0:  # the copies of the code counted stages that always took unit 0
            result |= _of_routed_stages(result, run.config)
        last = result["curve"][-1][0]
        partly = "" if last == run.config.epochs else f" (epoch {last} of {run.config.epochs})"
        rows.append(suite.Row(f"{run.name}{partly}", run.config))
        found[rows[-1].name] = [result]
    about = {"experiment": name, "command": "python -m experiments.measured", **measured.about}
    return {**about, "rows": suite.tabulate(rows, found)}


def _of_routed_stages(result: dict[str, Any], config: ConfigDict) -> dict[str, Any]:
    kept = {"all": 4, "last": 1, "last2": 2}[config.model.routed_stages]
    return {key: result[key][-kept:] for key in ("load", "dead_units", "entropy") if result[key]}


def read_lines(path: pathlib.Path, run: str | None) -> list[dict[str, Any]]:
    """The lines of one run: all of a file, or those of a file with several runs.

    Raises:
      UserError: no such file, or it has no evaluation of the run.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}; give the folder of the measured lines as --source.")
    lines = [line for line in read_metrics(path) if run is None or line.get("run") == run]
    if not any("eval_top1" in line for line in lines):
        raise UserError(f"{path} has no evaluation{f' of the run {run}' if run else ''}.")
    return lines


def show(source: pathlib.Path | None) -> None:
    """Prints the table of each set, from its results file; with ``source``, makes the file first."""
    for name in SETS:
        path = suite.RESULTS / f"{name}.json"
        if source is not None:
            write_file(path, json.dumps(summary_of(name, source), indent=1) + "\n")
        if not path.exists():
            raise UserError(f"there is no {path}; give --source to make it.")
        summary = json.loads(path.read_text())
        print(f"\n{name}: {summary['device']}, {summary['date']}, {summary['commit']}. {summary['note']}")
        print(suite.to_markdown(summary))
        print(json.dumps({"results": str(path)}))


def main() -> int:
    parser = suite.Parser("measured", __doc__.splitlines()[0])
    parser.add_argument("--source", type=suite.path, default=None, help="folder of the measured lines")
    arguments = parser.parse_args()
    return suite.main(lambda: show(arguments.source))


if __name__ == "__main__":
    sys.exit(main())
