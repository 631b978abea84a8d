"""One update and one evaluation batch, as pure functions over a mesh with the axis ``data``.

Each device sorts and routes its own rows; sums for BN, memories and gradients are global, so that the result
is that of the whole batch on one device. Axes: B inputs, N units, S stages (see ``rmn_jax``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmn_jax import routing
from rmn_jax.models import RMN, Outputs
from rmn_jax.train.average import move_average
from rmn_jax.train.gradients import BatchSums, accumulate, cut, make_part_sums, scale_units
from rmn_jax.train.state import Metrics, TrainState

AXIS = "data"


def make_mesh(devices=None) -> Mesh:
    """All devices (of all hosts) along the axis ``data``."""
    return Mesh(devices or jax.devices(), (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """A batch's rows over the devices, neighbouring rows on the same one."""
    return NamedSharding(mesh, P(AXIS))


def example_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """One key an input, from its position in the data set: [B] int32 -> key array [B]."""
    return jax.vmap(partial(jax.random.fold_in, key))(index)


def make_train_step(
    model: RMN,
    optimizer: optax.GradientTransformation,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    mesh: Mesh,
    *,
    alpha: float,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    accumulation: int = 1,
    ema: float = 0.0,
    unit_gradient: str = "share",
    balance_loss: float = 0.0,
) -> Callable[[TrainState, dict, jax.Array], tuple[TrainState, jax.Array]]:
    """The jitted update ``(state, batch, key) -> (state, mean loss)``; the state's buffers are reused.

    With ``accumulation`` k the batch is taken in k equal parts one after another, for the memory of one:

    - Part p is the rows p, p + k, p + 2k .. of the global batch (pairs of rows with mixup): k says which
      inputs are normalised together, the number of devices does not.
    - Gradients are averaged over the whole batch; the optimizer and ``update`` move once.
    - Batch norm takes a part's statistics over all devices (ghost batch norm), and its running statistics
      move once a part, k times an update. A unit's statistics are those of its inputs in the part.
    - The memories route the whole batch as they were before the update, and move once by eq. 9 over it.

    Without batch norm the result is that of k = 1.

    Args:
      model: with ``axis_name`` set to ``AXIS``.
      optimizer: an optax transformation.
      augment: (keys [B], uint8 images [B, H, W, C]) -> float32 images.
      mesh: devices along ``AXIS``.
      alpha: momentum of the memories (eq. 9).
      label_smoothing: share of the target spread evenly over all classes.
      mixup: alpha of mixup's Beta distribution (see ``rmn_jax.train.mixup``); 0 is off. An input then counts
        as correct when the first guess is the class that weighs more.
      accumulation: k; the global batch divides by devices * k (by twice that with mixup).
      ema: decay of ``state.average`` (see ``rmn_jax.train.average``), where the state has one.
      unit_gradient: "share" leaves a unit's gradient that of the batch's mean loss, which weighs it by the share of
        inputs the unit got (the paper's loss); "own" makes it the mean over the unit's own inputs.
      balance_loss: weight of a learned router's load-balancing loss (with ``accumulation``: of the parts' mean).

    Returns:
      A function of the state, a batch (see ``rmn_jax.data``) and the run's key.
    """
    part_sums = make_part_sums(model, augment, label_smoothing, mixup, balance_loss / accumulation)

    def update(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, jax.Array]:
        size = batch["image"].shape[0] * jax.lax.axis_size(AXIS)
        keys = example_keys(jax.random.fold_in(key, state.update), batch["index"])
        rows = {"image": batch["image"], "label": batch["label"], "key": keys}

        def sums_of(batch_stats, rows):
            return part_sums({**state.variables, "batch_stats": batch_stats}, rows, size)

        if accumulation == 1:
            sums, batch_stats = sums_of(state.batch_stats, rows)
        else:
            parts = cut(rows, accumulation, group=2 if mixup else 1)
            zeros = BatchSums.zeros(state.params, state.memory)
            sums, batch_stats = accumulate(sums_of, state.batch_stats, parts, zeros)
        gradients, loss, correct = jax.lax.psum((sums.gradients, sums.loss, sums.correct), AXIS)
        memory, load, drift = _moved_memories(state.memory, sums.units, model.num_units, alpha)
        if unit_gradient == "own" and model.routed:
            gradients = scale_units(gradients, [size / jnp.maximum(inputs, 1.0) for inputs in load])
        changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        metrics = Metrics(loss, correct, jnp.float32(size), load, drift)
        state = TrainState(
            update=state.update + 1,
            params=params,
            batch_stats=batch_stats,
            memory=memory,
            opt_state=opt_state,
            metrics=metrics,
            average=move_average(state.average, params, ema, state.update),
        )
        return state, loss / size

    # Without variance checks, the sum over devices in the forward pass (batch norm) is transposed to a sum:
    # each device then differentiates the global loss, and one psum of the gradients remains, above.
    sharded = jax.shard_map(update, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(), check_vma=False)

    # The sums since the epoch began stay outside: a plain network's loads are [0, N], and jaxlib 0.11 does not survive
    # an array of no elements that goes into shard_map.
    def add_up(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, jax.Array]:
        moved, loss = sharded(state._replace(metrics=cast(Any, None)), batch, key)
        return moved._replace(metrics=jax.tree.map(jnp.add, state.metrics, moved.metrics)), loss

    return jax.jit(add_up, donate_argnums=0)


