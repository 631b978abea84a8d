"""Cost of the check for NaN and infinity in every training step: ``python -m benchmarks.check [--out=FILE]``.

The step is compiled with the check and without it. Both sides run in turn, in one process. The ratio is that of the CPU
seconds of the process, which other work on the machine disturbs least. On a GPU the wall time is the one to read.

Prints one JSON line for each network: the digits' RMN (ResNet-8) and ResNet-18 at 32x32, plain and N = 8.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.bench.measure import report, summary
from rmn_jax.bench.step import Step, random_batch
from rmn_jax.models import create_backbone
from rmn_jax.training import step as steps

# Name, backbone, image size, batch, N, width; N = 0 is the plain network.
NETWORKS = (
    ("digits, N = 4", "resnet8", 8, 288, 4, 16),
    ("ResNet-18, plain", "resnet18", 32, 256, 0, 64),
    ("ResNet-18, N = 8", "resnet18", 32, 256, 8, 64),
)


def both_sides(backbone: str, image_size: int, batch: int, num_units: int, width: int) -> dict[str, Step]:
    """The compiled step with the check and without it."""
    network = create_backbone(backbone, 10, image_size, width=width)
    data = random_batch(batch, image_size, 10)
    sides, check = {"checked": Step(network, data, num_units or None)}, steps.is_finite
    steps.is_finite = lambda tree: jnp.array(True)
    try:
        sides["unchecked"] = Step(network, data, num_units or None)
    finally:
        steps.is_finite = check
    return sides


def cpu_and_wall(side: Step) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(side())
    return time.process_time() - cpu, time.perf_counter() - wall


def lines(rounds: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """One JSON line for each network, with medians and quartiles over the rounds."""
    for name, backbone, image_size, batch, num_units, width in NETWORKS:
        if names and not any(word in name for word in names):
            continue
        sides = both_sides(backbone, image_size, batch, num_units, width)
        # A small step is repeated within a round: process_time and the scheduler have their own grain.
        repeats = max(1, round(0.3 / min(cpu_and_wall(side)[1] for side in sides.values() for _ in range(2))))
        rng, found = np.random.default_rng(0), {side: np.zeros((rounds, 2)) for side in sides}
        for turn in range(rounds):
            for side in rng.permutation(list(sides)).tolist():
                found[side][turn] = np.sum([cpu_and_wall(sides[side]) for _ in range(repeats)], axis=0) / repeats
        cpu, wall = ({side: times[:, column] for side, times in found.items()} for column in (0, 1))
        yield {
            "bench": "check",
            "network": name,
            "batch": batch,
            "cpu": summary(cpu["checked"], cpu["unchecked"]),
            "wall": summary(wall["checked"], wall["unchecked"]),
            "cpu_of_medians": round(float(np.median(cpu["checked"]) / np.median(cpu["unchecked"])), 4),
            "rounds": rounds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--networks", nargs="+", default=[], help="only networks whose name contains one of these")
    parser.add_argument("--out", help="results file")
    arguments = parser.parse_args()
    report(lines(arguments.rounds, arguments.networks), arguments.out, "python -m benchmarks.check")


if __name__ == "__main__":
    main()
