"""Depthwise convolution against a loop over rows, pixels and taps, for output and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax import dispatch
from rmn_jax.dispatch import arrange, lay_out, make_plan
from rmn_jax.ops import depthwise, routed_depthwise


def oracle(x, kernels, dy, strides, padding):
    """x [B, H, W, C], kernels [B, kh, kw, C] (each row's own), dy [B, OH, OW, C] -> y, dx, dkernels."""
    x, kernels, dy = (np.asarray(a, np.float64) for a in (x, kernels, dy))
    y, dx, dkernels = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(kernels.shape)
    for b, h, w in np.ndindex(dy.shape[:3]):
        for i, j in np.ndindex(kernels.shape[1:3]):
            row, column = h * strides + i - padding, w * strides + j - padding
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                y[b, h, w] += x[b, row, column] * kernels[b, i, j]
                dx[b, row, column] += dy[b, h, w] * kernels[b, i, j]
                dkernels[b, i, j] += dy[b, h, w] * x[b, row, column]
    return y, dx, dkernels


def run(function, x, kernel, dy):
    """y, dx and dkernel, compiled as one."""

    def passes(x, kernel, dy):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(dy)

    return jax.jit(passes)(x, kernel, dy)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


# (kernel size, strides, padding, height and width, output height and width)
CASES = [
    (3, 1, None, (5, 4), (5, 4)),
    (3, 2, None, (5, 6), (3, 3)),
    (5, 1, None, (4, 4), (4, 4)),
    (5, 2, None, (7, 2), (4, 1)),
    (3, 2, 0, (6, 5), (2, 2)),
]


@pytest.mark.parametrize(("size", "strides", "padding", "height_width", "out"), [CASES[1], CASES[4]])
def test_plain_output_and_gradients(size, strides, padding, height_width, out):
    x, kernel, dy = draw(3, *height_width, 2), draw(size, size, 1, 2), draw(3, *out, 2)
    y, dx, dkernel = run(lambda x, k: depthwise(x, k, strides=strides, padding=padding), x, kernel, dy)
    shared = np.broadcast_to(np.asarray(kernel)[None, :, :, 0], (3, size, size, 2))
    want_y, want_dx, want_dkernels = oracle(x, shared, dy, strides, size // 2 if padding is None else padding)
    np.testing.assert_allclose(y, want_y, atol=1e-5)
    np.testing.assert_allclose(dx, want_dx, atol=1e-5)
    np.testing.assert_allclose(dkernel[:, :, 0], want_dkernels.sum(0), atol=1e-5)


UNEVEN, ALL_TO_ONE = [0, 2, 2, 3, 3], [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("size", "strides", "padding", "height_width", "out", "units"),
    [*((*case, UNEVEN) for case in CASES), (*CASES[1], ALL_TO_ONE)],
)
@pytest.mark.parametrize("arrangement", ["sorted", "tiles"])
def test_routed_output_and_gradients(size, strides, padding, height_width, out, units, arrangement, monkeypatch):
    monkeypatch.setattr(dispatch, "places_to_a_tile", lambda *_: 2)
    plan = make_plan(jnp.asarray(units), 4)
    plan = lay_out(plan, 1) if arrangement == "tiles" else plan
    x, kernel, dy = draw(5, *height_width, 2), draw(4, size, size, 1, 2), draw(5, *out, 2)

    def layer(x, kernel):
        y = routed_depthwise(arrange(x, None, plan), kernel, plan, strides=strides, padding=padding)
        return arrange(y, plan, None)

    y, dx, dkernel = run(layer, x, kernel, dy)
    own = np.asarray(kernel)[units, :, :, 0]
    want_y, want_dx, want_rows = oracle(x, own, dy, strides, size // 2 if padding is None else padding)
    want_dkernel = np.zeros((4, size, size, 2))
    np.add.at(want_dkernel, units, want_rows)  # a unit without rows keeps a gradient of 0
    np.testing.assert_allclose(y, want_y, atol=1e-5)
    np.testing.assert_allclose(dx, want_dx, atol=1e-5)
    np.testing.assert_allclose(dkernel[:, :, :, 0], want_dkernel, atol=1e-5)


def test_agrees_with_the_grouped_convolution_of_the_library():
    x, kernel = draw(2, 9, 8, 6), draw(5, 5, 1, 6)
    want = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((2, 2), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
    )
    np.testing.assert_allclose(jax.jit(lambda x, k: depthwise(x, k, strides=2))(x, kernel), want, atol=1e-5)


def routed(plan):
    def layer(x, kernel):
        y = routed_depthwise(arrange(x, None, plan), kernel, plan, strides=2)
        return arrange(y, plan, None)

    return layer


@pytest.mark.parametrize("kind", ["plain", "sorted", "tiles"])
def test_forms_of_other_platforms_give_the_same(kind, monkeypatch):
    monkeypatch.setattr(dispatch, "places_to_a_tile", lambda *_: 2)
    plan = make_plan(jnp.array([1, 0, 1]), 2)
    layer = {
        "plain": lambda x, kernel: depthwise(x, kernel[0], strides=2),
        "sorted": routed(plan),
        "tiles": routed(lay_out(plan, 1)),
    }[kind]
    x, kernel, dy = draw(3, 6, 7, 2), draw(2, 3, 3, 1, 2), draw(3, 3, 4, 2)
    here = run(layer, x, kernel, dy)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for found, wanted in zip(run(layer, x, kernel, dy), here, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_bfloat16_sums_in_float32():
    # 25 taps of 1 + 1/128: the sum 25.195 rounds once, to 25.25; rounded after each tap it ends at 25.125.
    x, kernel = jnp.full((1, 5, 5, 1), 1.0078125, jnp.bfloat16), jnp.ones((5, 5, 1, 1), jnp.bfloat16)
    y = depthwise(x, kernel, padding=0)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0, 0]) == 25.25


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"want \[kh, kw, 1, C\]"):
        depthwise(draw(1, 4, 4, 3), draw(3, 3, 1, 2))
    with pytest.raises(ValueError, match="2 units"):
        routed_depthwise(draw(1, 4, 4, 3), draw(3, 3, 3, 1, 3), make_plan(jnp.zeros(1, jnp.int32), 2))
