"""Timing of short calls on a GPU: each sample is many consecutive calls and one wait; the sides take turns."""

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
    """Times all sides.

    A call returns before the device is done, and the device runs calls in order. So a sample starts many calls and
    waits for the last one. The launch of a call then overlaps with the call before it.

    Args:
      sides: compiled functions with their arguments bound.
      rounds: samples of each side.
      sample_seconds: duration of a sample; 0 is one call.
      most: most calls in a sample. It bounds the memory of results that are not freed yet.

    Returns:
      Seconds for one call of each side, [rounds].
    """
    counts = {name: _count(call, sample_seconds, most) for name, call in sides.items()}
    repeated = {name: _repeated(call, counts[name]) for name, call in sides.items()}
    return {name: seconds / counts[name] for name, seconds in interleave(repeated, rounds).items()}


def _count(call, sample_seconds: float, most: int) -> int:
    jax.block_until_ready(call())  # the first call loads the program
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
    """Whether an error says that the device has too little memory, for compiling or for running."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def first_line(error: Exception) -> str:
    """Type and first line of an error, at most 300 characters."""
    return f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}"[:300]
