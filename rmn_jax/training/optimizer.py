"""The optimizer and the learning-rate schedule of a configuration, from optax.

    gradient -> [clip] -> rule of the table (with weight decay) -> [factor of the part] -> change

Frozen parameters are taken out before and get no change. A step treats each unit of a routed stage as it would treat
that stage of a plain network; only clipping looks at all parameters together.

Axes: N units (see ``rmn_jax``).
"""

import fnmatch
import functools
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import jax
import optax
from ml_collections import ConfigDict

from rmn_jax.errors import UserError
from rmn_jax.training.cloning import is_procedural

Rule: TypeAlias = optax.GradientTransformation
Mask = Callable[[Any], Any] | None


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up, then cosine, over all four phases. ``final`` would be the rate of a step after the last one.

    With ``scaling == "linear"`` the peak rate is multiplied by ``batch_size / reference_batch``.
    """
    settings = config.learning_rate
    peak = settings.peak
    if settings.scaling == "linear":
        peak *= config.batch_size / settings.reference_batch
    total = config.epochs * steps_per_epoch
    warmup = min(int(settings.warmup_epochs * steps_per_epoch), total - 1)
    return optax.warmup_cosine_decay_schedule(settings.initial, peak, warmup, total, settings.final)


def make_optimizer(config: ConfigDict, steps_per_epoch: int, routed_stages: Collection[int] = ()) -> Rule:
    """The optimizer of a configuration.

    The form of its state is that of the parameters' tree, so a state is cloned as parameters are. It does not depend on
    ``steps_per_epoch`` and ``routed_stages``.

    Args:
      config: complete, see ``rmn_jax.config``.
      steps_per_epoch: of the schedule.
      routed_stages: numbers of the stages whose parameters have the axis N; none in the plain network.

    Returns:
      An optax transformation; ``rmn_jax.training.gradients.apply_changes`` applies what its ``update`` returns. Its
      ``init`` raises UserError for a pattern of ``config.optimizer.freeze`` that matches no parameter.
    """
    settings, rate = config.optimizer, learning_rate(config, steps_per_epoch)
    mask = functools.partial(_is_kernel, stages=routed_stages) if settings.weight_decay_on == "kernels" else None
    parts = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    rule = OPTIMIZERS[settings.name](settings, rate, mask, routed_stages)
    factors = {part: config.learning_rate[f"{part}_factor"] for part in ("stem", "stages", "head")}
    if set(factors.values()) != {1.0}:
        rule += (optax.stateless(lambda changes, _: _scaled_by_part(changes, factors)),)
    optimizer = optax.chain(*parts, *rule)
    patterns = [pattern.strip() for pattern in settings.freeze.split(",") if pattern.strip()]
    if not patterns:
        return optimizer
    return optax.partition(
        {"trained": optimizer, "frozen": optax.stateless(_no_change)}, lambda params: _labels(params, patterns)
    )


def _sgd(settings: ConfigDict, rate: optax.Schedule, mask: Mask, _) -> tuple[Rule, ...]:
    return _l2(settings, mask), optax.sgd(rate, momentum=settings.momentum)


def _nesterov(settings: ConfigDict, rate: optax.Schedule, mask: Mask, _) -> tuple[Rule, ...]:
    return _l2(settings, mask), optax.sgd(rate, momentum=settings.momentum, nesterov=True)


def _rmsprop(settings: ConfigDict, rate: optax.Schedule, mask: Mask, _) -> tuple[Rule, ...]:
    """TensorFlow's form, of EfficientNet: mean squares begin at 1, and the rate is inside the momentum."""
    rule = optax.rmsprop(
        rate, decay=settings.decay, eps=settings.epsilon, momentum=settings.momentum, initial_scale=1.0
    )
    return _l2(settings, mask), rule


def _adamw(settings: ConfigDict, rate: optax.Schedule, mask: Mask, _) -> tuple[Rule, ...]:
    adam = {"b1": settings.beta1, "b2": settings.beta2, "eps": settings.adam_epsilon}
    return (optax.adamw(rate, **adam, weight_decay=settings.weight_decay, mask=mask),)


def _lamb(settings: ConfigDict, rate: optax.Schedule, mask: Mask, stages: Collection[int]) -> tuple[Rule, ...]:
    """``optax.lamb``, with a trust ratio for each unit: a layer of a unit is a layer."""
    return (
        optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=settings.adam_epsilon),
        optax.add_decayed_weights(settings.weight_decay, mask),
        _for_each_unit(optax.scale_by_trust_ratio(), stages),
        optax.scale_by_learning_rate(rate),
    )


# The names of config.optimizer.name. Weight decay is added to the gradient (coupled, L2) in sgd, nesterov and rmsprop,
# and to the change (decoupled) in adamw and lamb.
OPTIMIZERS: dict[str, Callable[..., tuple[Rule, ...]]] = {
    "sgd": _sgd,
    "nesterov": _nesterov,
    "adamw": _adamw,
    "lamb": _lamb,
    "rmsprop": _rmsprop,
}


def _l2(settings: ConfigDict, mask: Mask) -> Rule:
    return optax.add_decayed_weights(settings.weight_decay, mask)


def _for_each_unit(rule: Rule, stages: Collection[int]) -> Rule:
    """A rule without state that is applied to the parameters of each unit on their own."""

    def apply(path, change, param):
        one = lambda change, param: rule.update(change, optax.EmptyState(), param)[0]  # noqa: E731
        return (jax.vmap(one) if is_procedural(path, stages) else one)(change, param)

    return optax.stateless(lambda changes, params: jax.tree_util.tree_map_with_path(apply, changes, params))


def _is_kernel(params: Any, stages: Collection[int]) -> Any:
    """True for each parameter of two axes and more, not counting N: all but the scales of norms and the biases."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim - is_procedural(path, stages) > 1, params)


def _scaled_by_part(changes: Any, factors: dict[str, float]) -> Any:
    """Changes times the factor of their part. Attention and gates belong to the stages."""

    def scale(path, change):
        part = jax.tree_util.keystr(path[:1], simple=True)
        return change * factors.get(part, factors["stages"])

    return jax.tree_util.tree_map_with_path(scale, changes)


def _no_change(changes: Any, _) -> Any:
    return jax.tree.map(lambda _: optax.MaskedNode(), changes)


def _labels(params: Any, patterns: list[str]) -> Any:
    """For each parameter "frozen" or "trained": a pattern matches its path or that of a module around it, or none does.

    Raises:
      UserError: a pattern matches nothing.
    """
    unused = set(patterns)

    def label(path, _):
        names = [jax.tree_util.keystr(path[: i + 1], simple=True, separator="/") for i in range(len(path))]
        matching = {pattern for pattern in patterns if any(fnmatch.fnmatchcase(name, pattern) for name in names)}
        unused.difference_update(matching)
        return "frozen" if matching else "trained"

    labels = jax.tree_util.tree_map_with_path(label, params)
    if unused:
        raise UserError(
            f"config.optimizer.freeze has {min(unused)!r}, which matches no parameter; the parts of this network are "
            f"{', '.join(sorted(params))}, and a path is, for example, {_example(params)}."
        )
    return labels


def _example(params: Any) -> str:
    path, _ = jax.tree_util.tree_leaves_with_path(params)[0]
    return jax.tree_util.keystr(path, simple=True, separator="/")
