"""ResNet (He et al., 2016): torchvision's ResNet-18, -34, -50 and -101, and two small ones for CPUs.

The routed stages are the four stages of the network, split by downsampling. On 32x32 and 64x64 images the first two
downsamplings are dropped: the 7x7 stem has stride 1, and there is no max-pool.

Axes: B batch, H W height and width, C channels, K classes (see ``rmn_jax``).
"""

import functools

import flax.linen as nn
import jax

from rmn_jax.errors import UserError
from rmn_jax.models.layers import Layers
from rmn_jax.models.names import LibraryNames, Path, number_in
from rmn_jax.models.rmn import Backbone
from rmn_jax.routing import global_average_pool


class Stem(nn.Module):
    """Image [B, H, W, 3] -> f_0 [B, H', W', C]: convolution, norm, ReLU, and a 3x3 max-pool of stride 2 if ``pool``.

    Attributes:
      features: C.
      kernel: side of the kernel, in pixels.
      strides: of the convolution.
      pool: whether the stem ends with the max-pool.
      layers: constructors of its layers.
    """

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
    """Two 3x3 convolutions and a shortcut.

    Attributes:
      features: output channels.
      strides: of the first convolution.
      layers: constructors of its layers.
      expansion: output channels over ``features``.
    """

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
    """1x1, 3x3 and 1x1 convolutions and a shortcut. The 3x3 convolution has the stride, as in torchvision.

    Attributes:
      features: channels of the first two convolutions.
      strides: of the 3x3 convolution.
      layers: constructors of its layers.
      expansion: output channels over ``features``.
    """

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
    """Blocks of one resolution.

    Attributes:
      block: ``BasicBlock`` or ``Bottleneck``.
      depth: number of blocks.
      features: of each block.
      strides: of the first block; the others have stride 1.
      layers: constructors of its layers.
    """

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


def _library_name(path: Path) -> str:
    """Both libraries: ``conv1``, ``layer2.0.bn1``, ``layer2.0.downsample.0``, ``fc``."""
    if path[0] in ("stem", "head"):
        return path[1]
    stage, block, layer = path
    inner = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(layer, layer)
    return f"layer{number_in(stage)}.{number_in(block) - 1}.{inner}"


NAMES = LibraryNames(_library_name, _library_name)


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
    """A ResNet of ``len(depths)`` stages. The first has ``width`` channels, each further one twice as many.

    Args:
      block: ``BasicBlock`` or ``Bottleneck``.
      depths: blocks in each stage.
      width: channels of the first stage (before a bottleneck's expansion).
      num_classes: K.
      stem_kernel: side of the kernel of the stem's convolution, in pixels.
      stem_strides: strides of the stem's convolution.
      pool: whether the stem ends with a max-pool.

    Raises:
      UserError: a width below 1.
    """
    if width < 1:
        raise UserError(f"model.width is {width}; it must be 1 or more (0 in a configuration: as published).")
    return Backbone(
        stem=functools.partial(Stem, width, stem_kernel, stem_strides, pool),
        stages=tuple(
            functools.partial(Stage, block, depth, width * 2**i, 1 if i == 0 else 2) for i, depth in enumerate(depths)
        ),
        head=functools.partial(Head, num_classes),
    )


def _published(block, depths, num_classes: int, image_size: int, small_stem: str, width: int) -> Backbone:
    if small_stem not in ("7x7", "3x3"):
        raise UserError(f"unknown model.small_stem {small_stem!r}; use '7x7' or '3x3'.")
    small = image_size <= 64
    return resnet(
        block,
        depths,
        width,
        num_classes,
        stem_kernel=3 if small and small_stem == "3x3" else 7,
        stem_strides=1 if small else 2,
        pool=not small,
    )._replace(names=NAMES)


def resnet10(num_classes: int, image_size: int, *, small_stem: str = "7x7", width: int = 64) -> Backbone:
    """ResNet-10: four stages of one basic block. Two CPU cores can train it with a width of 16.

    Args:
      num_classes: K.
      image_size: in pixels; 64 or less drops the first two downsamplings.
      small_stem: kernel of the stem on images of 64 pixels or less: "7x7" (the paper's multiply-adds) or "3x3".
      width: channels of the first stage; they double from stage to stage.

    Raises:
      UserError: unknown stem, or a width below 1. The other ResNets raise it too.
    """
    network = _published(BasicBlock, (1, 1, 1, 1), num_classes, image_size, small_stem, width)
    return network._replace(names=None)


def resnet18(num_classes: int, image_size: int, *, small_stem: str = "7x7", width: int = 64) -> Backbone:
    """ResNet-18: four stages of two basic blocks, 64 to 512 channels. Arguments as in ``resnet10``."""
    return _published(BasicBlock, (2, 2, 2, 2), num_classes, image_size, small_stem, width)


def resnet34(num_classes: int, image_size: int, *, small_stem: str = "7x7", width: int = 64) -> Backbone:
    """ResNet-34: four stages of 3, 4, 6, 3 basic blocks, 64 to 512 channels. Arguments as in ``resnet10``."""
    return _published(BasicBlock, (3, 4, 6, 3), num_classes, image_size, small_stem, width)


def resnet50(num_classes: int, image_size: int, *, small_stem: str = "7x7", width: int = 64) -> Backbone:
    """ResNet-50: four stages of 3, 4, 6, 3 bottlenecks, 256 to 2048 channels. Arguments as in ``resnet10``."""
    return _published(Bottleneck, (3, 4, 6, 3), num_classes, image_size, small_stem, width)


def resnet101(num_classes: int, image_size: int, *, small_stem: str = "7x7", width: int = 64) -> Backbone:
    """ResNet-101: four stages of 3, 4, 23, 3 bottlenecks, 256 to 2048 channels. Arguments as in ``resnet10``."""
    return _published(Bottleneck, (3, 4, 23, 3), num_classes, image_size, small_stem, width)


def resnet8(num_classes: int, image_size: int, *, width: int = 16) -> Backbone:
    """ResNet-8 for the demo and tests: three stages of one basic block, 16 to 64 channels, 3x3 stem for any image size.

    ``width`` as in ``resnet10``.
    """
    del image_size
    return resnet(BasicBlock, (1, 1, 1), width, num_classes, stem_kernel=3, stem_strides=1, pool=False)
