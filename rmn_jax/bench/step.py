"""``rmn bench step``: a whole update, plain and routed, at one batch size and over the number of units."""

from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmn_jax.bench.measure import interleave, load_assignment, summary
from rmn_jax.models import RMN, create_backbone
from rmn_jax.train.state import Metrics, TrainState
from rmn_jax.train.step import AXIS, make_mesh, make_train_step


def bench_step(
    backbone: str = "resnet18",
    image_size: int = 32,
    batch: int = 256,
    units: tuple[int, ...] = (1, 2, 4, 8, 16),
    rounds: int = 3,
    load: str = "random",
    attention: str = "none",
) -> Iterator[dict[str, Any]]:
    """A line a network. Memories are drawn so that the load is near the named one; the line says what it was."""
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.integers(0, 256, (batch, image_size, image_size, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 100, batch), jnp.int32),
        "index": jnp.arange(batch, dtype=jnp.int32),
        "mask": jnp.ones(batch, bool),
    }
    sides = {"plain": _Side(backbone, image_size, None, attention, data)}
    sides |= {f"N={n}": _Side(backbone, image_size, n, attention, data, load) for n in units}
    seconds = interleave(sides, rounds)
    for name, side in sides.items():
        yield {
            "bench": "step",
            "backbone": backbone,
            "image_size": image_size,
            "batch": batch,
            "attention": attention,
            "side": name,
            **summary(seconds[name], None if name == "plain" else seconds["plain"]),
            "compile_seconds": round(side.compile_seconds, 1),
            "temporary_megabytes": round(side.temporary_bytes / 1e6, 1),
            "largest_share": side.largest_share(),
        }


class _Side:
    """One network's update on a fixed batch; calling it does one update.

    The routing is given, not found: with fresh weights every input would be nearest to one memory or another by
    accident. Distances and the memories' update are computed all the same.
    """

    def __init__(self, backbone, image_size, num_units, attention, data, load="random"):
        import time

        routed = num_units is not None
        model = RMN(create_backbone(backbone, 100, image_size), num_units or 1, routed, attention, axis_name=AXIS)
        if routed:
            stages = len(model.backbone.stages)
            batch = len(data["label"])
            plan = [load_assignment(load, batch, num_units, seed) for seed in range(stages)]
            model = cast(RMN, _Assigned(model, jnp.asarray(np.stack(plan))))
        optimizer = optax.sgd(1e-4, momentum=0.9)
        keys = jax.random.split(jax.random.key(0), 2)
        images = jnp.zeros((2, image_size, image_size, 3))
        variables = jax.jit(model.init)(jax.random.key(0), images, keys=keys)
        self.state = TrainState(
            update=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            memory=variables.get("memory", {}),
            opt_state=optimizer.init(variables["params"]),
            metrics=Metrics.zeros(len(model.backbone.stages) if routed else 0, num_units or 1),
        )
        step: Any = make_train_step(
            model,
            optimizer,
            lambda keys, x: x.astype(jnp.float32) / 64 - 2,
            make_mesh(jax.devices()[:1]),
            alpha=0.9,
        )
        self.data, self.key = data, jax.random.key(1)
        lowered = step.lower(self.state, data, self.key)
        started = time.perf_counter()
        self.call = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.temporary_bytes = int(self.call.memory_analysis().temp_size_in_bytes)

    def __call__(self):
        self.state, loss = self.call(self.state, self.data, self.key)
        return loss

    def largest_share(self) -> float | None:
        load = np.asarray(self.state.metrics.load)
        return round(float((load.max(-1) / load.sum(-1)).max()), 3) if load.size else None


class _Assigned:
    """A routed network whose ``apply`` is told the assignment."""

    def __init__(self, model: RMN, assignment: jax.Array):
        self._model, self._assignment = model, assignment

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, variables, images, **arguments):
        return self._model.apply(variables, images, assignment=self._assignment, **arguments)
