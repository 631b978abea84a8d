"""The main job in miniature: the plain network and an RMN on handwritten digits, side by side.

    python -m experiments.demo [--workdir runs/demo]

Trains ResNet-8 alone and as a 4-way RMN with conditional attention, through all four steps, and leaves in the folder
both runs, ``summary.json`` and a figure of each memory's nearest held-out images. Started again, it goes on where it
stopped. Three minutes on 2 CPU cores.
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
from rmn_jax.commands import load_config
from rmn_jax.four_step import run_training
from rmn_jax.train.run import Run

CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "digits.py"
TOP = 8


def main() -> int:
    parser = suite.Parser("demo", __doc__.splitlines()[0])
    parser.add_argument("--workdir", type=suite.path, default=pathlib.Path("runs/demo"), help="default: runs/demo")
    workdir = parser.parse_args().workdir
    return suite.main(lambda: run(workdir))


def run(workdir: pathlib.Path) -> None:
    summary = demo(workdir)
    print(json.dumps({"summary": str(workdir / "summary.json"), "figures": summary["figures"]}))


def demo(workdir: pathlib.Path) -> dict:
    plain_run, plain, plain_seconds = train("plain", workdir)
    routed_run, routed, routed_seconds = train("rmn", workdir)
    found = routed_run.restore()
    assert found is not None  # it has just been trained
    state, _ = found
    result = memories.route_split(routed_run, state)
    nearest = memories.nearest_images(result, state.memory, TOP)
    images = memories.images_at(routed_run, nearest.position)
    figure = memories.draw(
        nearest,
        images,
        workdir / "memories.png",
        "Held-out digits nearest to each memory, and each unit's share",
    )
    routed |= {
        "num_units": routed_run.config.model.num_units,
        "dead_units": int((nearest.load == 0).sum()),
        "load": nearest.load.tolist(),
    }
    summary = {"plain": plain, "rmn": routed, "figures": [str(figure)]}
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    show(summary, plain_seconds, routed_seconds, figure)
    return summary


def train(method: str, workdir: pathlib.Path) -> tuple[Run, dict, float]:
    """A run, its ``{"top1", "params", "macs"}``, and the median seconds an update took after step 1."""
    routed = method == "rmn"
    run = Run(load_config(f"{CONFIG}:{method}"), workdir / method)
    run.reporter.say(f"\n{'RMN' if routed else 'Plain'} network in {run.workdir}")
    top1 = run_training(run)["top1"]
    state = run.state_shapes(routed)
    numbers = {
        "top1": top1,
        "params": count_parameters(state.variables),
        "macs": count_multiply_adds(run.model(routed), run.info.image_shape[0]),
    }
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    last_step = lines[-1]["step"]
    return run, numbers, float(np.median([x["seconds_per_update"] for x in lines if x["step"] == last_step]))


def show(summary: dict, plain_seconds: float, routed_seconds: float, figure: pathlib.Path) -> None:
    plain, routed = summary["plain"], summary["rmn"]
    table = Table(title="Handwritten digits, 360 held out")
    for name in ("network", "top-1", "parameters", "multiply-adds", "time per update", "dead PUs"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for name, row, seconds, dead in (
        ("ResNet-8", plain, plain_seconds, "-"),
        (f"RMN, N = {routed['num_units']}, with CA", routed, routed_seconds, str(routed["dead_units"])),
    ):
        table.add_row(
            name,
            f"{row['top1']:.2%}",
            f"{row['params']:,}",
            f"{row['macs']:,}",
            f"{seconds * 1e3:.0f} ms",
            dead,
        )
    console = Console()
    console.print()
    console.print(table)
    console.print(f"Nearest images of each memory: {figure}\n", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
