"""Compiled inference against the network applied as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.inference import compile_inference
from rmn_jax.models import RMN, create_backbone, initialise


@pytest.mark.parametrize("attention", ["none", "conditional"])
@pytest.mark.parametrize("batch", [1, 5])
def test_it_computes_what_the_network_computes(batch, attention):
    model = RMN(create_backbone("resnet8", 10, 8), num_units=3, attention=attention)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    variables = initialise(model, jax.random.key(0), images)
    # Memories at the features of three of the images, so that all units are used.
    expected = jax.jit(model.apply)(variables, images)
    variables = {**variables, "memory": {f"memory{i + 1}": p[:3] for i, p in enumerate(expected.pooled)}}
    expected = jax.jit(model.apply)(variables, images)
    compiled = compile_inference(model, variables, jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32))
    for start in range(0, 6 - batch + 1, batch):
        got = compiled(images[start : start + batch])
        np.testing.assert_allclose(got.logits, expected.logits[start : start + batch], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(got.assignment, expected.assignment[:, start : start + batch])
    assert len(np.unique(expected.assignment[0])) > 1


def test_plain_networks_too():
    model = RMN(create_backbone("resnet8", 10, 8), routed=False, attention="se")
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    variables = initialise(model, jax.random.key(0), images)
    compiled = compile_inference(model, variables, jax.ShapeDtypeStruct(images.shape, jnp.float32))
    expected = jax.jit(model.apply)(variables, images).logits
    np.testing.assert_allclose(compiled(images).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no condition"):
        compile_inference(model.clone(attention="conditional"), variables, jax.ShapeDtypeStruct((1, 8, 8, 3), "f4"))
