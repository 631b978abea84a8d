"""Timing several functions against each other in one process."""

import json
import pathlib
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from rmn_jax.errors import UserError


class Compiled(NamedTuple):
    """A compiled function with what its compilation took: ``seconds``, and ``temporary_bytes`` beyond its arguments."""

    call: Callable[..., Any]
    seconds: float
    temporary_bytes: int


def compile_for(function: Callable, *arguments, **jit_options) -> Compiled:
    """Compiles ``function`` for these arguments and takes the time."""
    lowered = jax.jit(function, **jit_options).lower(*arguments)
    started = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    return Compiled(compiled, seconds, int(memory.temp_size_in_bytes) if memory else 0)


def interleave(
    sides: Mapping[str, Callable[[], Any]], rounds: int, before: Callable[[], None] | None = None
) -> dict[str, np.ndarray]:
    """Seconds of each side in each of ``rounds`` rounds, in which every side runs once, after a round to warm up.

    The order is drawn anew for each round: what a side leaves behind, a cold cache or threads that still spin, then
    meets all others alike. ``before`` runs ahead of every call and is not timed.
    """
    names, rng = list(sides), np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        for name in rng.permutation(names).tolist():
            if before is not None:
                before()
            started = time.perf_counter()
            jax.block_until_ready(sides[name]())
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def touch_memory(size: int) -> None:
    """Takes ``size`` bytes from the operating system, writes to all, and gives them back.

    A program that takes gigabytes anew on every call depends on whether the system has those pages at hand. A virtual
    machine may have handed idle ones back to its host, and then waits for each: whichever side takes the most
    memory pays alone for what no other side used meanwhile. After this, all sides find their pages at hand.
    """
    np.ones(size, np.uint8)


def summary(seconds: np.ndarray, reference: np.ndarray | None = None) -> dict[str, Any]:
    """Median and quartiles in milliseconds; with a reference, also those of the ratio round by round."""
    low, middle, high = np.percentile(seconds * 1e3, (25, 50, 75))
    line = {"milliseconds": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    if reference is not None:
        low, middle, high = np.percentile(seconds / reference, (25, 50, 75))
        line |= {"ratio": round(middle, 4), "ratio_quartiles": [round(low, 4), round(high, 4)]}
    return line


def machine() -> dict[str, Any]:
    """Where and with what a figure was taken."""
    import flax

    device = jax.devices()[0]
    return {
        "date": date.today().isoformat(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": _cores(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "flax": flax.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report(lines: Iterable[dict[str, Any]], out: str | None, command: str) -> None:
    """Prints each line as it comes; with ``out``, also writes all to that file with the machine and command.

    Raises:
      UserError: the file cannot be written; this is tried before the first line is measured.
    """
    if out:
        check_writable(pathlib.Path(out))
    kept = []
    for line in lines:
        print(json.dumps(line), flush=True)
        kept.append(line)
    if out:
        text = json.dumps({"command": command, **machine(), "lines": kept}, indent=1)
        pathlib.Path(out).write_text(text + "\n")


def check_writable(path: pathlib.Path) -> None:
    """Makes the file's folder; leaves the file as it is.

    Raises:
      UserError: the file cannot be written.
    """
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except OSError as error:
        raise UserError(f"cannot write to --out {path}: {error.strerror}; name another file.") from None
    if not there:
        path.unlink()


def load_assignment(load: str, batch: int, num_units: int, seed: int = 0) -> np.ndarray:
    """An assignment [B] int32 of a named load: balanced, random, zipf (share of unit j as 1 / j) or all-to-one."""
    rng = np.random.default_rng(seed)
    if load == "balanced":
        assignment = np.arange(batch) % num_units
    elif load == "random":
        assignment = rng.integers(0, num_units, batch)
    elif load == "zipf":
        share = 1.0 / np.arange(1, num_units + 1)
        assignment = rng.choice(num_units, batch, p=share / share.sum())
    elif load == "all-to-one":
        assignment = np.full(batch, num_units // 2)
    else:
        raise ValueError(f"unknown load {load!r}")
    return assignment.astype(np.int32)


LOADS = ("balanced", "random", "zipf", "all-to-one")
