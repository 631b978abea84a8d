"""Layer norm, layer scale and the bias of a depthwise convolution, routed, against each row alone with its unit."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.models.layer_norm import RoutedLayerNorm, RoutedLayerScale
from rmn_jax.models.layers import RoutedDepthwise
from rmn_jax.routing.layout import make_slots, make_tiles, sort_by_unit, to_layout

UNIT = np.array([2, 0, 3, 3, 0, 2, 3, 3, 0])  # unit 1 gets no input
UNITS, CHANNELS = 4, 6
LAYOUTS = {"sorted": lambda layout: layout, "tiles": lambda layout: make_tiles(layout, 20), "slots": make_slots}
LAYERS = {
    # The routed layer, and its value for one row with the leaves of one unit.
    "norm": (RoutedLayerNorm, lambda leaves, x: nn.LayerNorm(epsilon=1e-6).apply({"params": leaves}, x)),
    "scale": (
        lambda **settings: RoutedLayerScale(0.5, **settings),
        lambda leaves, x: x * leaves["gamma"],
    ),
    "depthwise": (
        lambda **settings: RoutedDepthwise((3, 3), use_bias=True, **settings),
        lambda leaves, x: nn.Conv(CHANNELS, (3, 3), feature_group_count=CHANNELS).apply({"params": leaves}, x),
    ),
}


@pytest.mark.parametrize("layout_name", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_each_row_alone(name, layout_name, rng):
    make, alone = LAYERS[name]
    layout = LAYOUTS[layout_name](sort_by_unit(jnp.array(UNIT), UNITS))
    x = jnp.float32(rng.normal(2.0, 3.0, size=(9, 4, 5, CHANNELS)))
    module = make(num_units=UNITS, layout=layout)
    leaves = module.init(jax.random.key(0), to_layout(x, None, layout))["params"]
    assert {leaf.shape[0] for leaf in leaves.values()} == {UNITS}
    leaves = {key: jnp.float32(rng.normal(size=leaf.shape)) for key, leaf in leaves.items()}
    weights = jnp.float32(rng.normal(size=x.shape))

    def routed(leaves, x):
        return to_layout(module.apply({"params": leaves}, to_layout(x, None, layout)), layout, None)

    def separate(leaves, x):
        rows = [alone(jax.tree.map(lambda leaf, j=j: leaf[j], leaves), x[b : b + 1]) for b, j in enumerate(UNIT)]
        return jnp.concatenate(rows)

    @functools.partial(jax.jit, static_argnums=0)
    def passes(function, leaves, x):
        y, pull = jax.vjp(function, leaves, x)
        return y, *pull(weights)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)  # noqa: E731
    jax.tree.map(close, passes(routed, leaves, x), passes(separate, leaves, x))


@pytest.mark.parametrize("name", LAYERS)
def test_the_plain_layer_has_the_same_leaves_without_the_axis_of_units(name):
    make, alone = LAYERS[name]
    x = jax.random.normal(jax.random.key(1), (2, 4, 5, CHANNELS))
    plain = make().init(jax.random.key(0), x)["params"]
    layout = sort_by_unit(jnp.array([0, 1]), UNITS)
    routed = make(num_units=UNITS, layout=layout).init(jax.random.key(0), x)["params"]
    assert jax.tree.map(lambda leaf: leaf.shape[1:], routed) == jax.tree.map(lambda leaf: leaf.shape, plain)
    np.testing.assert_allclose(make().apply({"params": plain}, x), alone(plain, x), rtol=1e-4, atol=1e-5)


def test_a_constant_pixel_has_the_bias_and_finite_gradients():
    x = jnp.full((1, 2, 2, CHANNELS), 1e4, jnp.bfloat16)
    module = RoutedLayerNorm()
    variables = {"params": {"scale": jnp.full(CHANNELS, 3.0), "bias": jnp.full(CHANNELS, 0.5)}}
    y, pull = jax.vjp(lambda x: module.apply(variables, x), x)
    assert y.dtype == jnp.bfloat16 and (y == 0.5).all()
    assert jnp.isfinite(pull(jnp.ones_like(y))[0].astype(jnp.float32)).all()
