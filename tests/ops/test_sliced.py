"""Convolution in tiles in slices of channels, against the same in whole groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.ops import routed_conv, sliced
from rmn_jax.routing.layout import make_tiles, sort_by_unit, to_layout

UNITS = 3
LOADS = {"random": [0, 2, 1, 1, 0, 2, 2, 1, 1], "a unit with none": [0, 2, 2, 2, 0, 2, 2, 2, 2], "all to one": [1] * 9}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize(
    ("channels", "features", "size", "strides"), [(4, 6, 3, 1), (6, 2, 3, 2), (2, 4, 1, 1), (3, 4, 3, 1), (4, 4, 1, 2)]
)
def test_all_passes(channels, features, size, strides, load, rng, monkeypatch):
    monkeypatch.setattr(sliced, "SLICE", 2)  # 3 channels are no multiple, and stay whole
    x = jnp.float32(rng.normal(size=(9, 5, 4, channels)))
    kernel = jnp.float32(rng.normal(size=(UNITS, size, size, channels, features)))
    tiles = make_tiles(sort_by_unit(jnp.array(load, jnp.int32), UNITS), 20)

    def passes(backend):
        run = lambda x, kernel: to_layout(  # noqa: E731
            routed_conv(to_layout(x, None, tiles), kernel, tiles, strides=strides, backend=backend), tiles, None
        )
        y, pull = jax.vjp(run, x, kernel)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    for value, wanted in zip(jax.jit(passes, static_argnums=0)("sliced"), passes("tiles"), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)


def test_no_group_has_more_than_128_channels():
    tiles = make_tiles(sort_by_unit(jnp.zeros(64, jnp.int32), 2), 64)
    x = jax.ShapeDtypeStruct((*tiles.row_of_slot.shape[:1], 8, 8, tiles.unit.shape[0], 512), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((2, 3, 3, 512, 256), jnp.bfloat16)
    total = lambda x, k: jnp.sum(routed_conv(x, k, tiles, backend="sliced").astype(jnp.float32))  # noqa: E731
    text = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(x, kernel))
    groups = {part.split("=")[1].split()[0] for part in text.split() if part.startswith("feature_group_count=")}
    groups |= {part.split("=")[1].split()[0] for part in text.split() if part.startswith("batch_group_count=")}
    assert str(tiles.unit.shape[0] * 4 * 2) in groups and str(tiles.unit.shape[0]) not in groups
