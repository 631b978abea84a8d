"""Compiled inference compared with ``model.apply``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.inference import compile_inference
from rmn_jax.inference.compile import LARGE, pack, unpack
from rmn_jax.models import RMN, create_backbone, efficientnet, initialise, resnet, vgg
from rmn_jax.models.layers import Layers

MBCONVS = ((((1, 3, 1, 16), 1),), (((6, 5, 2, 24), 2),))
BACKBONES = {
    "basic": resnet.resnet8(10, 8),
    "bottleneck": resnet.resnet(resnet.Bottleneck, (1, 1), 16, 5, stem_kernel=3, stem_strides=1, pool=False),
    "vgg": vgg.vgg(((16,), (16, 32)), 5, dropped_pools=1, grid=4, width=32),
    "mbconv": efficientnet.efficientnet(MBCONVS, 5, small=False),
}


def shaken(leaf, key):
    """A leaf with noise, so that norms and biases are not the initial ones and zeros."""
    return leaf * (1 + 0.1 * jax.random.uniform(key, leaf.shape)) + 0.05 * jax.random.uniform(key, leaf.shape)


class Asymmetric(nn.Module):
    """A stage that is not in the package: kernels that are not square, with different padding in the two directions."""

    layers: Layers

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.layers.norm(name="bn")(self.layers.conv(16, (1, 3), name="wide")(x)))
        return self.layers.conv(16, (3, 1), 2, name="tall")(x)


BACKBONES["asymmetric"] = BACKBONES["basic"]._replace(stages=(Asymmetric, Asymmetric))


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {"attention": attention}) for name in sorted(BACKBONES) for attention in ("none", "conditional")),
        ("basic", {"attention": "se", "num_units": 1}),
        ("basic", {"router": "learned"}),
        ("basic", {"router": "hash", "metric": "cosine"}),
    ],
)
def test_compiled_inference_equals_the_network(name, settings, batch):
    model = RMN(BACKBONES[name], **{"num_units": 3, **settings})
    images = jax.random.normal(jax.random.key(1), (6, 8, 10, 3))
    variables = initialise(model, jax.random.key(0), images)
    keys = jax.random.split(jax.random.key(2), len(jax.tree.leaves(variables)))
    variables = jax.tree.map(shaken, variables, jax.tree.unflatten(jax.tree.structure(variables), list(keys)))
    # Memories at the features of three of the images, so that all units are used.
    expected = jax.jit(model.apply)(variables, images)
    memories = {f"memory{i + 1}": pooled[: model.num_units] for i, pooled in enumerate(expected.pooled)}
    variables = {**variables, "memory": memories}
    expected = jax.device_get(jax.jit(model.apply)(variables, images))
    compiled = compile_inference(model, variables, jax.ShapeDtypeStruct((batch, *images.shape[1:]), jnp.float32))
    for leaf in jax.tree.leaves(variables):  # as a training step does with its state, which is donated
        leaf.delete()
    for start in range(0, 6 - batch + 1, batch):
        got = compiled(images[start : start + batch])
        np.testing.assert_allclose(got.logits, expected.logits[start : start + batch], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(got.assignment, expected.assignment[:, start : start + batch])
    if model.router == "memory" and model.num_units > 1:
        assert len(np.unique(expected.assignment[0])) > 1


@pytest.mark.parametrize("batch", [1, 4])
def test_half_precision_equals_that_of_the_network(batch):
    model = RMN(BACKBONES["basic"], num_units=2, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(1), (batch, 8, 8, 3))
    variables = initialise(model, jax.random.key(0), images)
    compiled = compile_inference(model, variables, jax.ShapeDtypeStruct(images.shape, jnp.float32))
    stem = compiled.weights["folded"]["stem"] if batch > 1 else compiled.weights.stem["folded"]
    assert stem["conv1"]["kernel"].dtype == jnp.bfloat16
    expected = jax.jit(model.apply)(variables, images).logits
    np.testing.assert_allclose(compiled(images).logits, expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_folded_stages_in_tiles(platform, monkeypatch):
    # On a GPU a folded stage has the layout of training. Here the same code runs on the CPU.
    model = RMN(BACKBONES["basic"], num_units=3, attention="conditional", backend="tiles")
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    variables = initialise(model, jax.random.key(0), images)
    pooled = jax.jit(model.apply)(variables, images).pooled
    variables["memory"] = {f"memory{i + 1}": features[:3] for i, features in enumerate(pooled)}
    expected = jax.jit(model.clone(backend="loop").apply)(variables, images)
    assert len(np.unique(expected.assignment[0])) > 1
    in_tiles = jax.jit(model.apply)(variables, images)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    folded = model.clone(folded=True).apply(variables, images, mutable=["folded"])[0]
    for found in (in_tiles, folded):
        np.testing.assert_array_equal(found.assignment, expected.assignment)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_plain_networks():
    model = RMN(create_backbone("resnet8", 10, 8), routed=False, attention="se")
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    variables = initialise(model, jax.random.key(0), images)
    compiled = compile_inference(model, variables, jax.ShapeDtypeStruct(images.shape, jnp.float32))
    expected = jax.jit(model.apply)(variables, images).logits
    np.testing.assert_allclose(compiled(images).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no condition"):
        compile_inference(model.clone(attention="conditional"), variables, jax.ShapeDtypeStruct((1, 8, 8, 3), "f4"))


def test_variables_of_another_number_of_units_are_refused():
    model = RMN(BACKBONES["basic"], num_units=2)
    images = jnp.zeros((1, 8, 8, 3))
    variables = initialise(model, jax.random.key(0), images)
    with pytest.raises(ValueError, match="of 2 units"):
        compile_inference(model.clone(num_units=1), variables, jax.ShapeDtypeStruct(images.shape, images.dtype))


def test_unpack_inverts_pack_which_keeps_large_arrays_separate():
    half = jnp.zeros((2, 2), jnp.bfloat16)
    tree = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((LARGE // 8, 8)), "d": jnp.float32(7)}, "e": half}
    packed = pack(tree)
    assert [leaf.shape for leaf in packed.large] == [(LARGE // 8, 8)]
    np.testing.assert_array_equal(packed.small, [0, 1, 2, 7, 0, 0, 0, 0])
    again = unpack(packed, jax.eval_shape(lambda: tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for leaf, expected in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(leaf, expected)
        assert leaf.dtype == expected.dtype
    assert pack({}).small.shape == (0,)
