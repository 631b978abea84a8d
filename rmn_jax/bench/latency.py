"""``rmn bench latency``: inference of one image or a batch, plain and routed (the paper's runtime table)."""

from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.bench.measure import interleave, summary
from rmn_jax.inference import compile_inference
from rmn_jax.models import RMN, Outputs, create_backbone


def bench_latency(
    backbone: str = "resnet18",
    image_size: int = 224,
    batch: int = 1,
    num_units: int = 8,
    rounds: int = 30,
    dtype=jnp.float32,
) -> Iterator[dict[str, Any]]:
    """A line each for plain, RMN and RMN with conditional attention; where torch is installed, also torch eager."""
    images = jax.random.normal(jax.random.key(0), (16, image_size, image_size, 3))[:batch]
    inputs = [jnp.roll(images, i, axis=1) + 0.1 * i for i in range(8)]
    sides = {}
    for name, routed, attention in (
        ("plain", False, "none"),
        ("RMN", True, "none"),
        ("RMN+CA", True, "conditional"),
    ):
        model = RMN(create_backbone(backbone, 1000, image_size), num_units, routed, attention, dtype=dtype)
        variables = jax.jit(model.init)(jax.random.key(1), images[:1])
        if routed:
            variables = {**variables, "memory": _spread(model, variables, inputs, num_units)}
        function = compile_inference(model, variables, jax.ShapeDtypeStruct(images.shape, images.dtype))
        sides[name] = _Turning(function, inputs)
    seconds = interleave(sides, rounds)
    for name, side in sides.items():
        units = {unit for prediction in side.seen for unit in np.ravel(prediction)}
        yield {
            "bench": "latency",
            "backbone": backbone,
            "image_size": image_size,
            "batch": batch,
            "num_units": num_units,
            "side": name,
            **summary(seconds[name], None if name == "plain" else seconds["plain"]),
            "units_used": len(units - {-1}),
        }


class _Turning:
    """A function called with another input each time, so that all units' weights are touched."""

    def __init__(self, function, inputs):
        self._function, self._inputs, self._turn = function, inputs, 0
        self.seen = [np.asarray(function(x).assignment) for x in inputs]

    def __call__(self):
        self._turn += 1
        return self._function(self._inputs[self._turn % len(self._inputs)])


def _spread(model: RMN, variables, inputs, num_units: int) -> dict[str, jax.Array]:
    """Memories at the features of the inputs, so that different inputs take different units."""
    plain = model.clone(routed=False, attention="none", axis_name=None)
    own = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[0] if str(getattr(path[1], "key", "")).startswith("stage") else leaf,
        {name: variables[name] for name in ("params", "batch_stats")},
    )
    apply = jax.jit(lambda v, x: cast(Outputs, plain.apply(v, x)).pooled)
    pooled = [jnp.concatenate(stage) for stage in zip(*(apply(own, x[:1]) for x in inputs), strict=True)]
    order = np.arange(num_units) % len(inputs)
    return {f"memory{i + 1}": stage[order] for i, stage in enumerate(pooled)}
