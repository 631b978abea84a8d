"""VGG-16 with batch norm (Simonyan and Zisserman, 2015; torchvision's ``vgg16_bn``).

Each of the five blocks ends with a max-pool, and a routed stage is one block. The stem P0 is the first block (two
convolutions of 64 channels), the other four blocks are the routed stages, and the head is the three linear layers. On
64x64 images the first two pools are dropped; on 32x32 images no pool is dropped. This gives the paper's parameter
counts.

Axes: B batch, H W height and width, C channels, K classes, L slots in a tile, V tiles (see ``rmn_jax``).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.errors import UserError
from rmn_jax.models.dropout import Dropout
from rmn_jax.models.layers import Layers
from rmn_jax.models.names import LibraryNames, Namer, Path
from rmn_jax.models.rmn import Backbone
from rmn_jax.routing.layout import Layout, merge_tiles, pixel_axes

# Output channels of each block's convolutions.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Block(nn.Module):
    """3x3 convolutions, each with bias, norm and ReLU, and then a 2x2 max-pool of stride 2 if ``pool``.

    Attributes:
      features: output channels of each convolution.
      pool: whether the block ends with the max-pool.
      layers: constructors of its layers.
    """

    features: tuple[int, ...]
    pool: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, features in enumerate(self.features):
            x = self.layers.conv(features, (3, 3), use_bias=True, name=f"conv{i + 1}")(x)
            x = nn.relu(self.layers.norm(name=f"bn{i + 1}")(x))
        return _halved(x, self.layers.layout) if self.pool else x


def _halved(x: jax.Array, layout: Layout) -> jax.Array:
    """2x2 max-pool of stride 2 over height and width, in any layout."""
    window = [2 if axis in pixel_axes(layout) else 1 for axis in range(4)]
    wide = merge_tiles(x)
    pooled = jax.lax.reduce_window(wide, -jnp.inf, jax.lax.max, window, window, "VALID")
    return pooled.reshape(*pooled.shape[:3], *x.shape[3:])


class Head(nn.Module):
    """Average pool to a square map, and three linear layers with dropout: [B, H, W, C] -> [B, K] float32.

    Attributes:
      grid: height and width of the map that it pools to.
      num_classes: K.
      layers: tells dropout whether this is training, and has its keys.
      width: of the two hidden layers.
      dropout: rate after each hidden layer.
    """

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

    On a side of n pixels, window i runs from floor(i n / size) to ceil((i + 1) n / size), as in PyTorch. Windows
    overlap if n is not a multiple of ``size``. They repeat pixels if n is smaller than ``size``.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        windows = [jax.lax.slice_in_dim(x, i * n // size, -(-(i + 1) * n // size), axis=axis) for i in range(size)]
        x = jnp.stack([jnp.mean(window, axis=axis) for window in windows], axis=axis)
    return x


def _namer(head: dict[str, str]) -> Namer:
    """Both libraries number all layers of ``features``: convolution, norm, ReLU, .., pool. They differ in the head.

    Args:
      head: layer of our head -> its name in the library.
    """
    numbered: dict[Path, str] = {}
    position = 0
    for i, block in enumerate(BLOCKS):
        part = "stem" if i == 0 else f"stage{i}"
        for j in range(len(block)):
            numbered[part, f"conv{j + 1}"] = f"features.{position}"
            numbered[part, f"bn{j + 1}"] = f"features.{position + 1}"
            position += 3
        position += 1
    for layer, name in head.items():
        numbered["head", layer] = name
    return numbered.__getitem__


NAMES = LibraryNames(
    torchvision=_namer({"fc1": "classifier.0", "fc2": "classifier.3", "fc3": "classifier.6"}),
    timm=_namer({"fc1": "pre_logits.fc1", "fc2": "pre_logits.fc2", "fc3": "head.fc"}),
    classifier=("head", "fc3"),
)


def vgg(
    blocks: tuple[tuple[int, ...], ...], num_classes: int, *, dropped_pools: int, grid: int, width: int = 4096
) -> Backbone:
    """A VGG whose first block is the stem and whose other blocks are the routed stages.

    Args:
      blocks: output channels of the convolutions of each block.
      num_classes: K.
      dropped_pools: the number of first blocks without a pool.
      grid: height and width of the map that the head pools to.
      width: of the head's hidden layers.
    """
    parts = [functools.partial(Block, features, i >= dropped_pools) for i, features in enumerate(blocks)]
    head = functools.partial(Head, grid, num_classes, width=width)
    return Backbone(stem=parts[0], stages=tuple(parts[1:]), head=head)


def vgg16_bn(num_classes: int, image_size: int) -> Backbone:
    """VGG-16 with batch norm: a stem of 64 channels, four stages of 128 to 512 channels, three linear layers.

    It has no options.

    Args:
      num_classes: K.
      image_size: in pixels. With 32 all five pools, and a head on a 1x1 map; with 33 to 64 three pools, and a head on a
        7x7 map; above 64 all five pools, and a head on a 7x7 map.

    Raises:
      UserError: images of less than 32 pixels: five pools would leave no pixel.
    """
    if image_size < 32:
        raise UserError(f"vgg16_bn halves the image five times: {image_size} pixels are too few, use 32 or more.")
    small = 32 < image_size <= 64
    network = vgg(BLOCKS, num_classes, dropped_pools=2 if small else 0, grid=1 if image_size <= 32 else 7)
    return network._replace(names=NAMES)
