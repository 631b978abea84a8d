"""CutMix: training on images with a rectangle of another image (Yun et al., 2019, https://arxiv.org/abs/1905.04899).

    x <- x_i outside the rectangle, x_j inside      y <- w y_i + (1 - w) y_j      w: the share of pixels of x_i

A rectangle of the share 1 - lambda, lambda ~ Beta(alpha, alpha), is centred on a random pixel and cut at the borders,
as in torchvision. Partners are those of mixup: rows 2j and 2j + 1. Each row draws from its own key, so the result does
not depend on how a batch is split.

Axes: B batch, H W height and width (see ``rmn_jax``).
"""

from functools import partial

import jax
import jax.numpy as jnp

from rmn_jax.training.mixup import mix, mixup_weights, partners


def mixed_rectangle(share: jax.Array, row: jax.Array, column: jax.Array, height: int, width: int) -> jax.Array:
    """int32 [4] = (top, left, height, width), the pixels that the partner gives.

    Args:
      share: [] float32, lambda, the share of the image that stays before the rectangle is cut at the borders.
      row: [] int32 of its centre.
      column: likewise.
      height: of the image, in pixels.
      width: likewise.
    """
    half = 0.5 * jnp.sqrt(1.0 - share)
    tall, wide = (half * height).astype(jnp.int32), (half * width).astype(jnp.int32)
    top, left = jnp.maximum(row - tall, 0), jnp.maximum(column - wide, 0)
    bottom, right = jnp.minimum(row + tall, height), jnp.minimum(column + wide, width)
    return jnp.stack([top, left, bottom - top, right - left])


def sample_mask(key: jax.Array, alpha: float, height: int, width: int) -> jax.Array:
    """Draws which pixels an image keeps: [H, W] bool, False in the rectangle."""
    share_key, row_key, column_key = jax.random.split(key, 3)
    share = jax.random.beta(share_key, alpha, alpha)
    row, column = jax.random.randint(row_key, (), 0, height), jax.random.randint(column_key, (), 0, width)
    top, left, tall, wide = mixed_rectangle(share, row, column, height, width)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    return (rows < top) | (rows >= top + tall) | (columns < left) | (columns >= left + wide)


def mixed_images(keys: jax.Array, images: jax.Array, mixup: float, cutmix: float) -> tuple[jax.Array, jax.Array]:
    """Mixup, CutMix or, for each image with even chance, one of the two.

    Args:
      keys: [B] random keys.
      images: [B, H, W, C] float32; B is even.
      mixup: alpha, or 0 (off).
      cutmix: alpha, or 0 (off); one of the two is on.

    Returns:
      The images, and [B] float32, the weight of each row's own label.
    """
    if not cutmix:
        weights = mixup_weights(keys, mixup)
        return mix(images, weights), weights
    height, width = images.shape[1:3]
    cut_keys, choice_keys = (jax.vmap(partial(jax.random.fold_in, data=i))(keys) for i in (2, 3))
    masks = jax.vmap(lambda key: sample_mask(key, cutmix, height, width))(cut_keys)
    cut, kept = jnp.where(masks[..., None], images, partners(images)), jnp.mean(masks, axis=(1, 2), dtype=jnp.float32)
    if not mixup:
        return cut, kept
    weights = mixup_weights(keys, mixup)
    takes_cut = jax.vmap(jax.random.bernoulli)(choice_keys)
    images = jnp.where(takes_cut[:, None, None, None], cut, mix(images, weights))
    return images, jnp.where(takes_cut, kept, weights)
