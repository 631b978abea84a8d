"""Convolution with one kernel for each unit, exact for any load, with the arithmetic of the plain convolution.

``routed_conv`` applies to each row the kernel of its unit. Each backend has the three passes (output, input gradient,
kernel gradient), and here they are one ``custom_vjp``. ``conv`` is the plain layer through the same code, so that plain
and routed networks are compared on equal terms. ``rmn_jax.ops.choose`` says which backend runs where.

Axes: B batch, N units, H W height and width, C channels in, O channels out (see ``rmn_jax``).
"""

import functools
from typing import NamedTuple

import chex
import jax
import numpy as np

from rmn_jax.ops import loop
from rmn_jax.ops.choose import BACKENDS, backend_name, loop_beats_xla, slots_backend, wants_slots
from rmn_jax.ops.window import Window, convolve, input_gradient, subsampled
from rmn_jax.routing.layout import (
    Slots,
    Sorted,
    Tiles,
    already_sorted,
    assert_in_layout,
    make_slots,
    make_tiles,
    single_group,
    to_layout,
)


class _Static(NamedTuple):
    window: Window
    backend: str


def routed_conv(
    x: jax.Array,
    kernel: jax.Array,
    layout: Sorted | Tiles | Slots,
    *,
    strides: int = 1,
    padding: int | None = None,
    backend: str = "auto",
) -> jax.Array:
    """2-D convolution of each row with the kernel of its unit (eq. 5 for one layer).

    Args:
      x: [B, H, W, C] sorted by unit, [L, H, W, V, C] in tiles, or [H, W, R, C] in slots.
      kernel: [N, kh, kw, C, O], in x's dtype.
      layout: the stage's layout.
      strides: in both directions, in pixels.
      padding: zeros on every side, in pixels; None means ``kh // 2``, PyTorch's usual "same".
      backend: "auto" or a name in ``choose.BACKENDS``. By the layout of x:
        Sorted: the named backend; one for tiles or slots converts the layout for this layer alone.
        Tiles: "sliced" if named, else "tiles".
        Slots: "slots" if named, else the choice of ``choose.slots_backend``.

    Returns:
      [B, OH, OW, O], [L, OH, OW, V, O] or [OH, OW, R, O], in the layout of x.

    Raises:
      ValueError: unknown backend, or shapes that do not fit.
    """
    name, backend = backend, backend_name(backend, x.dtype)
    if isinstance(layout, Tiles) and backend != "sliced":
        backend = "tiles"
    check_routed(x, kernel, layout, (x.shape[-1], None))
    window = Window.make(kernel.shape[1], kernel.shape[2], strides, padding)
    if backend in ("tiles", "sliced") and isinstance(layout, Sorted):
        tiles = make_tiles(already_sorted(layout), x.shape[1] * x.shape[2])
        y = routed_conv(to_layout(x, None, tiles), kernel, tiles, strides=strides, padding=padding, backend=backend)
        return to_layout(y, tiles, None)
    if wants_slots(backend) and isinstance(layout, Sorted):
        slots = make_slots(already_sorted(layout))
        y = routed_conv(to_layout(x, None, slots), kernel, slots, strides=strides, padding=padding, backend=name)
        return to_layout(y, slots, None)
    if isinstance(layout, Slots):
        one, window = subsampled(x[None], window)
        x, backend = one[0], slots_backend(name, one.shape[1:], kernel.shape, window, x.dtype)
    else:
        x, window = subsampled(x, window)
    return _routed(_Static(window, backend), x, kernel, layout)


def check_routed(
    x: jax.Array, kernel: jax.Array, layout: Sorted | Tiles | Slots, channels: tuple[int | None, int | None]
) -> None:
    """Raises ValueError unless x is in ``layout`` and the kernel is [N, kh, kw, *channels] (None: any size)."""
    wanted = (layout.num_units, None, None, *channels)
    try:
        assert_in_layout(x, layout)
        chex.assert_shape(kernel, wanted)
    except AssertionError:
        raise ValueError(
            f"kernel {kernel.shape} does not fit x {x.shape} and {layout.num_units} units; "
            "want [N, kh, kw, C, O], or [N, kh, kw, 1, C] if depthwise, and x in the layout"
        ) from None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _routed(static, x, kernel, layout):
    return BACKENDS[static.backend].forward(x, kernel, layout, static.window)


def _routed_forward(static, x, kernel, layout):
    return _routed(static, x, kernel, layout), (x, kernel, layout)


def _routed_backward(static, residuals, cotangent):
    x, kernel, layout = residuals
    backend = BACKENDS[static.backend]
    dx = backend.input_gradient(cotangent, kernel, layout, static.window, x.shape)
    dkernel = backend.kernel_gradient(x, cotangent, layout, static.window, kernel.shape)
    no_gradient = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), layout)
    return dx, dkernel.astype(kernel.dtype), no_gradient


_routed.defvjp(_routed_forward, _routed_backward)


def conv(x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int | None = None) -> jax.Array:
    """The plain 2-D convolution, in the fastest known form of the platform.

    Under differentiation on CPU its passes go tile by tile, as the routed ones do, wherever that is faster. Otherwise
    it is XLA's own convolution (for 1x1 a matrix product), gradients included.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, C, O], in x's dtype.
      strides: as in ``routed_conv``.
      padding: as in ``routed_conv``.

    Returns:
      [B, OH, OW, O].

    Raises:
      AssertionError: shapes that do not fit.
    """
    chex.assert_rank(x, 4)
    chex.assert_shape(kernel, (None, None, x.shape[-1], None))
    window = Window.make(kernel.shape[0], kernel.shape[1], strides, padding)
    if jax.default_backend() != "cpu":
        return convolve(x, kernel, window)
    x, window = subsampled(x, window)
    return _plain(window, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _plain(window, x, kernel):
    return convolve(x, kernel, window)


def _plain_forward(window, x, kernel):
    if not loop_beats_xla(x, window):
        return _plain(window, x, kernel), (x, kernel)
    return loop.forward(x, kernel[None], single_group(x.shape[0]), window), (x, kernel)


def _plain_backward(window, residuals, cotangent):
    x, kernel = residuals
    group = single_group(x.shape[0])
    if loop_beats_xla(cotangent, window):
        dx = loop.input_gradient(cotangent, kernel[None], group, window, x.shape)
    else:
        dx = input_gradient(cotangent, kernel, window, x.shape)
    dkernel = loop.kernel_gradient(x, cotangent, group, window, (1, *kernel.shape))
    return dx, dkernel[0].astype(kernel.dtype)


_plain.defvjp(_plain_forward, _plain_backward)
