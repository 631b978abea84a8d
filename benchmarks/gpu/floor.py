"""Part ``floor``: operations, bytes and least time of every layer shape; arithmetic alone, on any machine."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.layers import PASSES, Chip, find_chip, layers_of, work
from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import Group, Settings, backbone_of


def run(settings: Settings, record: Record) -> None:
    """A line a layer and pass, then a line a network: the least an update's layers take."""
    chip = find_chip(settings.chip, settings.peak_flops, settings.bandwidth)
    for group in settings.groups:
        for line in lines(group, settings.num_units, chip, 2 if settings.dtype == "bfloat16" else 4):
            record.add(line)


def lines(group: Group, num_units: int | None, chip: Chip, width: int = 2) -> Iterator[dict[str, Any]]:
    """Of one network at N units (None: the plain one) and ``width`` bytes a value."""
    totals: dict[str, float] = {"operations": 0.0, "bytes": 0.0, "least_ms": 0.0}
    prefix = f"floor/{group.name}/B{group.batch}/N{num_units}"
    for layer, count in layers_of(backbone_of(group.backbone, group.image_size), group.image_size).items():
        for which in PASSES:
            if layer.channels == 3 and which == "dgrad":
                continue  # nothing asks for the image's gradient
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
        "id": f"{prefix}/layers of an update",
        "part": "floor",
        "network": group.name,
        "layer": "all",
        "gigaoperations": round(totals["operations"] / 1e9, 1),
        "megabytes": round(totals["bytes"] / 1e6, 1),
        "least_ms": round(totals["least_ms"], 3),
        "images_per_second": round(1e3 * group.batch / totals["least_ms"]),
    }
