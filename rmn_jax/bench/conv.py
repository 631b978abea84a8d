"""``rmn bench conv``: the three passes of the routed convolution against those of the plain one, layer by layer.

There are two plain sides: ``plain`` is the fastest form we know (``rmn_jax.ops.conv``); ``stock`` is
``flax.linen.Conv`` with autodiff.

Axes: B batch, N units, H W height and width, C channels (see ``rmn_jax``).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.bench.measure import LOADS, Compiled, compile_for, interleave, load_assignment, summary
from rmn_jax.ops import conv, routed_conv
from rmn_jax.routing.layout import sort_by_unit

# ResNet-18's four stages at 32x32: (height and width, channels).
RESNET18_SHAPES = ((32, 64), (16, 128), (8, 256), (4, 512))


def bench_conv(
    num_units: int = 8,
    batch: int = 256,
    rounds: int = 5,
    backend: str = "auto",
    loads=LOADS,
    stock: bool = True,
) -> Iterator[dict[str, Any]]:
    """Times forward pass and both gradients of 3x3 convolutions in float32.

    Args:
      num_units: N.
      batch: B.
      rounds: of timing.
      backend: of the routed side, see ``rmn_jax.ops.choose``.
      loads: names from ``rmn_jax.bench.measure.LOADS``.
      stock: whether to measure the side ``stock``.

    Yields:
      One JSON line for each shape and side, then one line for each load with the mean ratio over the shapes.
    """
    ratios: dict[str, list[float]] = {load: [] for load in loads}
    for size, channels in RESNET18_SHAPES:
        sides = _sides(size, channels, num_units, batch, backend, loads, stock)
        seconds = interleave({name: call for name, (call, _) in sides.items()}, rounds)
        for name, (_, compiled) in sides.items():
            load = name.removeprefix("routed ")
            line = summary(seconds[name], None if name == "plain" else seconds["plain"])
            if load in ratios:
                ratios[load].append(line["ratio"])
            yield {
                "bench": "conv",
                "shape": [size, size, channels],
                "side": name,
                "num_units": num_units,
                "batch": batch,
                **line,
                "compile_seconds": round(compiled.seconds, 2),
                "temporary_megabytes": round(compiled.temporary_bytes / 1e6, 1),
            }
    for load, values in ratios.items():
        yield {
            "bench": "conv",
            "side": f"routed {load}",
            "batch": batch,
            "mean_ratio": round(float(np.mean(values)), 4),
        }


def _sides(size: int, channels: int, num_units: int, batch: int, backend: str, loads, stock: bool):
    """The sides for one shape: name -> (call, what was compiled)."""
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.float32(rng.normal(size=(batch, size, size, channels))) for _ in range(2))
    kernel = jnp.float32(rng.normal(size=(num_units, 3, 3, channels, channels)) * 0.05)

    def passes(function):
        def run(x, kernel, cotangent, *layout):
            output, pull = jax.vjp(lambda x, k: function(x, k, *layout), x, kernel)
            return output, pull(cotangent)

        return run

    layer = nn.Conv(channels, (3, 3), use_bias=False)
    plain = compile_for(passes(conv), x, kernel[0], cotangent)
    sides: dict[str, tuple[Callable[[], Any], Compiled]] = {
        "plain": (lambda: plain.call(x, kernel[0], cotangent), plain)
    }
    if stock:
        linen = compile_for(passes(lambda x, k: layer.apply({"params": {"kernel": k}}, x)), x, kernel[0], cotangent)
        sides["stock"] = (lambda: linen.call(x, kernel[0], cotangent), linen)
    assignments = {load: jnp.sort(load_assignment(load, batch, num_units)) for load in loads}  # of sorted rows
    layouts = {load: sort_by_unit(assignment, num_units) for load, assignment in assignments.items()}
    routed = compile_for(
        passes(lambda x, k, layout: routed_conv(x, k, layout, backend=backend)),
        x,
        kernel,
        cotangent,
        layouts[loads[0]],
    )
    for load, layout in layouts.items():
        sides[f"routed {load}"] = (functools.partial(routed.call, x, kernel, cotangent, layout), routed)
    return sides
