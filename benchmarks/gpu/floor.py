"""Part ``floor``: operations, bytes and least time of every layer shape, by arithmetic alone (runs on any machine)."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.layers import PASSES, Chip, find_chip, layers_of, work
from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import Group, Settings, backbone_of


def run(settings: Settings, record: Record) -> None:
    """Adds one line for each layer and pass, then one for each network: the least time of all layers in a step."""
    chip = find_chip(settings.chip, settings.peak_flops, settings.bandwidth)
    for group in settings.groups:
        for line in lines(group, settings.num_units, chip, 2 if settings.dtype == "bfloat16" else 4):
            record.add(line)


def lines(group: Group, num_units: int | None, chip: Chip, width: int = 2) -> Iterator[dict[str, Any]]:
    """The lines of one network.

    Args:
      group: the network and batch.
      num_units: N; None is the plain network.
      chip: whose figures to use.
      width: bytes for each value.
    """
    totals: dict[str, float] = {"operations": 0.0, "bytes": 0.0, "least_ms": 0.0}
    prefix = f"floor/{group.name}/B{group.batch}/N{num_units}"
    for layer, count in layers_of(backbone_of(group.backbone, group.image_size), group.image_size).items():
        for which in PASSES:
            if layer.channels == 3 and which == "dgrad":
                continue  # the gradient of the image is not needed
            must = work(layer, which, group.batch, num_units, width)
            least = 1e3 * must.least_seconds(chip)
            bound = "operations" if must.operations / chip.operations >= must.bytes / chip.bandwidth else "bytes"
            yield {
                "id": f"{prefix}/{layer.name}/{which}",
                "part": "floor",
                "network": group.name,
                "layer": layer.name,
                "pass": which,
                "count": count,
                "gigaoperations": round(must.operations / 1e9, 3),
                "megabytes": round(must.bytes / 1e6, 2),
                "least_ms": round(least, 4),
                "bound": bound,
            }
            for key, value in (("operations", must.operations), ("bytes", must.bytes), ("least_ms", least)):
                totals[key] += count * value
    yield {
        "id": f"{prefix}/layers of a step",
        "part": "floor",
        "network": group.name,
        "layer": "all",
        "gigaoperations": round(totals["operations"] / 1e9, 1),
        "megabytes": round(totals["bytes"] / 1e6, 1),
        "least_ms": round(totals["least_ms"], 3),
        "images_per_second": round(1e3 * group.batch / totals["least_ms"]),
    }
