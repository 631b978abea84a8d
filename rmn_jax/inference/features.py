"""Features of inner layers, by name.

Axes: B batch, N units, S stages, H W height and width, C channels, K classes (see ``rmn_jax``).
"""

from typing import Any

import jax

from rmn_jax.errors import UserError
from rmn_jax.models import RMN


def feature_names(model: RMN) -> tuple[str, ...]:
    """The names that ``extract_features`` accepts for this network: ``stage1``, .., ``pooled1``, .., ``logits``."""
    every = range(1, len(model.backbone.stages) + 1)
    conditioned = model.stages_with_units if model.attention == "conditional" else ()
    stages = {
        "stage": every,
        "pooled": every,
        "assignment": model.stages_with_memories or conditioned,
        "distances": model.stages_with_memories,
    }
    return tuple(f"{kind}{i}" for kind, numbers in stages.items() for i in numbers) + ("logits",)


def extract_features(
    model: RMN,
    variables: dict[str, Any],
    images: jax.Array,
    names: tuple[str, ...] | None = None,
    **arguments,
) -> dict[str, jax.Array]:
    """Features of a batch in evaluation mode, in batch order.

    Under ``jax.jit`` (with ``model`` and ``names`` static), features that are not in ``names`` are not computed.

    Args:
      model: plain or routed.
      variables: ``params``, ``batch_stats`` and, when routed, ``memory``.
      images: [B, H, W, 3] float32, normalised as in training.
      names: some of ``feature_names(model)``; None means all.
      **arguments: ``keys`` or ``assignment`` of ``RMN.__call__``.

    Returns:
      By name, with i from 1 to S (assignments and distances of routed stages only):
        ``stage{i}``       [B, H_i, W_i, C_i], the feature map f_i.
        ``pooled{i}``      [B, C_{i-1}] float32, GAP(f_{i-1}), which stage i routes by.
        ``assignment{i}``  [B] int32, the unit; in a plain network with conditional attention the condition.
        ``distances{i}``   [B, N] float32, squared distances to the memories; eq. 4 takes the smallest.
        ``logits``         [B, K] float32.

    Raises:
      UserError: a name that this network does not have.
    """
    known = feature_names(model)
    wanted = known if names is None else tuple(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"no feature {unknown[0]!r} in this network; it has {', '.join(known)}.")
    outputs: Any = model.apply(variables, images, train=False, **arguments)
    found = {"logits": outputs.logits}
    for kind, arrays in (("stage", outputs.stages), ("pooled", outputs.pooled), ("assignment", outputs.assignment)):
        found |= {f"{kind}{i + 1}": array for i, array in enumerate(arrays)}
    numbers = model.stages_with_memories
    found |= {f"distances{i}": array for i, array in zip(numbers, outputs.distances, strict=True)}
    return {name: found[name] for name in wanted}
