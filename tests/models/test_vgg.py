"""VGG: the adaptive average pool of its head, by definition, and the smallest image."""

import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.errors import UserError
from rmn_jax.models import create_backbone
from rmn_jax.models.vgg import adaptive_average_pool


@pytest.mark.parametrize(("height", "width", "size"), [(8, 5, 7), (2, 1, 7), (7, 7, 7), (6, 9, 3), (4, 4, 1)])
def test_each_value_is_the_mean_of_its_window(height, width, size):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    want = np.zeros((2, size, size, 3))
    for i, j in np.ndindex(size, size):
        rows = slice(int(np.floor(i * height / size)), int(np.ceil((i + 1) * height / size)))
        columns = slice(int(np.floor(j * width / size)), int(np.ceil((j + 1) * width / size)))
        want[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(adaptive_average_pool(jnp.asarray(x), size), want, atol=1e-6)


def test_images_too_small_for_five_pools_are_refused():
    with pytest.raises(UserError, match="16 pixels are too few, use 32 or more"):
        create_backbone("vgg16_bn", 10, 16)
