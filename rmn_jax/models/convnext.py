"""ConvNeXt-T (Liu et al., 2022; torchvision's ``convnext_tiny``). It has layer norm, so no statistics.

The stem P0 cuts the image into patches of 4x4 pixels. The routed stages are the four stages of the network; each but
the first begins with its downsampling, a norm and a 2x2 convolution of stride 2. On 32x32 and 64x64 images the stem has
stride 1, as two downsamplings are dropped in the other backbones.

Axes: B batch, H W height and width, C channels, K classes (see ``rmn_jax``).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.errors import UserError
from rmn_jax.models.dropout import StochasticDepth
from rmn_jax.models.layers import Layers
from rmn_jax.models.names import LibraryNames, Path, number_in
from rmn_jax.models.rmn import Backbone
from rmn_jax.routing import global_average_pool

PATCH = 4  # pixels
STOCHASTIC_DEPTH = 0.1  # rate of the last block; it rises linearly from 0 at the first
LAYER_SCALE = 1e-6  # before training
# torchvision truncates it at 100 standard deviations.
_init = nn.initializers.normal(0.02)


class Stem(nn.Module):
    """Image [B, H, W, 3] -> f_0 [B, H', W', C]: 4x4 convolution of stride 4, layer norm.

    Attributes:
      features: C.
      small: stride 1 instead, with the image padded so that the map has its size.
      layers: constructors of its layers.
    """

    features: int
    small: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.small:
            x = jnp.pad(x, ((0, 0), (1, PATCH - 2), (1, PATCH - 2), (0, 0)))
        strides = 1 if self.small else PATCH
        conv = self.layers.conv(
            self.features, (PATCH, PATCH), strides, padding=0, use_bias=True, kernel_init=_init, name="conv"
        )
        return self.layers.layer_norm(name="norm")(conv(x))


class Block(nn.Module):
    """7x7 depthwise convolution, layer norm, two 1x1 convolutions with GELU between them, layer scale, shortcut.

    Attributes:
      drop_rate: of stochastic depth, on the residual branch.
      layers: constructors of its layers.
      expansion: hidden channels over those of the input.
    """

    drop_rate: float
    layers: Layers
    expansion: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        conv = functools.partial(self.layers.conv, kernel_size=(1, 1), use_bias=True, kernel_init=_init)
        y = self.layers.depthwise((7, 7), use_bias=True, kernel_init=_init, name="depthwise")(x)
        y = self.layers.layer_norm(name="norm")(y)
        y = conv(self.expansion * channels, name="expand")(y)
        y = conv(channels, name="project")(nn.gelu(y, approximate=False))
        y = self.layers.layer_scale(LAYER_SCALE, name="layer_scale")(y)
        return x + StochasticDepth(self.drop_rate, self.layers, name="stochastic_depth")(y)


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling where there is one.

    Attributes:
      features: channels.
      drop_rates: stochastic depth of each block.
      downsample: whether it begins with a layer norm and a 2x2 convolution of stride 2.
      layers: constructors of its layers.
    """

    features: int
    drop_rates: tuple[float, ...]
    downsample: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.downsample:
            x = self.layers.layer_norm(name="downsample_norm")(x)
            x = self.layers.conv(
                self.features, (2, 2), 2, padding=0, use_bias=True, kernel_init=_init, name="downsample_conv"
            )(x)
        for i, rate in enumerate(self.drop_rates):
            x = Block(rate, self.layers, name=f"block{i + 1}")(x)
        return x


class Head(nn.Module):
    """Global average pool, layer norm and a linear layer: [B, H, W, C] -> [B, K] float32."""

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layers.layer_norm(name="norm")(global_average_pool(x)[:, None, None])[:, 0, 0]
        return nn.Dense(self.num_classes, kernel_init=_init, name="fc")(x)


def _torchvision(path: Path) -> str:
    """Stem, stages and downsamplings are numbered through: ``features.3.0.block.5``, ``features.2.1``."""
    part, *inner = path
    if part == "stem":
        return {"conv": "features.0.0", "norm": "features.0.1"}[inner[0]]
    if part == "head":
        return {"norm": "classifier.0", "fc": "classifier.2"}[inner[0]]
    stage = number_in(part)
    if len(inner) == 1:
        return f"features.{2 * stage - 2}.{('downsample_norm', 'downsample_conv').index(inner[0])}"
    layer = {"depthwise": "block.0", "norm": "block.2", "expand": "block.3", "project": "block.5"}
    return f"features.{2 * stage - 1}.{number_in(inner[0]) - 1}.{layer.get(inner[1], inner[1])}"


def _timm(path: Path) -> str:
    """``stages.1.downsample.0``, ``stages.1.blocks.0.mlp.fc2``."""
    part, *inner = path
    if part == "stem":
        return {"conv": "stem.0", "norm": "stem.1"}[inner[0]]
    if part == "head":
        return f"head.{inner[0]}"
    stage = number_in(part) - 1
    if len(inner) == 1:
        return f"stages.{stage}.downsample.{('downsample_norm', 'downsample_conv').index(inner[0])}"
    layer = {"depthwise": "conv_dw", "expand": "mlp.fc1", "project": "mlp.fc2", "layer_scale": "gamma"}
    return f"stages.{stage}.blocks.{number_in(inner[0]) - 1}.{layer.get(inner[1], inner[1])}"


NAMES = LibraryNames(_torchvision, _timm, linear=frozenset({"expand", "project"}))


def convnext_tiny(num_classes: int, image_size: int, *, width: int = 96) -> Backbone:
    """ConvNeXt-T: four stages of 3, 3, 9, 3 blocks, 96 to 768 channels.

    Args:
      num_classes: K.
      image_size: in pixels; with 64 or less the stem has stride 1.
      width: channels of the first stage; they double from stage to stage.

    Raises:
      UserError: a width below 1, or images below 8 pixels.
    """
    if image_size < 8:
        raise UserError(f"convnext_tiny halves images three times: {image_size} pixels are too few, use 8 or more.")
    return convnext((3, 3, 9, 3), width, num_classes, small=image_size <= 64)._replace(names=NAMES)


def convnext(depths: tuple[int, ...], width: int, num_classes: int, *, small: bool) -> Backbone:
    """A ConvNeXt of ``len(depths)`` stages. The first has ``width`` channels, each further one twice as many.

    Args:
      depths: blocks in each stage.
      width: channels of the first stage.
      num_classes: K.
      small: whether the stem has stride 1.

    Raises:
      UserError: a width below 1.
    """
    if width < 1:
        raise UserError(f"model.width is {width}; it must be 1 or more (0 in a configuration: as published).")
    total = sum(depths)
    parts, done = [], 0
    for i, depth in enumerate(depths):
        rates = tuple(STOCHASTIC_DEPTH * (done + j) / max(1, total - 1) for j in range(depth))
        done += depth
        parts.append(functools.partial(Stage, width * 2**i, rates, i > 0))
    return Backbone(
        stem=functools.partial(Stem, width, small),
        stages=tuple(parts),
        head=functools.partial(Head, num_classes),
    )
