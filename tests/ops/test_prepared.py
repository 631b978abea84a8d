"""Prepared kernels against the convolution written out: every output pixel as a sum over the kernel's window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.dispatch import make_plan
from rmn_jax.ops.conv import conv
from rmn_jax.ops.prepared import choose_form, prepare, prepared_conv
from rmn_jax.ops.window import Window


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


def computed(x, kernel, form, strides, padding, plan=None):
    window = Window.make(kernel.shape[-4], kernel.shape[-3], strides, padding)
    return jax.jit(lambda x, k: prepared_conv(x, prepare(k, form), form, window, plan))(x, kernel)


@pytest.mark.parametrize(
    ("form", "size", "kernel", "strides", "padding"),
    [
        ("minimal", (7, 7), (3, 3), 1, None),  # odd: the last pair of columns is half empty
        ("minimal", (4, 6), (3, 3), 1, None),
        ("minimal", (1, 1), (3, 3), 1, None),
        ("product", (7, 7), (3, 3), 1, None),
        ("product", (8, 5), (3, 3), 2, None),
        ("product", (5, 5), (1, 1), 1, None),
        ("product", (5, 6), (1, 1), 2, None),
        ("product", (9, 9), (5, 5), 2, 1),
        ("product", (4, 7), (1, 3), 1, 0),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_every_form_is_the_convolution(form, size, kernel, strides, padding, batch):
    x, k = draw(0, batch, *size, 3), draw(1, *kernel, 3, 4)
    expected = oracle(x, k, strides, kernel[0] // 2 if padding is None else padding)
    np.testing.assert_allclose(computed(x, k, form, strides, padding), expected, rtol=1e-5, atol=1e-5)


def test_the_minimal_form_rounds_as_the_direct_one_does():
    x, k = draw(0, 1, 14, 14, 256), draw(1, 3, 3, 256, 64)
    expected = oracle(x, k, 1, 1)
    direct = np.abs(jax.jit(conv)(x, k) - expected).max()
    for form in ("minimal", "product"):
        assert np.abs(computed(x, k, form, 1, None) - expected).max() < 3 * direct + 1e-5


@pytest.mark.parametrize("load", [[0, 1, 2] * 4, [1] * 12, [2] * 11 + [0], [0]])
def test_a_routed_batch_takes_each_rows_own_kernel(load):
    plan = make_plan(jnp.asarray(sorted(load), jnp.int32), 3)
    x, kernels = draw(0, len(load), 5, 5, 2), draw(1, 3, 3, 3, 2, 4)
    got = computed(x, kernels, "minimal", 1, None, plan)
    for row, unit in enumerate(sorted(load)):
        expected = oracle(x[row : row + 1], kernels[unit], 1, 1)[0]
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-5)


def test_forms_by_layer():
    three, strided, point = (Window.make(k, k, s, None) for k, s in ((3, 1), (3, 2), (1, 1)))
    assert choose_form((1, 56, 56, 64), three) == choose_form((64, 56, 56, 64), three) == "minimal"
    assert choose_form((1, 7, 7, 512), three) == choose_form((1, 14, 14, 256), strided) == "product"
    assert choose_form((64, 7, 7, 512), three) == "minimal"
    assert choose_form((1, 56, 56, 256), point) == "product" and choose_form((64, 56, 56, 256), point) == "direct"
    assert choose_form((1, 224, 224, 3), Window.make(7, 7, 2, None)) == "direct"
    assert choose_form((1, 224, 224, 3), three) == "direct"  # too few channels to spare products
    assert choose_form((1, 56, 56, 64), three, jnp.bfloat16) == "direct"
    assert choose_form((1, 56, 56, 64), Window.make(3, 3, 1, 0)) == "direct"  # unpadded


def test_accelerators_take_kernels_as_they_are(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_form((1, 56, 56, 64), Window.make(3, 3, 1, None)) == "direct"
    kernel = draw(0, 3, 3, 2, 4)
    assert prepare(kernel, "direct") is kernel


def test_what_it_cannot_compute_is_refused():
    x, plan = draw(0, 2, 4, 4, 2), make_plan(jnp.zeros(2, jnp.int32), 1)
    with pytest.raises(ValueError, match="direct"):
        prepared_conv(x, draw(1, 3, 3, 2, 4), "direct", Window.make(3, 3, 1, None))
    with pytest.raises(ValueError, match="routed batch"):
        prepared_conv(x, draw(1, 1, 4, 18), "product", Window.make(3, 3, 1, None), plan)
