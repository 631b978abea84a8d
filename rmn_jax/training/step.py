"""One step and one evaluation batch, as pure functions over a mesh with the axis ``data``.

Each device sorts and routes its own rows. Sums for batch norm, memories and gradients are global, so the result is that
of the whole batch on one device.

Axes: B batch, N units, S stages, H W height and width, C channels (see ``rmn_jax``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmn_jax import routing
from rmn_jax.models import RMN, Outputs
from rmn_jax.training.ema import update_ema
from rmn_jax.training.gradients import (
    BatchSums,
    accumulate,
    apply_changes,
    make_microbatch_sums,
    scale_units,
    split_microbatches,
)
from rmn_jax.training.sharding import AXIS as AXIS
from rmn_jax.training.sharding import StageGather, sum_gradients
from rmn_jax.training.state import Metrics, TrainState


def make_mesh(devices=None) -> Mesh:
    """All devices (of all hosts) along the axis ``data``."""
    return Mesh(devices or jax.devices(), (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows over devices, neighbouring rows on the same device."""
    return NamedSharding(mesh, P(AXIS))


def example_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """One key for each input, from its position in the split: [B] int32 -> key array [B]."""
    return jax.vmap(partial(jax.random.fold_in, key))(index)


def repeated_keys(keys: jax.Array, first_row: jax.Array | int, distinct: int) -> jax.Array:
    """Other keys for each time that an input is in a batch of ``distinct`` inputs, then the same inputs again, ..

    Args:
      keys: [B] of some rows of the batch; those of one input are equal.
      first_row: the position of the first of them in the global batch.
      distinct: number of different inputs in the global batch.
    """
    return jax.vmap(jax.random.fold_in)(keys, (first_row + jnp.arange(len(keys))) // distinct)


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
    mixing: tuple[int, int] = (0, 1),
    cutmix: float = 0.0,
    repeats: int = 1,
    specs: TrainState | None = None,
) -> Callable[[TrainState, dict, jax.Array], tuple[TrainState, jax.Array]]:
    """Makes the jitted optimizer step ``(state, batch, key) -> (state, mean loss)``; the state is donated.

    The loss is NaN if anything in the new state is not finite, so one number tells whether the state may be saved.

    With ``accumulation`` k the batch is computed in k microbatches, one after another, in the memory of one:

    - Microbatch p is the rows p, p + k, p + 2k .. of the global batch (of pairs of rows with mixup or CutMix). So k,
      and not the number of devices, decides which inputs are normalised together.
    - Gradients are averaged over the whole batch. The optimizer and ``step`` advance once.
    - Batch norm uses the statistics of a microbatch over all devices (ghost batch norm). Its running statistics move k
      times in a step. The statistics of a unit are those of its inputs in the microbatch.
    - The whole batch is routed with the memories from before the step. They move once, by eq. 9 over the whole batch.

    Without batch norm the result is that of k = 1.

    Args:
      model: with ``axis_name`` set to ``AXIS``.
      optimizer: an optax transformation.
      augment: (keys [B], uint8 images [B, H, W, C]) -> float32 images.
      mesh: devices along ``AXIS``.
      alpha: momentum of the memories (eq. 9).
      label_smoothing: share of the target that is spread evenly over all classes.
      mixup: alpha of the Beta distribution (see ``rmn_jax.training.mixup``); 0 is off. With mixup an input counts as
        correct if the first prediction is the class with the larger weight.
      accumulation: k. The global batch is a multiple of devices * k (of twice that with mixup or CutMix).
      ema: decay of ``state.ema`` (see ``rmn_jax.training.ema``), where the state has one.
      unit_gradient: "share" is the gradient of the batch's mean loss, in which a unit weighs by its share of the inputs
        (the paper's loss); "own" is the mean over the inputs of the unit.
      balance_loss: weight of the router's auxiliary loss (with ``accumulation``: of its mean over microbatches).
      mixing: (start, length) in steps, for batch norm with "mixed" statistics: r of ``rmn_jax.ops.batch_moments`` is 0
        until step ``start``, then rises linearly to 1 over ``length`` steps.
      cutmix: alpha of the Beta distribution (see ``rmn_jax.training.cutmix``); 0 is off. As mixup otherwise.
      repeats: how often each input is in the batch (see ``rmn_jax.data.order``); each time it has other keys.
      specs: how the state is split (``rmn_jax.training.sharding.unit_specs``); None is a copy on every device. The
        optimizer must then be elementwise.

    Returns:
      A function of the state, a batch (see ``rmn_jax.data``) and the run's key.
    """
    model = _with_gather(model, specs)
    microbatch_sums = make_microbatch_sums(model, augment, label_smoothing, mixup, balance_loss / accumulation, cutmix)

    def device_step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, jax.Array]:
        chex.assert_rank([batch["image"], batch["label"], batch["index"]], [4, 1, 1])
        chex.assert_equal_shape_prefix([batch["image"], batch["label"], batch["index"]], 1)
        size = batch["image"].shape[0] * jax.lax.axis_size(AXIS)
        keys = example_keys(jax.random.fold_in(key, state.step), batch["index"])
        if repeats > 1:
            first_row = jax.lax.axis_index(AXIS) * batch["image"].shape[0]
            keys = repeated_keys(keys, first_row, size // repeats)
        rows = {"image": batch["image"], "label": batch["label"], "key": keys}

        network = {}
        if model.statistics == "mixed" and model.routed:
            network["own_share"] = jnp.clip((state.step - mixing[0]) / mixing[1], 0.0, 1.0)

        def sums_of(batch_stats, rows):
            return microbatch_sums({**state.variables, "batch_stats": batch_stats}, rows, size, **network)

        if accumulation == 1:
            sums, batch_stats = sums_of(state.batch_stats, rows)
        else:
            microbatches = split_microbatches(rows, accumulation, group=2 if mixup or cutmix else 1)
            zeros = BatchSums.zeros(state.params, state.memory)
            sums, batch_stats = accumulate(sums_of, state.batch_stats, microbatches, zeros)
        if specs is None:
            gradients, loss, correct = jax.lax.psum((sums.gradients, sums.loss, sums.correct), AXIS)
        else:
            gradients, (loss, correct) = sum_gradients(sums.gradients, (sums.loss, sums.correct), specs.params)
        memory, load, drift = _moved_memories(state.memory, sums.units, model.num_units, alpha)
        if unit_gradient == "own" and model.routed:
            factors = (size / jnp.maximum(inputs, 1.0) for inputs in load)
            gradients = scale_units(gradients, dict(zip(sums.units, factors, strict=True)), specs and specs.params)
        changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = apply_changes(state.params, changes)
        metrics = Metrics(loss, correct, jnp.float32(size), load, drift)
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            memory=memory,
            opt_state=opt_state,
            metrics=metrics,
            ema=update_ema(state.ema, params, ema, state.step),
            idle=state.idle,
        )
        finite = is_finite(state)
        if specs is not None:  # each device has seen its own part
            finite = jax.lax.psum(~finite, AXIS) == 0
        return state, jnp.where(finite, loss / size, jnp.nan)

    # With check_vma=False (JAX does not track which values differ between devices) the transpose of psum is psum. Hence
    # each device differentiates the global loss through batch norm, and the gradients need only the one psum above.
    state_specs = P() if specs is None else specs._replace(metrics=cast(Any, P()))
    in_specs, out_specs = (state_specs, P(AXIS), P()), (state_specs, P())
    sharded = jax.shard_map(device_step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    # The sums of the epoch stay outside: the load of a plain network is [0, N], and jaxlib 0.11 crashes if an array
    # without elements enters shard_map.
    def train_step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, jax.Array]:
        moved, loss = sharded(state._replace(metrics=cast(Any, None)), batch, key)
        return moved._replace(metrics=jax.tree.map(jnp.add, state.metrics, moved.metrics)), loss

    return jax.jit(train_step, donate_argnums=0)


