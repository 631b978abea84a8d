"""Timing of several functions (sides) against each other in one process."""

import json
import os
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
    """A compiled function.

    Attributes:
      call: the function.
      seconds: that compilation took.
      temporary_bytes: memory that a call needs beyond arguments and results.
    """

    call: Callable[..., Any]
    seconds: float
    temporary_bytes: int


def compile_for(function: Callable, *arguments, **jit_options) -> Compiled:
    """Compiles ``function`` for these arguments and measures the compilation time."""
    lowered = jax.jit(function, **jit_options).lower(*arguments)
    started = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    return Compiled(compiled, seconds, int(memory.temp_size_in_bytes) if memory else 0)


def interleave(
    sides: Mapping[str, Callable[[], Any]],
    rounds: int,
    before: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Times all sides, round by round: every side runs once in each round.

    A warm-up round comes first. The order of the sides is random in each round. A call can leave a cold cache or
    threads that still spin; in random order this slows all other sides equally.

    Args:
      sides: functions without arguments, by name.
      rounds: number of timed rounds.
      before: runs before every call and is not timed.
      clock: in seconds. ``time.process_time`` counts the CPU seconds of this process, which other work on the machine
        disturbs less.

    Returns:
      Seconds of each side, [rounds].
    """
    names, rng = list(sides), np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        for name in rng.permutation(names).tolist():
            if before is not None:
                before()
            started = clock()
            jax.block_until_ready(sides[name]())
            if turn >= 0:
                seconds[name].append(clock() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def touch_memory(size: int) -> None:
    """Allocates ``size`` bytes, writes to all of them, and frees them.

    A program that allocates gigabytes on every call is fast only if the operating system has free pages ready. A
    virtual machine may have returned idle pages to its host, and then waits for each page. Only the side that needs the
    most memory would pay for this. After this function, free pages are ready for all sides.
    """
    np.ones(size, np.uint8)


def summary(seconds: np.ndarray, reference: np.ndarray | None = None) -> dict[str, Any]:
    """Median and quartiles of the time, as the keys of a JSON line.

    Args:
      seconds: of one side, [rounds].
      reference: of another side in the same rounds. Adds median and quartiles of the ratio in each round.

    Returns:
      ``milliseconds`` and ``quartiles``; with a reference also ``ratio`` and ``ratio_quartiles``.
    """
    low, middle, high = np.percentile(seconds * 1e3, (25, 50, 75))
    line = {"milliseconds": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    if reference is not None:
        low, middle, high = np.percentile(seconds / reference, (25, 50, 75))
        line |= {"ratio": round(middle, 4), "ratio_quartiles": [round(low, 4), round(high, 4)]}
    return line


def machine() -> dict[str, Any]:
    """The machine and the versions of a measurement, as JSON keys."""
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
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report(lines: Iterable[dict[str, Any]], out: str | None, command: str) -> None:
    """Prints each JSON line as soon as it is measured.

    Args:
      lines: measures and yields the lines.
      out: a JSON file for all lines, with machine, versions and command; None writes no file.
      command: for the file.

    Raises:
      UserError: the file cannot be written. This is checked before the first line is measured.
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
    """Checks that a file can be written. Creates its folder, but does not change the file.

    Raises:
      UserError: the file cannot be written.
    """
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except OSError as error:
        raise UserError(f"cannot write to --out {path}: {error.strerror}; name another file.") from None
    if not existed:
        path.unlink()


LOADS = ("balanced", "random", "zipf", "all-to-one")


def load_assignment(load: str, batch: int, num_units: int, seed: int = 0) -> np.ndarray:
    """An assignment of inputs to units with a given distribution of the load.

    Args:
      load: one of ``LOADS``. With "zipf" the share of unit j = 1 .. N is proportional to 1 / j.
      batch: B.
      num_units: N.
      seed: of the random loads.

    Returns:
      [B] int32.

    Raises:
      ValueError: unknown load.
    """
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
        raise ValueError(f"unknown load {load!r}; one of {LOADS}")
    return assignment.astype(np.int32)
