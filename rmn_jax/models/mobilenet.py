"""MobileNetV2 (Sandler et al., 2018; torchvision's ``mobilenet_v2``).

The stem P0 is the first convolution. A routed stage has all blocks of one resolution. By channels the stages are (16),
(24), (32), (64, 96), and (160, 320, and the 1x1 convolution to 1280). On 32x32 and 64x64 images the stem and the stage
of 24 channels have stride 1, as in EfficientNet.

Axes: B batch, H W height and width, C channels, K classes (see ``rmn_jax``).
"""

import functools

import flax.linen as nn
import jax

from rmn_jax.models.dropout import Dropout
from rmn_jax.models.efficientnet_names import timm_names
from rmn_jax.models.layers import Layers
from rmn_jax.models.names import LibraryNames, Namer, Path
from rmn_jax.models.rmn import Backbone
from rmn_jax.routing import global_average_pool

# For each routed stage its runs of equal blocks: (expansion, strides of the first block, features), length.
STAGES = (
    (((1, 1, 16), 1),),
    (((6, 2, 24), 2),),
    (((6, 2, 32), 3),),
    (((6, 2, 64), 4), ((6, 1, 96), 3)),
    (((6, 2, 160), 3), ((6, 1, 320), 1)),
)
STEM_FEATURES = 32
HEAD_FEATURES = 1280


class Stem(nn.Module):
    """Image [B, H, W, 3] -> f_0 [B, H', W', 32]: 3x3 convolution, norm, ReLU6."""

    strides: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layers.conv(STEM_FEATURES, (3, 3), self.strides, name="conv")(x)
        return nn.relu6(self.layers.norm(name="bn")(x))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, 1x1 projection; a shortcut if output and input have the same shape.

    Attributes:
      expansion: factor on the channels of the input; 1 leaves the first convolution out.
      strides: of the depthwise convolution.
      features: channels out.
      layers: constructors of its layers.
    """

    expansion: int
    strides: int
    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, norm = self.layers.conv, self.layers.norm
        y = x
        if self.expansion != 1:
            y = conv(x.shape[-1] * self.expansion, (1, 1), name="expand_conv")(y)
            y = nn.relu6(norm(name="expand_bn")(y))
        y = self.layers.depthwise((3, 3), self.strides, name="depthwise_conv")(y)
        y = nn.relu6(norm(name="depthwise_bn")(y))
        y = norm(name="project_bn")(conv(self.features, (1, 1), name="project_conv")(y))
        return x + y if x.shape == y.shape else y


class Stage(nn.Module):
    """Inverted residuals, and after them a 1x1 convolution with norm and ReLU6 if ``head_features`` is not None.

    Attributes:
      blocks: (expansion, strides, features) of each block.
      head_features: output channels of the 1x1 convolution, or None.
      layers: constructors of its layers.
    """

    blocks: tuple[tuple[int, int, int], ...]
    head_features: int | None
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (expansion, strides, features) in enumerate(self.blocks):
            x = InvertedResidual(expansion, strides, features, self.layers, name=f"block{i + 1}")(x)
        if self.head_features is not None:
            x = self.layers.conv(self.head_features, (1, 1), name="head_conv")(x)
            x = nn.relu6(self.layers.norm(name="head_bn")(x))
        return x


class Head(nn.Module):
    """Global average pool, dropout and a linear layer: [B, H, W, C] -> [B, K] float32."""

    num_classes: int
    layers: Layers
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Dropout(self.dropout, self.layers, name="dropout")(global_average_pool(x))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="fc")(x)


def _torchvision(stages: tuple) -> Namer:
    """The blocks are numbered through: ``features.4.conv.1.0`` is the depthwise convolution of the fourth block."""
    names: dict[Path, str] = {("stem", "conv"): "features.0.0", ("stem", "bn"): "features.0.1"}
    number = 0
    for i, runs in enumerate(stages):
        expansions = [expansion for (expansion, *_), length in runs for _ in range(length)]
        for j, expansion in enumerate(expansions):
            number += 1
            kinds = ("expand", "depthwise") if expansion != 1 else ("depthwise",)
            inner = {f"{kind}_{layer}": f"{k}.{n}" for k, kind in enumerate(kinds) for n, layer in enumerate(_PAIR)}
            inner |= {f"project_{layer}": str(len(kinds) + n) for n, layer in enumerate(_PAIR)}
            for layer, name in inner.items():
                names[f"stage{i + 1}", f"block{j + 1}", layer] = f"features.{number}.conv.{name}"
    for n, layer in enumerate(_PAIR):
        names[f"stage{len(stages)}", f"head_{layer}"] = f"features.{number + 1}.{n}"
    names["head", "fc"] = "classifier.1"
    return names.__getitem__


_PAIR = ("conv", "bn")
NAMES = LibraryNames(torchvision=_torchvision(STAGES), timm=timm_names(STAGES))


def mobilenet_v2(num_classes: int, image_size: int) -> Backbone:
    """MobileNetV2: a stem of 32 channels and five stages of 16, 24, 32, 96 and 1280 channels. No options.

    Args:
      num_classes: K.
      image_size: in pixels; with 64 or less the stem and the second stage have stride 1.
    """
    return mobilenet(STAGES, num_classes, small=image_size <= 64)._replace(names=NAMES)


def mobilenet(stages: tuple, num_classes: int, *, small: bool) -> Backbone:
    """A MobileNetV2 with the given stages.

    Args:
      stages: in the form of ``STAGES``: for each stage its runs, for each run its first block and its length.
      num_classes: K.
      small: whether the stem and the second stage have stride 1.
    """
    parts = []
    for i, runs in enumerate(stages):
        blocks: list[tuple[int, int, int]] = []
        for (expansion, strides, features), length in runs:
            first = 1 if small and i == 1 else strides
            blocks += [(expansion, first, features)] + [(expansion, 1, features)] * (length - 1)
        parts.append(functools.partial(Stage, tuple(blocks), HEAD_FEATURES if i == len(stages) - 1 else None))
    return Backbone(
        stem=functools.partial(Stem, 1 if small else 2),
        stages=tuple(parts),
        head=functools.partial(Head, num_classes),
    )
