"""Phase 2, procedure cloning: every leaf below a stage gets a leading axis N of equal copies.

Pure functions on pytrees of parameters, BN statistics or optimizer state. A leaf belongs to a procedure if its path
goes through a stage. Optimizer states contain the paths of the parameters.

Axes: N units (see ``rmn_jax``).
"""

import re
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")
_STAGE = re.compile(r"stage\d+")


def is_procedural(path: tuple) -> bool:
    """Whether a leaf belongs to a procedure: a key on its path is ``stage1``, ``stage2``, ..."""
    return any(_STAGE.fullmatch(str(getattr(key, "key", getattr(key, "name", "")))) for key in path)


def clone(tree: Tree, num_units: int) -> Tree:
    """Copies each procedure N times: leaf [...] -> [N, ...]; other leaves stay.

    Args:
      tree: parameters, ``batch_stats`` or optimizer state of the plain network.
      num_units: N, at least 1.

    Raises:
      ValueError: N is below 1.
    """
    if num_units < 1:
        raise ValueError(f"num_units is {num_units}; it must be 1 or more")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.repeat(leaf[None], num_units, axis=0) if is_procedural(path) else leaf, tree
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
