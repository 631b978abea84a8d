"""Operations on the colours of an image, as torchvision's on uint8 tensors: pure functions, for ``jax.vmap``.

Images are float32 [H, W, 3] with whole values in 0..255. Every operation rounds as torchvision does, most of them down,
so that a chain of them gives the same pixels. dm-pix has some of the names, but other definitions: its brightness adds,
its contrast keeps each channel's own mean, and its saturation scales that of HSV.

Axes: H W height and width.
"""

import jax
import jax.numpy as jnp

_GREY = (0.2989, 0.587, 0.114)


def grey(image: jax.Array) -> jax.Array:
    """The luminance of each pixel, [H, W, 1]."""
    return jnp.floor(sum(weight * image[..., i : i + 1] for i, weight in enumerate(_GREY)))  # type: ignore[arg-type]


def _blend(image: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    """``factor image + (1 - factor) other``: 0 is the other image, 1 this one, above 1 away from the other."""
    return jnp.floor(jnp.clip(factor * image + (1.0 - factor) * other, 0, 255))


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black."""
    return _blend(image, 0.0, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean luminance."""
    return _blend(image, jnp.mean(grey(image)), factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image."""
    return _blend(image, grey(image), factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with a blurred image (3x3, weight 5 at the centre); its border pixels stay."""
    height, width = image.shape[:2]
    if height <= 2 or width <= 2:
        return image
    around = sum(image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    blurred = jnp.round((around + 4.0 * image[1:-1, 1:-1]) / 13.0)
    return _blend(image, image.at[1:-1, 1:-1].set(blurred), factor)


def hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the hue by ``shift`` of a full circle, in [-0.5, 0.5]."""
    rgb = image / 255.0
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value, least = jnp.max(rgb, axis=-1), jnp.min(rgb, axis=-1)
    span = value - least
    divisor = jnp.where(span > 0, span, 1.0)
    from_red = (green - blue) / divisor
    from_green, from_blue = 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor
    angle = jnp.where(value == red, from_red, jnp.where(value == green, from_green, from_blue))
    angle = (angle / 6.0 + shift) % 1.0 * 6.0
    # Each channel falls from ``value`` by ``span``, in a piecewise linear function of the angle.
    fall = [jnp.clip(jnp.abs((angle - at + 3.0) % 6.0 - 3.0) - 1.0, 0.0, 1.0) for at in (0.0, 2.0, 4.0)]
    turned = jnp.stack([value - span * part for part in fall], axis=-1)
    return jnp.floor(turned * 255.999)


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the upper ``bits`` of the 8 of each value."""
    step = 2.0 ** (8.0 - jnp.floor(bits))
    return jnp.floor(image / step) * step


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts the values from ``threshold`` on."""
    return jnp.where(image >= threshold, 255.0 - image, image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel to 0..255; a channel of one value stays."""
    least, most = jnp.min(image, axis=(0, 1)), jnp.max(image, axis=(0, 1))
    scale = jnp.where(most > least, 255.0 / jnp.maximum(most - least, 1.0), 1.0)
    return jnp.floor(jnp.clip((image - jnp.where(most > least, least, 0.0)) * scale, 0, 255))


def equalize(image: jax.Array) -> jax.Array:
    """Makes the histogram of each channel as flat as one map of the values can."""

    def one(channel: jax.Array) -> jax.Array:
        values = channel.astype(jnp.int32)
        histogram = jnp.zeros(256, jnp.int32).at[values.reshape(-1)].add(1)
        step = (values.size - histogram[jnp.max(values)]) // 255
        before = jnp.cumsum(histogram) - histogram
        table = jnp.clip((before + step // 2) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[values].astype(jnp.float32), channel)

    return jnp.stack([one(image[..., i]) for i in range(3)], axis=-1)


def jitter(key: jax.Array, image: jax.Array, strengths: tuple[float, float, float, float]) -> jax.Array:
    """Random brightness, contrast, saturation and hue, in random order (torchvision's ``ColorJitter``).

    Args:
      key: random key.
      image: float32 [H, W, 3], whole values in 0..255.
      strengths: of the four. A factor is uniform in [max(0, 1 - s), 1 + s], the turn of the hue in [-s, s].
    """
    order_key, *keys = jax.random.split(key, 5)
    factors = [
        jax.random.uniform(k, minval=max(0.0, 1.0 - s), maxval=1.0 + s)
        for k, s in zip(keys[:3], strengths[:3], strict=True)
    ]
    turn = jax.random.uniform(keys[3], minval=-strengths[3], maxval=strengths[3])
    return apply_jitter(image, jax.random.permutation(order_key, 4), jnp.stack([*factors, turn]), strengths)


def apply_jitter(
    image: jax.Array, order: jax.Array, factors: jax.Array, strengths: tuple[float, float, float, float]
) -> jax.Array:
    """Brightness (0), contrast (1), saturation (2) and hue (3) with the given factors [4], in the given order [4].

    An operation of strength 0 is left out.
    """
    operations = (brightness, contrast, saturation, hue)
    used = [(i, operation) for i, operation in enumerate(operations) if strengths[i] > 0]
    for position in range(4):
        turn, before = order[position], image
        for i, operation in used:
            image = jnp.where(turn == i, operation(before, factors[i]), image)
    return image
