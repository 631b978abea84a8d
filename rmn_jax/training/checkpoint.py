"""Saving and restoring the state of a run: Orbax for the arrays, a manifest beside them to verify them.

A checkpoint is a folder ``checkpoints/step_00000440.phase1`` with Orbax's ``arrays/`` and ``manifest.json``. The
manifest is written last and holds the step and phase, the configuration and data set of the run, the shape, dtype and
digest of each leaf, and a digest of itself. Orbax alone would restore a flipped bit silently and take a truncated
folder for the newest.

The best checkpoint, by the held-out top-1 in the manifests, is one of them. It stays when the oldest are removed.

Folder name, manifest and the state's own step must agree. A checkpoint that does not verify is skipped with a warning,
and never deleted. One that verifies is never renamed.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from rmn_jax.errors import UserError
from rmn_jax.files import free_name
from rmn_jax.training.manifest import (
    Damaged,
    Foreign,
    Misnamed,
    Position,
    Record,
    Unfinished,
    checkpoint_paths,
    digest_of,
    misnamed_paths,
    read_manifest,
    score,
    write_manifest,
)
from rmn_jax.training.run_folder import CONFIG_FILE, difference
from rmn_jax.training.state import TrainState

__all__ = ["Checkpoints", "Damaged", "Foreign", "Misnamed", "Position", "Unfinished"]

# Release 0.1 called a step an update.
_RENAMED_LEAVES = {"update": "step", "average": "ema"}
# Orbax and TensorStore take other characters for patterns, separators or the names of remote stores.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+=,@ -]*")


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder.
      keep: how many of the newest good checkpoints to keep; the best one is kept beside them.
      warn: called with a line when a checkpoint is skipped.
      record: of the run, see ``run_folder.describe_run``; is written to new checkpoints and compared with old ones.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, warn: Callable[[str], None], record: Record | None = None):
        self._folder = workdir / "checkpoints"
        self._keep = keep
        self._warn = warn
        self._record = record or {}
        self._damaged: list[Position] = []

    def positions(self) -> list[Position]:
        """All checkpoints in the folder, newest first, good or not."""
        return sorted(self._paths(), reverse=True)

    def _paths(self) -> dict[Position, pathlib.Path]:
        return checkpoint_paths(self._folder)

    def save(self, state: TrainState, position: Position, top1: float | None = None) -> None:
        """Saves a checkpoint and reads it back, then removes the oldest good ones beyond ``keep``, but not the best.

        Of several processes only the first writes, also the parts of leaves that are split over all of them. ``top1``
        is the held-out accuracy of the state, None if it was not evaluated. Checkpoints that ``restore`` skipped are
        renamed first: they do not count as good and are never removed.

        Raises:
          UserError: a value is not finite, the disk is full or the folder cannot be written, or what was written cannot
            be read; earlier checkpoints stay.
        """
        target = (self._folder / position.folder).absolute()
        several = jax.process_count() > 1
        leaves = {name: _whole(leaf) if several else leaf for name, leaf in _flatten(state).items()}
        described = _describe(leaves)
        failed: Exception | None = None
        if jax.process_index() == 0:
            try:
                self._write(target, position, state, leaves, described, top1)
            except Exception as error:  # the other processes wait for word of it
                failed = error
        if several and multihost_utils.broadcast_one_to_all(np.bool_(failed is not None)) and failed is None:
            raise UserError(f"the first process could not write the checkpoint {target}; its own line says why.")
        if failed is not None:
            raise failed

    def _write(
        self,
        target: pathlib.Path,
        position: Position,
        state: TrainState,
        leaves: dict,
        described: dict,
        top1: float | None,
    ) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(position)
            with _plain_path(target) as plain, _checkpointer() as checkpointer:
                checkpointer.save(plain / "arrays", leaves)
            write_manifest(target, position, self._record, described, top1)
            self._load(target, position, state)
        except Damaged as problem:
            shutil.rmtree(target, ignore_errors=True)
            raise UserError(
                f"the checkpoint {target} was written but cannot be read back ({problem}). "
                "Check the disk, or give another --workdir; earlier checkpoints stay."
            ) from None
        except Exception as error:
            if not _is_disk_trouble(error):
                raise
            shutil.rmtree(target, ignore_errors=True)
            raise UserError(
                f"cannot write the checkpoint {target}: {_reason(error)}. "
                "Make room (or mend the permissions) and start again; the run goes on from its last checkpoint."
            ) from None
        self._prune()

    def _make_room(self, position: Position) -> None:
        """Renames what is in the place of a new checkpoint, and what ``restore`` found damaged."""
        paths = self._paths()
        for damaged in {*self._damaged, position} & paths.keys():
            _set_aside(paths[damaged])
        self._damaged = []

    def restore(
        self, make_target: Callable[[Position], TrainState], best: bool = False
    ) -> tuple[TrainState, Position] | None:
        """The newest checkpoint that verifies, as host arrays in the form of ``make_target(position)``.

        Args:
          make_target: returns a state of ``jax.ShapeDtypeStruct`` leaves (or arrays) for a position.
          best: the best one that verifies instead, see ``best``.

        Returns:
          The state and its position. None if there is no checkpoint, or only one that was not finished: a run killed
          while it saved its first checkpoint starts again.

        Raises:
          UserError: there are checkpoints, but none verifies; or ``best``, and none records its accuracy.
        """
        self._damaged, paths = [], self._paths()
        for path in misnamed_paths(self._folder):
            self._warn(
                f"checkpoint {path} is skipped: its name is not that of a checkpoint, such as step_00000150.phase4; "
                "if it was renamed, rename it back"
            )
        next_one = "the next best" if best else "an older one"
        if best and paths:
            paths = self._best_first(paths)
        foreign: Foreign | None = None
        for position in paths if best else sorted(paths, reverse=True):
            path = paths[position]
            try:
                return self._load(path, position, make_target(position), only_recorded=foreign is not None), position
            except Misnamed as problem:
                self._warn(f"checkpoint {path} is skipped: {problem}")
            except Damaged as problem:
                if isinstance(problem, Foreign):
                    foreign = foreign or problem
                else:
                    self._damaged.append(position)
                if isinstance(problem, Unfinished) and len(paths) == 1:
                    self._warn(f"checkpoint {path} was not finished, and is the only one")
                    return None
                self._warn(f"checkpoint {path} is damaged ({problem}); trying {next_one}")
        if foreign is not None:
            raise UserError(f"{self._folder.parent}/{foreign}; put the file back as it was.")
        if paths:
            raise UserError(
                f"no checkpoint in {self._folder} verifies; put one back, or start from the beginning in another "
                "--workdir."
            )
        return None

    def _load(
        self, path: pathlib.Path, position: Position, target: TrainState, only_recorded: bool = False
    ) -> TrainState:
        folder = path.absolute()
        manifest = read_manifest(folder, position)
        self._check_record(manifest, position, only_recorded)
        entries = manifest["leaves"]
        # TensorStore follows links, so a link could make a run read files outside its folder.
        for part in [folder, *folder.rglob("*")]:
            if part.is_symlink():
                raise Damaged("it contains a symbolic link")
            if not (part.is_file() or part.is_dir()):  # to open a pipe would wait for ever
                raise Damaged("it contains a special file")
        wanted = _flatten(target)
        shapes = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()}
        stored = {_current(name): (entry["shape"], entry["dtype"]) for name, entry in entries.items()}
        if shapes != stored:
            name = sorted(n for n in shapes.keys() | stored.keys() if shapes.get(n) != stored.get(n))[0]
            raise Damaged(f"{name} is {stored.get(name, 'absent')}, this network wants {shapes.get(name, 'none')}")
        found = _read_arrays(folder, entries)
        for name, entry in entries.items():
            if name not in found or digest_of(np.asarray(found[name])) != entry["digest"]:
                raise Damaged(f"{name} does not match its digest")
        leaves = {_current(name): np.asarray(leaf) for name, leaf in found.items()}
        if int(leaves["step"]) != position.step:
            raise Misnamed(f"its state is that of step {int(leaves['step'])}")
        broken = next((name for name, leaf in leaves.items() if not _finite(leaf)), None)
        if broken is not None:
            raise Damaged(f"{broken} holds NaN or infinity")
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaves[_name(path)] if leaf.size else np.zeros(leaf.shape, leaf.dtype), target
        )

    def _check_record(self, manifest: dict[str, Any], position: Position, only_recorded: bool) -> None:
        recorded = manifest.get("record")
        if recorded is not None:
            differing = difference(recorded, self._record)
            if differing:
                raise Foreign(differing)
        elif only_recorded:
            raise Damaged("it does not say of which configuration it is")
        if self._record and self._record[CONFIG_FILE]["method"] == "plain" and position.phase.routed:
            raise Damaged(f"a plain run has no phase {position.phase}")

    def best(self) -> tuple[Position, float] | None:
        """The best checkpoint and its held-out top-1, by the manifests; None if none was evaluated.

        Checkpoints of phase 4 are better than those of phase 1. Among equals the earliest is the best.
        """
        paths = {position: path for position, path in self._paths().items() if position not in self._damaged}
        rated = self._rated(self._good(paths))
        return rated[0] if rated else None

    def _best_first(self, paths: dict[Position, pathlib.Path]) -> dict[Position, pathlib.Path]:
        rated = self._rated(self._good(paths, self._warn))
        if not rated:
            raise UserError(
                f"no checkpoint in {self._folder} records its held-out accuracy (it is of an earlier release, or was "
                "not evaluated); leave --best out."
            )
        return {position: paths[position] for position, _ in rated}

    def _good(
        self, paths: dict[Position, pathlib.Path], warn: Callable[[str], None] = lambda line: None
    ) -> dict[Position, dict[str, Any]]:
        """The manifests of those that have the manifest of their place, newest first."""
        good = {}
        for position in sorted(paths, reverse=True):
            try:
                manifest = read_manifest(paths[position], position)
                self._check_record(manifest, position, False)
                good[position] = manifest
            except Damaged as problem:
                warn(f"checkpoint {paths[position]} is skipped: {problem}")
        return good

    @staticmethod
    def _rated(good: dict[Position, dict[str, Any]]) -> list[tuple[Position, float]]:
        """The evaluated ones and their held-out top-1, best first."""
        found = [(position, manifest["top1"]) for position, manifest in good.items() if "top1" in manifest]
        return sorted(sorted(found), key=lambda each: score(*each), reverse=True)

    def _prune(self) -> None:
        """Removes the oldest checkpoints beyond ``keep``. Only those count whose manifest is that of their place."""
        paths = self._paths()
        good = self._good(paths)
        best = [position for position, _ in self._rated(good)[:1]]
        for position in list(good)[self._keep :]:
            if position not in best:
                shutil.rmtree(paths[position], ignore_errors=True)


@contextlib.contextmanager
def _plain_path(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to ``folder`` that Orbax reads as it is written: through a link if the path has special characters."""
    if _PLAIN_PATH.fullmatch(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="rmn_") as links:
        link = pathlib.Path(links) / "run"
        link.symlink_to(folder.parent, target_is_directory=True)
        yield link / folder.name


