"""Collectives and memory of a compiled training step, with the state split over devices and without.

Nothing runs: the step is compiled from shapes alone, for simulated CPU devices.

    python -m benchmarks.scaling --counted     # the table of docs/scaling.md

Axes: B batch, N units, D devices (see ``rmn_jax``). Sizes are in bytes.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from rmn_jax.models import RMN, create_backbone
from rmn_jax.training.sharding import bytes_per_device, unit_specs
from rmn_jax.training.state import Metrics, TrainState
from rmn_jax.training.step import AXIS, make_mesh, make_train_step

BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
# Compiles in a fraction of the time; collectives and buffers are decided before.
_QUICK = {"xla_backend_optimization_level": 0}


class Collective(NamedTuple):
    """A collective of an optimized program: its ``kind``, the ``bytes`` of each result, the ``name`` of its source."""

    kind: str
    bytes: tuple[int, ...]
    name: str


def collectives(text: str) -> list[Collective]:
    """The collectives of an optimized HLO program, synchronous or not, in program order."""
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            sizes = tuple(BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in shapes)
            name = re.search(r'op_name="([^"]*)"', line)
            found.append(Collective(match[2], sizes, name[1] if name else ""))
    return found


def sent(found: Iterable[Collective], devices: int) -> float:
    """Bytes that each device sends, by rings: an all-reduce is a reduce-scatter and an all-gather."""
    # Of the whole value each device sends (D - 1) / D. The result of a reduce-scatter is 1 / D of the whole.
    times = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": float(devices)}
    return sum(times[each.kind] * sum(each.bytes) * (devices - 1) / devices for each in found)


def state_shapes(model: RMN, optimizer: optax.GradientTransformation, image_size: int) -> TrainState:
    """The shapes of a state of a routed network."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, image_size, image_size, 3)))
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        memory=variables["memory"],
        opt_state=jax.eval_shape(optimizer.init, variables["params"]),
        metrics=jax.eval_shape(lambda: Metrics.zeros(len(model.stages_with_memories), model.num_units)),
    )


class Counted(NamedTuple):
    """What a compiled step needs.

    Attributes:
      collectives: its collectives.
      state: bytes of parameters, momentum and the rest of the state on each device.
      temporary: bytes of buffers on each device during the step: activations, gradients, gathered leaves.
    """

    collectives: list[Collective]
    state: int
    temporary: int


def count(model: RMN, image_size: int, batch: int, devices: int, shard: bool) -> Counted:
    """Compiles the step of a routed network for SGD with momentum.

    Args:
      model: the network.
      image_size: in pixels.
      batch: B, over all devices.
      devices: D, at most the number of devices that JAX has.
      shard: whether the state is split (``config.shard_units``).
    """
    optimizer = optax.sgd(0.1, momentum=0.9)
    model = model.clone(axis_name=AXIS)
    state = state_shapes(model, optimizer, image_size)
    specs = unit_specs(state, model.stages_with_memories, devices)
    rows = {
        "image": jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8),
        **{name: jax.ShapeDtypeStruct((batch,), jnp.int32) for name in ("label", "index")},
    }
    mesh = make_mesh(jax.devices()[:devices])
    step: Any = make_train_step(
        model,
        optimizer,
        lambda keys, images: images.astype(jnp.float32) / 64 - 2,
        mesh,
        alpha=0.9,
        specs=specs if shard else None,
    )
    compiled = step.lower(state, rows, jax.eval_shape(jax.random.key, 0)).compile(compiler_options=_QUICK)
    held = bytes_per_device(state, specs if shard else jax.tree.map(lambda _: P(), state), devices)
    return Counted(collectives(compiled.as_text()), held, compiled.memory_analysis().temp_size_in_bytes)


def counted_table(units: Iterable[int] = (8, 64), devices: int = 8, batch: int = 1024) -> str:
    """A Markdown table of ResNet-18 at 64 x 64 on 8 devices, each row a number of units, split or not."""
    lines = [
        "| N | state | all-reduce | all-gather | reduce-scatter | sent | state of a device | temporary |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for num_units in units:
        for shard in (False, True):
            found = count(RMN(create_backbone("resnet18", 200, 64), num_units=num_units), 64, batch, devices, shard)
            cells = [f"{num_units}", "split" if shard else "whole"]
            for kind in ("all-reduce", "all-gather", "reduce-scatter"):
                of_kind = [each for each in found.collectives if each.kind == kind]
                cells.append(f"{len(of_kind)}: {_megabytes(sum(sum(each.bytes) for each in of_kind))}")
            cells += [_megabytes(size) for size in (sent(found.collectives, devices), found.state, found.temporary)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
