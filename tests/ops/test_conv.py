"""Routed convolution in all backends against a loop over units, and plain convolution against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unit_oracle import check_all_passes, plain_conv

from rmn_jax.ops import BACKENDS, conv, routed_conv
from rmn_jax.routing.layout import make_tiles, sort_by_unit


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize(("size", "strides"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_all_passes_match_a_loop_over_units(backend, size, strides, rng):
    check_all_passes(backend, size, strides, rng)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(("size", "strides"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_plain_convolution_and_its_gradients_match_xla(size, strides, tiled, rng, monkeypatch):
    monkeypatch.setattr("rmn_jax.ops.choose._MANY_CHANNELS", 1 if tiled else 99)
    x = jnp.float32(rng.normal(size=(11, 8, 6, 3)))
    kernel = jnp.float32(rng.normal(size=(size, size, 3, 5)))
    expected, expected_pull = jax.vjp(functools.partial(plain_conv, strides=strides), x, kernel)
    output, pull = jax.vjp(functools.partial(conv, strides=strides), x, kernel)
    cotangent = jnp.float32(rng.normal(size=expected.shape))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(pull(cotangent), expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4)


# (kernel, strides, padding): no padding, more than half the kernel, and a kernel smaller than its stride
@pytest.mark.parametrize(("size", "strides", "padding"), [((3, 3), 1, 0), ((3, 3), 2, 3), ((1, 2), 3, 1)])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_explicit_padding(backend, size, strides, padding, rng):
    x, kernel = jnp.float32(rng.normal(size=(5, 6, 7, 2))), jnp.float32(rng.normal(size=(2, *size, 2, 3)))
    unit = jnp.array([0, 0, 1, 1, 1])
    layout, sides = sort_by_unit(unit, 2), [(padding, padding)] * 2

    def oracle(x, kernel):
        each = lambda row, unit_kernel: jax.lax.conv_general_dilated(  # noqa: E731
            row[None], unit_kernel, (strides, strides), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        return jnp.stack([each(row, kernel[j]) for row, j in zip(x, unit, strict=True)])

    routed = functools.partial(routed_conv, layout=layout, strides=strides, padding=padding, backend=backend)
    (expected, expected_pull), (output, pull) = (jax.vjp(side, x, kernel) for side in (oracle, routed))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.float32(rng.normal(size=expected.shape))
    for found, wanted in zip(pull(cotangent), expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_bfloat16_results_are_the_float32_results_rounded(backend, rng):
    x, dy = (jnp.bfloat16(rng.normal(size=(16, 6, 6, channels))) for channels in (4, 3))
    kernel, layout = jnp.bfloat16(rng.normal(size=(3, 3, 3, 4, 3))), sort_by_unit(jnp.arange(16) // 6, 3)

    def passes(x, kernel, dy):
        y, pull = jax.vjp(lambda x, kernel: routed_conv(x, kernel, layout, backend=backend), x, kernel)
        return y, *pull(dy)

    in_float32 = passes(*(value.astype(jnp.float32) for value in (x, kernel, dy)))
    for found, wanted in zip(jax.jit(passes)(x, kernel, dy), in_float32, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_bfloat16_kernel_gradients_are_summed_in_float32(backend):
    # The sum is 4,096 ones. A sum in bfloat16 would stop at 256, where adding 1 changes nothing.
    x = jnp.ones((64, 8, 8, 1), jnp.bfloat16)
    layout = sort_by_unit(jnp.zeros(64, jnp.int32), 2)
    run = lambda k: jnp.sum(routed_conv(x, k, layout, backend=backend).astype(jnp.float32))  # noqa: E731
    gradient = jax.grad(run)(jnp.ones((2, 1, 1, 1, 1), jnp.bfloat16))
    assert gradient.ravel().tolist() == [4096, 0]


def test_unknown_backends_and_shapes_that_do_not_fit_are_refused():
    x, layout = jnp.ones((4, 5, 5, 3)), sort_by_unit(jnp.zeros(4, jnp.int32), 2)
    with pytest.raises(ValueError, match="unknown backend 'lop'"):
        routed_conv(x, jnp.ones((2, 1, 1, 3, 4)), layout, backend="lop")
    for shape in [(3, 1, 1, 3, 4), (2, 1, 1, 5, 4), (1, 1, 3, 4)]:
        with pytest.raises(ValueError, match="does not fit"):
            routed_conv(x, jnp.ones(shape), layout)
    with pytest.raises(ValueError, match="does not fit"):  # sorted rows, but a layout in tiles
        routed_conv(x, jnp.ones((2, 1, 1, 3, 4)), make_tiles(layout, 25))
    with pytest.raises(ValueError, match="does not fit"):  # a row too many for the layout
        routed_conv(jnp.ones((5, 5, 5, 3)), jnp.ones((2, 1, 1, 3, 4)), layout)
    for shape, kernel in [((4, 5, 5), (1, 1, 3, 4)), ((4, 5, 5, 3), (1, 1, 2, 4)), ((4, 5, 5, 3), (2, 1, 1, 3, 4))]:
        with pytest.raises(AssertionError):
            conv(jnp.ones(shape), jnp.ones(kernel))
