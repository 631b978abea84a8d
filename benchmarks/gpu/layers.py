"""The layers of a network by shape, and the least work of each.

    least time = max(operations / peak operations a second, bytes / bandwidth)

No implementation is faster, so the ratio of measured to least time says how much could be gained.

Axes: B batch, N units, H W height and width, C channels in, O channels out (see ``rmn_jax``).
"""

import math
from collections import Counter
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax.models import RMN, Backbone
from rmn_jax.models.layers import RoutedConv, RoutedDepthwise

PASSES = ("fwd", "dgrad", "wgrad")  # output, input gradient, kernel gradient


class Layer(NamedTuple):
    """Shapes of a convolution. A linear layer counts as a 1x1 convolution on one pixel.

    Attributes:
      size: H and W of its input.
      channels: C.
      features: O.
      kernel: kh and kw.
      strides: in both directions.
      routed: whether it has a kernel for each unit.
      depthwise: whether it has C groups.
      stage_size: H and W of the input of its stage, which sets the length of tiles; 0 means ``size``.
    """

    size: int
    channels: int
    features: int
    kernel: int
    strides: int
    routed: bool
    depthwise: bool = False
    stage_size: int = 0

    @property
    def name(self) -> str:
        """As in "3x3/2 64-128 @64": kernel, strides, channels in and out, and ``size``."""
        kind = "dw " if self.depthwise else ""
        stem = "" if self.routed else " (not routed)"
        window = f"{self.kernel}x{self.kernel}/{self.strides}"
        return f"{kind}{window} {self.channels}-{self.features} @{self.size}{stem}"

    @property
    def out_size(self) -> int:
        """OH and OW, with the usual padding of half the kernel."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.strides + 1

    def kernel_shape(self) -> tuple[int, int, int, int]:
        """[kh, kw, C, O]; of a depthwise layer [kh, kw, 1, C]."""
        inputs = 1 if self.depthwise else self.channels
        return self.kernel, self.kernel, inputs, self.features


def layers_of(backbone: Backbone, image_size: int) -> Counter[Layer]:
    """Every distinct layer of a network, in order of first use, and how often it occurs."""
    found: Counter[Layer] = Counter()
    stage_sizes: dict[str, int] = {}  # by the name of the part of the backbone

    def note(next_call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and isinstance(module, RoutedConv | RoutedDepthwise | nn.Dense):
            shape = args[0].shape
            stage_size = stage_sizes.setdefault(module.path[0], 1 if isinstance(module, nn.Dense) else shape[1])
            found[_layer(module, shape, stage_size)] += 1
        return next_call(*args, **kwargs)

    def initialise():
        images = jnp.zeros((1, image_size, image_size, 3))
        with nn.intercept_methods(note):
            return RMN(backbone, routed=False).init(jax.random.key(0), images)

    jax.eval_shape(initialise)
    return found


def _layer(module: nn.Module, shape: tuple[int, ...], stage_size: int) -> Layer:
    routed = module.path[0].startswith("stage")
    if isinstance(module, nn.Dense):
        return Layer(1, shape[-1], module.features, 1, 1, routed, stage_size=stage_size)
    assert module.padding is None and shape[1] == shape[2], (module.path, shape)
    depthwise = isinstance(module, RoutedDepthwise)
    features = shape[-1] if depthwise else module.features
    return Layer(shape[1], shape[-1], features, module.kernel_size[0], module.strides, routed, depthwise, stage_size)


class Work(NamedTuple):
    """Least work of a pass: ``operations`` (a multiply-add is two) and ``bytes`` to and from the device's memory."""

    operations: float
    bytes: float

    def least_seconds(self, chip: "Chip") -> float:
        """The larger of the times for operations and for bytes."""
        return max(self.operations / chip.operations, self.bytes / chip.bandwidth)


def work(layer: Layer, which: str, batch: int, num_units: int | None, width: int = 2) -> Work:
    """The least work of one pass for a batch: each input is read once, each output is written once.

    Args:
      layer: its shapes.
      which: a name in ``PASSES``.
      batch: B.
      num_units: N; the kernels of all units are read, or their gradients written. None is the plain network.
      width: bytes for each value.
    """
    pixels = layer.out_size**2
    kernel = math.prod(layer.kernel_shape())
    operations = 2.0 * batch * pixels * kernel
    # A strided 1x1 layer reads only the pixels that it uses; its input gradient covers all pixels.
    used = pixels if layer.kernel == 1 and which != "dgrad" else layer.size**2
    kernels = kernel * (num_units if num_units and layer.routed else 1)
    values = batch * (used * layer.channels + pixels * layer.features) + kernels
    return Work(operations, float(values * width))


class Chip(NamedTuple):
    """Figures of the vendor: dense bfloat16 ``operations`` a second, ``bandwidth`` in bytes a second."""

    operations: float
    bandwidth: float


CHIPS = {  # by the name that the driver gives
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2.039e12),
    "NVIDIA H100 PCIe": Chip(756e12, 2.0e12),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3.35e12),
    "NVIDIA H200": Chip(989e12, 4.8e12),
    "NVIDIA L4": Chip(121e12, 0.3e12),
    "NVIDIA L40S": Chip(362e12, 0.864e12),
    "NVIDIA GeForce RTX 4090": Chip(165e12, 1.008e12),
}


def find_chip(kind: str, operations: float | None = None, bandwidth: float | None = None) -> Chip:
    """The chip of that name.

    Args:
      kind: a key of ``CHIPS``.
      operations: a second, instead of the known figure.
      bandwidth: bytes a second, likewise.

    Raises:
      SystemExit: the name is unknown and a figure is not given.
    """
    known = CHIPS.get(kind)
    if known is None and not (operations and bandwidth):
        raise SystemExit(f"unknown chip {kind!r}: give --peak_flops and --bandwidth, or one of {', '.join(CHIPS)}")
    base = known or Chip(0.0, 0.0)
    return Chip(operations or base.operations, bandwidth or base.bandwidth)
