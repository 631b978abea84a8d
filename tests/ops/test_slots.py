"""Layers on maps in slots against the same layers on sorted rows: convolution through XLA alone, norm, depthwise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.ops import batch_moments, normalize, routed_conv, routed_depthwise
from rmn_jax.routing import global_average_pool
from rmn_jax.routing.layout import make_slots, sort_by_unit, to_layout

UNITS = 4
LOADS = {
    "random": [3, 0, 2, 0, 1, 3, 2, 2, 0, 0, 0],
    "a unit with none": [0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 3],
    "all to one": [2] * 11,
    "single inputs": [0, 1, 3] + [2] * 8,
}


def compare(layer, load, x, weights, rng, tolerance=1e-4):
    """Output and gradients of ``layer(x in layout, *weights, layout)`` in slots against those on sorted rows."""
    sorted_rows = sort_by_unit(jnp.array(load, jnp.int32), UNITS)

    def passes(layout, backend, x, *weights):
        run = lambda x, *weights: to_layout(  # noqa: E731
            layer(to_layout(x, None, layout), *weights, layout, backend), layout, None
        )
        y, pull = jax.vjp(run, x, *weights)
        return y, *pull(jnp.float32(np.random.default_rng(1).normal(size=y.shape)))

    expected = jax.jit(lambda *given: passes(sorted_rows, "loop", *given))(x, *weights)
    slots = make_slots(sorted_rows)
    found = jax.jit(lambda *given: passes(slots, "slots", *given))(x, *weights)
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [(1, 1, None), (1, 2, None), (3, 1, None), (3, 2, None), (7, 2, None), (3, 1, 0), (3, 2, 3)],
)
def test_convolution(size, strides, padding, load, rng):
    x, kernel = jnp.float32(rng.normal(size=(11, 7, 6, 3))), jnp.float32(rng.normal(size=(UNITS, size, size, 3, 5)))

    def layer(x, kernel, layout, backend):
        return routed_conv(x, kernel, layout, strides=strides, padding=padding, backend=backend)

    compare(layer, load, x, (kernel,), rng, 1e-3)


@pytest.mark.parametrize("backend", ["slots", "mosaic"])
def test_sorted_rows_are_laid_out_for_one_layer(backend, rng):
    x, kernel = jnp.float32(rng.normal(size=(11, 4, 4, 3))), jnp.float32(rng.normal(size=(UNITS, 3, 3, 3, 2)))
    layout = sort_by_unit(jnp.array(LOADS["random"], jnp.int32), UNITS)
    found, expected = (routed_conv(x, kernel, layout, backend=name) for name in (backend, "loop"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_batch_norm(load, rng):
    x = jnp.float32(rng.normal(2.0, 3.0, size=(11, 4, 5, 6)))
    scale, bias = jnp.float32(rng.normal(size=(2, UNITS, 6)))

    def layer(x, scale, bias, layout, backend):
        moments = batch_moments(x, layout)
        return normalize(x, moments.mean, moments.variance, scale, bias, layout, 1e-5)

    compare(layer, load, x, (scale, bias), rng, 1e-3)


def test_moments_do_not_see_what_padding_holds(rng):
    x = jnp.float32(rng.normal(2.0, 3.0, size=(11, 4, 5, 6)))
    sorted_rows = sort_by_unit(jnp.array(LOADS["random"], jnp.int32), UNITS)
    slots = make_slots(sorted_rows)
    noisy = jnp.where(slots.valid[:, None], to_layout(x, None, slots), 1e6)
    expected = batch_moments(to_layout(x, None, sorted_rows), sorted_rows)
    for value, wanted in zip(batch_moments(noisy, slots), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
    one = jnp.ones((UNITS, 6))
    y = normalize(noisy, expected.mean, expected.variance, one, one, slots, 1e-5)
    assert (jnp.where(slots.valid[:, None], 0.0, y) == 0).all()  # and the norm resets it


@pytest.mark.parametrize(("size", "strides", "padding"), [(3, 1, None), (5, 2, None), (3, 2, 0)])
@pytest.mark.parametrize("load", [LOADS["random"], LOADS["all to one"]], ids=["random", "all to one"])
def test_depthwise(size, strides, padding, load, rng):
    x, kernel = jnp.float32(rng.normal(size=(11, 6, 7, 2))), jnp.float32(rng.normal(size=(UNITS, size, size, 1, 2)))

    def layer(x, kernel, layout, backend):
        return routed_depthwise(x, kernel, layout, strides=strides, padding=padding)

    compare(layer, load, x, (kernel,), rng)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_global_average_pool(platform, rng, monkeypatch):
    x = jnp.float32(rng.normal(size=(11, 4, 5, 6)))
    slots = make_slots(sort_by_unit(jnp.array(LOADS["random"], jnp.int32), UNITS))
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    pooled = global_average_pool(to_layout(x, None, slots), slots)
    np.testing.assert_allclose(pooled[slots.slot_of_row], jnp.mean(x, (1, 2)), rtol=1e-5, atol=1e-6)


def test_bfloat16_accumulates_the_kernel_gradient_in_float32():
    # 4,096 times 1 is past the 256 above which adding 1 to a bfloat16 changes nothing.
    x = jnp.ones((64, 8, 8, 1), jnp.bfloat16)
    layout = make_slots(sort_by_unit(jnp.zeros(64, jnp.int32), 2))
    run = functools.partial(routed_conv, layout=layout, backend="slots")
    total = lambda k: jnp.sum(run(to_layout(x, None, layout), k).astype(jnp.float32))  # noqa: E731
    assert jax.grad(total)(jnp.ones((2, 1, 1, 1, 1), jnp.bfloat16)).ravel().tolist() == [4096, 0]
