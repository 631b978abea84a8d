"""Memory analysis (supplementary material): what the memories of a 4-way RMN on Tiny ImageNet represent at each stage.

    python -m experiments.memory_analysis --scale=cpu       # 20 classes at 16x16, about five minutes on 2 CPU cores
    python -m experiments.memory_analysis --scale=paper     # ResNet-18, 200 classes, 120 epochs: needs an accelerator
    python -m experiments.memory_analysis --run runs/r18    # analyse an existing run

Trains the network, or resumes or reads the run if there is one. Writes to the run's folder a figure and an HTML page
with the validation images nearest to each memory. Writes to ``experiments/results`` (for ``--scale``) the load of each
unit, and how much of the routing is explained by an image's class, mean colour and edges. The paper finds that memories
of early stages collect images of similar low-level appearance, and those of later stages images of similar meaning.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from experiments import suite
from experiments.runs import as_published, commit, folder_of, run_once
from rmn_jax import config as configuration
from rmn_jax.analysis import report
from rmn_jax.analysis.study import study
from rmn_jax.bench.measure import machine
from rmn_jax.cli.pages import load_config
from rmn_jax.errors import UserError
from rmn_jax.files import write_file
from rmn_jax.training.progress import METRICS_FILE, read_metrics
from rmn_jax.training.run import CONFIG_FILE, Run

PAGE = pathlib.Path(__file__).parent.parent / "configs" / "resnet18_tiny_imagenet.py"


def main() -> int:
    arguments = parse(sys.argv[1:])
    return suite.main(lambda: analyse(arguments))


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = suite.Parser("memory_analysis", __doc__.splitlines()[0])
    parser.add_argument("--scale", choices=("cpu", "paper"), help="the network to train (default: cpu)")
    parser.add_argument("--workdir", type=suite.path, help="folder of runs (default: runs/experiments_SCALE)")
    parser.add_argument("--data_dir", default="", help="folder of the prepared data set (default: tfds's folder)")
    parser.add_argument("--top_k", type=int, default=8, help="images shown for each memory (default: 8)")
    parser.add_argument("--run", type=suite.path, help="analyse the run in this folder of `rmn train`; train nothing")
    parser.add_argument("--epochs", type=int, default=0, help="for a trial: another number of epochs")
    parser.add_argument(
        "--out",
        type=suite.path,
        help="results file (default: experiments/results/memory_analysis_SCALE.json; with --run alone: "
        "RUN/memory_analysis.json; with --epochs: WORKDIR/memory_analysis_trial.json)",
    )
    return parser.parse_args(words)


def analyse(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains or opens the run, writes its figure, HTML page and results file, prints the table.

    Raises:
      UserError: see ``Run``. Or ``--top_k`` is not positive, or the run has no memories yet.
    """
    if arguments.top_k < 1:
        raise UserError(f"--top_k is {arguments.top_k}; it must be 1 or more.")
    run = existing_run(arguments) if arguments.run else train(arguments)
    found = run.restore()
    if found is None or not found[1].phase.routed:
        raise UserError(f"{run.workdir} has no memories: it is a plain run, or not yet past phase 3.")
    started = time.perf_counter()
    studied = study(run, found[0], arguments.top_k)
    written = report.write(studied, run.workdir)
    lines = read_metrics(run.workdir / METRICS_FILE)
    training = sum(line["seconds_per_step"] for line in lines) * run.steps_per_epoch
    results = {
        "experiment": "memory_analysis",
        "command": f"python -m experiments.memory_analysis --scale={arguments.scale or 'cpu'}",
        "commit": commit(),
        **machine(),
        "seed": run.config.seed,
        "seconds": {"training": round(training), "analysis": round(time.perf_counter() - started)},
        "top1": None if studied.top1 is None else round(100 * studied.top1, 2),
        "images": len(studied.label),
        "stages": [rounded(stage) for stage in written["stages"]],
        "config": as_published(run.config),
    }
    out = results_file(arguments)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, json.dumps(results, indent=1) + "\n")
    print(to_markdown(results["stages"]))
    print(json.dumps({"results": str(out), "figures": written["figures"]}))
    return results


def train(arguments: argparse.Namespace) -> Run:
    """The finished run of this scale."""
    scale = arguments.scale or "cpu"
    if scale == "cpu":
        config = suite.cpu_config("rmn")  # the row "RMN with CA" of experiments.batch_size
    else:
        config = load_config(f"{PAGE}:rmn", ["--config.model.num_units=4"])
    config.data.data_dir = arguments.data_dir
    if arguments.epochs:
        config.epochs, config.stem_epochs = arguments.epochs, max(1, arguments.epochs // 3)
    root = arguments.workdir or suite.default_root(scale)
    run_once(config, root, "rmn_with_ca", until=float("inf"))
    return Run(config, folder_of(config, root, "rmn_with_ca"))


def existing_run(arguments: argparse.Namespace) -> Run:
    """The run in ``--run``, with its data set in ``--data_dir``."""
    config = configuration.from_json(arguments.run / CONFIG_FILE)
    if arguments.data_dir:
        config.data.data_dir = arguments.data_dir
    return Run(config, arguments.run)


def results_file(arguments: argparse.Namespace) -> pathlib.Path:
    """The results file. The analysis of ``--run`` replaces the published results only if ``--scale`` is given too."""
    if arguments.out:
        return arguments.out
    if arguments.run and not arguments.scale:
        return arguments.run / "memory_analysis.json"
    if arguments.epochs:
        return (arguments.workdir or suite.default_root(arguments.scale or "cpu")) / "memory_analysis_trial.json"
    return suite.RESULTS / f"memory_analysis_{arguments.scale or 'cpu'}.json"


def rounded(value: Any) -> Any:
    """A nested value with all floating-point numbers rounded to four decimals."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def to_markdown(stages: list[dict[str, Any]]) -> str:
    """The table as Markdown, one row for each stage.

    Columns: load of the units, dead units, and for each measure the share of the routing that it explains beyond
    chance, with the mutual information in nats.
    """
    head = ("stage", "load of each unit", "dead units", *(f"explained by {name}" for name in report.NAMES.values()))
    lines = ["", "| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for stage in stages:
        total = sum(stage["load"])
        cells = [
            str(stage["stage"]),
            " ".join(f"{load / total:.0%}" for load in stage["load"]),
            str(stage["dead_units"]),
            *(
                f"{max(found['share'], 0):.0%} ({found['nats']:.3f} nats, chance {found['chance']:.3f})"
                for found in (stage["information"][name] for name in report.NAMES)
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
