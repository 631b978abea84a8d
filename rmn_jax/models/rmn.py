"""The network: a backbone's stem, stages and head, with routing by memory between them.

    image -> stem -> [ route -> arrange -> procedure -> attention ] x S -> batch's order -> head -> logits

Axes: B inputs, N units, S stages, H W, C channels, K classes (see ``rmn_jax``).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax import ops, routing
from rmn_jax.dispatch import Arrangement, RoutePlan, Tiles, arrange, lay_out, make_plan, take_rows
from rmn_jax.layers import ConditionalAttention, Layers, RoutedBatchNorm, RoutedConv, RoutedDepthwise, scaled
from rmn_jax.models import routers

ATTENTIONS = ("none", "se", "conditional")


class Backbone(NamedTuple):
    """A plain CNN in the three parts that routing needs, each called as ``part(layers=..., name=...)``.

    A part is a module class with its settings bound, say ``functools.partial(Stage, features=64)``; ``layers``
    (see ``rmn_jax.layers.Layers``) is where it takes its convolutions and norms from.

    Attributes:
      stem: P0, what comes before the first routed stage: image [B, H, W, 3] -> f_0.
      stages: the runs of blocks between downsamplings, each [B, H, W, C] -> [B, H', W', C'].
      head: f_S -> logits [B, K].
    """

    stem: Callable[..., nn.Module]
    stages: tuple[Callable[..., nn.Module], ...]
    head: Callable[..., nn.Module]


class Outputs(NamedTuple):
    """All that a forward pass knows, in the batch's order; what is not used is never computed under jit.

    Attributes:
      logits: [B, K] float32.
      stages: S feature maps f_1 .. f_S, [B, H_i, W_i, C_i].
      pooled: S vectors GAP(f_{i-1}) that stage i routes by, [B, C_{i-1}] float32.
      assignment: [S, B] int32: the unit (routed) or the condition (plain with attention); -1 where there is none.
      distances: S arrays [B, N] float32 of squared distances to the memories; empty when plain.
      balance: [] float32, the sum over stages of a learned gate's load-balancing loss; 0 for other routers.
    """

    logits: jax.Array
    stages: tuple[jax.Array, ...]
    pooled: tuple[jax.Array, ...]
    assignment: jax.Array
    distances: tuple[jax.Array, ...]
    balance: jax.Array


class RMN(nn.Module):
    """A backbone, plain or routed by memory.

    Variables: ``params`` and ``batch_stats`` under ``stem``, ``stage1`` .. ``stageS``, ``attention1`` ..,
    ``head``; when routed every leaf below a stage has a leading axis N, and ``memory`` holds ``memory1`` ..,
    [N, C] float32.

    Attributes:
      backbone: its three parts.
      num_units: N.
      routed: False is the plain backbone ("Original", and step 1).
      attention: "none", "se" (no condition) or "conditional".
      axis_name: mesh axis of the global batch, or None.
      dtype: compute type of convolutions; parameters, statistics, memories and distances are float32.
      backend: of the routed convolutions, see ``rmn_jax.ops.conv``.
      router: "memory" (the method), or one to compare with: "random", "hash", "learned" (see
        ``rmn_jax.models.routers``). Memories are kept with every router; only "memory" routes by them. With
        "learned" there are ``gate_norm1``, ``gate1`` .., in the plain network too, where the gates wait unused.
      metric: between features and memories, see ``rmn_jax.routing.squared_distances``.
      prepared: for inference: convolutions and norms read the collection ``prepared``, see ``RoutedConv``.
    """

    backbone: Backbone
    num_units: int = 8
    routed: bool = True
    attention: str = "none"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    backend: str = "auto"
    router: str = "memory"
    metric: str = "euclidean"
    prepared: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        assignment: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> Outputs:
        """Runs the network.

        Args:
          images: [B, H, W, 3] float32, normalised.
          train: batch statistics (True) or running ones.
          assignment: [S, B] int32 overrides the routing, or the condition when plain.
          keys: [B] random keys, one an input, for what is drawn at random: the condition of a plain
            network with conditional attention, the random router's units, dropout. Results do not depend on how
            a batch is cut over devices.
        """
        if self.attention not in ATTENTIONS:
            raise ValueError(f"unknown attention {self.attention!r}; one of {ATTENTIONS}")
        if self.router not in routers.ROUTERS:
            raise ValueError(f"unknown router {self.router!r}; one of {routers.ROUTERS}")
        x = self.backbone.stem(layers=self._layers(train, keys, None), name="stem")(images.astype(self.dtype))
        arrangement: Arrangement = None
        stages, pooled, assignments, distances = [], [], [], []
        balance = jnp.zeros((), jnp.float32)
        for i, make_stage in enumerate(self.backbone.stages):
            stage_input = arrange(routing.global_average_pool(x)[:, None, None], arrangement, None)[:, 0, 0]
            pooled.append(stage_input)
            plan, gate, scores = None, None, self._gate_scores(i, stage_input, train)
            if self.routed:
                memory = self.variable(
                    "memory", f"memory{i + 1}", jnp.zeros, (self.num_units, x.shape[-1]), jnp.float32
                ).value
                distance = routing.squared_distances(jax.lax.stop_gradient(stage_input), memory, self.metric)
                distances.append(distance)
                if assignment is not None:
                    unit = assignment[i]
                elif self.router in ("random", "hash"):
                    unit = self._drawn_or_hashed(i, images, keys)
                else:
                    unit = jnp.argmin(distance if scores is None else -scores, axis=-1).astype(jnp.int32)
                if scores is not None:
                    gate = routers.gate(scores, unit, self.axis_name if train else None)
                    balance = balance + gate.balance
                plan = self._plan(unit, x.shape[1] * x.shape[2])
            else:
                unit = self._condition(i, len(images), assignment, keys)
            x, arrangement = arrange(x, arrangement, plan), plan
            layers = self._layers(train, None if keys is None else take_rows(keys, plan), plan)
            x = make_stage(layers=layers, name=f"stage{i + 1}")(x)
            if gate is not None:
                x = scaled(x, arrange(gate.gain[:, None, None, None], None, plan))
            if self.attention != "none":
                condition = self.num_units if self.attention == "conditional" else None
                x = ConditionalAttention(condition, name=f"attention{i + 1}")(x, unit if plan is None else plan.unit)
            assignments.append(unit)
            stages.append(arrange(x, arrangement, None))
        logits = self.backbone.head(layers=self._layers(train, keys, None), name="head")(stages[-1])
        return Outputs(
            logits.astype(jnp.float32), tuple(stages), tuple(pooled), jnp.stack(assignments), tuple(distances), balance
        )

    def plain_layers(self) -> Layers:
        """What the backbone's parts build themselves from in evaluation, when applied one by one without routing."""
        return self._layers(train=False, keys=None, plan=None)

    def _layers(self, train: bool, keys, plan) -> Layers:
        units = None if plan is None else self.num_units
        return Layers(
            conv=functools.partial(
                RoutedConv,
                num_units=units,
                plan=plan,
                dtype=self.dtype,
                backend=self.backend,
                prepared=self.prepared,
            ),
            norm=functools.partial(
                RoutedBatchNorm,
                num_units=units,
                plan=plan,
                train=train,
                axis_name=self.axis_name,
                prepared=self.prepared,
            ),
            train=train,
            keys=keys,
            depthwise=functools.partial(RoutedDepthwise, num_units=units, plan=plan, dtype=self.dtype),
        )

    def _plan(self, unit: jax.Array, pixels: int) -> RoutePlan | Tiles:
        """How a stage arranges its batch: sorted, or in tiles where the backend has them."""
        plan = make_plan(unit, self.num_units)
        backend = ops.default_backend() if self.backend == "auto" else self.backend
        # The prepared forms, which are for CPU, take sorted rows.
        sorts = backend != "tiles" or (self.prepared and jax.default_backend() == "cpu")
        return plan if sorts else lay_out(plan, pixels)

    def _condition(self, stage: int, batch: int, assignment, keys) -> jax.Array:
        """The plain network's condition: given, or uniform at random for each input and stage (step 1)."""
        if self.attention != "conditional":
            return jnp.full((batch,), -1, jnp.int32)
        if assignment is not None:
            return assignment[stage]
        return self._drawn_or_hashed(stage, None, keys)

    def _drawn_or_hashed(self, stage: int, images, keys) -> jax.Array:
        if images is not None and self.router == "hash":
            return routers.hashed_unit(images, stage, self.num_units)
        if keys is None:
            raise ValueError("a unit or condition drawn at random needs keys (or an assignment)")
        return routers.random_unit(keys, stage, self.num_units)

    def _gate_scores(self, stage: int, stage_input: jax.Array, train: bool) -> jax.Array | None:
        """A learned gate's logits [B, N] float32; None with other routers. Their features get no gradient from it.

        The features are normalised first: what all inputs have in common would send them all to one unit.
        """
        if self.router != "learned":
            return None
        features = jax.lax.stop_gradient(stage_input)[:, None, None, :]
        features = self._layers(train, None, None).norm(name=f"gate_norm{stage + 1}")(features)[:, 0, 0]
        return nn.Dense(self.num_units, use_bias=False, name=f"gate{stage + 1}")(features)
