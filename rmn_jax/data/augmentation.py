"""Augmentation on the device: pure functions of (key, image), for ``jax.vmap`` with one key for each image.

There is a key for each example, not one for the batch. So the result does not depend on how the batch is sharded over
devices. Axes: H W height and width, C channels.
"""

import jax
import jax.numpy as jnp

# Random resized crops: range of the area (share of the image), range of the aspect ratio, number of draws.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


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


def sample_window(key: jax.Array, height: int, width: int) -> jax.Array:
    """Draws the window of a random resized crop: float32 [4] = (top, left, height, width) in pixels.

    The area is uniform in 8%..100% of the image, the aspect ratio log-uniform in 3/4..4/3, the position uniform
    (Szegedy et al., "Going deeper with convolutions", section 6). The result is the first of ten draws that fits into
    the image. If none fits, it is the largest centred window with an allowed ratio.
    """
    area_key, ratio_key, position_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (ATTEMPTS,), minval=AREA[0], maxval=AREA[1])
    low, high = jnp.log(RATIO[0]), jnp.log(RATIO[1])
    ratio = jnp.exp(jax.random.uniform(ratio_key, (ATTEMPTS,), minval=low, maxval=high))
    heights, widths = jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)
    fits = (heights <= height) & (widths <= width)
    first = jnp.argmax(fits)
    found = fits[first]
    fallback_height = min(height, width / RATIO[0])
    fallback_width = min(width, height * RATIO[1])
    window_height = jnp.where(found, heights[first], fallback_height)
    window_width = jnp.where(found, widths[first], fallback_width)
    position = jnp.where(found, jax.random.uniform(position_key, (2,)), 0.5)
    top, left = position[0] * (height - window_height), position[1] * (width - window_width)
    return jnp.stack([top, left, window_height, window_width])


def random_resized_crop(key: jax.Array, image: jax.Array, height: int, width: int) -> jax.Array:
    """Crops a random window of ``image`` [H, W, C] and scales it to float32 [height, width, C], antialiased.

    Values stay in the units of ``image``.
    """
    window = sample_window(key, image.shape[0], image.shape[1])
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


def centre_crop(image: jax.Array, height: int, width: int) -> jax.Array:
    """The central [height, width, C] of ``image`` [H, W, C]. An odd margin is larger at the bottom and right."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