def _current(name: str) -> str:
    """Today's name of a stored leaf."""
    first, *rest = name.split("/")
    return "/".join([_RENAMED_LEAVES.get(first, first), *rest])


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _flatten(tree) -> dict:
    """``{"params/stage1/...": leaf}``; without empty leaves, which Orbax does not store."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size}


def _whole(leaf: Any) -> np.ndarray:
    """A leaf on the host, also if its parts are on the devices of several processes; called by all of them."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(jax.device_get(leaf))


def _checkpointer() -> ocp.Checkpointer:
    """Orbax's writer and reader. Of several processes each has its own, which waits for no other."""
    if jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _describe(leaves: dict) -> dict:
    described = {}
    for name, leaf in leaves.items():
        value = np.asarray(jax.device_get(leaf))
        if not _finite(value):
            raise UserError(
                f"{name} holds NaN or infinity, so the state is not saved: training diverged. Lower "
                "config.learning_rate.peak or lengthen config.learning_rate.warmup_epochs, in a new --workdir."
            )
        described[name] = {"shape": list(value.shape), "dtype": str(value.dtype), "digest": digest_of(value)}
    return described


def _finite(value: np.ndarray) -> bool:
    return value.dtype.kind in "biu" or bool(np.isfinite(value).all())


def _read_arrays(folder: pathlib.Path, names) -> dict[str, Any]:
    try:
        with _plain_path(folder) as plain, _checkpointer() as checkpointer:
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            return checkpointer.restore(plain / "arrays", restore_args=as_numpy)
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
        raise Damaged(_reason(error)) from error


def _set_aside(target: pathlib.Path) -> None:
    """Renames a checkpoint that did not verify, so that its position can be saved again; it is kept for inspection."""
    if os.path.lexists(target):
        target.rename(free_name(target, "damaged"))


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