def _with_gather(model: RMN, specs: TrainState | None) -> RMN:
    """The network that gathers each stage's parameters, if the state is split."""
    return model if specs is None else model.clone(gather=StageGather(specs.params, model.dtype))


def _variable_specs(specs: TrainState | None) -> Any:
    return P() if specs is None else specs.variables


def is_finite(tree: Any) -> jax.Array:
    """Whether no float in a pytree is NaN or infinite: [] bool. In the step it costs one more read of the state."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def _moved_memories(memory: dict, sums: dict[int, routing.UnitSums], num_units: int, alpha: float):
    """Eq. 9 for all routed stages over the global batch, with one reduction.

    Returns memories, loads [S, N] and drifts [S].
    """
    if not sums:
        return memory, jnp.zeros((0, num_units)), jnp.zeros((0,))
    sums = jax.lax.psum(sums, AXIS)
    moved = {f"memory{i}": routing.update_memory(memory[f"memory{i}"], s, alpha) for i, s in sums.items()}
    drift = jnp.stack([routing.memory_drift(memory[name], moved[name]) for name in moved])
    return moved, jnp.stack([s.inputs for s in sums.values()]), drift


class EvalSums(NamedTuple):
    """Sums over the examples of a batch whose mask is True, and the units of all its examples.

    Attributes:
      loss: [] float32.
      top1: [] float32, examples whose first prediction is right.
      top5: [] float32, examples with the right class among the first five.
      count: [] float32, examples.
      load: [S, N] float32, examples of each unit of the S routed stages; [0, N] when plain.
      assignment: [B, S] int32, the unit of each example at each routed stage, not a sum; None when plain.
      confusion: [K, K] int32, examples by class (rows) and predicted class (columns); None if not asked for.
    """

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    load: jax.Array
    assignment: jax.Array | None
    confusion: jax.Array | None = None


def make_eval_step(
    model: RMN,
    preprocess: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    confusion: bool = False,
    specs: TrainState | None = None,
):
    """Makes the jitted ``(variables, batch, key) -> EvalSums``; padding is not counted.

    ``key`` draws the condition of a plain network with conditional attention. The condition of an example depends on
    the key and on its index alone, so results do not depend on the batch size.

    Args:
      model: with ``axis_name`` set to ``AXIS``.
      preprocess: uint8 images [B, H, W, C] -> float32 images.
      mesh: devices along ``AXIS``.
      confusion: whether to count examples by class and predicted class.
      specs: see ``make_train_step``.
    """
    model = _with_gather(model, specs)

    def evaluate(variables: dict, batch: dict, key: jax.Array) -> tuple:
        keys = example_keys(key, batch["index"])
        outputs = cast(Outputs, model.apply(variables, preprocess(batch["image"]), keys=keys))
        label, mask = batch["label"], batch["mask"].astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, label)
        label_logit = jnp.take_along_axis(outputs.logits, label[:, None], axis=-1)
        # Rank by comparison; the lower class comes first among equals, as in argmax and a stable sort.
        before = jnp.arange(outputs.logits.shape[-1])[None] < label[:, None]
        # A NaN ranks before every number: a network that diverged gets nothing right.
        rank = jnp.sum(~(outputs.logits < label_logit) & ((outputs.logits != label_logit) | before), axis=-1)
        chosen = [outputs.assignment[stage - 1] for stage in model.stages_with_memories]
        assignment = jnp.stack(chosen) if chosen else None
        load = jnp.zeros((0, model.num_units))
        if assignment is not None:
            load = jnp.sum(jax.nn.one_hot(assignment, model.num_units) * mask[None, :, None], axis=1)
        total = lambda values: jnp.sum(values * mask)  # noqa: E731
        sums = (total(losses), total(rank < 1), total(rank < 5), jnp.sum(mask), load)
        counts = None
        if confusion:
            table = jnp.zeros((outputs.logits.shape[-1],) * 2, jnp.int32)
            predicted = jnp.argmax(outputs.logits, axis=-1)  # the lower class among equals, as in the rank
            counts = jax.lax.psum(table.at[label, predicted].add(batch["mask"].astype(jnp.int32)), AXIS)
        return (*jax.lax.psum(sums, AXIS), None if assignment is None else assignment.T, counts)

    in_specs = (_variable_specs(specs), P(AXIS), P())
    out_specs = (*(P(),) * 5, P(AXIS) if model.routed else None, P() if confusion else None)
    sharded = jax.shard_map(evaluate, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(lambda *arguments: EvalSums(*sharded(*arguments)))


def make_extract_step(
    model: RMN,
    preprocess: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    specs: TrainState | None = None,
):
    """Makes the jitted ``(variables, batch, key) -> (pooled, assignment)`` of evaluation: S x [B, C] and [S, B].

    Args:
      model: see ``make_eval_step``.
      preprocess: as there.
      mesh: as there.
      augment: as in ``make_train_step``, in place of ``preprocess``; a key gives each image one random view.
      specs: as there.
    """
    model = _with_gather(model, specs)

    def extract(variables: dict, batch: dict, key: jax.Array):
        keys = example_keys(key, batch["index"])
        images = preprocess(batch["image"]) if augment is None else augment(keys, batch["image"])
        outputs = cast(Outputs, model.apply(variables, images, keys=keys))
        return outputs.pooled, outputs.assignment

    in_specs, out_specs = (_variable_specs(specs), P(AXIS), P()), (P(AXIS), P(None, AXIS))
    return jax.jit(jax.shard_map(extract, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))
