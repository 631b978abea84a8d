"""The oracle of routed convolution: a loop over units, each through XLA's own convolution and autodiff."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.ops import routed_conv
from rmn_jax.routing.layout import sort_by_unit

UNITS, BATCH = 4, 43

LOADS = {
    "random": lambda rng: rng.integers(0, UNITS, BATCH),
    "two units without inputs": lambda rng: rng.choice([0, 3], BATCH),
    "one unit gets all": lambda rng: np.full(BATCH, 2),
    "units with one input": lambda rng: np.array([0, 1, 3] + [2] * (BATCH - 3)),
    "last unit has one": lambda rng: np.array([0] * (BATCH - 1) + [3]),
}


def plain_conv(x, kernel, strides):
    """XLA's convolution with PyTorch's padding: [B, H, W, C] with [kh, kw, C, O] -> [B, OH, OW, O]."""
    sides = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel, (strides, strides), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.cache
def _passes(size, strides, backend, case):
    """Output and both gradients of a backend, compiled once for all loads of a case."""

    def run(x, kernel, layout, cotangent):
        output, pull = jax.vjp(lambda x, k: routed_conv(x, k, layout, strides=strides, backend=backend), x, kernel)
        return output, *pull(cotangent)

    return jax.jit(run)


def check_all_passes(backend, size, strides, rng, case=""):
    """Compares output and gradients with the oracle, for all loads.

    Args:
      backend: name of a backend.
      size: of the kernel, in pixels.
      strides: in both directions.
      rng: draws inputs, kernels, loads and cotangents.
      case: what a test has changed. A program compiled for one case is not used for another.
    """
    x = jnp.float32(rng.normal(size=(BATCH, 7, 6, 3)))
    kernel = jnp.float32(rng.normal(size=(UNITS, size, size, 3, 5)))
    for name, load in LOADS.items():
        unit = np.sort(load(rng))
        layout = sort_by_unit(jnp.int32(unit), UNITS)
        oracle = functools.partial(plain_conv, strides=strides)
        shape = jax.eval_shape(oracle, x, kernel[0]).shape
        cotangent = jnp.float32(rng.normal(size=shape))
        output, dx, dkernel = _passes(size, strides, backend, case)(x, kernel, layout, cotangent)
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
