"""Part ``step``: whole training steps. Each RMN is timed against its plain network, in one process and in turn."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import floor
from benchmarks.gpu.layers import find_chip
from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import Group, Settings, backbone_of, num_classes_of
from benchmarks.gpu.timing import out_of_memory, seconds_per_call
from rmn_jax.analysis.counts import count_multiply_adds
from rmn_jax.bench.measure import summary
from rmn_jax.bench.step import Step, random_batch


def run(settings: Settings, record: Record) -> None:
    """Adds the lines of all groups. If a batch does not fit in memory, it is halved."""
    for group in settings.groups:
        while True:
            failed = f"{_prefix(group, settings)}/out of memory"
            if failed not in record:
                try:
                    if not _measure(group, settings, record):
                        return
                    break
                except jax.errors.JaxRuntimeError as error:
                    if not out_of_memory(error) or group.batch < 2:
                        raise
                    record.add({"id": failed, "part": "step", "failed": "out of memory"})
            group = group._replace(batch=group.batch // 2)


def _prefix(group: Group, settings: Settings) -> str:
    return f"step/{group.name}/B{group.batch}/{settings.dtype}"


def _side_name(num_units: int, attention: str) -> str:
    return f"RMN{'+CA' if attention == 'conditional' else ''} N={num_units}"


def _measure(group: Group, settings: Settings, record: Record) -> bool:
    """Adds the missing lines of a group; False when the time is over. The plain line comes with the first RMN's."""
    prefix = _prefix(group, settings)
    plain = None
    backends = settings.backends or ("auto",)
    for (num_units, attention), backend in itertools.product(group.routed, backends):
        name = _side_name(num_units, attention) + ("" if backend == "auto" else f" {backend}")
        if f"{prefix}/{name}" in record:
            continue
        if not record.go_on(f"{prefix}/{name}"):
            return False
        plain = plain or _Side(group, settings, None, "none")
        routed = _Side(group, settings, num_units, attention, backend)
        seconds = seconds_per_call({"plain": plain.step, name: routed.step}, settings.rounds, settings.sample_seconds)
        for side_name, side, reference in (("plain", plain, None), (name, routed, seconds["plain"])):
            figures = {**summary(seconds[side_name], reference), **side.figures(seconds[side_name])}
            line = {"id": f"{prefix}/{side_name}", "part": "step", "network": group.name, "side": side_name}
            record.add({**line, "batch": group.batch, **figures})
    return True


class _Side:
    """A step, and the device memory of its first call."""

    def __init__(self, group: Group, settings: Settings, num_units: int | None, attention: str, backend: str = "auto"):
        backbone = backbone_of(group.backbone, group.image_size)
        data = random_batch(group.batch, group.image_size, num_classes_of(group.image_size))
        device = jax.devices()[0]
        in_use = _memory(device, "bytes_in_use")
        self._chip = find_chip(device.device_kind, settings.peak_flops, settings.bandwidth)
        self.step = Step(backbone, data, num_units, attention, dtype=jnp.dtype(settings.dtype), backend=backend)
        self._batch = group.batch
        self._multiply_adds = count_multiply_adds(self.step.model, group.image_size)
        *_, whole = floor.lines(group, num_units, self._chip, jnp.dtype(settings.dtype).itemsize)
        self._least_ms = whole["least_ms"]
        before = _memory(device, "peak_bytes_in_use")
        jax.block_until_ready(self.step())
        after = _memory(device, "peak_bytes_in_use")
        # The device keeps one peak for the whole process, so the peak of a step is known only if it is a new one.
        self._peak_bytes = after - in_use if after > before else None

    def figures(self, seconds: np.ndarray) -> dict[str, Any]:
        """Rates at the median time; ``mfu`` counts two operations for a multiply-add, and three passes."""
        middle = float(np.median(seconds))
        flops = 6.0 * self._multiply_adds * self._batch
        peak = self._peak_bytes
        return {
            "images_per_second": round(self._batch / middle, 1),
            "mfu": round(flops / middle / self._chip.operations, 4),
            "layers_least_ms": self._least_ms,
            "megaoperations_an_image": round(2 * self._multiply_adds / 1e6, 2),
            "planned_megabytes": round(self.step.planned_bytes / 1e6, 1),
            "peak_megabytes": None if peak is None else round(peak / 1e6, 1),
            "compile_seconds": round(self.step.compile_seconds, 1),
            "largest_share": self.step.largest_share(),
        }


def _memory(device: jax.Device, key: str) -> int:
    return int((device.memory_stats() or {}).get(key, 0))
