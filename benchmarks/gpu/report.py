"""Part ``report``: tables of a file of lines, in Markdown."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import Settings


def run(settings: Settings, record: Record) -> None:
    """Prints a table for each part that has lines in the file."""
    del settings
    for part, table in (("step", steps), ("conv", convolutions), ("torch", torch), ("determinism", determinism)):
        lines = [line for line in record.lines if line.get("part") == part]
        if lines:
            print(f"\n### {part}\n\n" + "\n".join(table(lines)))


def _row(*cells: Any) -> str:
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def _ratio(line: dict[str, Any]) -> str:
    if "ratio" not in line:
        return "1"
    low, high = line["ratio_quartiles"]
    return f"{line['ratio']:.3f} ({low:.3f}-{high:.3f})"


def steps(lines: Iterable[dict[str, Any]]) -> list[str]:
    """One row for each network; ``least`` is the least time of its layers (see ``benchmarks.gpu.layers``)."""
    keys = ("images_per_second", "mfu", "layers_least_ms", "peak_megabytes", "planned_megabytes", "compile_seconds")
    rates = ("images/s", "MFU", "least ms", "peak MB", "planned MB", "compile s")
    table = _head("network", "B", "side", "ms", "ratio to plain", *rates)
    for line in lines:
        if "milliseconds" in line:
            cells = (line["network"], line["batch"], line["side"], line["milliseconds"], _ratio(line))
            table.append(_row(*cells, *(line[key] for key in keys)))
        else:
            table.append(_row(line["id"]))
    return table


def convolutions(lines: Iterable[dict[str, Any]]) -> list[str]:
    """One row for each layer, pass and side; then the mean ratio of each side, layers weighted by their plain time."""
    lines = list(lines)
    table = _head("network", "layer", "pass", "B", "side", "load", "ms", "ratio", "TFLOP/s", "over least")
    for line in lines:
        cells = [line.get(key) for key in ("network", "layer", "pass", "batch", "side", "load")]
        if "milliseconds" in line:
            table.append(_row(*cells, line["milliseconds"], _ratio(line), line["teraflops"], line["over_least"]))
        else:
            table.append(_row(*cells, line.get("failed") or line.get("same_program_as")))
    table += ["", *_head("network", "pass", "side", "load", "time of all layers / plain", "worst layer", "over least")]
    timed = [line for line in lines if "milliseconds" in line]
    groups = dict.fromkeys((line["network"], line["pass"], line["side"], line.get("load")) for line in timed)
    for network, which, side, load in groups:
        chosen = [line for line in timed if (line["network"], line["pass"]) == (network, which)]
        plain = {line["layer"]: line for line in chosen if line["side"] == "plain"}
        rows = [line for line in chosen if (line["side"], line.get("load")) == (side, load)]
        rows = [line for line in rows if line["layer"] in plain and line["batch"] == plain[line["layer"]]["batch"]]
        if side == "plain" or not rows:
            continue
        count, ratio = (np.array([line[key] for line in rows]) for key in ("count", "ratio"))
        weight = count * np.array([plain[line["layer"]]["milliseconds"] for line in rows])
        least = float(np.sum(weight * ratio) / np.sum(count * [line["least_ms"] for line in rows]))
        mean = float(np.sum(weight * ratio) / np.sum(weight))
        table.append(_row(network, which, side, load, f"{mean:.3f}", f"{ratio.max():.3f}", f"{least:.2f}"))
    return table


def torch(lines: Iterable[dict[str, Any]]) -> list[str]:
    """One row for each side."""
    keys = ("side", "batch", "milliseconds", "ratio", "images_per_second", "peak_megabytes")
    return _head(*keys) + [_row(*(line.get(key) for key in keys)) for line in lines]


def determinism(lines: Iterable[dict[str, Any]]) -> list[str]:
    """One row for each setting of the flags."""
    keys = ("flags", "equal_within_a_process", "equal_between_processes", "milliseconds", "ratio")
    return _head(*keys) + [_row(*(line[key] for key in keys)) for line in lines if keys[1] in line]
