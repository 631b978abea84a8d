"""Small networks, states and batches for the tests of a training step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.models import RMN, initialise
from rmn_jax.models.layers import Layers
from rmn_jax.models.resnet import BasicBlock, Head, resnet
from rmn_jax.models.rmn import Backbone
from rmn_jax.training.state import Metrics, TrainState
from rmn_jax.training.step import AXIS

BATCH, UNITS, CLASSES = 32, 3, 5


def normalise(images):
    """uint8 images as float32 between -2 and 2."""
    return images.astype(jnp.float32) / 64 - 2


def noisy(keys, images):
    """An augmentation that draws from each input's key."""
    return normalise(images) + 0.1 * jax.vmap(lambda k: jax.random.normal(k, images.shape[1:]))(keys)


def make(routed, attention, optimizer, backbone=None, ema=False):
    """A small network (a ResNet unless ``backbone`` is given) and its state before the first step."""
    backbone = backbone or resnet(BasicBlock, (1, 1), 4, CLASSES, stem_kernel=3, stem_strides=1, pool=False)
    model = RMN(backbone, UNITS, routed=routed, attention=attention, axis_name=AXIS)
    images = jnp.zeros((2, 6, 6, 3))
    variables = initialise(model, jax.random.key(0), images, keys=jax.random.split(jax.random.key(0), 2))
    memory = {}
    if routed:  # two memories on either side of the features of normalised images, and one far from all of them
        for name, leaf in variables["memory"].items():
            lean = 0.3 * (-1.0) ** jnp.arange(leaf.shape[1])
            memory[name] = jnp.stack([0.4 + lean, 0.4 - lean, jnp.full(leaf.shape[1], 1e4)])
    return model, TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        memory=memory,
        opt_state=optimizer.init(variables["params"]),
        metrics=Metrics.zeros(2 if routed else 0, UNITS),
        ema=jax.tree.map(jnp.copy, variables["params"]) if ema else None,
    )


def make_batch(rng):
    """A batch of ``BATCH`` random images; the last five are padding."""
    return {
        "image": rng.integers(0, 256, (BATCH, 6, 6, 3)).astype(np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "index": rng.permutation(1000)[:BATCH].astype(np.int32),
        "mask": np.arange(BATCH) < BATCH - 5,
    }


class Conv(nn.Module):
    """A convolution and ReLU, with bias and without a norm."""

    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x):
        return nn.relu(self.layers.conv(self.features, (3, 3), use_bias=True, name="conv")(x))


def normless():
    """A backbone without batch norm: the result of an input does not depend on the other inputs."""

    def conv(features):
        return lambda layers, name: Conv(features, layers, name=name)

    return Backbone(conv(4), (conv(4), conv(8)), lambda layers, name: Head(CLASSES, layers, name=name))
