"""Loads a safetensors file with the names of torchvision or timm into the variables of a plain network.

Nothing is unpickled: a safetensors file holds arrays and a JSON header. All names and shapes are checked from the
header before any value is read. The given variables are not changed.
"""

import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from rmn_jax.errors import UserError
from rmn_jax.interop.names import library_names
from rmn_jax.interop.tensor_file import open_tensors
from rmn_jax.models import BACKBONES
from rmn_jax.models.names import LibraryNames

# Name of a leaf -> name of the tensor in PyTorch.
_TENSORS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "gamma": "",  # a layer scale: the layer's name is the tensor's
}
# Prefixes of names in files of training scripts. Those of wrappers are always removed. The attribute that held the
# network is removed only if all names begin with it.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.")
_HOLDERS = ("model.", "net.", "network.", "backbone.", "encoder.", "student.", "ema.", "state_dict.")
# Counters that no layer here needs.
_COUNTERS = ("num_batches_tracked", "n_averaged")
_SHOWN = 4  # names in an error message


class ImportReport(NamedTuple):
    """Which tensors were loaded. Names are those of the file, except in ``fresh``.

    Attributes:
      naming: "torchvision" or "timm".
      loaded: tensors that were loaded into the network.
      missing: tensors that the network needs but the file does not have.
      unexpected: tensors of the file that the network does not use.
      misshaped: "name: (shape in the file), the network needs (shape)".
      fresh: leaves of the network that keep the given values: a new classifier, attention.
    """

    naming: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    fresh: tuple[str, ...]


class _Leaf(NamedTuple):
    """A leaf of the network and its tensor.

    Attributes:
      path: collection, modules, leaf.
      source: name of the tensor; "" for a leaf that the libraries do not have.
      shape: of the leaf.
      linear: whether this is the kernel of a 1x1 convolution here, and of a linear layer there.
    """

    path: tuple[str, ...]
    source: str
    shape: tuple[int, ...]
    linear: bool = False


def load_torch_weights(
    path: str | pathlib.Path,
    backbone_name: str,
    variables: dict[str, Any],
    *,
    fresh_head: bool = False,
    strict: bool = True,
) -> tuple[dict[str, Any], ImportReport]:
    """The variables of a plain network with the weights of a file.

    Args:
      path: a safetensors file with the names of torchvision or timm; which of the two is detected.
      backbone_name: one of ``rmn_jax.interop.names.importable()``.
      variables: ``params`` and ``batch_stats`` of the plain network (float32), for example from ``RMN(...).init``.
        Attention modules and the gates of a learned router keep their values; the two libraries do not have them.
      fresh_head: keep the given classifier (the last linear layer), and any other layer of the head whose shape differs
        from the file's. For another number of classes than the file's, or another image size (VGG).
      strict: refuse a file with missing, unexpected or misshaped tensors. If False, load the tensors that match and
        report the others.

    Returns:
      New variables and a report.

    Raises:
      UserError: unknown backbone, no such file, not a safetensors file, a tensor twice, values that are not finite or
        not floating-point, or (if ``strict``) tensors that do not match.
    """
    names = library_names(backbone_name)
    with open_tensors(path, " With PyTorch, safetensors.torch.save_file(state_dict, path) writes one.") as file:
        actual = _actual_names(file.shapes, path)
        shapes = {name: file.shapes[full] for name, full in actual.items()}
        naming, leaves = _best_naming(names, variables, shapes)
        matched, report = _match(leaves, shapes, naming, names.classifier, fresh_head)
        _check(report, path, backbone_name, shapes, strict)
        arrays = {leaf.path: _converted(file.read(actual[leaf.source]), leaf) for leaf in matched}
    return jax.tree_util.tree_map_with_path(lambda key, leaf: arrays.get(_names(key), leaf), variables), report


