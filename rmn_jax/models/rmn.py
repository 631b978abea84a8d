"""The network: the stem, stages and head of a backbone, with routing by memory between them.

    image -> stem -> [ route -> layout -> procedure -> attention ] x S -> batch order -> head -> logits

Axes: B batch, N units, S stages, H W height and width, C channels, K classes (see ``rmn_jax``).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from rmn_jax import ops
from rmn_jax.models.layer_norm import RoutedLayerNorm, RoutedLayerScale
from rmn_jax.models.layers import ConditionalAttention, Layers, RoutedBatchNorm, RoutedConv, RoutedDepthwise, scaled
from rmn_jax.models.names import LibraryNames
from rmn_jax.routing import ROUTERS, Layout, StageInput, global_average_pool, make_tiles, sort_by_unit, to_layout
from rmn_jax.routing.layout import Sorted, make_slots, over_pixels, pixel_axes, take_rows
from rmn_jax.routing.routers import random_unit

ATTENTIONS = ("none", "se", "conditional")


class Backbone(NamedTuple):
    """A plain CNN in the three parts that routing needs, each called as ``part(layers=..., name=...)``.

    A part is a module class with its settings bound, for example ``functools.partial(Stage, features=64)``. It takes
    its convolutions and norms from ``layers`` (see ``rmn_jax.models.layers.Layers``).

    Attributes:
      stem: P0, all blocks before the first routed stage: image [B, H, W, 3] -> f_0.
      stages: the blocks between two downsamplings, each [B, H, W, C] -> [B, H', W', C'].
      head: f_S -> logits [B, K].
      names: of its layers in torchvision and timm; None if these do not have it.
    """

    stem: Callable[..., nn.Module]
    stages: tuple[Callable[..., nn.Module], ...]
    head: Callable[..., nn.Module]
    names: LibraryNames | None = None


class Outputs(NamedTuple):
    """Outputs of a forward pass, in batch order. Under jit, outputs that are not used are not computed.

    Attributes:
      logits: [B, K] float32.
      stages: S feature maps f_1 .. f_S, [B, H_i, W_i, C_i].
      pooled: S vectors GAP(f_{i-1}) that stage i routes by, [B, C_{i-1}] float32.
      assignment: [S, B] int32: the unit (routed) or the condition (plain with attention); -1 where there is none.
      distances: an array [B, N] float32 for each routed stage, squared distances to the memories; empty when plain.
      auxiliary_loss: [] float32, the router's auxiliary loss summed over stages; 0 for routers without one.
    """

    logits: jax.Array
    stages: tuple[jax.Array, ...]
    pooled: tuple[jax.Array, ...]
    assignment: jax.Array
    distances: tuple[jax.Array, ...]
    auxiliary_loss: jax.Array


def _gathered(gather: Any, name: str, variables: dict[str, Any]) -> dict[str, Any]:
    return {"params": gather(name, variables["params"])} if "params" in variables else variables


def _keep_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy of ``jax.checkpoint``: everything is kept for the backward pass but what ``all_gather`` made."""
    return primitive.name != "all_gather"


class RMN(nn.Module):
    """A backbone, plain or routed by memory.

    Variables: ``params`` and ``batch_stats`` under ``stem``, ``stage1`` .. ``stageS``, ``attention1`` .., ``head``.
    When routed, every leaf below a routed stage has a leading axis N, and ``memory`` holds ``memory1`` .., [N, C]
    float32 for each routed stage. The other stages are plain: one copy, no memory, attention without a condition.

    Attributes:
      backbone: its three parts.
      num_units: N.
      routed: False is the plain backbone ("Original", and phase 1).
      routed_stages: the numbers, from 1, of the stages that are routed; None is all. The plain network has them too:
        only these stages have a condition in phase 1.
      attention: "none", "se" (squeeze-and-excitation without the condition) or "conditional" (CA, eqs. 6-8).
      axis_name: mesh axis of the global batch, or None.
      dtype: compute type of convolutions.
      backend: of routed convolutions, see ``rmn_jax.ops.choose``.
      router: a key of ``rmn_jax.routing.ROUTERS``.
      metric: of features and memories, see ``rmn_jax.routing.squared_distances``.
      folded: for inference. Convolutions and norms read the collection ``folded``, see ``RoutedConv``.
      statistics: of the batch norms of routed stages in training, see ``rmn_jax.ops.batch_moments``.
      gather: for split parameters, a ``rmn_jax.training.sharding.StageGather``: called where a stage begins, with its
        name and this device's parts of its parameters, it returns the whole parameters.
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
    folded: bool = False
    routed_stages: tuple[int, ...] | None = None
    statistics: str = "unit"
    gather: Any = None

    @property
    def stages_with_units(self) -> tuple[int, ...]:
        """The numbers, from 1, of the stages that have units once the network is routed."""
        return tuple(range(1, len(self.backbone.stages) + 1)) if self.routed_stages is None else self.routed_stages

    @property
    def stages_with_memories(self) -> tuple[int, ...]:
        """The numbers, from 1, of the stages that are routed; none when plain."""
        return self.stages_with_units if self.routed else ()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        assignment: jax.Array | None = None,
        keys: jax.Array | None = None,
        own_share: jax.Array | float = 1.0,
    ) -> Outputs:
        """Runs the network.

        Args:
          images: [B, H, W, 3] float32, normalised.
          train: batch statistics (True) or running statistics (False).
          assignment: [S, B] int32, overrides the routing, or the condition when plain; not read where there is neither.
          keys: [B] random keys, one for each input, for all random draws: the condition of a plain network with
            conditional attention, the random router, dropout. Results do not depend on how a batch is split over
            devices.
          own_share: [] for ``statistics`` "mixed", see ``rmn_jax.ops.batch_moments``.

        Raises:
          ValueError: unknown attention or router, or a random draw without keys.
          AssertionError: shapes that do not fit.
        """
        self._check(images, assignment)
        router = ROUTERS[self.router]
        x = self.backbone.stem(layers=self._layers(train, keys), name="stem")(images.astype(self.dtype))
        layout: Layout = None
        stages, pooled, assignments, distances = [], [], [], []
        auxiliary_loss = jnp.zeros((), jnp.float32)
        for i, make_stage in enumerate(self.backbone.stages):
            features = over_pixels(global_average_pool(x, layout), layout)
            pooled.append(to_layout(features, layout, None)[:, 0, 0])
            inputs = self._stage_input(i, pooled[-1], images, keys, train)
            given = None if assignment is None else assignment[i]
            target, gain = None, None
            has_units = i + 1 in self.stages_with_units
            if self.routed and has_units:  # eq. 4
                routing = router(inputs, self._memory(i, x.shape[-1]), given)
                unit, gain = routing.assignment, routing.gain
                distances.append(routing.metrics["distances"])
                auxiliary_loss = auxiliary_loss + routing.auxiliary_loss
                height, width = pixel_axes(layout)
                target = self._layout(unit, pixels=x.shape[height] * x.shape[width])
            else:
                if has_units:
                    router.scores(inputs)  # a learned router has its parameters from phase 1 on
                unit = self._condition(inputs, given if has_units else None, has_units)
            x, layout = to_layout(x, layout, target), target
            row_keys = None if keys is None else take_rows(keys, layout)
            layers = self._layers(train, row_keys, layout, own_share)
            x = self._stage_call(i + 1, x)(make_stage(layers=layers, name=f"stage{i + 1}"), x)  # eq. 5
            if gain is not None:
                x = scaled(x, to_layout(gain[:, None, None, None], None, layout))
            if self.attention != "none":  # eqs. 6-8
                condition = self.num_units if self.attention == "conditional" and has_units else None
                x = ConditionalAttention(condition, name=f"attention{i + 1}")(
                    x, layout.unit if layout else unit, layout
                )
            assignments.append(unit)
            stages.append(to_layout(x, layout, None))
        logits = self.backbone.head(layers=self._layers(train, keys), name="head")(stages[-1]).astype(jnp.float32)
        return Outputs(logits, tuple(stages), tuple(pooled), jnp.stack(assignments), tuple(distances), auxiliary_loss)

    def plain_layers(self) -> Layers:
        """Layers for the parts of the backbone in evaluation, applied one by one without routing."""
        return self._layers(train=False, keys=None)

    def _check(self, images: jax.Array, assignment: jax.Array | None) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"unknown attention {self.attention!r}; one of {ATTENTIONS}")
        if self.router not in ROUTERS:
            raise ValueError(f"unknown router {self.router!r}; one of {tuple(ROUTERS)}")
        if self.statistics not in ops.STATISTICS:
            raise ValueError(f"unknown statistics {self.statistics!r}; one of {ops.STATISTICS}")
        unknown = set(self.stages_with_units) - set(range(1, len(self.backbone.stages) + 1))
        if unknown or not self.stages_with_units:
            raise ValueError(
                f"routed_stages is {self.routed_stages}; it must name some of {len(self.backbone.stages)} stages"
            )
        chex.assert_rank(images, 4)
        if assignment is not None:
            chex.assert_shape(assignment, (len(self.backbone.stages), images.shape[0]))

    def _stage_call(self, number: int, x: jax.Array) -> Callable[[nn.Module, jax.Array], jax.Array]:
        """Calls a stage with its input x. With ``gather`` a routed stage's parameters are whole only while it runs."""

        def run(stage: Any, x: jax.Array) -> jax.Array:
            return stage(x)

        if self.gather is None or number not in self.stages_with_memories:
            return run
        name = f"stage{number}"
        run = nn.map_variables(run, "params", functools.partial(_gathered, self.gather, name))
        # The last stage is the first of the backward pass, which uses its whole parameters at once.
        kept = number == len(self.backbone.stages) or not self.gather.again(self.variables["params"][name], x)
        return run if kept else nn.remat(run, policy=_keep_all_but_gathered)

    def _memory(self, stage: int, channels: int) -> jax.Array:
        shape = (self.num_units, channels)
        return self.variable("memory", f"memory{stage + 1}", jnp.zeros, shape, jnp.float32).value

    def _stage_input(self, stage: int, features, images, keys, train: bool) -> StageInput:
        return StageInput(
            stage=stage,
            num_units=self.num_units,
            features=jax.lax.stop_gradient(features),
            images=images,
            keys=keys,
            metric=self.metric,
            norm=self._layers(train, None).norm,
            axis_name=self.axis_name if train else None,
        )

    def _layout(self, unit: jax.Array, pixels: int) -> Layout:
        """The layout of a stage with input maps of H W = ``pixels``: the one that the backend takes."""
        layout: Sorted = sort_by_unit(unit, self.num_units)
        if ops.wants_slots(self.backend, self.folded, self.dtype):
            return make_slots(layout)
        wants_tiles = ops.wants_tiles(self.backend, self.folded, self.dtype)
        return make_tiles(layout, pixels) if wants_tiles else layout

    def _condition(self, inputs: StageInput, given: jax.Array | None, has_units: bool) -> jax.Array:
        """[B] int32, the condition of a plain stage: given, or uniform for each input and stage (phase 1); or -1."""
        if self.attention != "conditional" or not has_units:
            return jnp.full((len(inputs.images),), -1, jnp.int32)
        return random_unit(inputs.keys, inputs.stage, self.num_units) if given is None else given

    def _layers(self, train: bool, keys, layout: Layout = None, own_share: jax.Array | float = 1.0) -> Layers:
        shared: dict[str, Any] = {"num_units": None if layout is None else self.num_units, "layout": layout}
        whose: dict[str, Any] = {} if layout is None else {"statistics": self.statistics, "own_share": own_share}
        return Layers(
            conv=functools.partial(RoutedConv, **shared, dtype=self.dtype, backend=self.backend, folded=self.folded),
            norm=functools.partial(
                RoutedBatchNorm, **shared, **whose, train=train, axis_name=self.axis_name, folded=self.folded
            ),
            train=train,
            keys=keys,
            depthwise=functools.partial(RoutedDepthwise, **shared, dtype=self.dtype),
            layout=layout,
            layer_norm=functools.partial(RoutedLayerNorm, **shared),
            layer_scale=functools.partial(RoutedLayerScale, **shared),
        )
