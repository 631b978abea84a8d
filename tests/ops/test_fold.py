"""Folded kernels against the definition of convolution: each output pixel is a sum over the kernel's window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.ops import Window, conv, fold_kernel, folded_conv
from rmn_jax.routing.layout import sort_by_unit


def oracle(x, kernel, strides, padding):
    """float64, pixel by pixel."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    height, width = kernel.shape[:2]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = (padded.shape[1] - height) // strides + 1
    columns = (padded.shape[2] - width) // strides + 1
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            window = padded[:, r * strides : r * strides + height, c * strides : c * strides + width]
            out[:, r, c] = np.einsum("bijc,ijco->bo", window, kernel)
    return out


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def computed(x, kernel, form, strides, padding, layout=None):
    window = Window.make(kernel.shape[-4], kernel.shape[-3], strides, padding)
    return jax.jit(lambda x, k: folded_conv(x, fold_kernel(k, form), form, window, layout))(x, kernel)


@pytest.mark.parametrize(
    ("form", "size", "kernel", "strides", "padding"),
    [
        ("winograd", (7, 7), (3, 3), 1, None),  # odd: the last pair of columns is half empty
        ("winograd", (4, 6), (3, 3), 1, None),
        ("winograd", (1, 1), (3, 3), 1, None),
        ("im2col", (7, 7), (3, 3), 1, None),
        ("im2col", (8, 5), (3, 3), 2, None),
        ("im2col", (5, 5), (1, 1), 1, None),
        ("im2col", (5, 6), (1, 1), 2, None),
        ("im2col", (9, 9), (5, 5), 2, 1),
        ("im2col", (4, 7), (1, 3), 1, 0),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_every_form_computes_the_convolution(form, size, kernel, strides, padding, batch):
    x, k = draw(0, batch, *size, 3), draw(1, *kernel, 3, 4)
    expected = oracle(x, k, strides, kernel[0] // 2 if padding is None else padding)
    np.testing.assert_allclose(computed(x, k, form, strides, padding), expected, rtol=1e-5, atol=1e-5)


def test_all_forms_round_nearly_like_the_direct_one():
    x, k = draw(0, 1, 14, 14, 256), draw(1, 3, 3, 256, 64)
    expected = oracle(x, k, 1, 1)
    direct = np.abs(jax.jit(conv)(x, k) - expected).max()
    for form in ("winograd", "im2col"):
        assert np.abs(computed(x, k, form, 1, None) - expected).max() < 3 * direct + 1e-5


@pytest.mark.parametrize("load", [[0, 1, 2] * 4, [1] * 12, [2] * 11 + [0], [0]])
def test_a_routed_batch_uses_for_each_row_the_kernel_of_its_unit(load):
    layout = sort_by_unit(jnp.asarray(sorted(load), jnp.int32), 3)
    x, kernels = draw(0, len(load), 5, 5, 2), draw(1, 3, 3, 3, 2, 4)
    found = computed(x, kernels, "winograd", 1, None, layout)
    for row, unit in enumerate(sorted(load)):
        expected = oracle(x[row : row + 1], kernels[unit], 1, 1)[0]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)


def test_the_direct_form_is_the_kernel_unchanged():
    kernel = draw(0, 3, 3, 2, 4)
    assert fold_kernel(kernel, "direct") is kernel


def test_a_routed_batch_of_one_uses_the_kernel_of_its_unit_in_every_form():
    x, kernels, layout = draw(0, 1, 5, 5, 2), draw(1, 3, 3, 3, 2, 4), sort_by_unit(jnp.array([2]), 3)
    for form in ("im2col", "winograd"):
        found = computed(x, kernels, form, 1, None, layout)
        np.testing.assert_allclose(found, oracle(x, kernels[2], 1, 1), rtol=1e-5, atol=1e-5)


def test_forms_and_shapes_that_it_cannot_compute_are_refused():
    x, layout = draw(0, 2, 4, 4, 2), sort_by_unit(jnp.zeros(2, jnp.int32), 1)
    with pytest.raises(ValueError, match="direct"):
        folded_conv(x, draw(1, 3, 3, 2, 4), "direct", Window.make(3, 3, 1, None))
    with pytest.raises(ValueError, match="routed batch"):
        folded_conv(x, draw(1, 1, 4, 18), "im2col", Window.make(3, 3, 1, None), layout)
    with pytest.raises(AssertionError, match="assert_rank"):
        folded_conv(draw(0, 2, 4, 4, 1, 2), draw(1, 4, 2, 12), "winograd", Window.make(3, 3, 1, None))
