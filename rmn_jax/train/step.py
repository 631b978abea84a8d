"""One update and one evaluation batch, as pure functions over a mesh with the axis ``data``.

Each device sorts and routes its own rows; sums for BN, memories and gradients are global, so that the result
is that of the whole batch on one device. Axes: B inputs, N units, S stages (see ``rmn_jax``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmn_jax import routing
from rmn_jax.models import RMN, Outputs
from rmn_jax.train.state import Metrics, TrainState

AXIS = "data"


def make_mesh(devices=None) -> Mesh:
    """All devices (of all hosts) along the axis ``data``."""
    return Mesh(devices or jax.devices(), (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
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
) -> Callable[[TrainState, dict, jax.Array], tuple[TrainState, jax.Array]]:
    """The jitted update ``(state, batch, key) -> (state, mean loss)``; the state's buffers are reused.

    Args:
      model: with ``axis_name`` set to ``AXIS``.
      optimizer: an optax transformation.
      augment: (keys [B], uint8 images [B, H, W, C]) -> float32 images.
      mesh: devices along ``AXIS``.
      alpha: momentum of the memories (eq. 9).
      label_smoothing: share of the target spread evenly over all classes.

    Returns:
      A function of the state, a batch (see ``rmn_jax.data``) and the run's key.
    """

    def update(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, jax.Array]:
        keys = example_keys(jax.random.fold_in(key, state.update), batch["index"])
        image_keys, network_keys = (jax.vmap(partial(jax.random.fold_in, data=i))(keys) for i in (0, 1))
        images = augment(image_keys, batch["image"])
        global_size = images.shape[0] * jax.lax.axis_size(AXIS)

        def loss_of(params):
            outputs, changed = model.apply(
                {**state.variables, "params": params},
                images,
                train=True,
                keys=network_keys,
                mutable=["batch_stats"],
            )
            targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], outputs.logits.shape[-1]), label_smoothing)
            losses = optax.softmax_cross_entropy(outputs.logits, targets)
            return jnp.sum(losses) / global_size, (outputs, changed["batch_stats"], losses)

        gradients, (outputs, batch_stats, losses) = jax.grad(loss_of, has_aux=True)(state.params)
        correct = jnp.sum(jnp.argmax(outputs.logits, -1) == batch["label"]).astype(jnp.float32)
        gradients, loss, correct = jax.lax.psum((gradients, jnp.sum(losses), correct), AXIS)
        memory, load, drift = _moved_memories(state.memory, outputs, model, alpha)
        changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        sums = Metrics(loss, correct, jnp.float32(global_size), load, drift)
        state = TrainState(
            update=state.update + 1,
            params=optax.apply_updates(state.params, changes),
            batch_stats=batch_stats,
            memory=memory,
            opt_state=opt_state,
            metrics=jax.tree.map(jnp.add, state.metrics, sums),
        )
        return state, loss / global_size

    # Without variance checks, the sum over devices in the forward pass (batch norm) is transposed to a sum:
    # each device then differentiates the global loss, and one psum of the gradients remains to be done, above.
    sharded = jax.shard_map(update, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(), check_vma=False)
    return jax.jit(sharded, donate_argnums=0)


def _moved_memories(memory: dict[str, Any], outputs: Outputs, model: RMN, alpha: float):
    """Eq. 9 for all stages over the global batch, with one reduction; also the loads and drifts."""
    if not model.routed:
        return memory, jnp.zeros((0, model.num_units)), jnp.zeros((0,))
    sums = [
        routing.unit_sums(pooled, assignment, model.num_units)
        for pooled, assignment in zip(outputs.pooled, outputs.assignment, strict=True)
    ]
    sums = jax.lax.psum(sums, AXIS)
    moved = {f"memory{i + 1}": routing.update_memory(memory[f"memory{i + 1}"], s, alpha) for i, s in enumerate(sums)}
    drift = jnp.stack([routing.memory_drift(memory[name], moved[name]) for name in moved])
    return moved, jnp.stack([s.count for s in sums]), drift


class EvalSums(NamedTuple):
    """Sums over the examples of a split whose mask is True; ``load`` is [S, N] ([0, N] when plain)."""

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    count: jax.Array
    load: jax.Array


def make_eval_step(model: RMN, prepare: Callable[[jax.Array], jax.Array], mesh: Mesh):
    """The jitted ``(variables, batch, key) -> EvalSums``; padding counts for nothing.

    ``key`` draws the condition of a plain network with conditional attention; an example's condition depends
    on the key and its index alone, so results do not depend on the batch size.
    """

    def evaluate(variables: dict, batch: dict, key: jax.Array) -> EvalSums:
        keys = example_keys(key, batch["index"])
        outputs = model.apply(variables, prepare(batch["image"]), keys=keys)
        label, mask = batch["label"], batch["mask"].astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, label)
        own = jnp.take_along_axis(outputs.logits, label[:, None], axis=-1)
        # Rank by comparison, the lower class first among equals, as argmax and a stable sort have it.
        before = jnp.arange(outputs.logits.shape[-1])[None] < label[:, None]
        rank = jnp.sum((outputs.logits > own) | ((outputs.logits == own) & before), axis=-1)
        units = jax.nn.one_hot(outputs.assignment, model.num_units) * mask[None, :, None]
        load = jnp.sum(units, axis=1) if model.routed else jnp.zeros((0, model.num_units))
        total = lambda values: jnp.sum(values * mask)  # noqa: E731
        sums = EvalSums(total(losses), total(rank < 1), total(rank < 5), jnp.sum(mask), load)
        return jax.lax.psum(sums, AXIS)

    return jax.jit(
        jax.shard_map(evaluate, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(), check_vma=False)
    )


def make_extract_step(model: RMN, prepare: Callable[[jax.Array], jax.Array], mesh: Mesh):
    """The jitted ``(variables, batch, key) -> (pooled, assignment)`` in evaluation mode: S arrays [B, C], and [S, B]."""

    def extract(variables: dict, batch: dict, key: jax.Array):
        outputs = model.apply(variables, prepare(batch["image"]), keys=example_keys(key, batch["index"]))
        return outputs.pooled, outputs.assignment

    out_specs = (P(AXIS), P(None, AXIS))
    return jax.jit(
        jax.shard_map(extract, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=out_specs, check_vma=False)
    )
