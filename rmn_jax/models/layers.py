"""Flax layers over ``rmn_jax.ops``: plain when ``num_units`` is None, routed with one leading axis N otherwise.

A routed leaf is its plain leaf with a leading axis N and the same path, so cloning is a pure function on pytrees.

Axes: B batch, N units, H W height and width, C channels in, O channels out (see ``rmn_jax``).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax import ops
from rmn_jax.routing import Layout, Slots, Tiles, global_average_pool
from rmn_jax.routing.layout import merge_tiles, over_pixels

# The folded form of a norm: [2, C], or [2, N, C] when routed.
NORM = "factor_and_shift"

# Fan-out He initialisation, as in the ResNet paper and torchvision.
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Each channel of a depthwise convolution is a filter with one channel in and one out: its fan-in, without C, is kh kw.
depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def per_unit(init, num_units: int | None):
    """An initialiser that draws the leaf of each unit separately: shape [N, ...] with the fans of the plain leaf."""
    if num_units is None:
        return init
    return lambda key, shape, dtype=jnp.float32: jax.vmap(lambda k: init(k, shape[1:], dtype))(
        jax.random.split(key, num_units)
    )


def leaf_shape(shape: tuple[int, ...], num_units: int | None) -> tuple[int, ...]:
    """The shape of a routed leaf, or of the plain one if N is None."""
    return shape if num_units is None else (num_units, *shape)


def scaled(x: jax.Array, gate: jax.Array) -> jax.Array:
    """``x gate`` in x's dtype, with one gate value for each channel or row, broadcast over the pixels.

    Multiplies in float32, so that the gate's gradient is summed over the pixels in float32.
    """
    return (x.astype(jnp.float32) * gate).astype(x.dtype)


class RoutedConv(nn.Module):
    """2-D convolution, [B, H, W, C] -> [B, OH, OW, O]; when routed, each row with the kernel of its unit.

    In tiles [L, H, W, V, C] -> [L, OH, OW, V, O], in slots [H, W, R, C] -> [OH, OW, R, O]; the same holds for the other
    routed layers.

    Attributes:
      features: O.
      kernel_size: (kh, kw).
      strides: in both directions.
      padding: zeros on every side; None means ``kh // 2``.
      use_bias: whether to add a bias.
      num_units: N, or None for the plain layer.
      layout: the stage's layout; needed when routed.
      dtype: compute type. Parameters are float32.
      backend: see ``rmn_jax.ops.choose``.
      kernel_init: initialiser of the kernel of one unit.
      folded: for inference. The kernel is read from the collection ``folded``, in the form that
        ``rmn_jax.ops.choose.folded_form`` names; where the collection does not have it yet, it is made from the
        parameter.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int | None = None
    use_bias: bool = False
    num_units: int | None = None
    layout: Layout = None
    dtype: Any = jnp.float32
    kernel_init: Any = kernel_init
    backend: str = "auto"
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = leaf_shape((*self.kernel_size, x.shape[-1], self.features), self.num_units)
        parameter = lambda: self.param("kernel", per_unit(self.kernel_init, self.num_units), shape)  # noqa: E731
        x = x.astype(self.dtype)
        form = "direct"
        if self.folded:
            window = ops.Window.make(*self.kernel_size, self.strides, self.padding)
            form = ops.folded_form(x.shape, window, self.dtype)
            make = lambda: ops.fold_kernel(parameter().astype(self.dtype), form)  # noqa: E731
            kernel = self.variable("folded", "kernel", make).value
        else:
            kernel = parameter().astype(self.dtype)
        if form != "direct":
            assert not isinstance(self.layout, Tiles | Slots), "a folded network sorts its rows"
            y = ops.folded_conv(x, kernel, form, window, self.layout)
        elif self.layout is None:
            y = ops.conv(x, kernel, strides=self.strides, padding=self.padding)
        else:
            y = ops.routed_conv(
                x, kernel, self.layout, strides=self.strides, padding=self.padding, backend=self.backend
            )
        return _with_bias(self, y) if self.use_bias else y


def _with_bias(module: "RoutedConv | RoutedDepthwise", y: jax.Array) -> jax.Array:
    """Y plus the bias of a layer; when routed, that of each row's unit."""
    layout: Layout = module.layout
    bias = module.param("bias", nn.initializers.zeros, leaf_shape((y.shape[-1],), module.num_units))
    if layout is not None:
        rows = ops.take_unit(bias, layout)
        # In tiles, one vector for all slots, padding too: XLA can add it within the convolution.
        bias = rows.reshape(-1) if isinstance(layout, Tiles) else over_pixels(rows, layout)
    wide = merge_tiles(y)
    # Broadcast before rounding: the bias's gradient is then summed over rows and pixels in float32.
    return (wide + jnp.broadcast_to(bias, wide.shape).astype(module.dtype)).reshape(y.shape)


