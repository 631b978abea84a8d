"""``rmn bench latency``: inference of one image or a batch, plain and routed (the paper's runtime table)."""

import importlib.util
import time
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.bench.measure import interleave, summary
from rmn_jax.cloning import is_procedural
from rmn_jax.inference import compile_inference
from rmn_jax.models import RMN, Outputs, create_backbone, initialise


def bench_latency(
    backbone: str = "resnet18",
    image_size: int = 224,
    batch: int = 1,
    num_units: int = 8,
    rounds: int = 30,
    dtype=jnp.float32,
    images: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """A line each for plain, RMN and RMN with conditional attention; where torch is installed, also torch eager.

    Args:
      backbone: its name.
      image_size: pixels a side.
      batch: B.
      num_units: N.
      rounds: calls of each side, each with the next input.
      dtype: of the convolutions.
      images: [M, H, W, 3] normalised, taken B at a time in turn; None draws noise. The memories are set to the
        features of some of them, so that different inputs take different units.
    """
    if images is None:
        images = np.random.default_rng(0).normal(size=(8 * batch, image_size, image_size, 3)).astype(np.float32)
        images += np.linspace(-1, 1, len(images), dtype=np.float32)[:, None, None, None]
    inputs = [jnp.asarray(images[i : i + batch]) for i in range(0, len(images) - batch + 1, batch)]
    shape = jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype)
    sides: dict[str, Any] = {}
    for name, routed, attention in (
        ("plain", False, "none"),
        ("RMN", True, "none"),
        ("RMN+CA", True, "conditional"),
    ):
        model = RMN(create_backbone(backbone, 1000, image_size), num_units, routed, attention, dtype=dtype)
        variables = initialise(model, jax.random.key(1), inputs[0][:1])
        if routed:
            variables = {**variables, "memory": _spread(model, variables, images, num_units)}
        sides[name] = _Turning(model, variables, shape, inputs)
    if (
        jax.default_backend() == "cpu" and importlib.util.find_spec("torch") and image_size == 224
    ):  # the sizes torchvision's networks are for
        sides["torch eager"] = _TorchEager(backbone, inputs)
    seconds = interleave(sides, rounds)
    for name, side in sides.items():
        yield {
            "bench": "latency",
            "backbone": backbone,
            "image_size": image_size,
            "batch": batch,
            "num_units": num_units,
            "side": name,
            **summary(seconds[name], None if name == "plain" else seconds["plain"]),
            **side.about,
        }


class _Turning:
    """A compiled network called with another input each time, so that all units' weights are touched.

    ``about``: of each stage, how many units some input takes; what compiling and preparing the weights took; the memory
    of weights and of what is in between.
    """

    def __init__(self, model: RMN, variables, shape: jax.ShapeDtypeStruct, inputs):
        started = time.perf_counter()
        self._function, self._inputs, self._turn = compile_inference(model, variables, shape), inputs, 0
        seconds = time.perf_counter() - started
        seen = np.concatenate([np.asarray(self._function(x).assignment) for x in inputs], axis=1)
        memory = self._function.compiled.memory_analysis()
        self.about = {
            "units_used": [len(set(stage) - {-1}) for stage in seen.tolist()],
            "compile_seconds": round(seconds, 1),
            "weights_megabytes": round(memory.argument_size_in_bytes / 1e6, 2),
            "temporary_megabytes": round(memory.temp_size_in_bytes / 1e6, 1),
        }

    def __call__(self):
        self._turn += 1
        return self._function(self._inputs[self._turn % len(self._inputs)])


class _TorchEager:
    """The plain network as a PyTorch user runs it: eager, channels-last, without gradients."""

    about: dict[str, Any] = {}

    def __init__(self, backbone: str, inputs):
        import torch

        from rmn_jax.bench import torch_networks

        self._inference = torch.inference_mode
        self._network = torch_networks.build(backbone, 1000).eval().to(memory_format=torch.channels_last)
        self._inputs = [
            torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).to(memory_format=torch.channels_last) for x in inputs
        ]
        self._turn = 0

    def __call__(self):
        self._turn += 1
        with self._inference():
            return self._network(self._inputs[self._turn % len(self._inputs)]).numpy()


def _spread(model: RMN, variables, images: np.ndarray, num_units: int) -> dict[str, jax.Array]:
    """Memories at the features of N images spread over those given."""
    plain = model.clone(routed=False, attention="none", axis_name=None)
    own = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[0] if is_procedural(path) else leaf,
        {name: variables[name] for name in ("params", "batch_stats")},
    )
    apply = jax.jit(lambda v, x: cast(Outputs, plain.apply(v, x)).pooled)
    chosen = images[np.linspace(0, len(images) - 1, num_units).astype(int)]
    pooled = [jnp.concatenate(stage) for stage in zip(*(apply(own, x[None]) for x in chosen), strict=True)]
    return {f"memory{i + 1}": stage for i, stage in enumerate(pooled)}
