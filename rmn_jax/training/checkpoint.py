"""Saving and restoring the state of a run: Orbax for the arrays, a manifest beside them to verify them.

A checkpoint is a folder ``checkpoints/step_00000440.phase1`` with Orbax's ``arrays/`` and ``manifest.json``. The
manifest is written last and holds the shape, dtype and digest of each leaf. Orbax alone would restore a flipped bit
silently and take a truncated folder for the newest. A checkpoint that does not verify is skipped with a warning, and
never deleted.
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
from rmn_jax.files import write_file
from rmn_jax.training.state import Phase, TrainState

_MANIFEST = "manifest.json"
# Release 0.1 called a step an update and a phase a step, in folder names and in leaf names.
_NAME = re.compile(r"(?:step|update)_(\d+)\.(?:phase|step)([1-4])")
_RENAMED_LEAVES = {"update": "step", "average": "ema"}


class Position(NamedTuple):
    """Where a run is: ``step`` optimizer steps done, in one of the four phases (plain runs stay in phase 1)."""

    step: int
    phase: Phase

    @property
    def folder(self) -> str:
        """The name of the checkpoint's folder."""
        return f"step_{self.step:08d}.phase{self.phase:d}"


class Damaged(Exception):
    """A checkpoint that does not verify; the message says what is wrong."""


class Unfinished(Damaged):
    """A checkpoint whose saving was interrupted."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder.
      keep: how many good checkpoints to keep.
      warn: called with a line when a checkpoint is skipped.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, warn: Callable[[str], None]):
        self._folder = workdir / "checkpoints"
        self._keep = keep
        self._warn = warn
        self._damaged: list[Position] = []

    def positions(self) -> list[Position]:
        """All checkpoints in the folder, newest first, good or not."""
        return sorted(self._paths(), reverse=True)

    def _paths(self) -> dict[Position, pathlib.Path]:
        if not self._folder.is_dir():
            return {}
        found = ((_NAME.fullmatch(path.name), path) for path in sorted(self._folder.iterdir()))
        return {Position(int(m[1]), Phase(int(m[2]))): path for m, path in found if m}

    def save(self, state: TrainState, position: Position) -> None:
        """Saves a checkpoint, then removes the oldest good ones beyond ``keep``.

        Checkpoints that ``restore`` skipped are renamed first: they do not count as good and are never removed.

        Raises:
          UserError: the disk is full or the folder cannot be written; earlier checkpoints stay.
        """
        target = (self._folder / position.folder).absolute()
        leaves = _flatten(state)
        first = jax.process_index() == 0
        try:
            if first:
                self._folder.mkdir(parents=True, exist_ok=True)
                paths = self._paths()
                for damaged in {*self._damaged, position} & paths.keys():
                    _set_aside(paths[damaged])
                self._damaged = []
            with ocp.PyTreeCheckpointer() as checkpointer:
                checkpointer.save(target / "arrays", leaves)
            if first:
                manifest = {"step": position.step, "phase": position.phase, "leaves": _describe(leaves)}
                write_file(target / _MANIFEST, json.dumps(manifest, indent=1))
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
        """The newest checkpoint that verifies, as host arrays in the form of ``make_target(position)``.

        Args:
          make_target: returns a state of ``jax.ShapeDtypeStruct`` leaves (or arrays) for a position.

        Returns:
          The state and its position. None if there is no checkpoint, or only one that was not finished: a run killed
          while it saved its first checkpoint starts again.

        Raises:
          UserError: there are checkpoints, but none verifies.
        """
        self._damaged, paths = [], self._paths()
        for position in sorted(paths, reverse=True):
            path = paths[position]
            try:
                return self._load(path, make_target(position)), position
            except Damaged as problem:
                self._damaged.append(position)
                if isinstance(problem, Unfinished) and len(paths) == 1:
                    self._warn(f"checkpoint {path} was not finished, and is the only one")
                    return None
                self._warn(f"checkpoint {path} is damaged ({problem}); trying an older one")
        if paths:
            raise UserError(
                f"no checkpoint in {self._folder} verifies; move that folder away to start from the beginning."
            )
        return None

    def _load(self, path: pathlib.Path, target: TrainState) -> TrainState:
        folder = path.absolute()
        entries = _read_manifest(folder)
        # TensorStore follows links, so a link could make a run read files outside its folder.
        if any(path.is_symlink() for path in [folder, *folder.rglob("*")]):
            raise Damaged("it contains a symbolic link")
        wanted = _flatten(target)
        shapes = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()}
        stored = {_current(name): (entry["shape"], entry["dtype"]) for name, entry in entries.items()}
        if shapes != stored:
            name = sorted(n for n in shapes.keys() | stored.keys() if shapes.get(n) != stored.get(n))[0]
            raise Damaged(f"{name} is {stored.get(name, 'absent')}, this network wants {shapes.get(name, 'none')}")
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in entries}
                found = checkpointer.restore(folder / "arrays", restore_args=as_numpy)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            raise Damaged(_reason(error)) from error
        for name, entry in entries.items():
            if name not in found or _digest(np.asarray(found[name])) != entry["digest"]:
                raise Damaged(f"{name} does not match its digest")
        leaves = {_current(name): np.asarray(leaf) for name, leaf in found.items()}
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaves[_name(path)] if leaf.size else np.zeros(leaf.shape, leaf.dtype), target
        )

    def _prune(self) -> None:
        paths = self._paths()
        good = [p for p in sorted(paths, reverse=True) if (paths[p] / _MANIFEST).is_file()]
        for position in good[self._keep :]:
            shutil.rmtree(paths[position], ignore_errors=True)


def _current(name: str) -> str:
    """Today's name of a stored leaf."""
    first, *rest = name.split("/")
    return "/".join([_RENAMED_LEAVES.get(first, first), *rest])


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


def _read_manifest(folder: pathlib.Path) -> dict[str, dict]:
    """``{leaf name: {"shape", "dtype", "digest"}}``."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        wanted = ("shape", "dtype", "digest")
        return {name: {key: entry[key] for key in wanted} for name, entry in manifest["leaves"].items()}
    except FileNotFoundError:
        raise Unfinished("it was not finished") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise Damaged("its manifest is unreadable") from None


def _set_aside(target: pathlib.Path) -> None:
    """Renames a checkpoint that did not verify, so that its position can be saved again; it is kept for inspection."""
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
