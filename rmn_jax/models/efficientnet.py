"""EfficientNet-B0 (Tan and Le, 2019; torchvision's ``efficientnet_b0``).

The stem P0 is the first convolution; the routed stages are the runs of blocks of one resolution: (16), (24),
(40), (80, 112), (192, 320 and the 1x1 convolution to 1280). Each inverted bottleneck (MBConv) keeps its own
squeeze-and-excitation, which belongs to the procedure like its convolutions. On 32x32 and 64x64 images the
stem and the 24-channel stage keep stride 1. Axes as in ``rmn_jax``.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from rmn_jax.dropout import Dropout, StochasticDepth
from rmn_jax.layers import Layers, scaled
from rmn_jax.models.rmn import Backbone
from rmn_jax.routing import global_average_pool


class BlockSpec(NamedTuple):
    """One MBConv: ``expansion`` of the input's channels, ``kernel`` side, ``strides``, ``features`` out."""

    expansion: int
    kernel: int
    strides: int
    features: int


# (expansion, kernel, strides of the first, features) of each run of equal blocks and the run's length, by
# routed stage.
STAGES = (
    (((1, 3, 1, 16), 1),),
    (((6, 3, 2, 24), 2),),
    (((6, 5, 2, 40), 2),),
    (((6, 3, 2, 80), 3), ((6, 5, 1, 112), 3)),
    (((6, 5, 2, 192), 4), ((6, 3, 1, 320), 1)),
)
STEM_FEATURES = 32
HEAD_FEATURES = 1280
STOCHASTIC_DEPTH = 0.2  # of the last block; the rate rises linearly from 0 at the first


class Stem(nn.Module):
    """Image -> f_0: 3x3 convolution, norm, SiLU."""

    strides: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layers.conv(STEM_FEATURES, (3, 3), self.strides, name="conv")(x)
        return nn.silu(self.layers.norm(name="bn")(x))


class MBConv(nn.Module):
    """1x1 expansion, depthwise, squeeze-and-excitation, 1x1 projection; a shortcut where shapes agree."""

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
        # A quarter of the block's own input channels, not of the expanded ones.
        y = SqueezeExcitation(max(1, channels // 4), self.layers, name="se")(y)
        y = norm(name="project_bn")(conv(spec.features, (1, 1), name="project_conv")(y))
        if x.shape != y.shape:
            return y
        return x + StochasticDepth(self.drop_rate, self.layers, name="stochastic_depth")(y)


class SqueezeExcitation(nn.Module):
    """``x sigmoid(W_2 silu(W_1 GAP(x) + b_1) + b_2)``, channel by channel, with the unit's own weights."""

    hidden: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(self.layers.conv, kernel_size=(1, 1), use_bias=True)
        pooled = global_average_pool(x)[:, None, None, :]
        gate = conv(x.shape[-1], name="excite")(nn.silu(conv(self.hidden, name="squeeze")(pooled)))
        return scaled(x, nn.sigmoid(gate))


class Stage(nn.Module):
    """MBConv blocks and, where ``head_features``, a 1x1 convolution with norm and SiLU."""

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
    """Global average pool, dropout 0.2 and a linear layer: [B, H, W, C] -> [B, K] float32."""

    num_classes: int
    layers: Layers
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = global_average_pool(x)
        x = Dropout(self.dropout, self.layers, name="dropout")(x)
        init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")  # uniform within 1 / sqrt(K)
        return nn.Dense(self.num_classes, kernel_init=init, name="fc")(x)


def efficientnet_b0(num_classes: int, image_size: int, small_stem: str = "7x7") -> Backbone:
    """EfficientNet-B0: a stem of 32 channels, five stages of 16, 24, 40, 112 and 1280 channels.

    Args:
      num_classes: K.
      image_size: up to 64 pixels, the stem and the second stage keep stride 1.
      small_stem: a choice of ResNet's; this stem is 3x3 in any case.
    """
    del small_stem
    return efficientnet(STAGES, num_classes, small=image_size <= 64)


def efficientnet(stages: tuple, num_classes: int, *, small: bool) -> Backbone:
    """An EfficientNet of these stages.

    Args:
      stages: as ``STAGES``: by stage its runs of blocks, by run its first block and its length.
      num_classes: K.
      small: whether the stem and the second stage keep stride 1.
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
    """A stage's blocks, one by one: only the first of a run has its stride."""
    blocks = []
    for spec, length in runs:
        first = BlockSpec(*spec)
        if keep_resolution:
            first = first._replace(strides=1)
        blocks += [first] + [first._replace(strides=1)] * (length - 1)
    return tuple(blocks)
