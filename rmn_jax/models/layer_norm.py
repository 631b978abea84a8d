"""Layer norm and layer scale, plain and routed: each unit has its own vectors, and no statistics.

Axes: B batch, N units, H W height and width, C channels (see ``rmn_jax``).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax import ops
from rmn_jax.models.layers import leaf_shape
from rmn_jax.routing import Layout


class RoutedLayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel; scale and bias belong to the unit.

    A row is normalised by itself, so training and evaluation are the same, and a unit's load has no influence.

    Attributes:
      num_units: N, or None for the plain layer.
      layout: the stage's layout; needed when routed.
      epsilon: added to the variance; the default is ConvNeXt's.
    """

    num_units: int | None = None
    layout: Layout = None
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = leaf_shape((x.shape[-1],), self.num_units)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        return ops.layer_norm(x, scale, bias, self.layout, self.epsilon)


class RoutedLayerScale(nn.Module):
    """A factor for each channel, at the end of a residual branch (Touvron et al., 2021); it belongs to the unit.

    Attributes:
      initial: value of every factor before training.
      num_units: N, or None for the plain layer.
      layout: the stage's layout; needed when routed.
    """

    initial: float
    num_units: int | None = None
    layout: Layout = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = leaf_shape((x.shape[-1],), self.num_units)
        gamma = self.param("gamma", nn.initializers.constant(self.initial, jnp.float32), shape)
        return ops.scale_rows(x, gamma, self.layout)