def to_torchvision(variables: dict[str, Any], backbone_name: str) -> dict[str, np.ndarray]:
    """The variables of a plain network under torchvision's names and in PyTorch's layout, with batch counters of 0.

    Raises:
      UserError: torchvision does not have this backbone.
    """
    names = library_names(backbone_name, "torchvision has no {!r}")
    arrays: dict[str, np.ndarray] = {}
    for leaf in _leaves(names, "torchvision", variables):
        collection, *path = leaf.path
        value = variables[collection]
        for key in path:
            value = value[key]
        arrays[leaf.source] = _in_torch_layout(np.asarray(value, np.float32), leaf)
        if path[-1] == "mean":
            arrays[leaf.source.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    return arrays


def _in_torch_layout(array: np.ndarray, leaf: _Leaf) -> np.ndarray:
    """The inverse of ``_converted``."""
    if _follows_feature_map(leaf):
        side = round((leaf.shape[0] / 512) ** 0.5)
        array = array.reshape(side, side, 512, leaf.shape[1]).transpose(3, 2, 0, 1).reshape(leaf.shape[1], -1)
    elif array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array.reshape(_torch_shape(leaf)))


def classes_in_file(path: str | pathlib.Path, backbone_name: str) -> int | None:
    """The number of classes of a weights file, from its last linear layer; None if that is not found."""
    if backbone_name not in BACKBONES:
        return None
    names = library_names(backbone_name)
    for namer in names.libraries.values():
        shape = _shapes(path).get(f"{namer(names.classifier)}.weight")
        if shape:
            return shape[0]
    return None


def fits_in_shape(path: str | pathlib.Path, backbone_name: str, shapes: dict[str, Any], fresh_head: bool) -> bool:
    """Whether all names and shapes of a file are those of a network, given by the shapes of its variables."""
    stored, names = _shapes(path), library_names(backbone_name)
    naming, leaves = _best_naming(names, shapes, stored)
    _, report = _match(leaves, stored, naming, names.classifier, fresh_head)
    return bool(report.loaded) and not (report.missing or report.unexpected or report.misshaped)


