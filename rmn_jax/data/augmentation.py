"""Augmentation on the device: pure functions of (key, image), for ``jax.vmap`` with one key for each image.

There is a key for each example, not one for the batch. So the result does not depend on how the batch is sharded over
devices. Axes: H W height and width, C channels.
"""

from functools import partial

import jax
import jax.numpy as jnp

# Random resized crops: range of the area (share of the image), range of the aspect ratio, number of draws.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
# Random erasing: the same two ranges.
ERASED = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors ``image`` [H, W, C] left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def pad_and_crop(key: jax.Array, image: jax.Array, padding: int) -> jax.Array:
    """Pads ``image`` [H, W, C] with ``padding`` black pixels on each side and crops a random window of [H, W].

    All (2 padding + 1)^2 windows are equally likely. The result has the shape and dtype of ``image``.
    """
    offset = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def sample_window(
    key: jax.Array,
    height: int,
    width: int,
    areas: tuple[float, float] = AREA,
    ratios: tuple[float, float] = RATIO,
) -> jax.Array:
    """Draws the window of a random resized crop: float32 [4] = (top, left, height, width) in pixels.

    The area is uniform in ``areas`` of the image, the aspect ratio log-uniform in ``ratios``, the position uniform
    (Szegedy et al., "Going deeper with convolutions", section 6; there 8%..100% and 3/4..4/3). The result is the first
    of ten draws that fits into the image. If none fits, it is the largest centred window with an allowed ratio.
    """
    area_key, ratio_key, position_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (ATTEMPTS,), minval=areas[0], maxval=areas[1])
    low, high = jnp.log(ratios[0]), jnp.log(ratios[1])
    ratio = jnp.exp(jax.random.uniform(ratio_key, (ATTEMPTS,), minval=low, maxval=high))
    heights, widths = jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)
    fits = (heights <= height) & (widths <= width)
    first = jnp.argmax(fits)
    found = fits[first]
    fallback_height = min(height, width / ratios[0])
    fallback_width = min(width, height * ratios[1])
    window_height = jnp.where(found, heights[first], fallback_height)
    window_width = jnp.where(found, widths[first], fallback_width)
    position = jnp.where(found, jax.random.uniform(position_key, (2,)), 0.5)
    top, left = position[0] * (height - window_height), position[1] * (width - window_width)
    return jnp.stack([top, left, window_height, window_width])


def random_resized_crop(
    key: jax.Array,
    image: jax.Array,
    height: int,
    width: int,
    areas: tuple[float, float] = AREA,
    ratios: tuple[float, float] = RATIO,
    interpolation: str = "bilinear",
) -> jax.Array:
    """Crops a random window of ``image`` [H, W, C] and scales it to float32 [height, width, C], antialiased.

    Values stay in the units of ``image``. Those of "bicubic" can leave its range a little, and are clipped to 0..255.
    """
    window = sample_window(key, image.shape[0], image.shape[1], areas, ratios)
    if interpolation == "bicubic":
        return jnp.clip(bicubic_window(image, window, height, width), 0, 255)
    return resize_window(image, window, height, width)


def resize_window(image: jax.Array, window: jax.Array, height: int, width: int) -> jax.Array:
    """Scales the window (top, left, height, width) of ``image`` [H, W, C] to float32 [height, width, C]."""
    target = jnp.array([height, width], jnp.float32)
    scale = target / window[2:]
    return jax.image.scale_and_translate(
        image.astype(jnp.float32),
        (height, width, image.shape[-1]),
        (0, 1),
        scale,
        -window[:2] * scale,
        method="linear",
        antialias=True,
    )


def bicubic_window(image: jax.Array, window: jax.Array, height: int, width: int) -> jax.Array:
    """As ``resize_window``, by cubic convolution with a = -1/2 (Keys, 1981), which sees no pixel outside the window.

    ``jax.image`` would also take pixels beyond the window, whose weights are negative.
    """
    size = jnp.maximum(window[2:], 1.0)  # a window of a pixel or more holds the centre of one
    start = jnp.clip(window[:2], 0.0, jnp.array(image.shape[:2]) - size)
    rows = _cubic_weights(image.shape[0], start[0], size[0], height)
    columns = _cubic_weights(image.shape[1], start[1], size[1], width)
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("pw,qc,wcx->pqx", rows, columns, image.astype(jnp.float32))


def _cubic_weights(size: int, start: jax.Array, length: jax.Array, target: int) -> jax.Array:
    """[target, size]: the weight of each pixel in each pixel of the result; rows sum to 1."""
    stretch = jnp.maximum(length / target, 1.0)  # the kernel is as wide as a pixel of the result: antialiasing
    centre = start + (jnp.arange(target) + 0.5) * length / target
    pixels = jnp.arange(size) + 0.5
    x = jnp.abs(pixels[None] - centre[:, None]) / stretch
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))
    weights = jnp.where((pixels >= start) & (pixels < start + length), weights, 0.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def sample_erasure(key: jax.Array, height: int, width: int) -> jax.Array:
    """Draws the rectangle that random erasing clears: int32 [4] = (top, left, height, width) in pixels.

    The area is uniform in 2%..33% of the image, the aspect ratio log-uniform in 0.3..3.3, the position uniform (Zhong
    et al., "Random erasing data augmentation"; ranges as in torchvision). The result is the first of ten draws that
    fits into the image. If none fits, its height and width are 0.
    """
    area_key, ratio_key, position_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (ATTEMPTS,), minval=ERASED[0], maxval=ERASED[1])
    low, high = jnp.log(ERASED_RATIO[0]), jnp.log(ERASED_RATIO[1])
    ratio = jnp.exp(jax.random.uniform(ratio_key, (ATTEMPTS,), minval=low, maxval=high))
    sides = jnp.round(jnp.stack([jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)])).astype(jnp.int32)
    limits = jnp.array([height, width])
    fits = jnp.all(sides < limits[:, None], axis=0)
    side = jnp.where(jnp.any(fits), sides[:, jnp.argmax(fits)], 0)
    corner = jnp.floor(jax.random.uniform(position_key, (2,)) * (limits - side + 1)).astype(jnp.int32)
    return jnp.concatenate([corner, side])


def erase(image: jax.Array, rectangle: jax.Array) -> jax.Array:
    """Sets the rectangle (top, left, height, width) of ``image`` [H, W, C] to 0."""
    return jnp.where(inside(rectangle, image.shape[0], image.shape[1])[..., None], 0, image)


def inside(rectangle: jax.Array, height: int, width: int) -> jax.Array:
    """[height, width] bool: the pixels of the rectangle (top, left, height, width)."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    top, left, tall, wide = rectangle
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)


def centre_crop(image: jax.Array, height: int, width: int) -> jax.Array:
    """The central [height, width, C] of ``image`` [H, W, C]. An odd margin is larger at the bottom and right."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
