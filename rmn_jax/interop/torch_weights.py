"""A safetensors file under torchvision's or timm's names -> the variables of a plain network.

Nothing is unpickled: safetensors holds arrays and a JSON header. All names and shapes are checked from the
header before the first value is read, and the given variables are never changed.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from rmn_jax.errors import UserError
from rmn_jax.interop.names import CLASSIFIER, NAMERS

# A leaf's name here -> its name there.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_SHOWN = 4


class ImportReport(NamedTuple):
    """What became of the file's tensors and the network's leaves; names are the file's, except in ``fresh``.

    Attributes:
      naming: "torchvision" or "timm".
      loaded: tensors that went into the network.
      missing: tensors that the network needs and the file lacks.
      unexpected: tensors of the file that the network has no place for.
      misshaped: "name: (shape in the file), the network wants (shape)".
      fresh: leaves of the network left as they were given: a new classifier, attention.
    """

    naming: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    fresh: tuple[str, ...]


class _Leaf(NamedTuple):
    """A leaf of the network and the tensor it comes from."""

    path: tuple[str, ...]  # collection, modules, leaf
    source: str
    shape: tuple[int, ...]


def load_torch_weights(
    path: str | pathlib.Path,
    backbone_name: str,
    variables: dict[str, Any],
    *,
    fresh_head: bool = False,
    strict: bool = True,
) -> tuple[dict[str, Any], ImportReport]:
    """The variables with the file's weights in place of their own.

    Args:
      path: a safetensors file with the names of torchvision or timm, found out from the names.
      backbone_name: "resnet18", "resnet50", "vgg16_bn" or "efficientnet_b0".
      variables: ``params`` and ``batch_stats`` of the plain network (float32), say from ``RMN(...).init``.
        Attention modules and gates, which those libraries do not have, keep what they hold.
      fresh_head: keep the given classifier (the last linear layer) and any other layer of the head that the
        file's does not fit. For another number of classes than the file's, or another image size (VGG).
      strict: refuse a file with missing, unexpected or mis-shaped tensors; if False, load what fits and
        report the rest.

    Returns:
      New variables and a report.

    Raises:
      UserError: unknown backbone, no such file, not a safetensors file, values that are not finite, or
        (``strict``) tensors that do not match.
    """
    if backbone_name not in NAMERS:
        raise UserError(f"no weights can be imported for {backbone_name!r}; known: {', '.join(sorted(NAMERS))}.")
    try:
        with safe_open(path, framework="flax") as file:
            shapes, actual = _header(file)
            naming, leaves = _best_naming(backbone_name, variables, shapes)
            matched, report = _match(leaves, shapes, naming, CLASSIFIER[backbone_name], fresh_head)
            _check(report, path, backbone_name, shapes, strict)
            arrays = {leaf.path: _converted(file.get_tensor(actual[leaf.source]), leaf) for leaf in matched}
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); where PyTorch is installed, "
            "safetensors.torch.save_file(state_dict, path) writes one."
        ) from None
    bad = [leaf.source for leaf in matched if not np.isfinite(arrays[leaf.path]).all()]
    if bad:
        raise UserError(f"{path} holds values that are not finite, in {_some(bad)}; nothing was imported.")
    return jax.tree_util.tree_map_with_path(lambda key, leaf: arrays.get(_names(key), leaf), variables), report


def _header(file) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes of the file's tensors, and their names in the file, by name without ``module.`` in front.

    BN's counters of batches are left out: nothing here needs them.
    """
    actual = {name.removeprefix("module."): name for name in file.keys()}
    actual = {name: full for name, full in actual.items() if not name.endswith("num_batches_tracked")}
    return {name: tuple(file.get_slice(full).get_shape()) for name, full in actual.items()}, actual


def _names(key_path) -> tuple[str, ...]:
    return tuple(key.key for key in key_path)


def _leaves(backbone_name: str, naming: str, variables: dict[str, Any]) -> list[_Leaf]:
    """All leaves with their sources; what is not the backbone's (attention, a learned router's gates) has ""."""
    leaves = []
    for collection in ("params", "batch_stats"):
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(variables[collection]):
            path = _names(key_path)
            source = ""
            if path[0].startswith(("stem", "stage", "head")):
                source = f"{NAMERS[backbone_name][naming](path[:-1])}.{_LEAVES[path[-1]]}"
            leaves.append(_Leaf((collection, *path), source, tuple(leaf.shape)))
    return leaves