def _shapes(path: str | pathlib.Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors; empty if it cannot be read, which ``load_torch_weights`` explains."""
    try:
        with open_tensors(path) as file:
            return {name: file.shapes[full] for name, full in _actual_names(file.shapes, path).items()}
    except UserError:
        return {}


def _actual_names(found: Iterable[str], path) -> dict[str, str]:
    """The full names in a file, by their names without prefixes. Counters are left out.

    Raises:
      UserError: two tensors have the same name then.
    """
    names = {full: full for full in found if not full.endswith(_COUNTERS)}
    while True:
        first = next(iter(names.values()), "")
        holder = next((part for part in _HOLDERS if first.startswith(part)), "")
        if not all(name.startswith(holder) for name in names.values()):
            holder = ""
        removed = {full: name.removeprefix(holder) for full, name in names.items()}
        for wrapper in _WRAPPERS:
            removed = {full: name.removeprefix(wrapper) for full, name in removed.items()}
        if removed == names:
            break
        names = removed
    actual: dict[str, str] = {}
    for full, name in names.items():
        if name in actual:
            raise UserError(f"{path} has {name} twice, as {actual[name]} and {full}; save one network in a file.")
        actual[name] = full
    return actual


def _names(key_path) -> tuple[str, ...]:
    return tuple(key.key for key in key_path)


def _leaves(names: LibraryNames, naming: str, variables: dict[str, Any]) -> list[_Leaf]:
    """All leaves with their sources. Leaves outside the backbone (attention, a learned router's gates) have ""."""
    leaves = []
    for collection in ("params", "batch_stats"):
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(variables.get(collection, {})):
            path = _names(key_path)
            source = ""
            if path[0].startswith(("stem", "stage", "head")):
                source = ".".join(filter(None, (names.libraries[naming](path[:-1]), _TENSORS[path[-1]])))
            linear = path[-1] == "kernel" and path[-2] in names.linear
            leaves.append(_Leaf((collection, *path), source, tuple(leaf.shape), linear))
    return leaves


def _best_naming(names: LibraryNames, variables, shapes) -> tuple[str, list[_Leaf]]:
    """The library whose names find most leaves in the file (torchvision in a tie), and the leaves with its names."""
    found = {naming: _leaves(names, naming, variables) for naming in names.libraries}
    best = max(found, key=lambda naming: sum(leaf.source in shapes for leaf in found[naming]))
    return best, found[best]


def _match(leaves, shapes, naming, classifier, fresh_head) -> tuple[list[_Leaf], ImportReport]:
    """The leaves to load, and the report."""
    matched, missing, misshaped, fresh = [], [], [], []
    for leaf in leaves:
        modules = leaf.path[1:-1]
        fits = leaf.source in shapes and _unflattened(shapes[leaf.source], leaf) is not None
        new_head = fresh_head and (modules == classifier or (modules[0] == "head" and not fits))
        if not leaf.source or new_head:
            fresh.append("/".join(leaf.path))
        elif leaf.source not in shapes:
            missing.append(leaf.source)
        elif not fits:
            misshaped.append(f"{leaf.source}: {shapes[leaf.source]}, the network needs {_torch_shape(leaf)}")
        else:
            matched.append(leaf)
    unexpected = sorted(set(shapes) - {leaf.source for leaf in leaves})
    loaded = tuple(leaf.source for leaf in matched)
    return matched, ImportReport(naming, loaded, tuple(missing), tuple(unexpected), tuple(misshaped), tuple(fresh))


def _torch_shape(leaf: _Leaf) -> tuple[int, ...]:
    """The shape of the tensor in PyTorch: [O, C, kh, kw] for a leaf [kh, kw, C, O], and [O, C] for [C, O].

    torchvision's layer scale is [C, 1, 1].
    """
    shape = leaf.shape
    if leaf.path[-1] == "gamma":
        return (*shape, 1, 1)
    if leaf.linear:
        return (shape[3], shape[2])
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _unflattened(shape: tuple[int, ...], leaf: _Leaf) -> tuple[int, ...] | None:
    """The shape to reshape a tensor of ``shape`` to before it is transposed to the leaf; None if it does not match."""
    if leaf.path[-1] == "gamma":  # [C] in timm
        return leaf.shape if shape in (leaf.shape, _torch_shape(leaf)) else None
    if leaf.linear:  # a linear layer or, in timm with an option, a convolution
        unflattened = (*_torch_shape(leaf), 1, 1)
        return unflattened if shape in (_torch_shape(leaf), unflattened) else None
    if shape == _torch_shape(leaf) and not _follows_feature_map(leaf):
        return shape
    if len(leaf.shape) != 2:
        return None
    # A linear layer on a flattened feature map: [O, C h w] in torchvision, a convolution [O, C, h, w] in timm.
    values, outputs = leaf.shape
    if _follows_feature_map(leaf):
        side = round((values / 512) ** 0.5)
        unflattened = (outputs, 512, side, side)
        return unflattened if shape in ((outputs, values), unflattened) else None
    return (outputs, values, 1, 1) if shape == (outputs, values, 1, 1) else None


def _follows_feature_map(leaf: _Leaf) -> bool:
    """Whether this is VGG's first linear layer: its 512 channels are flattened first in PyTorch, last here."""
    return leaf.path[1:] == ("head", "fc1", "kernel")


def _converted(array: np.ndarray, leaf: _Leaf) -> np.ndarray:
    """A tensor in PyTorch's layout (output channels first) -> the leaf (output channels last)."""
    array = array.reshape(_unflattened(array.shape, leaf))
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array.reshape(leaf.shape))


def _check(report: ImportReport, path, backbone_name: str, shapes, strict: bool) -> None:
    """Raises UserError if the file does not match the network."""
    if not report.loaded and not report.misshaped:
        raise UserError(
            f"{path} has no tensor of {backbone_name} by the names of torchvision or timm; "
            f"it has {_first_names(sorted(shapes))}."
        )
    problems = {"missing": report.missing, "unexpected": report.unexpected, "misshaped": report.misshaped}
    found = "; ".join(f"{len(names)} {kind} ({_first_names(names)})" for kind, names in problems.items() if names)
    if found and strict:
        raise UserError(
            f"{path} does not match {backbone_name} in this run: {found}. {_advice(report)}Nothing was imported."
        )


def _advice(report: ImportReport) -> str:
    of_head = ("fc.", "classifier.", "head.", "pre_logits.")
    if not all(entry.startswith(of_head) for entry in (*report.misshaped, *report.missing, *report.unexpected)):
        return ""
    if report.missing:
        return "Its classifier is missing or has other names. To begin with a new one, add --fresh_head. "
    return "For another number of classes or another image size, add --fresh_head. " if report.misshaped else ""


def _first_names(names) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
