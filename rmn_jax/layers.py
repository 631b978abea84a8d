"""Flax modules over ``rmn_jax.ops``; plain when ``num_units`` is None, with one leading axis N otherwise.

A routed leaf is its plain leaf with one leading axis N and the same path, so that cloning is a pure function on
pytrees. Axes: B inputs, N units, H W, C channels in, O channels out (see ``rmn_jax``).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax import ops
from rmn_jax.dispatch import RoutePlan, Tiles, merge_tiles
from rmn_jax.ops.norm import of_own_unit
from rmn_jax.routing import global_average_pool

# What a prepared norm holds in place of its parameters and statistics: [2, C], or [2, N, C] when routed.
NORM = "factor_and_shift"

# Fan-out He initialisation, as the ResNet paper and torchvision have it.
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def per_unit(init, num_units: int | None):
    """An initialiser that draws each unit's leaf on its own: shape [N, ...] with fans of the plain leaf."""
    if num_units is None:
        return init
    return lambda key, shape, dtype=jnp.float32: jax.vmap(lambda k: init(k, shape[1:], dtype))(
        jax.random.split(key, num_units)
    )


def leaf_shape(shape: tuple[int, ...], num_units: int | None) -> tuple[int, ...]:
    """The shape of a routed leaf, or of the plain one when N is None."""
    return shape if num_units is None else (num_units, *shape)


def scaled(x: jax.Array, gate: jax.Array) -> jax.Array:
    """``x gate``, the gate one value a channel or a row, broadcast over the pixels; in x's dtype.

    It is multiplied in float32, so that the gate's gradient is summed over the pixels in float32.
    """
    return (x.astype(jnp.float32) * gate).astype(x.dtype)


