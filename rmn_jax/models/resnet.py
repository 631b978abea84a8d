"""ResNet (He et al., 2016): torchvision's ResNet-18 and ResNet-50, and a small one for tests and the demo.

Routed stages are the network's own, split by downsampling. On 32x32 and 64x64 images the first two downsamplings
are dropped: the 7x7 stem keeps stride 1 and there is no max-pool. Axes as in ``rmn_jax``.
"""

import functools

import flax.linen as nn
import jax

from rmn_jax.layers import Layers
from rmn_jax.models.rmn import Backbone
from rmn_jax.routing import global_average_pool


class Stem(nn.Module):
    """Image -> f_0: convolution, norm, ReLU, and a 3x3 max-pool of stride 2 where ``pool``."""

    features: int
    kernel: int
    strides: int
    pool: bool
    layers: Layers

    @nn.compact
    def __call__(self, x):
        x = self.layers.conv(self.features, (self.kernel, self.kernel), self.strides, name="conv1")(x)
        x = nn.relu(self.layers.norm(name="bn1")(x))
        if self.pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    strides: int
    layers: Layers
    expansion = 1

    @nn.compact
    def __call__(self, x):
        conv, norm = self.layers.conv, self.layers.norm
        y = nn.relu(norm(name="bn1")(conv(self.features, (3, 3), self.strides, name="conv1")(x)))
        y = norm(name="bn2")(conv(self.features, (3, 3), name="conv2")(y))
        return nn.relu(y + _shortcut(x, y, self.strides, self.layers))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision has it) and 1x1 convolutions and a shortcut."""

    features: int
    strides: int
    layers: Layers
    expansion = 4

    @nn.compact
    def __call__(self, x):
        conv, norm = self.layers.conv, self.layers.norm
        y = nn.relu(norm(name="bn1")(conv(self.features, (1, 1), name="conv1")(x)))
        y = nn.relu(norm(name="bn2")(conv(self.features, (3, 3), self.strides, name="conv2")(y)))
        y = norm(name="bn3")(conv(self.features * self.expansion, (1, 1), name="conv3")(y))
        return nn.relu(y + _shortcut(x, y, self.strides, self.layers))


def _shortcut(x, y, strides: int, layers: Layers):
    if x.shape == y.shape:
        return x
    projected = layers.conv(y.shape[-1], (1, 1), strides, name="downsample_conv")(x)
    return layers.norm(name="downsample_bn")(projected)


class Stage(nn.Module):
    """``depth`` blocks, the first with the stage's stride."""

    block: type[nn.Module]
    depth: int
    features: int
    strides: int
    layers: Layers

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            strides = self.strides if i == 0 else 1
            x = self.block(self.features, strides, self.layers, name=f"block{i + 1}")(x)
        return x


class Head(nn.Module):
    """Global average pool and a linear layer: [B, H, W, C] -> [B, K] float32."""

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, name="fc")(global_average_pool(x))


def resnet(
    block: type[nn.Module],
    depths: tuple[int, ...],
    width: int,
    num_classes: int,
    *,
    stem_kernel: int,
    stem_strides: int,
    pool: bool,
) -> Backbone:
    """A ResNet of ``len(depths)`` stages whose channels double from ``width`` on."""
    return Backbone(
        stem=functools.partial(Stem, width, stem_kernel, stem_strides, pool),
        stages=tuple(
            functools.partial(Stage, block, depth, width * 2**i, 1 if i == 0 else 2) for i, depth in enumerate(depths)
        ),
        head=functools.partial(Head, num_classes),
    )


def _published(block, depths, num_classes: int, image_size: int, small_stem: str, width: int) -> Backbone:
    small = image_size <= 64
    return resnet(
        block,
        depths,
        width,
        num_classes,
        stem_kernel=3 if small and small_stem == "3x3" else 7,
        stem_strides=1 if small else 2,
        pool=not small,
    )


def resnet10(num_classes: int, image_size: int, small_stem: str = "7x7", width: int = 64) -> Backbone:
    """ResNet-10: four stages of one basic block; with a width of 16 what 2 CPU cores can train."""
    return _published(BasicBlock, (1, 1, 1, 1), num_classes, image_size, small_stem, width)


def resnet18(num_classes: int, image_size: int, small_stem: str = "7x7", width: int = 64) -> Backbone:
    """ResNet-18: four stages of two basic blocks, 64 to 512 channels."""
    return _published(BasicBlock, (2, 2, 2, 2), num_classes, image_size, small_stem, width)


def resnet50(num_classes: int, image_size: int, small_stem: str = "7x7", width: int = 64) -> Backbone:
    """ResNet-50: four stages of 3, 4, 6, 3 bottlenecks, 256 to 2048 channels."""
    return _published(Bottleneck, (3, 4, 6, 3), num_classes, image_size, small_stem, width)


def resnet8(num_classes: int, image_size: int, small_stem: str = "3x3", width: int = 16) -> Backbone:
    """ResNet-8: three stages of one basic block, 16 to 64 channels, 3x3 stem; for the demo and tests."""
    del image_size, small_stem
    return resnet(BasicBlock, (1, 1, 1), width, num_classes, stem_kernel=3, stem_strides=1, pool=False)
