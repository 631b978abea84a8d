"""Benchmark of the input pipelines: time for a batch to arrive, and time of the step that consumes it."""

import json
import math
import time
from collections.abc import Callable, Iterator

import jax

from rmn_jax.data.decode import available_cores
from rmn_jax.data.loading import load
from rmn_jax.data.specs import Batch, Dataset

_WARM_UP_CALLS = 3


def bench_input(
    config_data,
    *,
    batch_size: int,
    seed: int = 0,
    seconds: float = 3.0,
    sharding: jax.sharding.Sharding | None = None,
    step: Callable[[Batch], object] | None = None,
) -> list[dict]:
    """Measures both pipelines on the data set of ``config_data`` and, if given, the step that consumes the batches.

    Prints one JSON line for each measurement: ``{"path", "images_per_second", ...}``. ``path`` is ``device``,
    ``stream`` (with ``workers`` as in the config) or ``step``. If ``step`` is given, the line of ``device`` also has
    ``share_of_step``: the time for a batch to arrive divided by the time of a step. The line of ``stream`` has
    ``images_per_second_per_core``, and with ``step`` also ``cores_to_feed_step``: how many cores, each decoding that
    many images, deliver as many as the step consumes.

    Args:
      config_data: ``config.data``.
      batch_size: global batch.
      seed: of the order of examples.
      seconds: duration of each measurement.
      sharding: as in ``load``.
      step: runs one step on a batch and returns its result, a pytree of arrays.

    Returns:
      The printed lines.
    """
    lines: list[dict] = []
    for pipeline in ("device", "stream"):
        variant = config_data.copy_and_resolve_references()
        with variant.unlocked():
            variant.pipeline = pipeline
        started = time.perf_counter()
        dataset = load(variant, batch_size=batch_size, eval_batch_size=batch_size, seed=seed, sharding=sharding)
        opened = time.perf_counter() - started
        try:
            batch_seconds = _time_batches(dataset, seconds)
            line = {"path": pipeline, "workers": variant.workers if pipeline == "stream" else None}
            lines.append({**line, **_rate(batch_seconds, batch_size), "seconds_to_open": round(opened, 2)})
            if step is not None and pipeline == "device":
                step_seconds = _time_step(dataset, step, seconds)
                lines[-1]["share_of_step"] = round(batch_seconds / step_seconds, 4)
                lines.append({"path": "step", **_rate(step_seconds, batch_size)})
        finally:
            dataset.close()
    _add_cores(lines)
    for line in lines:
        print(json.dumps(line), flush=True)
    return lines


def _add_cores(lines: list[dict]) -> None:
    """Adds to the line of ``stream`` what a core decodes, and how many of them the step needs."""
    stream = next(line for line in lines if line["path"] == "stream")
    # Workers decode, or without them a thread for each core; more workers than cores share the cores.
    cores = min(stream["workers"] or available_cores(), available_cores())
    stream["images_per_second_per_core"] = round(stream["images_per_second"] / cores, 1)
    for line in lines:
        if line["path"] == "step":
            per_core = max(stream["images_per_second_per_core"], 0.1)
            stream["cores_to_feed_step"] = math.ceil(line["images_per_second"] / per_core)


def _rate(batch_seconds: float, batch_size: int) -> dict:
    return {
        "images_per_second": round(batch_size / batch_seconds),
        "milliseconds_per_batch": round(1e3 * batch_seconds, 3),
        "batch_size": batch_size,
    }


def _training_batches(dataset: Dataset) -> Iterator[Batch]:
    step = 0
    while True:
        yield dataset.train_batch(step)
        step += 1


def _time_batches(dataset: Dataset, seconds: float) -> float:
    """Seconds for a batch to arrive."""
    batches = _training_batches(dataset)
    return _time_calls(lambda: next(batches), seconds)


def _time_step(dataset: Dataset, step: Callable[[Batch], object], seconds: float) -> float:
    """Seconds of a step on a batch that is already on the device."""
    batch = jax.block_until_ready(dataset.train_batch(0))
    return _time_calls(lambda: step(batch), seconds)


def _time_calls(call: Callable[[], object], seconds: float) -> float:
    """Mean seconds of a call, without the first few calls.

    A step may compile twice: the sharding of its first result can differ from that of its first input.
    """
    for _ in range(_WARM_UP_CALLS):
        jax.block_until_ready(call())
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        jax.block_until_ready(call())
        count += 1
    return (time.perf_counter() - started) / count