class RoutedConv(nn.Module):
    """2-D convolution, [B, H, W, C] -> [B, OH, OW, O]; each row through its own unit's kernel when routed.

    With tiles for a plan [L, H, W, V, C] -> [L, OH, OW, V, O], here and in the other routed layers.

    Attributes:
      features: O.
      kernel_size: (kh, kw).
      strides: step in both directions.
      padding: zeros on every side; None means ``kh // 2``.
      use_bias: whether to add a bias.
      num_units: N, or None for the plain layer.
      plan: the stage's route plan or tiles; needed when routed.
      dtype: compute type; parameters are float32.
      backend: see ``rmn_jax.ops.conv``.
      prepared: for inference: the kernel is that of the collection ``prepared``, in the form that
        ``rmn_jax.ops.prepared`` chooses, and made from the parameter where that collection does not have it yet.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int | None = None
    use_bias: bool = False
    num_units: int | None = None
    plan: RoutePlan | Tiles | None = None
    dtype: Any = jnp.float32
    backend: str = "auto"
    prepared: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = leaf_shape((*self.kernel_size, x.shape[-1], self.features), self.num_units)
        parameter = lambda: self.param("kernel", per_unit(kernel_init, self.num_units), shape)  # noqa: E731
        x = x.astype(self.dtype)
        form = "direct"
        if self.prepared:
            window = ops.Window.make(*self.kernel_size, self.strides, self.padding)
            form = ops.choose_form(x.shape, window, self.dtype)
            make = lambda: ops.prepare(parameter().astype(self.dtype), form)  # noqa: E731
            kernel = self.variable("prepared", "kernel", make).value
        else:
            kernel = parameter().astype(self.dtype)
        if form != "direct":
            assert not isinstance(self.plan, Tiles), "a prepared network sorts its rows"
            y = ops.prepared_conv(x, kernel, form, window, self.plan)
        elif self.plan is None:
            y = ops.conv(x, kernel, strides=self.strides, padding=self.padding)
        else:
            y = ops.routed_conv(x, kernel, self.plan, strides=self.strides, padding=self.padding, backend=self.backend)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, leaf_shape((self.features,), self.num_units))
            if self.plan is not None:
                own = of_own_unit(bias, self.plan)
                # One vector for all places, nobody's too, which XLA can add within the convolution.
                bias = own.reshape(-1) if isinstance(self.plan, Tiles) else own[:, None, None, :]
            wide = merge_tiles(y)
            # Broadcast before it is rounded: the bias's gradient is then summed over rows and pixels in float32.
            y = (wide + jnp.broadcast_to(bias, wide.shape).astype(self.dtype)).reshape(y.shape)
        return y


class RoutedDepthwise(nn.Module):
    """Depthwise convolution without bias, [B, H, W, C] -> [B, OH, OW, C]; a row's own unit's kernel when routed.

    Attributes: see ``RoutedConv``; the kernel is [kh, kw, 1, C], and its initial variance 2 / (kh kw).
    """

    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int | None = None
    num_units: int | None = None
    plan: RoutePlan | Tiles | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Each channel is a filter with one channel in and one out: fan-in, which leaves C out, is kh kw.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        shape = leaf_shape((*self.kernel_size, 1, x.shape[-1]), self.num_units)
        kernel = self.param("kernel", per_unit(init, self.num_units), shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.plan is None:
            return ops.depthwise(x, kernel, strides=self.strides, padding=self.padding)
        return ops.routed_depthwise(x, kernel, self.plan, strides=self.strides, padding=self.padding)


class RoutedBatchNorm(nn.Module):
    """Batch normalisation over the inputs each unit got; its scale, bias and running statistics are the unit's own.

    Running statistics move by ``r <- momentum r + (1 - momentum) batch`` with the biased variance, over the
    global batch; those of a unit that got no input stay as they are.

    Attributes:
      train: batch statistics if True, running ones if False.
      axis_name: mesh axis of the global batch, or None.
      prepared: for inference: the collection ``prepared`` holds what the running statistics and parameters come to, a
        factor and a shift; they are made from those where it does not have them yet.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    num_units: int | None = None
    plan: RoutePlan | Tiles | None = None
    axis_name: str | None = None
    prepared: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.prepared:
            factor, shift = self.variable("prepared", NORM, self._factor_and_shift, x.shape[-1]).value
            return ops.scale_and_shift(x, factor, shift, self.plan)
        scale, bias, mean, variance = self._leaves(x.shape[-1])
        if not self.train:
            return ops.normalize(x, mean.value, variance.value, scale, bias, self.plan, self.epsilon)
        axis_name = None if self.is_initializing() else self.axis_name
        batch = ops.batch_moments(x, self.plan, axis_name)
        if not self.is_initializing():
            used = batch.values[..., None] > 0
            for running, value in ((mean, batch.mean), (variance, batch.variance)):
                moved = self.momentum * running.value + (1.0 - self.momentum) * value
                running.value = jax.lax.stop_gradient(jnp.where(used, moved, running.value))
        return ops.normalize(x, batch.mean, batch.variance, scale, bias, self.plan, self.epsilon)

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
    """Squeeze-and-excitation that also sees the routing result (eqs. 6-8), shared by a stage's units.

    ``s = sigmoid(W_e [relu(W_s GAP(f)); onehot(R)])``, ``f <- s f`` channel by channel.

    Attributes:
      num_units: N, the length of the one-hot condition; None leaves the condition out (plain SE).
      reduction: C over the hidden width.
    """

    num_units: int | None
    reduction: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, assignment: jax.Array | None) -> jax.Array:
        """x [B, H, W, C], or [L, H, W, V, C] in tiles, and assignment [B] or [V] int32 -> as x."""
        channels = x.shape[-1]
        hidden = max(1, channels // self.reduction)
        code = nn.relu(nn.Dense(hidden, use_bias=False, name="squeeze")(global_average_pool(x)))
        if self.num_units is not None:
            condition = jax.nn.one_hot(assignment, self.num_units)
            code = jnp.concatenate([code, jnp.broadcast_to(condition, (*code.shape[:-1], self.num_units))], axis=-1)
        gate = nn.sigmoid(nn.Dense(channels, use_bias=False, name="excite")(code))
        return scaled(x, gate[:, None, None])


class Layers(NamedTuple):
    """What a block builds itself from: the same block is the plain backbone's and a procedure's.

    ``conv`` and ``norm`` are ``RoutedConv`` and ``RoutedBatchNorm`` with everything bound that the network
    decides (units, plan, training, compute type, mesh axis). A block says ``layers.conv(64, (3, 3))(x)``.

    Attributes:
      conv, norm: module constructors.
      train: whether this is training.
      keys: random keys for dropout and the like, [B] row by row, or [L, V] place by place where a stage is laid out
        in tiles; None in evaluation.
      depthwise: module constructor, ``layers.depthwise((3, 3))(x)``.
    """

    conv: Any
    norm: Any
    train: bool = False
    keys: jax.Array | None = None
    depthwise: Any = None
