"""VGG-16 with batch norm (Simonyan and Zisserman, 2015; torchvision's ``vgg16_bn``).

Stages are split by the five max-pools, each of which closes its block: the stem P0 is the first block (two
convolutions of 64 channels), the other four are routed, the head is the three linear layers. On 64x64 images
the first two pools are dropped; on 32x32 images none is. This gives the paper's parameter counts. Axes as in
``rmn_jax``.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.dispatch import merge_tiles
from rmn_jax.dropout import Dropout
from rmn_jax.errors import UserError
from rmn_jax.layers import Layers
from rmn_jax.models.rmn import Backbone

# Output channels of each block's convolutions.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Block(nn.Module):
    """3x3 convolutions, each with bias, norm and ReLU, and a 2x2 max-pool of stride 2 where ``pool``."""

    features: tuple[int, ...]
    pool: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, features in enumerate(self.features):
            x = self.layers.conv(features, (3, 3), use_bias=True, name=f"conv{i + 1}")(x)
            x = nn.relu(self.layers.norm(name=f"bn{i + 1}")(x))
        return _halved(x) if self.pool else x


def _halved(x: jax.Array) -> jax.Array:
    """2x2 max-pool of stride 2 over height and width, whatever axes follow."""
    pooled = nn.max_pool(merge_tiles(x), (2, 2), strides=(2, 2))
    return pooled.reshape(*pooled.shape[:3], *x.shape[3:])


class Head(nn.Module):
    """Average pool to ``grid`` squared, three linear layers with dropout: [B, H, W, C] -> [B, K] float32."""

    grid: int
    num_classes: int
    layers: Layers
    width: int = 4096
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.01))
        x = adaptive_average_pool(x.astype(jnp.float32), self.grid)
        x = x.reshape(x.shape[0], -1)
        for i in (1, 2):
            x = nn.relu(dense(self.width, name=f"fc{i}")(x))
            x = Dropout(self.dropout, self.layers, name=f"dropout{i}")(x)
        return dense(self.num_classes, name="fc3")(x)


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages over windows that cover the map evenly: [B, H, W, C] -> [B, size, size, C].

    Window i of a side of length n runs from floor(i n / size) to ceil((i + 1) n / size), as PyTorch has it:
    windows overlap where n is no multiple of ``size``, and repeat pixels where n is smaller.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        windows = [jax.lax.slice_in_dim(x, i * n // size, -(-(i + 1) * n // size), axis=axis) for i in range(size)]
        x = jnp.stack([jnp.mean(window, axis=axis) for window in windows], axis=axis)
    return x


def vgg(
    blocks: tuple[tuple[int, ...], ...], num_classes: int, *, dropped_pools: int, grid: int, width: int = 4096
) -> Backbone:
    """A VGG whose first block is the stem, of ``blocks`` of convolutions with these output channels.

    Args:
      blocks: output channels, by block.
      num_classes: K.
      dropped_pools: how many of the first blocks end without a pool.
      grid: side of the map that the head pools to.
      width: of the head's hidden linear layers.
    """
    parts = [functools.partial(Block, features, i >= dropped_pools) for i, features in enumerate(blocks)]
    head = functools.partial(Head, grid, num_classes, width=width)
    return Backbone(stem=parts[0], stages=tuple(parts[1:]), head=head)


def vgg16_bn(num_classes: int, image_size: int, small_stem: str = "7x7") -> Backbone:
    """VGG-16 with batch norm: a stem of 64 channels, four stages of 128 to 512, three linear layers.

    Args:
      num_classes: K.
      image_size: 32 pixels, all pools and a head on 1x1; up to 64, three pools and a head on 7x7; above, all
        pools and a head on 7x7.
      small_stem: a choice of ResNet's; VGG has no such stem.

    Raises:
      UserError: images of less than 32 pixels, which five pools leave nothing of.
    """
    del small_stem
    if image_size < 32:
        raise UserError(f"vgg16_bn halves the image five times: {image_size} pixels are too few, use 32 or more.")
    small = 32 < image_size <= 64
    return vgg(BLOCKS, num_classes, dropped_pools=2 if small else 0, grid=1 if image_size <= 32 else 7)
