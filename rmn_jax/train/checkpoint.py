"""Saving and restoring a run's state: Orbax for the arrays, a manifest beside them to know them good.

A checkpoint is a folder ``checkpoints/update_00000440.step1`` with Orbax's ``arrays/`` and ``manifest.json``, which is
written last and holds each leaf's shape, dtype and digest. Orbax alone would restore a flipped bit silently and take
a truncated folder for the newest. A checkpoint that does not verify is passed over, loudly, and never deleted.
"""

import errno
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from rmn_jax.errors import UserError
from rmn_jax.train.state import TrainState

_NAME = re.compile(r"update_(\d+)\.step([1-4])")
_MANIFEST = "manifest.json"


class Position(NamedTuple):
    """Where a run is: ``update`` updates done, in one of the four steps (plain runs stay in step 1)."""

    update: int
    step: int

    @property
    def folder(self) -> str:
        """The checkpoint's folder name."""
        return f"update_{self.update:08d}.step{self.step}"


class Damaged(Exception):
    """A checkpoint that does not verify; the message says what is wrong."""


class Unfinished(Damaged):
    """A checkpoint whose saving was cut short."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder.
      keep: how many good ones to keep.
      warn: called with a line when a checkpoint is passed over.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, warn: Callable[[str], None]):
        self._folder = workdir / "checkpoints"
        self._keep = keep
        self._warn = warn
        self._damaged: list[Position] = []

    def positions(self) -> list[Position]:
        """What the folder lists, newest first, good or not."""
        if not self._folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted((Position(int(m[1]), int(m[2])) for m in found if m), reverse=True)

    def save(self, state: TrainState, position: Position) -> None:
        """Saves, then removes the oldest good ones beyond ``keep``.

        Those that ``restore`` passed over are renamed first: they neither count as good nor are ever removed.

        Raises:
          UserError: the disk is full or the folder cannot be written; earlier checkpoints stay.
        """
        target = (self._folder / position.folder).absolute()
        leaves = _flatten(state)
        first = jax.process_index() == 0
        try:
            if first:
                self._folder.mkdir(parents=True, exist_ok=True)
                for damaged in {*self._damaged, position}:
                    _set_aside(self._folder / damaged.folder)
                self._damaged = []
            with ocp.PyTreeCheckpointer() as checkpointer:
                checkpointer.save(target / "arrays", leaves)
            if first:
                manifest = {"update": position.update, "step": position.step, "leaves": _describe(leaves)}
                partial = target / f"{_MANIFEST}.partial"
                partial.write_text(json.dumps(manifest, indent=1))
                partial.rename(target / _MANIFEST)
        except Exception as error:
            if not _is_disk_trouble(error):
                raise
            shutil.rmtree(target, ignore_errors=True)
            raise UserError(
                f"cannot write the checkpoint {target}: {_reason(error)}. "
                "Make room (or mend the permissions) and start again; the run goes on from its last checkpoint."
            ) from None
        if first:
            self._prune()

    def restore(self, make_target: Callable[[Position], TrainState]) -> tuple[TrainState, Position] | None:
        """The newest checkpoint that verifies, as host arrays in the shape of ``make_target(position)``.

        Args:
          make_target: gives a state of ``jax.ShapeDtypeStruct`` leaves (or arrays) for a position.

        Returns:
          The state and its position, or None when there is no checkpoint at all, or but one that was never finished:
          a run killed in its first saving begins anew.

        Raises:
          UserError: there are checkpoints, but none verifies.
        """
        self._damaged, positions = [], self.positions()
        for position in positions:
            try:
                return self._load(position, make_target(position)), position
            except Damaged as problem:
                self._damaged.append(position)
                if isinstance(problem, Unfinished) and len(positions) == 1:
                    self._warn(f"checkpoint {self._folder / position.folder} was not finished, and is the only one")
                    return None
                self._warn(f"checkpoint {self._folder / position.folder} is damaged ({problem}); trying an older one")
        if positions:
            raise UserError(
                f"no checkpoint in {self._folder} verifies; move that folder away to start from the beginning."
            )
        return None

    def _load(self, position: Position, target: TrainState) -> TrainState:
        folder = (self._folder / position.folder).absolute()
        manifest = _read_manifest(folder)
        # TensorStore follows links, so one could make a run read what lies outside its folder.
        if any(path.is_symlink() for path in [folder, *folder.rglob("*")]):
            raise Damaged("it contains a symbolic link")
        wanted = _flatten(target)
        shapes = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()}
        stored = {name: (entry["shape"], entry["dtype"]) for name, entry in manifest["leaves"].items()}
        if shapes != stored:
            name = sorted(n for n in shapes.keys() | stored.keys() if shapes.get(n) != stored.get(n))[0]
            raise Damaged(f"{name} is {stored.get(name, 'absent')}, this network wants {shapes.get(name, 'none')}")
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
                leaves = checkpointer.restore(folder / "arrays", restore_args=as_numpy)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            raise Damaged(_reason(error)) from error
        for name, entry in manifest["leaves"].items():
            if name not in leaves or _digest(np.asarray(leaves[name])) != entry["digest"]:
                raise Damaged(f"{name} does not match its digest")
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: np.asarray(leaves[_name(path)]) if leaf.size else np.zeros(leaf.shape, leaf.dtype),
            target,
        )

    def _prune(self) -> None:
        good = [p for p in self.positions() if (self._folder / p.folder / _MANIFEST).is_file()]
        for position in good[self._keep :]:
            shutil.rmtree(self._folder / position.folder, ignore_errors=True)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _flatten(tree) -> dict:
    """``{"params/stage1/...": leaf}``; without empty leaves, which Orbax does not store."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size}


def _describe(leaves: dict) -> dict:
    described = {}
    for name, leaf in leaves.items():
        value = np.asarray(jax.device_get(leaf))
        described[name] = {"shape": list(value.shape), "dtype": str(value.dtype), "digest": _digest(value)}
    return described


def _digest(value: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).hexdigest()


def _read_manifest(folder: pathlib.Path) -> dict:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        wanted = ("shape", "dtype", "digest")
        return {"leaves": {name: {key: entry[key] for key in wanted} for name, entry in manifest["leaves"].items()}}
    except FileNotFoundError:
        raise Unfinished("it was not finished") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise Damaged("its manifest is unreadable") from None


def _set_aside(target: pathlib.Path) -> None:
    """A folder already of this name is one that did not verify: keep it for whoever wants to look."""
    if not target.exists():
        return
    number = 1
    while target.with_name(f"{target.name}.damaged{number}").exists():
        number += 1
    target.rename(target.with_name(f"{target.name}.damaged{number}"))


def _is_disk_trouble(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.EFBIG,
        )
    text = str(error)
    return any(sign in text for sign in ("No space left", "ENOSPC", "Permission denied", "Read-only", "quota"))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
