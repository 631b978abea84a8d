"""Cost of the check for NaN and infinity in every training step: ``python -m benchmarks.check [--out=FILE]``.

The step is compiled with the check and without it, and both are timed in turn. Prints one JSON line for each network,
with the ratio of the CPU seconds. On a GPU it is the ratio of the wall-clock seconds.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from rmn_jax.bench.measure import interleave, report, summary
from rmn_jax.bench.step import Step, random_batch
from rmn_jax.models import create_backbone
from rmn_jax.training import step as steps

# Name, backbone, image size, batch, N (None: plain), width, and steps in a round.
NETWORKS = (
    ("digits, N = 4", "resnet8", 8, 288, 4, 16, 20),
    ("ResNet-18, plain", "resnet18", 32, 256, None, 64, 1),
    ("ResNet-18, N = 8", "resnet18", 32, 256, 8, 64, 1),
)


def repeated(step: Step, times: int) -> Callable[[], Any]:
    """Several steps, one after another. The clock is too coarse for a single small one."""

    def run():
        for _ in range(times):
            result = jax.block_until_ready(step())
        return result

    return run


def lines(rounds: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """One JSON line for each network, with medians and quartiles over the rounds."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    for name, backbone, image_size, batch, num_units, width, times in NETWORKS:
        if names and not any(word in name for word in names):
            continue
        network = create_backbone(backbone, 10, image_size, width=width)
        data = random_batch(batch, image_size, 10)
        sides = {"checked": repeated(Step(network, data, num_units), times)}
        with mock.patch.object(steps, "is_finite", lambda tree: jnp.array(True)):
            sides["unchecked"] = repeated(Step(network, data, num_units), times)
        seconds = {side: found / times for side, found in interleave(sides, rounds, clock=clock).items()}
        found = summary(seconds["checked"], seconds["unchecked"])
        yield {"bench": "check", "network": name, "batch": batch, "rounds": rounds, **found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--networks", nargs="+", default=[], help="only networks whose name contains one of these")
    parser.add_argument("--out", help="JSON file for the lines, with machine, versions, command and date")
    arguments = parser.parse_args()
    report(lines(arguments.rounds, arguments.networks), arguments.out, "python -m benchmarks.check")


if __name__ == "__main__":
    main()