class RoutedDepthwise(nn.Module):
    """Depthwise convolution, [B, H, W, C] -> [B, OH, OW, C]; when routed, with each row's unit's kernel.

    Attributes: see ``RoutedConv``. The kernel is [kh, kw, 1, C], with initial variance 2 / (kh kw) by default.
    """

    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int | None = None
    use_bias: bool = False
    num_units: int | None = None
    layout: Layout = None
    dtype: Any = jnp.float32
    kernel_init: Any = depthwise_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = leaf_shape((*self.kernel_size, 1, x.shape[-1]), self.num_units)
        kernel = self.param("kernel", per_unit(self.kernel_init, self.num_units), shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.layout is None:
            y = ops.depthwise(x, kernel, strides=self.strides, padding=self.padding)
        else:
            y = ops.routed_depthwise(x, kernel, self.layout, strides=self.strides, padding=self.padding)
        return _with_bias(self, y) if self.use_bias else y


class RoutedBatchNorm(nn.Module):
    """Batch normalisation over the inputs of each unit; scale, bias and running statistics belong to the unit.

    Running statistics move by ``r <- momentum r + (1 - momentum) batch``, with the biased variance, over the global
    batch. Those of a unit without inputs do not move (but with ``statistics`` "batch" or "mixed" they do).

    Attributes:
      train: batch statistics if True, running statistics if False.
      momentum: of the running statistics.
      epsilon: added to the variance.
      scale_init: initialiser of the scale.
      num_units: N, or None for the plain layer.
      layout: the stage's layout; needed when routed.
      axis_name: mesh axis of the global batch, or None.
      folded: for inference. The collection ``folded`` holds the factor and the shift that running statistics and
        parameters amount to; where it does not have them yet, they are made from those.
      statistics: whose batch statistics a unit uses in training, see ``rmn_jax.ops.batch_moments``.
      own_share: [] for "mixed", as there.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    num_units: int | None = None
    layout: Layout = None
    axis_name: str | None = None
    folded: bool = False
    statistics: str = "unit"
    own_share: jax.Array | float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.folded:
            factor, shift = self.variable("folded", NORM, self._factor_and_shift, x.shape[-1]).value
            return ops.scale_and_shift(x, factor, shift, self.layout)
        scale, bias, mean, variance = self._leaves(x.shape[-1])
        if not self.train:
            return ops.normalize(x, mean.value, variance.value, scale, bias, self.layout, self.epsilon)
        axis_name = None if self.is_initializing() else self.axis_name
        batch = ops.batch_moments(x, self.layout, axis_name, self.statistics, self.own_share)
        if not self.is_initializing():
            used = batch.values[..., None] > 0
            for running, value in ((mean, batch.mean), (variance, batch.variance)):
                moved = self.momentum * running.value + (1.0 - self.momentum) * value
                running.value = jax.lax.stop_gradient(jnp.where(used, moved, running.value))
        return ops.normalize(x, batch.mean, batch.variance, scale, bias, self.layout, self.epsilon)

    def _leaves(self, channels: int):
        shape = leaf_shape((channels,), self.num_units)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        return scale, bias, mean, variance

    def _factor_and_shift(self, channels: int) -> jax.Array:
        """[2, C] or [2, N, C]: factor and shift."""
        scale, bias, mean, variance = self._leaves(channels)
        return jnp.stack(ops.affine(mean.value, variance.value, scale, bias, self.epsilon))


class ConditionalAttention(nn.Module):
    """Squeeze-and-excitation that also sees the assignment (eqs. 6-8), shared by a stage's units.

    ``s = sigmoid(W_e [relu(W_s GAP(f)); onehot(R)])``, ``f <- s f`` for each channel.

    Attributes:
      num_units: N, the length of the one-hot condition; None leaves the condition out (plain SE).
      reduction: C over the hidden width.
    """

    num_units: int | None
    reduction: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, assignment: jax.Array | None, layout: Layout = None) -> jax.Array:
        """x [B, H, W, C] with assignment [B] int32, in tiles [L, H, W, V, C] with [V], in slots with [R] -> as x."""
        channels = x.shape[-1]
        hidden = max(1, channels // self.reduction)
        code = nn.relu(nn.Dense(hidden, use_bias=False, name="squeeze")(global_average_pool(x, layout)))
        if self.num_units is not None:
            condition = jax.nn.one_hot(assignment, self.num_units)
            code = jnp.concatenate([code, jnp.broadcast_to(condition, (*code.shape[:-1], self.num_units))], axis=-1)
        gate = nn.sigmoid(nn.Dense(channels, use_bias=False, name="excite")(code))
        return scaled(x, over_pixels(gate, layout))


class Layers(NamedTuple):
    """Constructors of a block's layers. One definition of a block serves the plain backbone and the procedures.

    ``conv``, ``norm`` and ``depthwise`` are ``RoutedConv``, ``RoutedBatchNorm`` and ``RoutedDepthwise``;
    ``layer_norm`` and ``layer_scale`` are in ``rmn_jax.models.layer_norm``. All is bound that the network decides
    (units, layout, training, type, mesh axis). A block writes ``layers.conv(64, (3, 3))(x)``.

    Attributes:
      conv: module constructor.
      norm: module constructor.
      train: whether this is training.
      keys: random keys for dropout and the like: [B], one for each row, or [L, V] or [R], one for each slot; None in
        evaluation.
      depthwise: module constructor, ``layers.depthwise((3, 3))(x)``.
      layout: of the feature maps, for what a block does with them itself.
      layer_norm: module constructor, ``layers.layer_norm()(x)``.
      layer_scale: module constructor, ``layers.layer_scale(1e-6)(x)``.
    """

    conv: Any
    norm: Any
    train: bool = False
    keys: jax.Array | None = None
    depthwise: Any = None
    layout: Layout = None
    layer_norm: Any = None
    layer_scale: Any = None
