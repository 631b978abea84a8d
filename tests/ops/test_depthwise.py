"""Depthwise convolution against a loop over rows, pixels and taps, for output and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.ops import depthwise, routed_depthwise
from rmn_jax.routing.layout import make_tiles, sort_by_unit, to_layout


def oracle(x, kernels, dy, strides, padding):
    """x [B, H, W, C], kernels [B, kh, kw, C] (one for each row), dy [B, OH, OW, C] -> y, dx, dkernels."""
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


UNEVEN, ONE_UNIT = [0, 2, 2, 3, 3], [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("size", "strides", "padding", "height_width", "out", "units"),
    [*((*case, UNEVEN) for case in CASES), (*CASES[1], ONE_UNIT)],
)
@pytest.mark.parametrize("kind", ["sorted", "tiles"])
def test_routed_output_and_gradients(size, strides, padding, height_width, out, units, kind, monkeypatch):
    monkeypatch.setattr("rmn_jax.routing.layout.slots_per_tile", lambda *_: 2)
    layout = sort_by_unit(jnp.asarray(units), 4)
    layout = make_tiles(layout, 1) if kind == "tiles" else layout
    x, kernel, dy = draw(5, *height_width, 2), draw(4, size, size, 1, 2), draw(5, *out, 2)

    def layer(x, kernel):
        y = routed_depthwise(to_layout(x, None, layout), kernel, layout, strides=strides, padding=padding)
        return to_layout(y, layout, None)

    y, dx, dkernel = run(layer, x, kernel, dy)
    kernels = np.asarray(kernel)[units, :, :, 0]
    want_y, want_dx, want_rows = oracle(x, kernels, dy, strides, size // 2 if padding is None else padding)
    want_dkernel = np.zeros((4, size, size, 2))
    np.add.at(want_dkernel, units, want_rows)  # a unit without rows has a gradient of 0
    np.testing.assert_allclose(y, want_y, atol=1e-5)
    np.testing.assert_allclose(dx, want_dx, atol=1e-5)
    np.testing.assert_allclose(dkernel[:, :, :, 0], want_dkernel, atol=1e-5)


def test_agrees_with_the_grouped_convolution_of_xla():
    x, kernel = draw(2, 9, 8, 6), draw(5, 5, 1, 6)
    want = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((2, 2), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
    )
    np.testing.assert_allclose(jax.jit(lambda x, k: depthwise(x, k, strides=2))(x, kernel), want, atol=1e-5)


def routed(layout):
    def layer(x, kernel):
        y = routed_depthwise(to_layout(x, None, layout), kernel, layout, strides=2)
        return to_layout(y, layout, None)

    return layer


@pytest.mark.parametrize("kind", ["plain", "sorted", "tiles"])
def test_the_form_of_other_platforms_computes_the_same(kind, monkeypatch):
    monkeypatch.setattr("rmn_jax.routing.layout.slots_per_tile", lambda *_: 2)
    layout = sort_by_unit(jnp.array([1, 0, 1]), 2)
    layer = {
        "plain": lambda x, kernel: depthwise(x, kernel[0], strides=2),
        "sorted": routed(layout),
        "tiles": routed(make_tiles(layout, 1)),
    }[kind]
    x, kernel, dy = draw(3, 6, 7, 2), draw(2, 3, 3, 1, 2), draw(3, 3, 4, 2)
    on_cpu = run(layer, x, kernel, dy)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for found, wanted in zip(run(layer, x, kernel, dy), on_cpu, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_bfloat16_sums_in_float32():
    # 25 taps of 1 + 1/128 sum to 25.195. Rounded once, that is 25.25; rounded after each tap it would be 25.125.
    x, kernel = jnp.full((1, 5, 5, 1), 1.0078125, jnp.bfloat16), jnp.ones((5, 5, 1, 1), jnp.bfloat16)
    y = depthwise(x, kernel, padding=0)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0, 0]) == 25.25


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"want \[kh, kw, 1, C\]"):
        depthwise(draw(1, 4, 4, 3), draw(3, 3, 1, 2))
    with pytest.raises(ValueError, match="2 units"):
        routed_depthwise(draw(1, 4, 4, 3), draw(3, 3, 3, 1, 3), sort_by_unit(jnp.zeros(1, jnp.int32), 2))
