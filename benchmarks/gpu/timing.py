"""Times of short calls on a GPU: each sample many calls in a row, waited for once, sides in turn."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rmn_jax.bench.measure import interleave


def seconds_per_call(
    sides: Mapping[str, Callable[[], Any]], rounds: int, sample_seconds: float, most: int = 100
) -> dict[str, np.ndarray]:
    """Seconds a call of each side in each of ``rounds`` rounds.

    A call returns before the device is done, and the device takes calls in order; so a sample starts as many calls as
    last ``sample_seconds`` and waits for the last. What starting a call costs is then hidden behind the call before it.

    Args:
      sides: compiled functions with their arguments bound.
      rounds: samples of each side.
      sample_seconds: how long a sample should last; 0 takes single calls.
      most: calls a sample at most, for the memory of results not yet dropped.
    """
    counts = {name: _count(call, sample_seconds, most) for name, call in sides.items()}
    repeated = {name: _repeated(call, counts[name]) for name, call in sides.items()}
    return {name: seconds / counts[name] for name, seconds in interleave(repeated, rounds).items()}


def _count(call, sample_seconds: float, most: int) -> int:
    jax.block_until_ready(call())  # the first loads the program
    started = time.perf_counter()
    jax.block_until_ready(call())
    once = time.perf_counter() - started
    return max(1, min(most, math.ceil(sample_seconds / once)))


def _repeated(call, count: int) -> Callable[[], Any]:
    def run():
        for _ in range(count - 1):
            call()
        return call()

    return run


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory did not suffice, in compiling or in running."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def first_line(error: Exception) -> str:
    """What went wrong, in one line of at most 300 characters."""
    return f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}"[:300]
