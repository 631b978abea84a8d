"""EfficientNet-B0 (Tan and Le, 2019; torchvision's ``efficientnet_b0``).

The stem P0 is the first convolution. A routed stage has all blocks of one resolution. By channels the stages are (16),
(24), (40), (80, 112), and (192, 320, and the 1x1 convolution to 1280). Each inverted bottleneck (MBConv) has its
squeeze-and-excitation, which belongs to the procedure, as its convolutions do. On 32x32 and 64x64 images the stem and
the stage of 24 channels have stride 1.

Axes: B batch, H W height and width, C channels, K classes (see ``rmn_jax``).
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from rmn_jax.models.dropout import Dropout, StochasticDepth
from rmn_jax.models.efficientnet_names import efficientnet_names
from rmn_jax.models.layers import Layers, scaled
from rmn_jax.models.rmn import Backbone
from rmn_jax.routing import global_average_pool
from rmn_jax.routing.layout import over_pixels


class BlockSpec(NamedTuple):
    """Settings of one MBConv block.

    Attributes:
      expansion: factor on the channels of the input.
      kernel: side of the depthwise kernel, in pixels.
      strides: of the depthwise convolution.
      features: channels out.
    """

    expansion: int
    kernel: int
    strides: int
    features: int


# For each routed stage its runs of equal blocks: (expansion, kernel, strides of the first block, features), length.
STAGES = (
    (((1, 3, 1, 16), 1),),
    (((6, 3, 2, 24), 2),),
    (((6, 5, 2, 40), 2),),
    (((6, 3, 2, 80), 3), ((6, 5, 1, 112), 3)),
    (((6, 5, 2, 192), 4), ((6, 3, 1, 320), 1)),
)
NAMES = efficientnet_names(STAGES)
STEM_FEATURES = 32
HEAD_FEATURES = 1280
STOCHASTIC_DEPTH = 0.2  # rate of the last block; it rises linearly from 0 at the first


class Stem(nn.Module):
    """Image [B, H, W, 3] -> f_0 [B, H', W', 32]: 3x3 convolution, norm, SiLU."""

    strides: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layers.conv(STEM_FEATURES, (3, 3), self.strides, name="conv")(x)
        return nn.silu(self.layers.norm(name="bn")(x))


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection.

    It has a shortcut if output and input have the same shape.

    Attributes:
      spec: see ``BlockSpec``.
      drop_rate: of stochastic depth, on the residual branch.
      layers: constructors of its layers.
    """

    spec: BlockSpec
    drop_rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, norm, spec = self.layers.conv, self.layers.norm, self.spec
        channels = x.shape[-1]
        y = x
        if spec.expansion != 1:
            y = conv(channels * spec.expansion, (1, 1), name="expand_conv")(y)
            y = nn.silu(norm(name="expand_bn")(y))
        y = self.layers.depthwise((spec.kernel, spec.kernel), spec.strides, name="depthwise_conv")(y)
        y = nn.silu(norm(name="depthwise_bn")(y))
        # A quarter of the channels of the block's input, not of the expanded channels.
        y = SqueezeExcitation(max(1, channels // 4), self.layers, name="se")(y)
        y = norm(name="project_bn")(conv(spec.features, (1, 1), name="project_conv")(y))
        if x.shape != y.shape:
            return y
        return x + StochasticDepth(self.drop_rate, self.layers, name="stochastic_depth")(y)


class SqueezeExcitation(nn.Module):
    """``x sigmoid(W_2 silu(W_1 GAP(x) + b_1) + b_2)`` for each channel.

    When routed, the weights are those of each row's unit.

    Attributes:
      hidden: width of the hidden layer.
      layers: constructors of its layers.
    """

    hidden: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(self.layers.conv, kernel_size=(1, 1), use_bias=True)
        pooled = over_pixels(global_average_pool(x, self.layers.layout), self.layers.layout)
        gate = conv(x.shape[-1], name="excite")(nn.silu(conv(self.hidden, name="squeeze")(pooled)))
        return scaled(x, nn.sigmoid(gate))


class Stage(nn.Module):
    """MBConv blocks, and after them a 1x1 convolution with norm and SiLU if ``head_features`` is not None.

    Attributes:
      blocks: see ``BlockSpec``.
      drop_rates: stochastic depth of each block.
      head_features: output channels of the 1x1 convolution, or None.
      layers: constructors of its layers.
    """

    blocks: tuple[BlockSpec, ...]
    drop_rates: tuple[float, ...]
    head_features: int | None
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (spec, rate) in enumerate(zip(self.blocks, self.drop_rates, strict=True)):
            x = MBConv(spec, rate, self.layers, name=f"block{i + 1}")(x)
        if self.head_features is not None:
            x = self.layers.conv(self.head_features, (1, 1), name="head_conv")(x)
            x = nn.silu(self.layers.norm(name="head_bn")(x))
        return x


class Head(nn.Module):
    """Global average pool, dropout and a linear layer: [B, H, W, C] -> [B, K] float32."""

    num_classes: int
    layers: Layers
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = global_average_pool(x)
        x = Dropout(self.dropout, self.layers, name="dropout")(x)
        init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")  # uniform within 1 / sqrt(K)
        return nn.Dense(self.num_classes, kernel_init=init, name="fc")(x)


def efficientnet_b0(num_classes: int, image_size: int) -> Backbone:
    """EfficientNet-B0: a stem of 32 channels and five stages of 16, 24, 40, 112 and 1280 channels. No options.

    Args:
      num_classes: K.
      image_size: in pixels; with 64 or less the stem and the second stage have stride 1.
    """
    return efficientnet(STAGES, num_classes, small=image_size <= 64)._replace(names=NAMES)


def efficientnet(stages: tuple, num_classes: int, *, small: bool) -> Backbone:
    """An EfficientNet with the given stages.

    Args:
      stages: in the form of ``STAGES``: for each stage its runs, for each run its first block and its length.
      num_classes: K.
      small: whether the stem and the second stage have stride 1.
    """
    total = sum(length for runs in stages for _, length in runs)
    parts, done = [], 0
    for i, runs in enumerate(stages):
        blocks = _blocks(runs, keep_resolution=small and i == 1)
        rates = tuple(STOCHASTIC_DEPTH * (done + j) / total for j in range(len(blocks)))
        done += len(blocks)
        parts.append(functools.partial(Stage, blocks, rates, HEAD_FEATURES if i == len(stages) - 1 else None))
    return Backbone(
        stem=functools.partial(Stem, 1 if small else 2),
        stages=tuple(parts),
        head=functools.partial(Head, num_classes),
    )


def _blocks(runs, keep_resolution: bool) -> tuple[BlockSpec, ...]:
    """All blocks of a stage. Only the first block of a run has the stride of the run."""
    blocks = []
    for spec, length in runs:
        first = BlockSpec(*spec)
        if keep_resolution:
            first = first._replace(strides=1)
        blocks += [first] + [first._replace(strides=1)] * (length - 1)
    return tuple(blocks)
