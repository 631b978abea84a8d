"""The manifest of a checkpoint: where it belongs, what it was trained with, and how its arrays are verified."""

import hashlib
import json
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from rmn_jax.errors import UserError
from rmn_jax.files import read_object, write_file
from rmn_jax.training.state import Phase

# What a checkpoint records of its run: {file name: {key: value}}.
Record = dict[str, dict[str, Any]]
_MANIFEST = "manifest.json"
# Release 0.1 called a step an update and a phase a step.
_SET_ASIDE = re.compile(r"\.damaged\d+$")
_NAME = re.compile(r"(?:step|update)_(\d+)\.(?:phase|step)([1-4])")


class Position(NamedTuple):
    """Where a run is: ``step`` optimizer steps done, in one of the four phases (plain runs stay in phase 1)."""

    step: int
    phase: Phase

    @property
    def folder(self) -> str:
        """The name of the checkpoint's folder."""
        return f"step_{self.step:08d}.phase{self.phase:d}"


def score(position: Position, top1: float) -> tuple[bool, float]:
    """What makes a checkpoint the best: being routed (a run of an RMN ends with one), then the held-out top-1."""
    return position.phase.routed, top1


class Damaged(Exception):
    """A checkpoint that does not verify; the message says what is wrong."""


class Unfinished(Damaged):
    """A checkpoint whose saving was interrupted."""


class Misnamed(Damaged):
    """A checkpoint in a folder that is named for another step or phase."""


class Foreign(Damaged):
    """A checkpoint of another run, or of this run before a file of its folder was edited."""


def checkpoint_paths(folder: pathlib.Path) -> dict[Position, pathlib.Path]:
    """The checkpoints in ``folder`` (a run's ``checkpoints``) by position, good or not; none if it is absent.

    Raises:
      UserError: it is no folder, or cannot be read.
    """
    if not folder.parent.is_dir():
        return {}
    try:
        found = ((_NAME.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
        return {Position(int(m[1]), Phase(int(m[2]))): path for m, path in found if m}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{folder} cannot be read as the folder of checkpoints: {error.strerror}.") from None


def misnamed_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders with a manifest that are not named like a checkpoint, except those that ``Checkpoints`` set aside."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if not _NAME.fullmatch(path.name) and not _SET_ASIDE.search(path.name) and (path / _MANIFEST).is_file()
    ]


def digest_of(value: np.ndarray) -> str:
    """The digest of an array's content."""
    return hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).hexdigest()


def _digest_of_manifest(manifest: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in manifest.items() if key != "digest"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_manifest(
    folder: pathlib.Path, position: Position, record: Record, described: dict, top1: float | None = None
) -> None:
    """Writes the manifest of a finished checkpoint.

    Args:
      folder: of the checkpoint.
      position: its place.
      record: see ``Record``.
      described: ``{leaf name: {"shape", "dtype", "digest"}}``.
      top1: held-out accuracy of the state; None if it was not evaluated.
    """
    manifest = {"step": position.step, "phase": int(position.phase), "record": record, "leaves": described}
    if top1 is not None:
        manifest["top1"] = top1
    manifest = json.loads(json.dumps(manifest))  # as it will be read
    manifest["digest"] = _digest_of_manifest(manifest)
    write_file(folder / _MANIFEST, json.dumps(manifest, indent=1))


def read_manifest(folder: pathlib.Path, position: Position) -> dict[str, Any]:
    """The manifest of the checkpoint of ``position``, checked but for the arrays.

    Raises:
      Damaged: it is missing, cannot be read, was edited, or belongs to another place.
    """
    try:
        manifest = read_object(folder / _MANIFEST)
    except FileNotFoundError:
        raise Unfinished("it was not finished") from None
    except ValueError as error:
        raise Damaged(f"its {_MANIFEST} {error}") from None
    if ("digest" in manifest or "record" in manifest) and manifest.get("digest") != _digest_of_manifest(manifest):
        raise Damaged(f"its {_MANIFEST} was edited: it does not match its digest")
    steps, phase = (manifest.get(key) for key in (("update", "step") if "update" in manifest else ("step", "phase")))
    if (steps, phase) != (position.step, int(position.phase)) or isinstance(steps, bool):
        raise Misnamed(
            f"its {_MANIFEST} is that of step {steps} in phase {phase}; if the folder was renamed, rename it back"
        )
    leaves = manifest.get("leaves")
    if not isinstance(leaves, dict) or not all(_is_entry(entry) for entry in leaves.values()):
        raise Damaged(f"its {_MANIFEST} does not describe its leaves")
    return manifest


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and {"shape", "dtype", "digest"} <= entry.keys()
