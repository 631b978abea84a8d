"""The kernels compiled for an H100's description, without a GPU. Needs jax's CUDA plugin."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmn_jax.ops import choose, mosaic
from rmn_jax.ops.window import Window
from rmn_jax.routing.layout import make_slots, sort_by_unit

H100 = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu" / "h100.txtpb"
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
N, BATCH = 8, 1024

pytestmark = [
    pytest.mark.skipif(
        not mosaic.available(), reason=f"jax {jax.__version__} has no Mosaic GPU that the kernels can use"
    ),
    pytest.mark.skipif(not any(map(importlib.util.find_spec, PLUGINS)), reason="needs jax's CUDA plugin"),
]


@pytest.fixture(scope="module")
def device():
    description = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H100.read_text(), topology="1x1x1"
    )
    return NamedSharding(Mesh(np.array(description.devices[:1]), ("data",)), P())


@pytest.mark.parametrize("which", ["fwd", "dgrad", "wgrad"])
@pytest.mark.parametrize(
    ("size", "channels", "features", "kernel", "strides"),
    [(64, 64, 64, 3, 1), (16, 256, 256, 3, 1), (8, 512, 512, 3, 1), (32, 128, 256, 3, 2), (14, 256, 1024, 1, 1)],
)
def test_a_pass_compiles(size, channels, features, kernel, strides, which, device, monkeypatch):
    monkeypatch.setattr(choose, "kernels_run_here", lambda: True)
    window, out = Window.make(kernel, kernel, strides, None), size // strides
    layout = jax.eval_shape(lambda: make_slots(sort_by_unit(jnp.zeros(BATCH, jnp.int32), N)))
    num_slots = layout.unit.shape[0]
    put = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device)  # noqa: E731
    array = lambda *shape: put(jax.ShapeDtypeStruct(shape, jnp.bfloat16))  # noqa: E731
    x, dy = array(size, size, num_slots, channels), array(out, out, num_slots, features)
    weights = array(N, kernel, kernel, channels, features)
    function, given = {
        "fwd": (lambda x, k, u: mosaic.forward(x, k, u, window), (x, weights)),
        "dgrad": (lambda dy, k, u: mosaic.input_gradient(dy, k, u, window, x.shape), (dy, weights)),
        "wgrad": (lambda x, dy, u: mosaic.kernel_gradient(x, dy, u, window, weights.shape), (x, dy)),
    }[which]
    traced = jax.jit(function).trace(*given, jax.tree.map(put, layout))
    compiled = traced.lower(lowering_platforms=("cuda",)).compile()
    assert "mosaic" in compiled.as_text()
