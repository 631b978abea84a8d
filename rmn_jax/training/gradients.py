"""Gradients and other sums over a batch, at once or by microbatch (gradient accumulation).

Axes: B batch, N units, S stages, C channels (see ``rmn_jax``).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rmn_jax import routing
from rmn_jax.models import RMN, Outputs
from rmn_jax.training.cloning import stage_of
from rmn_jax.training.cutmix import mixed_images
from rmn_jax.training.mixup import mix, partners
from rmn_jax.training.sharding import own_units


class BatchSums(NamedTuple):
    """Sums over the inputs of a batch or microbatch on this device; those of microbatches add up.

    Attributes:
      gradients: of the loss averaged over the global batch, as ``params``.
      loss: [] float32, sum over inputs.
      correct: [] float32, inputs whose first prediction was right.
      units: for each routed stage by number, sums of the inputs of each unit (eq. 9); empty when plain.
    """

    gradients: Any
    loss: jax.Array
    correct: jax.Array
    units: dict[int, routing.UnitSums]

    @classmethod
    def zeros(cls, params: Any, memory: dict[str, jax.Array]) -> "BatchSums":
        """Sums over no inputs, for these parameters and memories ([N, C] each)."""
        units = {
            int(name.removeprefix("memory")): routing.UnitSums(jnp.zeros_like(m), jnp.zeros_like(m[:, 0]))
            for name, m in memory.items()
        }
        zero = jnp.zeros((), jnp.float32)
        return cls(jax.tree.map(jnp.zeros_like, params), zero, zero, units)


def make_microbatch_sums(
    model: RMN,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    label_smoothing: float,
    mixup: float,
    balance_loss: float = 0.0,
    cutmix: float = 0.0,
) -> Callable[..., tuple[BatchSums, Any]]:
    """Makes the forward and backward pass of a microbatch.

    It is a function ``(variables, rows, size, **network) -> (sums, moved batch_stats)``.

    Args:
      model: see ``rmn_jax.training.step.make_train_step`` for all settings.
      augment: (keys [B], uint8 images) -> float32 images.
      label_smoothing: in [0, 1).
      mixup: 0 or more; 0 is off.
      balance_loss: weight of the router's auxiliary loss.
      cutmix: 0 or more; 0 is off.

    Returns:
      A function of the variables, of the rows (``image`` [B, H, W, C], ``label`` [B] and ``key`` [B], one for each
      input), of the size of the global batch, and of further arguments for the network.
    """
    mixes = bool(mixup or cutmix)

    def microbatch_sums(variables: dict, rows: dict, size: int, **network: Any) -> tuple[BatchSums, Any]:
        # Key 0 is for the augmentation, 1 for the network's own draws, 2 for mixup and CutMix.
        image_keys, network_keys, *mixing_keys = (
            jax.vmap(partial(jax.random.fold_in, data=i))(rows["key"]) for i in range(3 if mixes else 2)
        )
        images, label, weights = augment(image_keys, rows["image"]), rows["label"], None
        if mixes:
            images, weights = mixed_images(mixing_keys[0], images, mixup, cutmix)

        def loss_of(params):
            outputs, changed = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                keys=network_keys,
                mutable=["batch_stats"],
                **network,
            )
            targets = jax.nn.one_hot(label, outputs.logits.shape[-1])
            targets = targets if weights is None else mix(targets, weights)
            losses = optax.softmax_cross_entropy(outputs.logits, optax.smooth_labels(targets, label_smoothing))
            batch_stats = changed.get("batch_stats", variables["batch_stats"])  # a network may have no norms
            loss = jnp.sum(losses) / size + balance_loss * outputs.auxiliary_loss
            return loss, (outputs, batch_stats, losses)

        gradients, (outputs, batch_stats, losses) = jax.grad(loss_of, has_aux=True)(variables["params"])
        wanted = label if weights is None else jnp.where(weights >= 0.5, label, partners(label))
        correct = jnp.sum(jnp.argmax(outputs.logits, -1) == wanted).astype(jnp.float32)
        return BatchSums(gradients, jnp.sum(losses), correct, _unit_sums(outputs, model)), batch_stats

    return microbatch_sums


def _unit_sums(outputs: Outputs, model: RMN) -> dict[int, routing.UnitSums]:
    return {
        stage: routing.unit_sums(outputs.pooled[stage - 1], outputs.assignment[stage - 1], model.num_units)
        for stage in model.stages_with_memories
    }


def scale_units(gradients: Any, factors: Mapping[int, jax.Array], specs: Any = None) -> Any:
    """Multiplies the gradient of each procedure by its unit's factor; other leaves stay.

    Args:
      gradients: of the parameters.
      factors: [N] by number of stage.
      specs: of the parameters, if they are split (see ``rmn_jax.training.sharding``).
    """

    def scale(path, leaf, spec=None):
        stage = stage_of(path)
        factor = None if stage is None else factors.get(stage)
        if factor is not None and spec is not None:
            factor = own_units(factor, spec)
        return leaf if factor is None else leaf * factor.reshape(-1, *(1,) * (leaf.ndim - 1))

    trees = (gradients,) if specs is None else (gradients, specs)
    return jax.tree_util.tree_map_with_path(scale, *trees)


def split_microbatches(rows: Any, count: int, group: int = 1) -> Any:
    """Splits a batch into k = ``count`` microbatches: arrays [B, ...] -> [k, B / k, ...].

    Microbatch p has the groups p, p + k, p + 2k .. of ``group`` neighbouring rows. A device holds neighbouring rows of
    the global batch, a multiple of ``k * group`` of them. So over all devices microbatch p is the same set of inputs,
    whatever the number of devices.

    Args:
      rows: a pytree of arrays with a leading axis B.
      count: k.
      group: rows that stay together; B is a multiple of ``k * group``.
    """

    def deal(leaf: jax.Array) -> jax.Array:
        inner = leaf.shape[1:]
        return jnp.swapaxes(leaf.reshape(-1, count, group, *inner), 0, 1).reshape(count, -1, *inner)

    return jax.tree.map(deal, rows)


def accumulate(
    sums_of: Callable[[Any, Any], tuple[BatchSums, Any]], batch_stats: Any, microbatches: Any, zeros: BatchSums
) -> tuple[BatchSums, Any]:
    """Adds up the sums of the microbatches, one after another; activations of one microbatch are in memory at a time.

    Args:
      sums_of: (batch_stats, rows of a microbatch) -> (sums, moved batch_stats).
      batch_stats: before the step. Each microbatch moves the statistics that the one before it left.
      microbatches: from ``split_microbatches``.
      zeros: the sums over no inputs.

    Returns:
      The sums of the whole batch, and the moved ``batch_stats``.
    """

    def add(carried, rows):
        total, batch_stats = carried
        sums, batch_stats = sums_of(batch_stats, rows)
        return (jax.tree.map(jnp.add, total, sums), batch_stats), None

    return jax.lax.scan(add, (zeros, batch_stats), microbatches)[0]


def apply_changes(params: Any, changes: Any) -> Any:
    """The parameters after a step. Frozen ones keep their bits: even to add zero would flush a subnormal number.

    Args:
      params: of the network.
      changes: from the optimizer's ``update``.
    """

    def apply(param, change):
        return param if isinstance(change, optax.MaskedNode) else optax.apply_updates(param, change)

    return jax.tree.map(apply, params, changes)
