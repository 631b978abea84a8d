"""Demo: a plain network and a routing-by-memory network (RMN) on handwritten digits, side by side.

    python -m experiments.demo [--workdir runs/demo]        # or: make demo

Trains ResNet-8 alone, then as a 4-way RMN with conditional attention through all four phases. Writes to the folder both
runs, ``summary.json``, and ``memories.png``: the held-out images nearest to each memory. Started again, it continues
where it stopped. Two minutes on 2 CPU cores.
"""

import json
import pathlib
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import suite
from rmn_jax.analysis import memories
from rmn_jax.analysis.counts import count_multiply_adds, count_parameters
from rmn_jax.analysis.study import read_images
from rmn_jax.cli.pages import load_config
from rmn_jax.files import write_file
from rmn_jax.training.extraction import extract
from rmn_jax.training.phases import run_training
from rmn_jax.training.progress import METRICS_FILE, read_metrics
from rmn_jax.training.run import Run

CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "digits.py"
TOP = 5  # images shown for each memory


def main() -> int:
    parser = suite.Parser("demo", __doc__.splitlines()[0])
    parser.add_argument("--workdir", type=suite.path, default=pathlib.Path("runs/demo"), help="default: runs/demo")
    workdir = parser.parse_args().workdir
    return suite.main(lambda: run(workdir))


def run(workdir: pathlib.Path) -> None:
    summary = demo(workdir)
    print(json.dumps({"summary": str(workdir / "summary.json"), "figures": summary["figures"]}))


def demo(workdir: pathlib.Path) -> dict:
    """Trains both networks, writes the figure and the summary, prints the table; returns the summary."""
    _, plain, plain_seconds = train("plain", workdir)
    routed_run, routed, routed_seconds = train("rmn", workdir)
    found = routed_run.restore()
    assert found is not None  # it has just been trained
    state, _ = found
    result = extract(routed_run, state.eval_variables, routed=True)
    nearest = memories.nearest_images(result, state.memory, TOP)
    images = read_images(routed_run, nearest.position).shown
    figure = memories.draw(
        nearest,
        images,
        workdir / "memories.png",
        "Held-out digits nearest to each memory, and the share of images that each unit receives",
    )
    routed |= {
        "num_units": routed_run.config.model.num_units,
        "dead_units": int((nearest.load == 0).sum()),
        "load": nearest.load.tolist(),
    }
    summary = {"plain": plain, "rmn": routed, "figures": [str(figure)]}
    write_file(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    show(summary, plain_seconds, routed_seconds, figure)
    return summary


def train(method: str, workdir: pathlib.Path) -> tuple[Run, dict, float]:
    """Trains a network: ``method`` is "plain" or "rmn".

    Returns:
      The run, its ``{"top1", "params", "macs"}``, and the median seconds for a step in the run's last phase.
    """
    routed = method == "rmn"
    run = Run(load_config(f"{CONFIG}:{method}"), workdir / method)
    run.reporter.say(f"\n{'RMN' if routed else 'Plain'} network in {run.workdir}")
    top1 = run_training(run)["top1"]
    state = run.networks.state_shapes(routed)
    numbers = {
        "top1": top1,
        "params": count_parameters(state.variables),
        "macs": count_multiply_adds(run.networks.model(routed), run.info.image_shape[0]),
    }
    lines = read_metrics(run.workdir / METRICS_FILE)
    last = [line["seconds_per_step"] for line in lines if line["phase"] == lines[-1]["phase"]]
    return run, numbers, float(np.median(last))


def show(summary: dict, plain_seconds: float, routed_seconds: float, figure: pathlib.Path) -> None:
    plain, routed = summary["plain"], summary["rmn"]
    num_units, stages, images = routed["num_units"], len(routed["load"]), sum(routed["load"][0])
    table = Table(title=f"Handwritten digits, {images} held-out images")
    for name in ("network", "top-1", "parameters", "multiply-adds", "time per step", "dead units"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for name, row, seconds, dead in (
        ("ResNet-8", plain, plain_seconds, "-"),
        (f"RMN, N={num_units}", routed, routed_seconds, f"{routed['dead_units']} of {num_units * stages}"),
    ):
        cells = (f"{row['top1']:.2%}", f"{row['params']:,}", f"{row['macs']:,}", f"{seconds * 1e3:.0f} ms", dead)
        table.add_row(name, *cells)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print(
        f"The RMN has {num_units} copies (units) of each of the {stages} stages, and conditional attention.\n"
        "In each stage an image goes through one unit: the unit whose memory is nearest to\n"
        f"its features. Dead units receive no image. One image is {1 / images:.2%} of top-1.\n"
        f"\nThe images nearest to each memory: {figure}\n",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
