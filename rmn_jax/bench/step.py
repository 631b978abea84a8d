"""``rmn bench step``: a whole training step, plain and routed, over the number of units.

Axes: B batch, N units, S stages, H W height and width, C channels (see ``rmn_jax``).
"""

import importlib.util
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmn_jax.bench.measure import interleave, load_assignment, summary, touch_memory
from rmn_jax.models import RMN, Backbone, create_backbone
from rmn_jax.training.state import Metrics, TrainState
from rmn_jax.training.step import AXIS, make_mesh, make_train_step


def bench_step(
    backbone: str = "resnet18",
    image_size: int = 32,
    batch: int = 256,
    units: tuple[int, ...] = (1, 2, 4, 8, 16),
    rounds: int = 3,
    load: str = "random",
    attention: str = "none",
) -> Iterator[dict[str, Any]]:
    """Times a training step of the plain network and of one RMN for each N.

    On CPU, ``touch_memory`` runs before every call. For ResNet-18 and ResNet-50 on images of up to 64 pixels, the plain
    network in torch eager is measured too, if torch is installed.

    Args:
      backbone: its name.
      image_size: height and width, in pixels.
      batch: B.
      units: each N to measure.
      rounds: of timing.
      load: of the units, see ``rmn_jax.bench.measure.LOADS``.
      attention: of all networks, see ``rmn_jax.models.RMN``.

    Yields:
      One JSON line for each network; ``largest_share`` is the share of inputs of the most loaded unit.
    """
    data = random_batch(batch, image_size, 100)
    network = create_backbone(backbone, 100, image_size)
    sides: dict[str, Any] = {"plain": Step(network, data, None, attention)}
    sides |= {f"N={n}": Step(network, data, n, attention, load) for n in units}
    on_host = jax.default_backend() == "cpu"
    if on_host and importlib.util.find_spec("torch") and backbone in ("resnet18", "resnet50") and image_size <= 64:
        sides["torch eager"] = _TorchStep(backbone, data)
    largest = max((side.temporary_bytes for side in sides.values() if isinstance(side, Step)), default=0)
    seconds = interleave(sides, rounds, (lambda: touch_memory(largest)) if on_host else None)
    for name, side in sides.items():
        yield {
            "bench": "step",
            "backbone": backbone,
            "image_size": image_size,
            "batch": batch,
            "attention": attention,
            "side": name,
            **summary(seconds[name], None if name == "plain" else seconds["plain"]),
            **side.about(),
        }


def random_batch(batch: int, image_size: int, num_classes: int) -> dict[str, jax.Array]:
    """A batch of noise, in the form that the data sets have (see ``rmn_jax.data``)."""
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (batch, image_size, image_size, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, num_classes, batch), jnp.int32),
        "index": jnp.arange(batch, dtype=jnp.int32),
        "mask": jnp.ones(batch, bool),
    }


