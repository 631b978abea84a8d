"""Every network's training step with stages in slots, lowered for CUDA without a GPU. An older JAX skips this."""

import jax
import jax.numpy as jnp
import optax
import pytest

from rmn_jax.models import RMN, create_backbone
from rmn_jax.ops import choose, mosaic
from rmn_jax.training.state import Metrics, TrainState
from rmn_jax.training.step import AXIS, make_mesh, make_train_step

BATCH, UNITS = 128, 8
# Custom calls of kernels that a step at least has: each pass of each distinct shape of a layer is one function.
NETWORKS = {
    ("resnet18", 64): 20,
    ("resnet50", 64): 40,
    ("resnet50", 224): 40,
    ("vgg16_bn", 32): 12,
    ("vgg16_bn", 64): 12,
    ("efficientnet_b0", 64): 3,
}


@pytest.mark.skipif(not mosaic.available(), reason=f"jax {jax.__version__} has no Mosaic GPU that the kernels can use")
@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_a_training_step(name, size, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(choose, "kernels_run_here", lambda: True)
    backbone = create_backbone(name, 200, size)
    model = RMN(backbone, UNITS, attention="conditional", axis_name=AXIS, dtype=jnp.bfloat16, backend="mosaic")
    optimizer = optax.sgd(0.1, momentum=0.9)

    def first_state():
        keys = jax.random.split(jax.random.key(0), 2)
        variables = model.init(keys[0], jnp.zeros((2, size, size, 3)), keys=keys)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            memory=variables["memory"],
            opt_state=optimizer.init(variables["params"]),
            metrics=Metrics.zeros(len(backbone.stages), UNITS),
        )

    data = {
        "image": jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
        "index": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((BATCH,), jnp.bool_),
    }
    prepare = lambda keys, x: x.astype(jnp.float32) / 64 - 2  # noqa: E731
    step = make_train_step(model, optimizer, prepare, make_mesh(jax.devices()[:1]), alpha=0.9)
    state, key = jax.eval_shape(first_state), jax.eval_shape(lambda: jax.random.key(1))
    text = step.trace(state, data, key).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") >= NETWORKS[name, size]
