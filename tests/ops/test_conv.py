"""Routed convolution against a loop over units, each through XLA's own convolution and autodiff."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.dispatch import lay_out, make_plan
from rmn_jax.ops import conv, loop, minimal, routed_conv
from rmn_jax.ops.conv import BACKENDS

UNITS, BATCH = 4, 43

LOADS = {
    "random": lambda rng: rng.integers(0, UNITS, BATCH),
    "a unit with none": lambda rng: rng.choice([0, 3], BATCH),
    "all to one": lambda rng: np.full(BATCH, 2),
    "single inputs": lambda rng: np.array([0, 1, 3] + [2] * (BATCH - 3)),
    "last unit has one": lambda rng: np.array([0] * (BATCH - 1) + [3]),
}


def one_unit(x, kernel, strides):
    """The oracle for one unit: XLA's convolution with PyTorch's padding."""
    sides = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel, (strides, strides), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.cache
def passes(size, strides, backend, case=None):
    """Output and both gradients of a backend, compiled once for all loads of a case."""

    def run(x, kernel, plan, cotangent):
        output, pull = jax.vjp(lambda x, k: routed_conv(x, k, plan, strides=strides, backend=backend), x, kernel)
        return output, *pull(cotangent)

    return jax.jit(run)


def test_tiles_of_two_lengths_as_large_kernels_take_them(rng, monkeypatch):
    monkeypatch.setattr(loop, "_TWO_LENGTHS", 0)
    assert loop.tile_lengths(BATCH, 42, UNITS, 1) == (8, 16)
    check_all_passes("loop", 3, 1, rng, "two lengths")


def test_the_minimal_form(rng, monkeypatch):
    monkeypatch.setattr(minimal, "_MANY_CHANNELS", 1)
    check_all_passes("loop", 3, 1, rng, "minimal")


def test_the_minimal_form_in_tiles_of_two_lengths(rng, monkeypatch):
    monkeypatch.setattr(minimal, "_MANY_CHANNELS", 1)
    monkeypatch.setattr(loop, "_TWO_LENGTHS", 0)
    check_all_passes("loop", 3, 1, rng, "minimal, two lengths")


def test_the_minimal_form_rounds_nearly_as_the_direct_one_does(rng):
    x, kernel, dy = (rng.normal(size=size) for size in [(4, 8, 8, 64), (3, 3, 64, 64), (4, 8, 8, 64)])
    with jax.enable_x64(True):
        exact, pull = jax.vjp(functools.partial(one_unit, strides=1), jnp.float64(x), jnp.float64(kernel))
        exact = [np.asarray(value) for value in (exact, *pull(jnp.float64(dy)))]
    x, kernel, dy = jnp.float32(x), jnp.float32(kernel), jnp.float32(dy)
    direct, pull = jax.vjp(functools.partial(one_unit, strides=1), x, kernel)
    turned = minimal.combined_taps(kernel[::-1, ::-1])
    found = [
        minimal.convolve(x, minimal.combined_taps(kernel)),
        minimal.input_gradient(dy, turned),
        minimal.kernel_gradient(x, dy),
    ]
    for value, plain, wanted in zip(found, (direct, *pull(dy)), exact, strict=True):
        error, direct_error = (np.sqrt(np.mean((np.float64(side) - wanted) ** 2)) for side in (value, plain))
        assert error < 3 * direct_error


def test_a_pointwise_layer_row_by_row_as_large_maps_take_it(rng, monkeypatch):
    monkeypatch.setattr(loop, "_ROW_BY_ROW", 1)
    check_all_passes("loop", 1, 1, rng, "row by row")


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize(("size", "strides"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_all_passes_match_a_loop_over_units(backend, size, strides, rng):
    check_all_passes(backend, size, strides, rng)


def check_all_passes(backend, size, strides, rng, case=None):
    x = jnp.float32(rng.normal(size=(BATCH, 7, 6, 3)))
    kernel = jnp.float32(rng.normal(size=(UNITS, size, size, 3, 5)))
    for name, load in LOADS.items():
        unit = np.sort(load(rng))
        plan = make_plan(jnp.int32(unit), UNITS)
        oracle = functools.partial(one_unit, strides=strides)
        shape = jax.eval_shape(oracle, x, kernel[0]).shape
        cotangent = jnp.float32(rng.normal(size=shape))
        output, dx, dkernel = passes(size, strides, backend, case)(x, kernel, plan, cotangent)
        assert output.shape == shape
        for j in range(UNITS):
            rows = np.flatnonzero(unit == j)
            if not len(rows):
                np.testing.assert_array_equal(dkernel[j], 0, err_msg=name)
                continue
            expected, pull = jax.vjp(oracle, x[rows], kernel[j])
            expected_dx, expected_dkernel = pull(cotangent[rows])
            np.testing.assert_allclose(output[rows], expected, rtol=1e-4, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(dx[rows], expected_dx, rtol=1e-4, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(dkernel[j], expected_dkernel, rtol=1e-4, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(("size", "strides"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_the_plain_convolution_and_its_gradients_are_xlas(size, strides, tiled, rng, monkeypatch):
    monkeypatch.setattr(importlib.import_module("rmn_jax.ops.conv"), "_MANY_CHANNELS", 1 if tiled else 99)
    x = jnp.float32(rng.normal(size=(11, 8, 6, 3)))
    kernel = jnp.float32(rng.normal(size=(size, size, 3, 5)))
    expected, expected_pull = jax.vjp(functools.partial(one_unit, strides=strides), x, kernel)
    output, pull = jax.vjp(functools.partial(conv, strides=strides), x, kernel)
    cotangent = jnp.float32(rng.normal(size=expected.shape))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(pull(cotangent), expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-4)


# (kernel, strides, padding): none, more than half the kernel, and a kernel smaller than its stride
@pytest.mark.parametrize(("size", "strides", "padding"), [((3, 3), 1, 0), ((3, 3), 2, 3), ((1, 2), 3, 1)])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_explicit_padding(backend, size, strides, padding, rng):
    x, kernel = jnp.float32(rng.normal(size=(5, 6, 7, 2))), jnp.float32(rng.normal(size=(2, *size, 2, 3)))
    unit = jnp.array([0, 0, 1, 1, 1])
    plan, sides = make_plan(unit, 2), [(padding, padding)] * 2

    def oracle(x, kernel):
        each = lambda row, own: jax.lax.conv_general_dilated(  # noqa: E731
            row[None], own, (strides, strides), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        return jnp.stack([each(row, kernel[j]) for row, j in zip(x, unit, strict=True)])

    routed = functools.partial(routed_conv, plan=plan, strides=strides, padding=padding, backend=backend)
    (expected, expected_pull), (output, pull) = (jax.vjp(side, x, kernel) for side in (oracle, routed))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.float32(rng.normal(size=expected.shape))
    for found, wanted in zip(pull(cotangent), expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_bfloat16_is_that_of_float32_rounded(backend, rng):
    x, dy = (jnp.bfloat16(rng.normal(size=(16, 6, 6, channels))) for channels in (4, 3))
    kernel, plan = jnp.bfloat16(rng.normal(size=(3, 3, 3, 4, 3))), make_plan(jnp.arange(16) // 6, 3)

    def passes(x, kernel, dy):
        y, pull = jax.vjp(lambda x, kernel: routed_conv(x, kernel, plan, backend=backend), x, kernel)
        return y, *pull(dy)

    wide = passes(*(value.astype(jnp.float32) for value in (x, kernel, dy)))
    for found, wanted in zip(jax.jit(passes)(x, kernel, dy), wide, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_bfloat16_accumulates_the_kernel_gradient_in_float32(backend):
    # 4,096 times 1 is past the 256 above which adding 1 to a bfloat16 changes nothing.
    x = jnp.ones((64, 8, 8, 1), jnp.bfloat16)
    plan = make_plan(jnp.zeros(64, jnp.int32), 2)
    run = lambda k: jnp.sum(routed_conv(x, k, plan, backend=backend).astype(jnp.float32))  # noqa: E731
    gradient = jax.grad(run)(jnp.ones((2, 1, 1, 1, 1), jnp.bfloat16))
    assert gradient.ravel().tolist() == [4096, 0]


def test_what_does_not_fit_is_refused(rng):
    x, plan = jnp.ones((4, 5, 5, 3)), make_plan(jnp.zeros(4, jnp.int32), 2)
    with pytest.raises(ValueError, match="unknown backend 'lop'"):
        routed_conv(x, jnp.ones((2, 1, 1, 3, 4)), plan, backend="lop")
    for shape in [(3, 1, 1, 3, 4), (2, 1, 1, 5, 4), (1, 1, 3, 4)]:
        with pytest.raises(ValueError, match="does not fit"):
            routed_conv(x, jnp.ones(shape), plan)
    with pytest.raises(ValueError, match="does not fit"):
        routed_conv(x, jnp.ones((2, 1, 1, 3, 4)), lay_out(plan, 25))
