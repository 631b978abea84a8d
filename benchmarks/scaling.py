"""A model of how a training step scales over devices: traffic and time by arithmetic. Nothing here is measured.

There are two ways to place a routed network on devices:

- **Data-parallel**, as in ``rmn_jax.training.step``: every device holds all units and routes its part of the batch.
  Batch norm and the memories sum a few values over all devices. The gradients are summed once.
- **Unit-parallel** (expert-parallel, not implemented): each of N devices holds one unit of every stage. At each stage,
  features move to the device of their unit, and their gradients move back. Groups of N devices do this independently.

    python -m benchmarks.scaling               # the tables of docs/scaling.md
    python -m benchmarks.scaling --counted     # collectives and memory of the compiled step, counted, not modelled

Axes: B batch, N units, S stages, H W height and width, C channels (see ``rmn_jax``). Sizes are in bytes,
times in seconds.
"""

import argparse
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax

from benchmarks.counted import counted_table
from benchmarks.traffic import Network, data_parallel_reductions, describe
from rmn_jax.models import RMN, create_backbone
from rmn_jax.routing.layout import max_tiles

_FLOAT32 = 4


class Cluster(NamedTuple):
    """The assumptions of the model.

    Attributes:
      flops: operations a second that a device sustains on these layers; a multiply-add is two.
      node: devices of a node, joined by the fast link.
      within: bytes a second that a device sends to its node, and receives at the same time.
      between: the same to other nodes.
      hop_within: latency of a message within a node, in seconds.
      hop_between: latency of a message between nodes, in seconds.
      launch: time to start a collective, in seconds.
      gradient_bytes: bytes of a gradient value in a sum over devices: 4 (float32, as in ``rmn_jax``) or 2 (bfloat16).
      feature_bytes: bytes of a feature value in an exchange.
      overlap: share of the backward pass that can overlap with the sum of the gradients, 0 to 1.
    """

    flops: float = 304e12
    node: int = 8
    within: float = 300e9
    between: float = 50e9
    hop_within: float = 2e-6
    hop_between: float = 5e-6
    launch: float = 10e-6
    gradient_bytes: int = 4
    feature_bytes: int = 2
    overlap: float = 1.0


