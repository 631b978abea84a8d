"""Phase 2, procedure cloning: every leaf below a routed stage gets a leading axis N of equal copies.

Pure functions on pytrees of parameters, BN statistics or optimizer state. A leaf belongs to a procedure if its path
goes through a routed stage. Optimizer states contain the paths of the parameters.

Axes: N units (see ``rmn_jax``).
"""

import re
from collections.abc import Collection
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")
_STAGE = re.compile(r"stage(\d+)")


def stage_of(path: tuple) -> int | None:
    """The number of the stage that a leaf is below, if a key on its path is ``stage1``, ``stage2``, ...; else None."""
    names = names_from_stage(path)
    return int(names[0].removeprefix("stage")) if names else None


def names_from_stage(path: tuple) -> tuple[str, ...]:
    """Names on a path from ``stage1``, ``stage2``, ... on, equal in all trees of a state; empty if none is there."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    first = next((i for i, name in enumerate(names) if _STAGE.fullmatch(name)), len(names))
    return tuple(names[first:])


def is_procedural(path: tuple, stages: Collection[int] | None = None) -> bool:
    """Whether a leaf belongs to a procedure: it is below one of the routed stages; None means that all are routed."""
    stage = stage_of(path)
    return stage is not None and (stages is None or stage in stages)


def clone(tree: Tree, num_units: int, stages: Collection[int] | None = None) -> Tree:
    """Copies each procedure N times: leaf [...] -> [N, ...]; other leaves stay.

    Args:
      tree: parameters, ``batch_stats`` or optimizer state of the plain network.
      num_units: N, at least 1.
      stages: numbers of the routed stages, from 1; None is all.

    Raises:
      ValueError: N is below 1.
    """
    if num_units < 1:
        raise ValueError(f"num_units is {num_units}; it must be 1 or more")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.repeat(leaf[None], num_units, axis=0) if is_procedural(path, stages) else leaf, tree
    )


def permute_units(tree: Tree, orders: dict[str, jax.Array]) -> Tree:
    """Renumbers the units of each stage. If the memories are renumbered too, the network computes the same.

    Args:
      tree: a routed tree.
      orders: for ``stage1`` .. a permutation [N]: new unit j is old unit ``order[j]``.
    """

    def renumber(path, leaf):
        for key in path:
            name = str(getattr(key, "key", getattr(key, "name", "")))
            if name in orders:
                return leaf[orders[name]]
        return leaf

    return jax.tree_util.tree_map_with_path(renumber, tree)


def copy_unit(tree: Tree, stage: int, source: Any, target: Any, num_conditions: int = 0) -> Tree:
    """Unit ``target`` of a stage becomes a copy of unit ``source``; with it, its row in the attention's condition.

    Args:
      tree: parameters, ``batch_stats`` or optimizer state of the routed network; None stays None.
      stage: number of a routed stage, from 1.
      source: [] int, number of a unit.
      target: [] int, likewise.
      num_conditions: N if the attention has a condition: the last N rows of ``attentionI/excite/kernel`` then belong to
        the units (see ``rmn_jax.models.layers.ConditionalAttention``).
    """

    def copied(path, leaf):
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        if f"stage{stage}" in names:
            return leaf.at[target].set(leaf[source])
        if num_conditions and f"attention{stage}" in names and names[-2:] == ["excite", "kernel"]:
            hidden = leaf.shape[0] - num_conditions
            return leaf.at[hidden + target].set(leaf[hidden + source])
        return leaf

    return jax.tree_util.tree_map_with_path(copied, tree)