def _best_naming(backbone_name: str, variables, shapes) -> tuple[str, list[_Leaf]]:
    """The library under whose names most leaves are in the file; torchvision if as many are."""
    found = {naming: _leaves(backbone_name, naming, variables) for naming in NAMERS[backbone_name]}
    best = max(found, key=lambda naming: sum(leaf.source in shapes for leaf in found[naming]))
    return best, found[best]


def _match(leaves, shapes, naming, classifier, fresh_head) -> tuple[list[_Leaf], ImportReport]:
    """Which leaves to load, and the report."""
    matched, missing, misshaped, fresh = [], [], [], []
    for leaf in leaves:
        modules = leaf.path[1:-1]
        fits = leaf.source in shapes and _theirs(shapes[leaf.source], leaf) is not None
        new_head = fresh_head and (modules == classifier or (modules[0] == "head" and not fits))
        if not leaf.source or new_head:
            fresh.append("/".join(leaf.path))
        elif leaf.source not in shapes:
            missing.append(leaf.source)
        elif not fits:
            misshaped.append(f"{leaf.source}: {shapes[leaf.source]}, the network wants {_as_theirs(leaf)}")
        else:
            matched.append(leaf)
    unexpected = sorted(set(shapes) - {leaf.source for leaf in leaves})
    loaded = tuple(leaf.source for leaf in matched)
    return matched, ImportReport(naming, loaded, tuple(missing), tuple(unexpected), tuple(misshaped), tuple(fresh))


def _as_theirs(leaf: _Leaf) -> tuple[int, ...]:
    """The shape of PyTorch's tensor: [kh, kw, C, O] is [O, C, kh, kw] there, and [C, O] is [O, C]."""
    shape = leaf.shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _theirs(shape: tuple[int, ...], leaf: _Leaf) -> tuple[int, ...] | None:
    """The shape in which a tensor of ``shape`` is transposed into the leaf; None if it does not fit."""
    if shape == _as_theirs(leaf) and not _follows_feature_map(leaf):
        return shape
    if len(leaf.shape) != 2:
        return None
    # A linear layer on a flattened feature map: [O, C h w] in torchvision, a convolution [O, C, h, w] in
    # timm.
    values, outputs = leaf.shape
    if _follows_feature_map(leaf):
        side = round((values / 512) ** 0.5)
        unflattened = (outputs, 512, side, side)
        return unflattened if shape in ((outputs, values), unflattened) else None
    return (outputs, values, 1, 1) if shape == (outputs, values, 1, 1) else None


def _follows_feature_map(leaf: _Leaf) -> bool:
    """VGG's first linear layer reads a map of 512 channels, flattened channels first there, last here."""
    return leaf.path[1:] == ("head", "fc1", "kernel")


def _converted(tensor: jax.Array, leaf: _Leaf) -> np.ndarray:
    """A tensor in PyTorch's layout -> the leaf, float32: the last axis is what was the first."""
    array = np.asarray(jnp.asarray(tensor, jnp.float32))
    array = array.reshape(_theirs(array.shape, leaf))
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array.reshape(leaf.shape))


def _check(report: ImportReport, path, backbone_name: str, shapes, strict: bool) -> None:
    """Raises UserError for a file that does not match."""
    if not report.loaded:
        raise UserError(
            f"{path} has no tensor of {backbone_name} under torchvision's or timm's names; "
            f"it has {_some(sorted(shapes))}."
        )
    problems = {"missing": report.missing, "unexpected": report.unexpected, "mis-shaped": report.misshaped}
    told = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names)
    if told and strict:
        raise UserError(
            f"{path} is not a whole {backbone_name} for this run: {told}. {_advice(report)}Nothing was imported."
        )


def _advice(report: ImportReport) -> str:
    of_head = ("fc.", "classifier.", "head.", "pre_logits.")
    if report.misshaped and not (report.missing or report.unexpected):
        if all(entry.startswith(of_head) for entry in report.misshaped):
            return "For another number of classes or image size, leave the head out: --fresh_head. "
    return ""


def _some(names) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