def reduce_seconds(size: float, devices: int, cluster: Cluster, *, stride: int = 1) -> float:
    """Seconds of an all-reduce: by rings or by trees, whichever is faster.

    Rings: reduce-scatter within each node, all-reduce of each device's share between nodes, all-gather within each
      node.

    Args:
      size: bytes to sum.
      devices: number of devices that take part.
      cluster: the assumptions.
      stride: device stride; from ``cluster.node`` on, at most one device of each node takes part.
    """
    if devices <= 1:
        return 0.0
    near = max(1, min(devices, cluster.node // stride))
    far = math.ceil(devices / near)
    ring = 2 * (near - 1) / near * size / cluster.within + 2 * (near - 1) * cluster.hop_within
    ring += 2 * (far - 1) / far * size / near / cluster.between + 2 * (far - 1) * cluster.hop_between
    hops = math.log2(near) * cluster.hop_within + math.log2(far) * cluster.hop_between
    slowest = cluster.within if far == 1 else cluster.between
    tree = 2 * hops + 2 * size / slowest
    return cluster.launch + min(ring, tree)


def exchange_seconds(size: float, devices: int, cluster: Cluster) -> float:
    """Seconds of an all-to-all: each of ``devices`` neighbours holds ``size`` bytes, and one part of them stays."""
    if devices <= 1:
        return 0.0
    near = min(devices, cluster.node)
    inside = size * (near - 1) / devices / cluster.within
    outside = size * (devices - near) / devices / cluster.between
    hop = cluster.hop_within if near == devices else cluster.hop_between
    return cluster.launch + hop + max(inside, outside)


class Step(NamedTuple):
    """A training step on one device: seconds of each part and in total, and ``bytes`` that the device sends."""

    compute: float
    norms: float
    gradients: float
    exchanges: float
    total: float
    bytes: float


def data_parallel(network: Network, batch: float, devices: int, cluster: Cluster) -> Step:
    """A step of a global batch of ``batch`` inputs on devices that each hold all units."""
    operations = 3 * (network.shared_operations + sum(network.stage_operations))
    compute = operations * batch / devices / cluster.flops
    reductions = data_parallel_reductions(network, cluster.gradient_bytes)
    times = [reduce_seconds(r.bytes, devices, cluster) for r in reductions]
    norms = sum(time for time, r in zip(times, reductions, strict=True) if r.blocking)
    gradients = sum(times) - norms
    sent = sum(_sent(r.bytes, devices) for r in reductions)
    return _step(compute, norms, gradients, 0.0, sent, cluster)


def unit_parallel(
    network: Network, batch: float, devices: int, cluster: Cluster, largest_share: float | None = None
) -> Step:
    """A step of a global batch of ``batch`` inputs, with inputs sent to the device of their unit.

    Args:
      network: the network.
      batch: B.
      devices: a divisor or a multiple of N.
      cluster: the assumptions.
      largest_share: the share of a stage's inputs on the most loaded device of a group. The other devices wait for it.
        None is an even load.
    """
    group = min(devices, network.num_units)
    copies = devices // group
    imbalance = 1.0 if largest_share is None else max(1.0, largest_share * group)
    per_device = batch / devices
    operations = 3 * (network.shared_operations + imbalance * sum(network.stage_operations))
    compute = operations * per_device / cluster.flops
    sizes = [per_device * values * cluster.feature_bytes for values in network.stage_inputs]
    exchanges = 2 * sum(exchange_seconds(imbalance * size, group, cluster) for size in sizes)
    units = network.num_units // group  # on one device
    shared = [(2 * c + 1) * _FLOAT32 for c in network.shared_norms]
    routed = [units * (2 * c + 1) * _FLOAT32 for c in network.routed_norms]
    norms = 2 * sum(reduce_seconds(size, devices, cluster) for size in shared)
    norms += 2 * sum(reduce_seconds(size, copies, cluster, stride=group) for size in routed)
    shared_gradients = network.shared_parameters * cluster.gradient_bytes
    routed_gradients = network.routed_parameters / group * cluster.gradient_bytes
    gradients = reduce_seconds(shared_gradients, devices, cluster)
    gradients += reduce_seconds(routed_gradients, copies, cluster, stride=group)
    sent = _sent(shared_gradients + 2 * sum(shared), devices) + _sent(routed_gradients + 2 * sum(routed), copies)
    sent += 2 * sum(sizes) * (group - 1) / group
    return _step(compute, norms, gradients, exchanges, sent, cluster)


def _step(compute, norms, gradients, exchanges, sent, cluster: Cluster) -> Step:
    hidden = min(gradients, cluster.overlap * compute * 2 / 3)
    return Step(compute, norms, gradients, exchanges, compute + norms + exchanges + gradients - hidden, sent)


def _sent(size: float, devices: int) -> float:
    """Bytes that each device sends in a ring all-reduce of ``size`` bytes."""
    return 2 * (devices - 1) / devices * size


def rows_computed(batch: int, num_units: int, tile: int) -> float:
    """Rows computed with the static number of tiles, relative to B (see ``rmn_jax.routing.layout.max_tiles``)."""
    length = min(batch, tile)
    return max_tiles(batch, num_units, length) * length / batch


DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)


def crossing_share(network: Network, batch: float, devices: int, cluster: Cluster) -> float | None:
    """The largest share of a stage's inputs up to which unit-parallel is faster; None if it never is."""
    limit = data_parallel(network, batch, devices, cluster).total
    low, high = 1.0 / min(devices, network.num_units), 1.0
    if unit_parallel(network, batch, devices, cluster, low).total >= limit:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        if unit_parallel(network, batch, devices, cluster, middle).total < limit:
            low = middle
        else:
            high = middle
    return low


def table(network: Network, batches: Iterable[int], cluster: Cluster, largest_share: float) -> str:
    """A Markdown table of both placements, with one row for each of ``DEVICES`` and its global batch."""
    lines = [
        "| devices | batch | per device | compute | norms | gradients | **data-parallel** | efficiency | sent "
        f"| exchanges | **unit-parallel**, even | at {largest_share:.2f} | sent | faster up to |",
        "|" + "---:|" * 14,
    ]
    for devices, batch in zip(DEVICES, batches, strict=True):
        data, even = data_parallel(network, batch, devices, cluster), unit_parallel(network, batch, devices, cluster)
        uneven = unit_parallel(network, batch, devices, cluster, largest_share)
        share = crossing_share(network, batch, devices, cluster)
        cells = (
            f"{devices}",
            f"{batch:,}",
            f"{batch / devices:g}",
            *(f"{1e3 * value:.2f}" for value in (data.compute, data.norms, data.gradients)),
            f"**{1e3 * data.total:.2f}**",
            f"{data.compute / data.total:.0%}",
            f"{data.bytes / 1e6:.0f}",
            f"{1e3 * even.exchanges:.2f}",
            f"**{1e3 * even.total:.2f}**",
            f"{1e3 * uneven.total:.2f}",
            f"{even.bytes / 1e6:.0f}",
            "never" if share is None else f"{share:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tiles_table(num_units: int, tiles: Iterable[int] = (1, 8, 32)) -> str:
    """A Markdown table of ``rows_computed``, with one row for each number of inputs per device."""
    tiles = tuple(tiles)
    lines = ["| inputs per device | " + " | ".join(f"tiles of {tile}" for tile in tiles) + " |"]
    lines.append("|" + "---:|" * (1 + len(tiles)))
    for batch in (1024, 512, 256, 128, 64, 32, 16, 8):
        factors = (f"{rows_computed(batch, num_units, tile):.2f}" for tile in tiles)
        lines.append(f"| {batch} | " + " | ".join(factors) + " |")
    return "\n".join(lines)


def tables(cluster: Cluster, largest_share: float = 0.3) -> str:
    """The output of ``python -m benchmarks.scaling``: ResNet-18, N = 8, Tiny ImageNet."""
    model = RMN(create_backbone("resnet18", 200, 64), num_units=8)
    network = describe(model, 64)
    reductions = data_parallel_reductions(network, cluster.gradient_bytes)
    blocking = [r for r in reductions if r.blocking]
    sums = {r.name: r.bytes for r in reductions if not r.blocking}
    summary = (
        f"{len(blocking)} sums that the step waits for, {sum(r.bytes for r in blocking) / 1e6:.2f} MB in total; "
        f"gradients {sums['gradients'] / 1e6:.1f} MB; memories {sums['memories'] / 1e6:.3f} MB."
    )
    strong = table(network, (1024 for _ in DEVICES), cluster, largest_share)
    weak = table(network, (128 * devices for devices in DEVICES), cluster, largest_share)
    return "\n\n".join(
        (
            summary,
            "### One batch of 1,024\n\n" + strong,
            "### 128 inputs per device\n\n" + weak,
            "### Rows computed, relative to rows given\n\n" + tiles_table(model.num_units),
        )
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"scaling: {message} (see {self.prog} --help)\n")


_HELP = {
    "flops": "operations a second that a device sustains",
    "node": "devices of a node",
    "within": "bytes a second from a device to its node",
    "between": "bytes a second from a device to other nodes",
    "hop_within": "latency of a message within a node, in seconds",
    "hop_between": "latency of a message between nodes, in seconds",
    "launch": "time to start a collective, in seconds",
    "gradient_bytes": "bytes of a gradient value in a sum over devices",
    "feature_bytes": "bytes of a feature value in an exchange",
    "overlap": "share of the backward pass that can overlap with the sum of the gradients, 0 to 1",
    "largest_share": "share of a stage's inputs on its most loaded device; above 0, up to 1",
}
_MAY_BE_ZERO = ("hop_within", "hop_between", "launch", "overlap")
_UP_TO_ONE = ("overlap", "largest_share")


def main() -> None:
    """Prints the tables; every assumption is an option."""
    parser = _Parser(prog="python -m benchmarks.scaling", description="The tables of docs/scaling.md.")
    for name, value in {**Cluster()._asdict(), "largest_share": 0.3}.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{_HELP[name]} (default: {value:g})")
    parser.add_argument(
        "--counted", action="store_true", help="print collectives and memory of the compiled step instead; minutes"
    )
    given = vars(parser.parse_args())
    if given.pop("counted"):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        print(counted_table())
        return
    for name, value in given.items():
        most = 1 if name in _UP_TO_ONE else math.inf
        if not (0 < value <= most and value < math.inf or value == 0 and name in _MAY_BE_ZERO):
            least = "0 or more" if name in _MAY_BE_ZERO else "above 0"
            parser.error(f"--{name} is {value:g}; it must be {least}{', up to 1' if most == 1 else ', and finite'}")
    share = given.pop("largest_share")
    print(tables(Cluster(**given), share))


if __name__ == "__main__":
    main()
