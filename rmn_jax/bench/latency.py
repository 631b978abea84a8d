"""``rmn bench latency``: inference of one image or a batch, plain and routed (the paper's runtime table).

Axes: B batch, N units, H W height and width (see ``rmn_jax``).
"""

import importlib.util
import time
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.bench.measure import interleave, summary
from rmn_jax.inference.compile import compile_inference
from rmn_jax.models import RMN, Outputs, create_backbone, initialise
from rmn_jax.training.cloning import is_procedural


def bench_latency(
    backbone: str = "resnet18",
    image_size: int = 224,
    batch: int = 1,
    num_units: int = 8,
    rounds: int = 30,
    dtype=jnp.float32,
    images: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """Times the plain network, RMN, and RMN with conditional attention.

    At 224 pixels on CPU, the plain network in torch eager is measured too, if torch is installed and has the backbone.

    Args:
      backbone: its name.
      image_size: height and width, in pixels.
      batch: B.
      num_units: N.
      rounds: calls of each side. Each call takes the next input.
      dtype: of the convolutions.
      images: [M, H, W, 3] normalised, used B at a time in turn; None draws noise. The memories are set to the features
        of N of these images, so that different inputs use different units.

    Yields:
      One JSON line for each network.
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
            variables = {**variables, "memory": _spread_memories(model, variables, images)}
        sides[name] = _Compiled(model, variables, shape, inputs)
    if jax.default_backend() == "cpu" and image_size == 224 and _torch_has(backbone):  # torchvision's image size
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


class _Compiled:
    """A network compiled for inference. Each call takes the next input, so that the weights of all units are read.

    Attributes:
      about: keys of its JSON line: ``units_used`` (for each stage, how many units the inputs use), ``compile_seconds``
        (compiling and folding), and the memory of weights and intermediate results.
    """

    def __init__(self, model: RMN, variables, shape: jax.ShapeDtypeStruct, inputs):
        started = time.perf_counter()
        self._function, self._inputs, self._turn = compile_inference(model, variables, shape), inputs, 0
        seconds = time.perf_counter() - started
        assignments = np.concatenate([np.asarray(self._function(x).assignment) for x in inputs], axis=1)
        memory = self._function.compiled.memory_analysis()
        self.about = {
            "units_used": [len(set(stage) - {-1}) for stage in assignments.tolist()],
            "compile_seconds": round(seconds, 1),
            "weights_megabytes": round(memory.argument_size_in_bytes / 1e6, 2),
            "temporary_megabytes": round(memory.temp_size_in_bytes / 1e6, 1),
        }

    def __call__(self):
        self._turn += 1
        return self._function(self._inputs[self._turn % len(self._inputs)])


def _torch_has(backbone: str) -> bool:
    if not importlib.util.find_spec("torch"):
        return False
    from rmn_jax.bench import torch_networks

    return backbone in torch_networks.NAMES


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


def _spread_memories(model: RMN, variables: dict[str, Any], images: np.ndarray) -> dict[str, jax.Array]:
    """Memories [N, C] of all stages: the features of N evenly spaced images, from the procedures of unit 0."""
    plain = model.clone(routed=False, attention="none", axis_name=None)
    plain_variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[0] if is_procedural(path) else leaf,
        {name: variables[name] for name in ("params", "batch_stats") if name in variables},
    )
    apply = jax.jit(lambda v, x: cast(Outputs, plain.apply(v, x)).pooled)
    chosen = images[np.linspace(0, len(images) - 1, model.num_units).astype(int)]
    stages = zip(*(apply(plain_variables, x[None]) for x in chosen), strict=True)
    return {f"memory{i + 1}": jnp.concatenate(pooled) for i, pooled in enumerate(stages)}
