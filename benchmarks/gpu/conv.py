"""Part ``conv``: the routed convolution of every layer shape, pass by pass, against the plain one.

Sides: ``plain`` (``rmn_jax.ops.conv``), ``lax`` (``lax.conv_general_dilated`` with autodiff) and each backend under
each load. If ``lax`` is the same program as ``plain``, its line says so instead of a time. A routed side is first
checked against the plain convolution of the rows of each unit alone.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import conv_sides
from benchmarks.gpu import layers as shapes
from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import Settings, backbone_of
from benchmarks.gpu.timing import out_of_memory, seconds_per_call
from rmn_jax.bench.measure import summary
from rmn_jax.ops import BACKENDS

# Most memory for the results of calls that run at the same time.
_HELD_BYTES = 16e9


def run(settings: Settings, record: Record) -> None:
    """Adds the lines of all passes of all layers, in the order of ``settings.passes``."""
    for which in settings.passes:
        for network, image_size in settings.conv_networks:
            found = shapes.layers_of(backbone_of(network, image_size), image_size)
            routed = [layer for layer in found if layer.routed and not layer.depthwise and layer.size > 1]
            for layer in routed[: settings.conv_layers]:
                pass_ = _Pass(f"{network}-{image_size}", layer, found[layer], which, settings)
                if not _at_the_largest_batch(pass_, settings.batch, record):
                    return


def _at_the_largest_batch(pass_: "_Pass", batch: int, record: Record) -> bool:
    """Measures at the largest of B, B / 2, B / 4 .. that fits in memory; False when the time is over."""
    while True:
        failed = pass_.identity(batch, "out of memory")
        if failed not in record:
            try:
                return pass_.measure(batch, record)
            except jax.errors.JaxRuntimeError as error:
                if not out_of_memory(error) or batch < 2:
                    raise
                record.add({"id": failed, "part": "conv", "failed": "out of memory"})
        batch //= 2


class _Pass:
    """One pass of one layer."""

    def __init__(self, network: str, layer: shapes.Layer, count: int, which: str, settings: Settings):
        self._network, self._layer, self._count, self._which = network, layer, count, which
        self._settings, self._dtype = settings, jnp.dtype(settings.dtype)
        self._chip = shapes.find_chip(jax.devices()[0].device_kind, settings.peak_flops, settings.bandwidth)
        on_cpu = jax.default_backend() == "cpu"  # elsewhere "loop" waits for the host
        # Backends that keep a layout of their own within a stage are measured in it by the part ``kernels``.
        left_out = {"sliced", "slots", "mosaic"} | (set() if on_cpu else {"loop"})
        self._backends = settings.backends or [name for name in BACKENDS if name not in left_out]

    def identity(self, batch: int, side: str, load: str = "") -> str:
        size = f"B{batch}/N{self._settings.num_units}/{self._settings.dtype}"
        parts = ("conv", self._network, self._layer.name, self._which, size, side, load)
        return "/".join(parts).rstrip("/")

    def measure(self, batch: int, record: Record) -> bool:
        """Adds the missing lines; False when the time does not suffice."""
        loads = self._settings.loads
        sides = [("plain", ""), ("lax", ""), *((backend, load) for backend in self._backends for load in loads)]
        wanted = {side for side in sides if self.identity(batch, *side) not in record}
        if not wanted:
            return True
        if not record.go_on(self.identity(batch, "")):
            return False
        for line in list(self._lines(batch, wanted)):
            record.add(line)
        return True

    def _lines(self, batch: int, wanted: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        settings = self._settings
        given = conv_sides.arrays(self._layer, batch, settings.num_units, self._dtype)
        sides = conv_sides.build(self._layer, self._which, given, settings.num_units, settings.loads, wanted)
        held = sum(array.nbytes for array in given)
        seconds = seconds_per_call(
            {"/".join(key): side.call for key, side in sides.ready.items()},
            settings.rounds,
            settings.sample_seconds,
            most=max(4, int(_HELD_BYTES / held)),
        )
        for (name, load), side in sides.ready.items():
            taken = seconds[f"{name}/{load}"]
            reference = None if name == "plain" else seconds["plain/"]
            routed = settings.num_units if load else None
            figures = {**summary(taken, reference), **self._against_least(taken, batch, routed), **side.notes}
            yield self._line(batch, name, load, figures)
        for (name, load), notes in sides.settled.items():
            yield self._line(batch, name, load, notes)

    def _against_least(self, seconds: np.ndarray, batch: int, num_units: int | None) -> dict[str, Any]:
        passes = shapes.PASSES if self._which == "together" else (self._which,)
        must = [shapes.work(self._layer, which, batch, num_units, self._dtype.itemsize) for which in passes]
        least, middle = sum(work.least_seconds(self._chip) for work in must), float(np.median(seconds))
        return {
            "least_ms": round(1e3 * least, 4),
            "over_least": round(middle / least, 2),
            "teraflops": round(sum(work.operations for work in must) / middle / 1e12, 3),
        }

    def _line(self, batch: int, side: str, load: str, figures: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.identity(batch, side, load),
            "part": "conv",
            "network": self._network,
            "layer": self._layer.name,
            "count": self._count,
            "pass": self._which,
            "side": side,
            **({"load": load} if load else {}),
            "batch": batch,
            "num_units": self._settings.num_units,
            **figures,
        }
