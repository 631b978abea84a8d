"""Part ``launches``: training steps compiled for a GPU, without a GPU.

Counts the kernels that a step launches (those of a loop once for each iteration) and the bytes that they read and
write. Also reports temporary memory and compilation time. No step is run or timed, and XLA does not autotune. It needs
``pip install jax-cuda13-pjrt jax-cuda13-plugin`` of jax's version, but no GPU and no other library of NVIDIA. The GPU
is described by ``h100.txtpb``.
"""

import collections
import math
import pathlib
import re
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import Group, Settings, backbone_of
from rmn_jax.models import RMN
from rmn_jax.training.state import Metrics, TrainState
from rmn_jax.training.step import AXIS, make_train_step

_GPU = pathlib.Path(__file__).with_name("h100.txtpb")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*?\{\n(.*?)^\}", re.M | re.S)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(")
_VALUE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)")
_ARRAY = re.compile(r"[a-z]+(\d*)\[([\d,]*)\]")
# Operations that the runtime does without a kernel.
_NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id"}


def run(settings: Settings, record: Record) -> None:
    """Adds one line for each network: plain, and each RMN with each backend."""
    backends = settings.backends or ("scan", "tiles")
    for group in settings.groups:
        sides = [("plain", None, "none", "auto")]
        sides += [
            (f"RMN N={n} {attention} {name}", n, attention, name) for n, attention in group.routed for name in backends
        ]
        for side, num_units, attention, backend in sides:
            identity = f"launches/{group.name}/B{group.batch}/{settings.dtype}/{side}"
            if identity in record:
                continue
            if not record.go_on(identity):
                return
            figures = _compile(group, num_units, attention, backend, jnp.dtype(settings.dtype))
            line = {"id": identity, "part": "launches", "network": group.name, "side": side, "batch": group.batch}
            record.add({**line, "jax": jax.__version__, **figures})


def _compile(group: Group, num_units: int | None, attention: str, backend: str, dtype) -> dict[str, Any]:
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=_GPU.read_text(), topology="1x1x1"
    )
    mesh = Mesh([topology.devices[0]], (AXIS,))
    model = RMN(
        backbone_of(group.backbone, group.image_size),
        num_units or 1,
        num_units is not None,
        attention,
        axis_name=AXIS,
        dtype=dtype,
        backend=backend,
    )
    optimizer, size, batch = optax.sgd(1e-4, momentum=0.9), group.image_size, group.batch

    def first_state() -> TrainState:
        variables = model.init(
            jax.random.key(0), jnp.zeros((2, size, size, 3)), keys=jax.random.split(jax.random.key(0), 2)
        )
        stages = len(model.backbone.stages) if model.routed else 0
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            memory=variables.get("memory", {}),
            opt_state=optimizer.init(variables["params"]),
            metrics=Metrics.zeros(stages, num_units or 1),
        )

    def placed(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    data = {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "index": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((batch,), jnp.bool_),
    }
    augment = lambda keys, x: x.astype(jnp.float32) / 64 - 2  # noqa: E731
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):  # or the layers would use their forms for CPU
        step: Any = make_train_step(model, optimizer, augment, mesh, alpha=0.9)
        state, key = jax.eval_shape(first_state), jax.eval_shape(lambda: jax.random.key(1))
        lowered = step.lower(placed(state, P()), placed(data, P(AXIS)), placed(key, P()))
    started = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    launches = count_launches(compiled.as_text())
    return {
        "launches": sum(launches.values()),
        "of_loops": launches["in loops"],
        "gigabytes_moved": None if launches["in loops"] else round(bytes_moved(compiled.as_text()) / 1e9, 1),
        "temporary_megabytes": round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1),
        "compile_seconds": round(seconds, 1),
    }


def count_launches(hlo: str) -> collections.Counter[str]:
    """Kernels and library calls of an optimised module.

    Args:
      hlo: its text.

    Returns:
      Counts with the keys "in loops" (times the trip count) and "outside".

    Raises:
      ValueError: a loop whose trip count XLA does not know; the host would wait for each iteration.
    """
    bodies = {name: body for _, name, body in _COMPUTATION.findall(hlo)}
    entry = next(name for first, name, _ in _COMPUTATION.findall(hlo) if first)
    found: collections.Counter[str] = collections.Counter()

    def count(name: str, times: int, where: str) -> None:
        for line in bodies[name].splitlines():
            instruction = _INSTRUCTION.match(line)
            if not instruction or instruction[1] in _NO_KERNEL:
                continue
            if instruction[1] == "while":
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                body = re.search(r"body=%([\w.\-]+)", line)
                if not trips or not body:
                    raise ValueError(f"a loop of unknown trip count: {line.strip()[:120]}")
                count(body[1], times * int(trips[1]), "in loops")
            elif instruction[1] == "call":
                called = re.search(r"to_apply=%([\w.\-]+)", line)
                count(called[1] if called else "", times, where)
            else:
                found[where] += times

    count(entry, 1, "outside")
    return found


def bytes_moved(hlo: str) -> int:
    """Bytes that the kernels of an optimised module read and write: the size of each operand and result, scratch too.

    Args:
      hlo: its text.

    Raises:
      ValueError: the module has a loop, a call or a branch.
    """
    entry = next(body for first, _, body in _COMPUTATION.findall(hlo) if first)
    sizes, total = {}, 0
    for line in entry.splitlines():
        value = _VALUE.match(line)
        if value:
            name, type_, operation, operands = value.groups()
            sizes[name] = sum(_bytes(bits, shape) for bits, shape in _ARRAY.findall(type_))
            if operation in ("call", "while", "conditional"):
                raise ValueError(f"cannot count bytes of a program with {operation}: {line.strip()[:120]}")
            if operation not in _NO_KERNEL:
                total += sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands))
    return total


def _bytes(bits: str, shape: str) -> int:
    """Bytes of an array from its type in HLO: ``bits`` "16" of bf16 ("" of pred, one byte), ``shape`` "8,64,64,3"."""
    return max(1, int(bits or 8) // 8) * math.prod(int(length) for length in shape.split(",") if length)
