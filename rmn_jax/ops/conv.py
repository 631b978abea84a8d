"""Convolution with one kernel a unit, exact for any load, at the plain convolution's arithmetic.

``routed_conv`` takes a batch sorted by unit and applies to each row its own unit's kernel. The three
passes (output, input gradient, kernel gradient) are written out per backend under one ``custom_vjp``;
``conv`` is the plain layer through the same machinery, so that plain and routed networks are compared on
equal terms. Axes: B inputs, N units, H W, C channels in, O channels out (see ``rmn_jax``).

Backends, chosen by platform and overridable by name:

    loop    nested loops over units and tiles of their rows, dynamic trip counts (CPU)
    tiles   one grouped convolution a pass over a static number of tiles, in which a whole stage is laid out (GPU)
    visits  one loop over as many tiles, never waiting for the host (TPU)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.dispatch import RoutePlan, Tiles, arrange, lay_out
from rmn_jax.ops import loop, tiles, visits
from rmn_jax.ops.window import Window, convolve, input_gradient, subsampled

# Channels from which XLA:CPU's own convolution is the slower one.
_MANY_CHANNELS = 32

BACKENDS = {"loop": loop, "visits": visits, "tiles": tiles}


class _Static(NamedTuple):
    window: Window
    backend: str


def default_backend() -> str:
    """The routed backend for the platform that JAX runs on."""
    return {"cpu": "loop", "gpu": "tiles"}.get(jax.default_backend(), "visits")


def routed_conv(
    x: jax.Array,
    kernel: jax.Array,
    plan: RoutePlan | Tiles,
    *,
    strides: int = 1,
    padding: int | None = None,
    backend: str = "auto",
) -> jax.Array:
    """2-D convolution of each row with its own unit's kernel (eq. 5 for one layer).

    Args:
      x: [B, H, W, C], sorted by ``plan``, or [L, H, W, V, C], laid out by it (see ``rmn_jax.dispatch``).
      kernel: [N, kh, kw, C, O], of x's dtype.
      plan: the stage's route plan, or tiles.
      strides: step in both directions, in pixels.
      padding: zeros on every side; None means ``kh // 2``, PyTorch's usual "same".
      backend: "auto" or a name in ``BACKENDS``, for a sorted batch; one in tiles has its own. With "tiles" a sorted
        batch is laid out for this layer alone.

    Returns:
      [B, OH, OW, O] or [L, OH, OW, V, O], arranged as x.

    Raises:
      ValueError: unknown backend, or shapes that do not fit.
    """
    backend = default_backend() if backend == "auto" else backend
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; one of {sorted(BACKENDS)}")
    arranged = x.ndim == (5 if isinstance(plan, Tiles) else 4)
    if not arranged or kernel.ndim != 5 or kernel.shape[3] != x.shape[-1] or kernel.shape[0] != plan.num_units:
        raise ValueError(
            f"kernel {kernel.shape} does not fit x {x.shape} and {plan.num_units} units; want [N, kh, kw, C, O]"
        )
    window = Window.make(kernel.shape[1], kernel.shape[2], strides, padding)
    if isinstance(plan, Tiles):
        x, window = subsampled(x, window)
        return _routed(_Static(window, "tiles"), x, kernel, plan)
    if backend == "tiles":
        laid_out = lay_out(sorted_plan(plan), x.shape[1] * x.shape[2])
        y = routed_conv(arrange(x, None, laid_out), kernel, laid_out, strides=strides, padding=padding)
        return arrange(y, laid_out, None)
    x, window = subsampled(x, window)
    return _routed(_Static(window, backend), x, kernel, plan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _routed(static, x, kernel, plan):
    return BACKENDS[static.backend].forward(x, kernel, plan, static.window)


def _routed_forward(static, x, kernel, plan):
    return _routed(static, x, kernel, plan), (x, kernel, plan)


def _routed_backward(static, residuals, cotangent):
    x, kernel, plan = residuals
    backend = BACKENDS[static.backend]
    dx = backend.input_gradient(cotangent, kernel, plan, static.window, x.shape)
    dkernel = backend.kernel_gradient(x, cotangent, plan, static.window, kernel.shape)
    no_gradient = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), plan)
    return dx, dkernel.astype(kernel.dtype), no_gradient


_routed.defvjp(_routed_forward, _routed_backward)


def conv(x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int | None = None) -> jax.Array:
    """The plain 2-D convolution, in the fastest form we know on the platform.

    On CPU, in training, the passes go tile by tile as the routed ones do, the 3x3 of stride 1 in the minimal form,
    wherever that is faster: nearly everywhere but in layers of few channels. In inference (which has
    ``rmn_jax.ops.prepared``), and on other platforms, gradients included, this is ``lax.conv_general_dilated``.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, C, O], of x's dtype.
      strides: as in ``routed_conv``.
      padding: as in ``routed_conv``.

    Returns:
      [B, OH, OW, O].
    """
    window = Window.make(kernel.shape[0], kernel.shape[1], strides, padding)
    if jax.default_backend() != "cpu":
        return convolve(x, kernel, window)
    x, window = subsampled(x, window)
    return _plain(window, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _plain(window, x, kernel):
    return convolve(x, kernel, window)


def _plain_forward(window, x, kernel):
    if not _tiled(x, window):
        return _plain(window, x, kernel), (x, kernel)
    return loop.forward(x, kernel[None], one_group(x.shape[0]), window), (x, kernel)


def _plain_backward(window, residuals, cotangent):
    x, kernel = residuals
    group = one_group(x.shape[0])
    if _tiled(cotangent, window):
        dx = loop.input_gradient(cotangent, kernel[None], group, window, x.shape)
    else:
        dx = input_gradient(cotangent, kernel, window, x.shape)
    dkernel = loop.kernel_gradient(x, cotangent, group, window, (1, *kernel.shape))
    return dx, dkernel[0].astype(kernel.dtype)


def _tiled(rows: jax.Array, window: Window) -> bool:
    """Whether tiles beat XLA's own convolution of these rows, as measured: unless they have few channels."""
    return not window.pointwise and rows.shape[-1] >= _MANY_CHANNELS


def sorted_plan(plan: RoutePlan) -> RoutePlan:
    """The plan of a batch that ``plan`` has sorted already."""
    rows = jnp.arange(plan.unit.shape[0], dtype=jnp.int32)
    return plan._replace(order=rows, inverse=rows)


def one_group(batch: int) -> RoutePlan:
    """The plan of a batch that all goes to one unit."""
    rows = jnp.arange(batch, dtype=jnp.int32)
    return RoutePlan(
        unit=jnp.zeros_like(rows),
        order=rows,
        inverse=rows,
        sizes=jnp.array([batch], jnp.int32),
        offsets=jnp.zeros(1, jnp.int32),
    )


_plain.defvjp(_plain_forward, _plain_backward)
