"""Shared by the experiments: the command line, configurations at CPU and paper scale, training all rows, the table.

An experiment is a list of ``Row``s. ``run_rows`` trains every row with every seed: first all rows with the first seed,
then with the next. It writes the results file after each run, so nothing is lost when it is stopped. Started again, it
reads finished runs and resumes the unfinished one. Two rows with the same configuration, also of different experiments,
are one run. See ``experiments.runs`` for a single run.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.runs import as_published, commit, folder_of, known_result, run_once, with_settings
from rmn_jax import config as configuration
from rmn_jax.bench.measure import machine
from rmn_jax.cli.arguments import filled, plainly
from rmn_jax.cli.pages import load_config
from rmn_jax.errors import Preempted, UserError
from rmn_jax.files import write_file

ROOT = pathlib.Path(__file__).parent
RESULTS = ROOT / "results"
BACKBONES = ("vgg16_bn", "resnet18", "resnet50", "efficientnet_b0")
SEEDS = (0, 1, 2)
BENCHMARKS = ("cifar100", "tiny_imagenet", "imagenet")


class Row(NamedTuple):
    """A row of a table: one configuration, trained with several seeds.

    Attributes:
      name: as shown in the table.
      config: complete except for the seed.
      paper: top-1 in per cent as printed in the paper, or None.
    """

    name: str
    config: ConfigDict
    paper: float | None = None

    @property
    def slug(self) -> str:
        """The name for use in a folder name: letters, digits, ``=`` and ``.``; ``_`` for any other character."""
        return "".join(c if c.isalnum() or c in "=." else "_" for c in self.name.lower()).strip("_")


class Parser(argparse.ArgumentParser):
    """The parser of ``python -m experiments.NAME``. A wrong argument ends in one line on stderr and exit status 2."""

    def __init__(self, name: str, description: str):
        super().__init__(prog=f"python -m experiments.{name}", description=description)
        self._name = name

    def error(self, message: str):
        """Prints the message and exits."""
        self.exit(2, f"{self._name}: {plainly(message)} (see {self.prog} --help)\n")


def path(text: str) -> pathlib.Path:
    """Type of an argument that names a file or folder."""
    return pathlib.Path(filled(text))


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """A parser with the arguments that all experiments have in common."""
    result = Parser(name, description)
    scale = "cpu: small networks, minutes for a run on 2 cores; paper: the paper's hyperparameters (default: cpu)"
    result.add_argument("--scale", choices=("cpu", "paper"), default="cpu", help=scale)
    result.add_argument("--backbone", choices=BACKBONES, default="resnet18", help="for --scale=paper")
    result.add_argument("--benchmark", choices=BENCHMARKS, default="tiny_imagenet", help="for --scale=paper")
    result.add_argument("--seeds", type=int, nargs="+", default=None, help="seeds (default: 0 1 2; for ladder: 0)")
    result.add_argument("--rows", nargs="+", default=None, help="only rows whose name contains one of these words")
    result.add_argument("--epochs", type=int, default=0, help="for a trial: another number of epochs")
    result.add_argument("--data_dir", default="", help="folder of the prepared data set (default: tfds's folder)")
    result.add_argument("--workdir", type=path, default=None, help="folder of runs (default: runs/experiments_SCALE)")
    result.add_argument(
        "--out",
        type=path,
        default=None,
        help="results file (default: experiments/results/NAME_SCALE.json; with --rows, --seeds or --epochs: "
        "WORKDIR/NAME_trial.json)",
    )
    result.add_argument("--minutes", type=float, default=0, help="save and exit with status 75 after this time")
    result.add_argument("--finished", action="store_true", help="train nothing; show the finished runs")
    result.set_defaults(name=name, module=name, own_seeds=SEEDS, curves=None)
    return result


def cpu_config(variant: str, **settings: Any) -> ConfigDict:
    """CPU scale: a slim ResNet-10 on 20 classes of Tiny ImageNet at 16x16, minutes for a run on two cores.

    Args:
      variant: "rmn", "rmn_no_ca" or "plain", see ``rmn_jax.config.default_config``.
      settings: other values, with two underscores for a dot: ``model__num_units=2``.
    """
    config = configuration.default_config(variant)
    config.epochs, config.stem_epochs = 30, 10
    config.batch_size, config.eval_batch_size = 256, 500
    config.model.backbone, config.model.width, config.model.small_stem = "resnet10", 16, "3x3"
    config.model.num_units = 4
    config.learning_rate.peak, config.learning_rate.warmup_epochs = 0.4, 1
    config.data.name, config.data.classes, config.data.image_size = "tiny_imagenet", 20, 16
    config.data.crop_padding = 1
    config.eval_every_epochs, config.checkpoint.every_epochs = 2, 5
    return with_settings(config, **settings)


def paper_config(arguments: argparse.Namespace, variant: str, **settings: Any) -> ConfigDict:
    """Paper scale: the page in ``configs/`` for ``arguments.backbone`` and ``arguments.benchmark``.

    ``variant`` and ``settings`` as in ``cpu_config``.
    """
    page = ROOT.parent / "configs" / f"{arguments.backbone.removesuffix('_bn')}_{arguments.benchmark}.py"
    return with_settings(load_config(f"{page}:{variant}"), **settings)


def main(work: Callable[[], Any]) -> int:
    """Runs an experiment and returns the exit status.

    A user error is one line on stderr and status 2. A run that was stopped, with its state saved, is status 75.
    """
    name = pathlib.Path(sys.argv[0]).stem
    try:
        work()
    except UserError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Preempted as message:
        print(f"{name}: {message}", file=sys.stderr)
        return 75
    return 0


def run_rows(arguments: argparse.Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    """Trains all rows with all seeds, writes the results file after each run, prints the table.

    Returns:
      The content of the results file, see ``summarise``.

    Raises:
      UserError: see ``Run``. Or no row has a name with ``--rows``, or ``--finished`` finds no finished run.
      Preempted: asked to stop, or ``--minutes`` are over. The state is saved; the same command goes on.
    """
    root = arguments.workdir or default_root(arguments.scale)
    out = arguments.out or default_out(arguments, root)
    rows = choose(rows, arguments)
    until = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    if jax.config.jax_compilation_cache_dir is None:  # runs that differ in the seed share compiled programs
        jax.config.update("jax_compilation_cache_dir", str((root / "compiled").absolute()))
    found: dict[str, list[dict]] = {row.name: [] for row in rows}
    summary: dict[str, Any] = {}
    for seed in arguments.seeds or arguments.own_seeds:
        for row in rows:
            config = with_settings(row.config, seed=seed)
            if arguments.finished:
                result = known_result(folder_of(config, root, row.slug))
            else:
                result = run_once(config, root, row.slug, until, curves=arguments.curves)
            if result is None:
                continue
            found[row.name].append(result)
            summary = summarise(arguments, rows, found)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_file(out, json.dumps(summary, indent=1) + "\n")
    if not summary:
        raise UserError(f"no finished run in {root}; leave out --finished to train.")
    print(to_markdown(summary))
    print(json.dumps({"results": str(out)}))
    return summary


def default_root(scale: str) -> pathlib.Path:
    """The folder of the runs of all experiments at this scale."""
    return pathlib.Path("runs") / f"experiments_{scale}"


def default_out(arguments: argparse.Namespace, root: pathlib.Path) -> pathlib.Path:
    """The results file. Results of some rows, other seeds or other epochs do not replace the published ones."""
    if arguments.rows or arguments.seeds or arguments.epochs:
        return root / f"{arguments.name}_trial.json"
    name = f"{arguments.name}_{arguments.scale}"
    if arguments.scale == "paper":
        name = "_".join([name, *filter(None, (arguments.backbone, arguments.benchmark))])
    return RESULTS / f"{name}.json"


def choose(rows: Sequence[Row], arguments: argparse.Namespace) -> list[Row]:
    """The rows selected by ``--rows``, with ``--data_dir`` and ``--epochs`` in their configurations.

    Raises:
      UserError: no row matches.
    """
    words = [word.lower() for word in arguments.rows or [""]]
    chosen = [row for row in rows if any(word in row.name.lower() for word in words)]
    if not chosen:
        raise UserError(f"no row is called {' or '.join(words)}; there are: {', '.join(row.name for row in rows)}.")
    return [row._replace(config=for_trial(row.config, arguments)) for row in chosen]


def for_trial(config: ConfigDict, arguments: argparse.Namespace) -> ConfigDict:
    """A configuration with ``--data_dir`` and ``--epochs``; with few epochs, phase 1 and the warm-up become shorter."""
    settings: dict[str, Any] = {"data__data_dir": arguments.data_dir} if arguments.data_dir else {}
    if arguments.epochs:
        settings |= {
            "epochs": arguments.epochs,
            "stem_epochs": max(1, arguments.epochs // 3) if config.stem_epochs else 0,
            "learning_rate__warmup_epochs": min(config.learning_rate.warmup_epochs, arguments.epochs),
        }
    return with_settings(config, **settings)


def summarise(arguments, rows: Sequence[Row], found: dict[str, list[dict]]) -> dict[str, Any]:
    """The content of the results file: command, commit, machine and rows.

    Each row has its runs, their mean and (sample) standard deviation, and its configuration. ``found`` has the results
    of each row by name.
    """
    chosen = [f"--scale={arguments.scale}"]
    if arguments.scale == "paper":
        chosen += [f"--backbone={arguments.backbone}"] if arguments.backbone else []
        chosen.append(f"--benchmark={arguments.benchmark}")
    return {
        "experiment": arguments.name,
        "command": " ".join([f"python -m experiments.{arguments.module}", *chosen]),
        "commit": commit(),
        **machine(),
        "rows": tabulate(rows, found),
    }


def tabulate(rows: Sequence[Row], found: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """The rows of a results file that have results, see ``summarise``."""
    table = []
    for row in rows:
        runs = found[row.name]
        if not runs:
            continue
        top1 = np.array([run["top1"] for run in runs])
        table.append(
            {
                "row": row.name,
                "paper": row.paper,
                "top1_mean": round(float(top1.mean()), 2),
                "top1_std": round(float(top1.std(ddof=1)), 2) if len(top1) > 1 else None,
                "seeds": len(runs),
                "runs": runs,
                "config": as_published(row.config),
            }
        )
    return table


def to_markdown(summary: dict[str, Any]) -> str:
    """The table as Markdown, with the paper's top-1 beside ours. Numbers are means over the seeds."""
    head = (
        "network",
        "top-1 %",
        "seeds",
        "training top-1 %",
        "training loss",
        "dead units, by stage",
        "parameters",
        "multiply-adds",
        "top-1 % in the paper",
    )
    lines = ["", "| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in summary["rows"]:
        runs = row["runs"]
        mean = lambda key, runs=runs: np.mean([run[key] for run in runs])  # noqa: E731
        dead = np.mean([run["dead_units"] for run in runs], axis=0) if runs[0]["dead_units"] else []
        spread = "" if row["top1_std"] is None else f" ± {row['top1_std']:.2f}"
        cells = (
            row["row"],
            f"{row['top1_mean']:.2f}{spread}",
            str(row["seeds"]),
            f"{mean('train_top1'):.1f}",
            f"{mean('train_loss'):.3f}",
            ", ".join(f"{value:.2g}" for value in dead) or "-",
            f"{runs[0]['parameters'] / 1e6:.2f}M",
            f"{runs[0]['multiply_adds'] / 1e6:.1f}M",
            "-" if row["paper"] is None else f"{row['paper']:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
