"""The Winograd form against the direct convolution, in the backend "loop" and by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from unit_oracle import check_all_passes, plain_conv

from rmn_jax.ops import loop, winograd


def test_all_passes_match_a_loop_over_units(rng, monkeypatch):
    monkeypatch.setattr(winograd, "_MANY_CHANNELS", 1)
    check_all_passes("loop", 3, 1, rng, "winograd")


def test_all_passes_match_in_tiles_of_two_lengths(rng, monkeypatch):
    monkeypatch.setattr(winograd, "_MANY_CHANNELS", 1)
    monkeypatch.setattr(loop, "_TWO_LENGTHS", 0)
    check_all_passes("loop", 3, 1, rng, "winograd, two lengths")


def test_it_rounds_nearly_like_the_direct_form(rng):
    x, kernel, dy = (rng.normal(size=size) for size in [(4, 8, 8, 64), (3, 3, 64, 64), (4, 8, 8, 64)])
    with jax.enable_x64(True):
        exact, pull = jax.vjp(functools.partial(plain_conv, strides=1), jnp.float64(x), jnp.float64(kernel))
        exact = [np.asarray(value) for value in (exact, *pull(jnp.float64(dy)))]
    x, kernel, dy = jnp.float32(x), jnp.float32(kernel), jnp.float32(dy)
    direct, pull = jax.vjp(functools.partial(plain_conv, strides=1), x, kernel)
    turned = winograd.combined_taps(kernel[::-1, ::-1])
    found = [
        winograd.convolve(x, winograd.combined_taps(kernel)),
        winograd.input_gradient(dy, turned),
        winograd.kernel_gradient(x, dy),
    ]
    for value, plain, wanted in zip(found, (direct, *pull(dy)), exact, strict=True):
        error, direct_error = (np.sqrt(np.mean((np.float64(side) - wanted) ** 2)) for side in (value, plain))
        assert error < 3 * direct_error
