"""Which code computes a convolution, by platform.

| | CPU | GPU | TPU and others |
|---|---|---|---|
| routed convolution | ``loop`` | ``tiles``; on Hopper, in bfloat16, ``mosaic`` once it is measured | ``scan`` |
| plain convolution, 3x3 and larger | ``loop``; XLA's own with few channels | XLA's own | XLA's own |
| plain convolution, 1x1 | XLA's own; its kernel gradient ``loop`` | XLA's own | XLA's own |
| depthwise convolution | shifted products | XLA's own | XLA's own; sorted: shifted products |
| inference | folded: ``im2col`` or ``winograd``; or as above | as above | as above |

``loop`` itself chooses the algorithm of a tile, by ``winograd.fits`` and the size of the map.

A backend is a module with three functions, ``forward``, ``input_gradient`` and ``kernel_gradient``. ``loop`` and
``scan`` take a batch sorted by unit, ``tiles`` and ``sliced`` take tiles, ``slots`` and ``mosaic`` take slots
(``rmn_jax.routing.layout``). All are exact for any load.

A stage has one layout for all its layers. ``config.model.backend`` names it and its code, on any platform:

- "mosaic": layout ``Slots``, our kernels for Hopper where they fit, else as "slots" (``slots_backend``, by layer).
- "slots": layout ``Slots``, XLA's grouped convolution.
- "tiles": layout ``Tiles``, XLA's grouped convolution. "sliced" is the same in groups of at most 128 channels.
- "loop", "scan": layout ``Sorted``.

Hopper GPUs keep ``tiles`` until the kernels of ``mosaic`` have been measured: they have run in JAX's interpreter and
have been lowered for CUDA, and have never run on a GPU. ``python -m benchmarks.gpu kernels --apply=LINES`` decides: it
writes ``mosaic_blocks.FASTER_THAN_TILES``.
"""

import jax
import jax.numpy as jnp

from rmn_jax.ops import loop, mosaic, mosaic_blocks, scan, sliced, slots, tiles
from rmn_jax.ops.window import Window

BACKENDS = {"loop": loop, "scan": scan, "tiles": tiles, "sliced": sliced, "slots": slots, "mosaic": mosaic}
# Names of earlier releases, for stored configurations.
RENAMED_BACKENDS = {"visits": "scan"}
_BY_PLATFORM = {"cpu": "loop", "gpu": "tiles"}

# From this many channels on, XLA:CPU's own convolution is slower in training, as measured.
_MANY_CHANNELS = 32
# At most this many output pixels, by stride: one input's 3x3 convolution is then faster as one product, as measured.
_FEW_PIXELS = {1: 64, 2: 256}
# From this many input channels on, the sums of the Winograd form cost little beside its products.
_WINOGRAD_CHANNELS = 16


def backend_name(name: str = "auto", dtype=jnp.float32) -> str:
    """The backend of routed convolutions: ``name``, or for "auto" the one of the platform that JAX runs on.

    Args:
      name: "auto" or a name in ``BACKENDS``.
      dtype: of the convolutions: the kernels of ``mosaic`` are for bfloat16.

    Raises:
      ValueError: unknown name.
    """
    if name == "auto":
        if mosaic_blocks.FASTER_THAN_TILES and dtype == jnp.bfloat16 and kernels_run_here():
            return "mosaic"
        return _BY_PLATFORM.get(jax.default_backend(), "scan")
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; one of {sorted(BACKENDS)}")
    return name


def wants_tiles(name: str, folded: bool = False, dtype=jnp.float32) -> bool:
    """Whether a stage lays its batch out in tiles, for a backend, folded weights or not, and compute type."""
    # The folded forms are for CPU and take sorted rows.
    return backend_name(name, dtype) in ("tiles", "sliced") and not (folded and jax.default_backend() == "cpu")


def wants_slots(name: str, folded: bool = False, dtype=jnp.float32) -> bool:
    """Whether a stage lays its batch out in slots, for a backend, folded weights or not, and compute type."""
    return backend_name(name, dtype) in ("slots", "mosaic") and not (folded and jax.default_backend() == "cpu")


def slots_backend(name: str, shape: tuple[int, ...], kernel_shape: tuple[int, ...], window: Window, dtype) -> str:
    """The backend of one layer on a map in slots: "mosaic" where its kernels run and fit, else "slots".

    Args:
      name: the backend that the caller names. "slots" is obeyed; every other name leaves the choice.
      shape: of the input, [H, W, R, C].
      kernel_shape: [N, kh, kw, C, O].
      window: of the convolution.
      dtype: of input and kernel.
    """
    if name == "slots" or not kernels_run_here():
        return "slots"
    return "mosaic" if mosaic.fits(shape, kernel_shape, window, dtype) else "slots"


def kernels_run_here() -> bool:
    """Whether the kernels of ``mosaic`` run on the first device: a Hopper GPU, with a JAX that has Mosaic GPU."""
    if jax.default_backend() != "gpu" or not mosaic.available():
        return False
    return getattr(jax.devices()[0], "compute_capability", None) == "9.0"


def loop_beats_xla(rows: jax.Array, window: Window) -> bool:
    """Whether, on CPU, ``loop`` is faster than XLA's own plain convolution of these rows [B, H, W, C], as measured."""
    return not window.pointwise and rows.shape[-1] >= _MANY_CHANNELS


def folded_form(shape: tuple[int, ...], window: Window, dtype=jnp.float32) -> str:
    """The fastest known form of a convolution in inference (see ``rmn_jax.ops.fold``).

    Args:
      shape: of the input, [B, H, W, C]; off the CPU also [L, H, W, V, C].
      window: of the convolution.
      dtype: of input and kernel. Only float32 has other forms than "direct".

    Returns:
      One of ``rmn_jax.ops.fold.FORMS``.
    """
    if jax.default_backend() != "cpu" or dtype != jnp.float32:
        return "direct"
    batch, height, width, channels = shape
    square = (window.height, window.width, window.padding) == (3, 3, ((1, 1), (1, 1)))
    pixels = -(-height // window.strides) * -(-width // window.strides)
    if batch == 1 and (window.height == window.width == 1 or (square and pixels <= _FEW_PIXELS.get(window.strides, 0))):
        return "im2col"
    if square and window.strides == 1 and channels >= _WINOGRAD_CHANNELS:
        return "winograd"
    return "direct"
