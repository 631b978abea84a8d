"""RandAugment (Cubuk et al., 2020) and TrivialAugment (Müller and Hutter, 2021), as torchvision's on uint8 tensors.

Both apply operations drawn from the same fourteen. RandAugment applies several of one magnitude; TrivialAugment (its
"wide" space) applies one of a random magnitude. A geometric operation takes the nearest pixel (of two equally near
ones it may take the other than torchvision); pixels from outside are black. Pure functions of (key, image), for
``jax.vmap``.

Axes: H W height and width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.data import color

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
BINS = 31  # magnitudes are whole numbers from 0 to 30
SIGNED = OPERATIONS[1 : OPERATIONS.index("sharpness") + 1]  # their magnitudes have a random sign
_GEOMETRIC = 6  # the first so many, identity among them, are affine maps
_COLORS = (
    lambda image, magnitude: image,
    lambda image, magnitude: color.brightness(image, 1.0 + magnitude),
    lambda image, magnitude: color.saturation(image, 1.0 + magnitude),
    lambda image, magnitude: color.contrast(image, 1.0 + magnitude),
    lambda image, magnitude: color.sharpness(image, 1.0 + magnitude),
    color.posterize,
    color.solarize,
    lambda image, magnitude: color.autocontrast(image),
    lambda image, magnitude: color.equalize(image),
)


def randaugment_magnitudes(height: int, width: int) -> np.ndarray:
    """[14, 31] float32: what each magnitude is for each operation, for images of this size."""
    return _magnitudes(0.3, 150 / 331 * width, 150 / 331 * height, 30.0, 0.9, 4)


def trivialaugment_magnitudes() -> np.ndarray:
    """[14, 31] float32: as ``randaugment_magnitudes``, in the wide space. Shifts are in pixels at any size."""
    return _magnitudes(0.99, 32.0, 32.0, 135.0, 0.99, 6)


def _magnitudes(shear: float, right: float, down: float, degrees: float, blend: float, bits: int) -> np.ndarray:
    part = np.linspace(0, 1, BINS)
    zero = np.zeros(BINS)
    return np.stack(
        [zero, shear * part, shear * part, right * part, down * part, degrees * part]
        + [blend * part] * 4
        + [8 - np.round(bits * part), 255 - 255 * part, zero, zero]
    ).astype(np.float32)


def randaugment(key: jax.Array, image: jax.Array, number: int, magnitude: int) -> jax.Array:
    """Applies ``number`` random operations of one magnitude.

    Args:
      key: random key.
      image: float32 [H, W, 3], whole values in 0..255.
      number: of operations.
      magnitude: from 0 to 30.
    """
    table = jnp.asarray(randaugment_magnitudes(*image.shape[:2])[:, magnitude])
    for one in jax.random.split(key, number):
        operation_key, sign_key = jax.random.split(one)
        operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
        image = apply(image, operation, _signed(sign_key, operation, table[operation]))
    return image


def trivialaugment(key: jax.Array, image: jax.Array) -> jax.Array:
    """Applies one random operation of a random magnitude to float32 [H, W, 3], whole values in 0..255."""
    operation_key, magnitude_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
    magnitude = jax.random.randint(magnitude_key, (), 0, BINS)
    table = jnp.asarray(trivialaugment_magnitudes())
    return apply(image, operation, _signed(sign_key, operation, table[operation, magnitude]))


def _signed(key: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """The magnitude, for geometric operations and blends with a random sign."""
    return jnp.where((operation <= len(SIGNED)) & jax.random.bernoulli(key), -magnitude, magnitude)


def apply(image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """One operation on an image.

    All geometric operations are one affine map, so that under ``vmap`` a batch pays for one gather, not for five.

    Args:
      image: float32 [H, W, 3], whole values in 0..255.
      operation: [] int32, position in ``OPERATIONS``.
      magnitude: [] float32, of that operation: a shear, pixels (whole ones count), degrees, a factor
        minus one, bits or a threshold.
    """
    image = affine(image, _matrix(operation, magnitude, image.shape[0], image.shape[1]))
    return jax.lax.switch(jnp.maximum(operation - _GEOMETRIC + 1, 0), _COLORS, image, magnitude)


def _matrix(operation: jax.Array, magnitude: jax.Array, height: int, width: int) -> jax.Array:
    """[2, 3]: where a pixel of the result comes from, in pixels (x, y) from the image's centre."""
    is_kind = {name: operation == i for i, name in enumerate(OPERATIONS[:_GEOMETRIC])}
    only = lambda name, value: jnp.where(is_kind[name], value, 0.0)  # noqa: E731
    angle = jnp.deg2rad(only("rotate", magnitude))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    across, along = only("shear_x", magnitude), only("shear_y", magnitude)
    # A shear keeps the upper left corner.
    right = 0.5 * height * across - only("translate_x", jnp.trunc(magnitude))
    down = 0.5 * width * along - only("translate_y", jnp.trunc(magnitude))
    return jnp.array([[cosine, across - sine, right], [sine + along, cosine, down]])


def affine(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Takes each pixel from the nearest to where the matrix maps it; from outside the image it is 0.

    Args:
      image: [H, W, C].
      matrix: [2, 3], from (x, y, 1) of the result to (x, y) of the image, in pixels from the centre.
    """
    height, width = image.shape[:2]
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2,
        jnp.arange(width) - (width - 1) / 2,
        indexing="ij",
    )
    column = jnp.round(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + (width - 1) / 2).astype(jnp.int32)
    row = jnp.round(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + (height - 1) / 2).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    flat = image.reshape(height * width, -1)
    taken = jnp.take(flat, jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1), axis=0)
    return jnp.where(inside[..., None], taken, 0)