def _moved_memories(memory: dict, sums: tuple[routing.UnitSums, ...], num_units: int, alpha: float):
    """Eq. 9 for all stages over the global batch, with one reduction; also the loads and drifts."""
    if not sums:
        return memory, jnp.zeros((0, num_units)), jnp.zeros((0,))
    sums = jax.lax.psum(sums, AXIS)
    names = [f"memory{i + 1}" for i in range(len(sums))]
    moved = {name: routing.update_memory(memory[name], s, alpha) for name, s in zip(names, sums, strict=True)}
    drift = jnp.stack([routing.memory_drift(memory[name], moved[name]) for name in names])
    return moved, jnp.stack([s.inputs for s in sums]), drift


class EvalSums(NamedTuple):
    """Sums over the examples of a split whose mask is True; ``load`` is [S, N] ([0, N] when plain)."""

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    load: jax.Array


def make_eval_step(model: RMN, prepare: Callable[[jax.Array], jax.Array], mesh: Mesh):
    """The jitted ``(variables, batch, key) -> EvalSums``; padding counts for nothing.

    ``key`` draws the condition of a plain network with conditional attention; an example's condition depends
    on the key and its index alone, so results do not depend on the batch size.
    """

    def evaluate(variables: dict, batch: dict, key: jax.Array) -> EvalSums:
        keys = example_keys(key, batch["index"])
        outputs = cast(Outputs, model.apply(variables, prepare(batch["image"]), keys=keys))
        label, mask = batch["label"], batch["mask"].astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, label)
        own = jnp.take_along_axis(outputs.logits, label[:, None], axis=-1)
        # Rank by comparison, the lower class first among equals, as argmax and a stable sort have it.
        before = jnp.arange(outputs.logits.shape[-1])[None] < label[:, None]
        # What is not a number is before every other: a network that blew up is right about nothing.
        rank = jnp.sum(~(outputs.logits < own) & ((outputs.logits != own) | before), axis=-1)
        units = jax.nn.one_hot(outputs.assignment, model.num_units) * mask[None, :, None]
        load = jnp.sum(units, axis=1) if model.routed else jnp.zeros((0, model.num_units))
        total = lambda values: jnp.sum(values * mask)  # noqa: E731
        sums = EvalSums(total(losses), total(rank < 1), total(rank < 5), jnp.sum(mask), load)
        return jax.lax.psum(sums, AXIS)

    return jax.jit(jax.shard_map(evaluate, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(), check_vma=False))


def make_extract_step(model: RMN, prepare: Callable[[jax.Array], jax.Array], mesh: Mesh):
    """The jitted ``(variables, batch, key) -> (pooled, assignment)`` in evaluation: S x [B, C]; [S, B]."""

    def extract(variables: dict, batch: dict, key: jax.Array):
        keys = example_keys(key, batch["index"])
        outputs = cast(Outputs, model.apply(variables, prepare(batch["image"]), keys=keys))
        return outputs.pooled, outputs.assignment

    out_specs = (P(AXIS), P(None, AXIS))
    return jax.jit(
        jax.shard_map(extract, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=out_specs, check_vma=False)
    )
