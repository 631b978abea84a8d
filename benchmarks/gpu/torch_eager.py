"""Part ``torch``: the same ResNet-18 and RMN in PyTorch eager mode, as a user without this package would write them.

There are two ways to dispatch rows to their units. ``masks`` loops over the units and indexes the batch by one mask
each. ``split`` sorts the batch once for each stage and splits it by the loads. Both use channels-last memory, autocast
and a fused SGD. Both take the assignment as given, as part ``step`` does, after they computed the distances. The part
runs in a separate process, which then has all of the GPU's memory.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import Settings

SIDES = ("plain", "masks", "split")


def run(settings: Settings, record: Record) -> None:
    """Adds one line for each side. Without PyTorch, prints that it is skipped."""
    if importlib.util.find_spec("torch") is None:
        print(json.dumps({"part": "torch", "skipped": "PyTorch is not installed"}), flush=True)
        return
    size = 8 if settings.dry else 64
    prefix = f"torch/resnet18-{size}/B{settings.batch}/N{settings.num_units}/{settings.dtype}"
    if not record.missing(f"{prefix}/{side}" for side in SIDES) or not record.go_on(prefix):
        return
    what = [size, settings.batch, settings.num_units, settings.dtype, settings.rounds, settings.sample_seconds]
    command = [sys.executable, "-m", "benchmarks.gpu.torch_eager", json.dumps(what)]
    try:
        done = subprocess.run(
            command, env=dict(os.environ), stdout=subprocess.PIPE, text=True, timeout=record.time_left(), check=False
        )
    except subprocess.TimeoutExpired:
        print("# out of time; run the same command again to continue", file=sys.stderr)
        return
    if done.returncode:
        raise SystemExit(f"the PyTorch process ended with status {done.returncode}")
    for line in map(json.loads, done.stdout.splitlines()):
        record.add({"id": f"{prefix}/{line['side']}", "part": "torch", **line})


def measure(
    size: int, batch: int, num_units: int, dtype: str, rounds: int, sample_seconds: float
) -> list[dict[str, Any]]:
    """The lines of all sides, timed in turn, at the largest of B, B / 2, B / 4 .. that fits in memory."""
    import torch

    while True:
        try:
            return _measure(size, batch, num_units, dtype, rounds, sample_seconds)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            torch.cuda.empty_cache()


def _measure(size, batch, num_units, dtype, rounds, sample_seconds) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    from benchmarks.gpu.torch_network import Step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    width = 64 if size == 64 else 8
    steps, peaks = {}, {}
    for side in SIDES:
        before = _reset_peak(torch, device)
        steps[side] = Step(side, size, width, batch, num_units, dtype, device)
        for _ in range(3):
            steps[side]()
        peaks[side] = _peak(torch, device, before)
    counts = {side: max(1, int(sample_seconds / _seconds(torch, device, step, 1))) for side, step in steps.items()}
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        for side in SIDES[turn % 3 :] + SIDES[: turn % 3]:
            taken[side].append(_seconds(torch, device, steps[side], counts[side]))
    lines = []
    for side in SIDES:
        low, middle, high = np.percentile(taken[side], (25, 50, 75))
        ratio = np.median(np.array(taken[side]) / np.array(taken["plain"]))
        lines.append(
            {
                "side": side,
                "batch": batch,
                "milliseconds": round(1e3 * middle, 3),
                "quartiles": [round(1e3 * low, 3), round(1e3 * high, 3)],
                "ratio": round(float(ratio), 4),
                "images_per_second": round(batch / middle, 1),
                "peak_megabytes": peaks[side],
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "torch": torch.__version__,
            }
        )
    return lines


def _seconds(torch, device: str, step, count: int) -> float:
    """Seconds for one step, averaged over ``count`` consecutive steps."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def _reset_peak(torch, device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(torch, device: str, before: int) -> float | None:
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1) if device == "cuda" else None


if __name__ == "__main__":
    for _line in measure(*json.loads(sys.argv[1])):
        print(json.dumps(_line), flush=True)
