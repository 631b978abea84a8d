"""Scales images of any size inside a compiled program, as ``rmn_jax.data.decode.fit`` does on the host with OpenCV.

Height and width may be symbolic (``jax.export``), so sizes are computed at run time and no array shape depends on them:
each output pixel computes which input pixels it reads.

Axes: B batch, H W height and width (see ``rmn_jax``).
"""

import jax
import jax.numpy as jnp

# OpenCV interpolates 8-bit images with weights in units of 1 / 2048.
_ONE = 2048


def fit(images: jax.Array, height: int, width: int) -> jax.Array:
    """Scales images until they just cover [height, width], then crops the centre.

    Shrinking averages areas, enlarging interpolates linearly. Pixels are those of ``rmn_jax.data.decode.fit``; where a
    mean lies between two integers, rounding may differ by one.

    Args:
      images: uint8 [B, H, W, 3].
      height: of the result, in pixels.
      width: of the result, in pixels.

    Returns:
      uint8 [B, height, width, 3].
    """
    rows, columns = (jnp.asarray(size, jnp.float32) for size in images.shape[1:3])
    scale = jnp.maximum(height / rows, width / columns)
    covering = [jnp.maximum(side, jnp.round(size * scale)) for side, size in ((height, rows), (width, columns))]
    tops = [jnp.floor((cover - side) / 2) for cover, side in zip(covering, (height, width), strict=True)]
    vertical, horizontal = (
        top + jnp.arange(side, dtype=jnp.float32) for top, side in zip(tops, (height, width), strict=True)
    )
    shrinks = (covering[0] < rows) | (covering[1] < columns)
    return jax.lax.cond(
        shrinks,
        lambda: _average(images, vertical, rows / covering[0], horizontal, columns / covering[1]),
        lambda: _interpolate(images, vertical, rows / covering[0], horizontal, columns / covering[1]),
    )


def _average(images: jax.Array, vertical, down, horizontal, across) -> jax.Array:
    """Means over areas of ``down`` times ``across`` pixels, for the output pixels at ``vertical``, ``horizontal``."""
    over_rows, over_columns = (
        _overlap(at, size, step)
        for at, size, step in ((vertical, images.shape[1], down), (horizontal, images.shape[2], across))
    )
    exact = jax.lax.Precision.HIGHEST
    narrow = jnp.einsum("bhwc,vw->bhvc", images.astype(jnp.float32), over_columns, precision=exact)
    means = jnp.einsum("bhvc,uh->buvc", narrow, over_rows, precision=exact)
    # OpenCV rounds halves up where two by two pixels become one, and to even elsewhere.
    halved = (down == 2) & (across == 2)
    return jnp.where(halved, jnp.floor(means + 0.5), jnp.round(means)).astype(jnp.uint8)


def _overlap(at: jax.Array, size, step) -> jax.Array:
    """The share of each input pixel in the interval [at, at + 1] * step: [outputs, size]."""
    low, pixel = (at * step)[:, None], jnp.arange(size, dtype=jnp.float32)[None]
    return jnp.clip(jnp.minimum(low + step, pixel + 1) - jnp.maximum(low, pixel), 0) / step


def _interpolate(images: jax.Array, vertical, down, horizontal, across) -> jax.Array:
    """Linear interpolation in OpenCV's integer arithmetic."""
    left, right, weight = _neighbours(horizontal, images.shape[2], across)
    pixels = images.astype(jnp.int32)
    rows = jnp.take(pixels, left, axis=2) * (_ONE - weight)[:, None] + jnp.take(pixels, right, axis=2) * weight[:, None]
    upper, lower, weight = _neighbours(vertical, images.shape[1], down)
    above, below = jnp.take(rows, upper, axis=1) >> 4, jnp.take(rows, lower, axis=1) >> 4
    weight = weight[:, None, None]
    return ((((_ONE - weight) * above >> 16) + (weight * below >> 16) + 2) >> 2).astype(jnp.uint8)


def _neighbours(at: jax.Array, size, step) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two input pixels beside each output pixel's centre, and the weight of the second in units of 1 / 2048."""
    centre = (at + 0.5) * step - 0.5
    first = jnp.floor(centre)
    last = jnp.asarray(size, jnp.float32) - 1
    inside = (first >= 0) & (first < last)
    weight = jnp.where(inside, jnp.round((centre - first) * _ONE), 0).astype(jnp.int32)
    first = jnp.clip(first, 0, last)
    return first.astype(jnp.int32), jnp.minimum(first + 1, last).astype(jnp.int32), weight