class Step:
    """The training step of a network on a fixed batch, compiled for one device. A call does one step.

    The assignment is given, not computed: with random weights nearly all inputs would be nearest to the same memory.
    The memories still move. Only the distances to the memories are left out, N C multiply-adds for each input and
    stage.

    Args:
      backbone: of the network.
      data: the batch, see ``random_batch``.
      num_units: N; None is the plain network.
      attention: see ``rmn_jax.models.RMN``.
      load: of the units, see ``rmn_jax.bench.measure.LOADS``.
      dtype: compute type of the convolutions.
      backend: of the routed convolutions, see ``rmn_jax.ops.choose``.

    Attributes:
      model: the network.
      state: the state that the next call starts from.
      compile_seconds: compilation time.
      temporary_bytes: memory beyond arguments and results.
      planned_bytes: peak memory of the compiled step, with arguments and results.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: dict[str, jax.Array],
        num_units: int | None,
        attention: str = "none",
        load: str = "random",
        dtype: Any = jnp.float32,
        backend: str = "auto",
    ):
        routed = num_units is not None
        self.model = RMN(backbone, num_units or 1, routed, attention, axis_name=AXIS, dtype=dtype, backend=backend)
        stages, batch = len(backbone.stages), len(data["label"])
        model: Any = self.model
        if num_units is not None:
            assignment = [load_assignment(load, batch, num_units, seed) for seed in range(stages)]
            model = _Assigned(self.model, jnp.asarray(np.stack(assignment)))
        optimizer = optax.sgd(1e-4, momentum=0.9)
        variables = _variables(self.model, data["image"].shape[1:])
        self.state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            memory=variables.get("memory", {}),
            opt_state=optimizer.init(variables["params"]),
            metrics=Metrics.zeros(stages if routed else 0, num_units or 1),
        )
        augment = lambda keys, x: x.astype(jnp.float32) / 64 - 2  # noqa: E731
        step: Any = make_train_step(model, optimizer, augment, make_mesh(jax.devices()[:1]), alpha=0.9)
        self._data, self._key = data, jax.random.key(1)
        lowered = step.lower(self.state, data, self._key)
        started = time.perf_counter()
        self._call = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        memory = self._call.memory_analysis()
        self.temporary_bytes = int(memory.temp_size_in_bytes)
        results = int(memory.output_size_in_bytes) - int(memory.alias_size_in_bytes)
        self.planned_bytes = int(memory.argument_size_in_bytes) + results + self.temporary_bytes

    def __call__(self) -> jax.Array:
        """One step; returns the loss."""
        self.state, loss = self._call(self.state, self._data, self._key)
        return loss

    def largest_share(self) -> float | None:
        """The largest share of a stage's inputs that one unit receives; None when plain."""
        load = np.asarray(self.state.metrics.load)
        return round(float((load.max(-1) / load.sum(-1)).max()), 3) if load.size else None

    def about(self) -> dict[str, Any]:
        """Keys of its JSON line beside the times."""
        return {
            "compile_seconds": round(self.compile_seconds, 1),
            "temporary_megabytes": round(self.temporary_bytes / 1e6, 1),
            "largest_share": self.largest_share(),
        }


class _TorchStep:
    """The training step of the plain network as a PyTorch user runs it: eager, channels-last, SGD with momentum."""

    def __init__(self, backbone: str, data: dict[str, jax.Array]):
        import torch

        from rmn_jax.bench import torch_networks

        network = torch_networks.build(backbone, 100, small=True).to(memory_format=torch.channels_last)
        images = np.asarray(data["image"], np.float32) / 64 - 2
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(np.asarray(data["label"], np.int64))
        self._network, self._loss = network.train(), torch.nn.functional.cross_entropy
        self._optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def __call__(self) -> float:
        self._optimizer.zero_grad()
        loss = self._loss(self._network(self._images), self._labels)
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def about(self) -> dict[str, Any]:
        return {}


def _variables(model: RMN, image: tuple[int, ...]) -> dict[str, Any]:
    """Random variables of the usual magnitude, drawn on the host, because an initialisation takes long to compile."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name != "kernel":
            return jnp.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0, leaf.dtype)
        fan_out = math.prod(leaf.shape[-4:]) / leaf.shape[-2]
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * np.float32((2 / fan_out) ** 0.5))

    def initialise():
        keys = jax.random.split(jax.random.key(0), 2)
        return model.init(keys[0], jnp.zeros((2, *image)), keys=keys)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(initialise))


class _Assigned:
    """A routed network whose ``apply`` uses a given assignment [S, B]."""

    def __init__(self, model: RMN, assignment: jax.Array):
        self._model, self._assignment = model, assignment

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, variables, images, **arguments):
        # Without the barrier the compiler would know the loads and sort the batch at compile time.
        assignment = jax.lax.optimization_barrier(self._assignment)
        return self._model.apply(variables, images, assignment=assignment, **arguments)
