"""The files of a run folder, as every command reads them: ``config.json`` and ``dataset.json``.

A checkpoint records the configuration and the data set that it was trained with. A file that was edited since, or that
belongs to another run, disagrees with the record.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.errors import UserError
from rmn_jax.files import read_object
from rmn_jax.training.manifest import Damaged, Record, checkpoint_paths, read_manifest

CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"
ORIGIN_FILE = "origin.json"  # of a run that began from imported weights: which
# Mean and standard deviation may differ in the last bits between two machines.
_TOLERANCE = 1e-9


class StoredRun(NamedTuple):
    """What a run folder says of its run.

    Attributes:
      path: the folder.
      config: complete and valid.
      info: of the data set; None if the run has not seen its data yet (after ``rmn import``).
    """

    path: pathlib.Path
    config: ConfigDict
    info: data.DatasetInfo | None


def read_run(workdir: Any) -> StoredRun:
    """Reads the files of a run folder, and compares them with what its checkpoints record.

    Raises:
      UserError: no run there, a file that no run has written, or one that was edited; the message names file and key.
    """
    path = run_path(workdir)
    config, info = configuration.from_json(path / CONFIG_FILE), read_info(path)
    differing = _edited(path, describe_run(config, info))
    if differing:
        raise UserError(f"{path}/{differing}; put the file back as it was.")
    try:
        configuration.validate(config, device_count=1, stored=True)
    except UserError as error:
        raise UserError(f"{path / CONFIG_FILE}: {error}") from None
    return StoredRun(path, config, info)


def _edited(path: pathlib.Path, record: Record) -> str:
    """How the files of a run differ from the record of its newest checkpoint; empty if any of its records agrees."""
    problems = []
    for position, folder in sorted(checkpoint_paths(path / "checkpoints").items(), reverse=True):
        try:
            recorded = read_manifest(folder, position).get("record")
        except Damaged:
            continue
        if recorded is None:
            continue
        problems.append(difference(recorded, record))
        if not problems[-1]:
            return ""
    return problems[0] if problems else ""


def run_path(workdir: Any) -> pathlib.Path:
    """The folder that a user names, with ``~`` expanded.

    Raises:
      UserError: it is a file.
    """
    path = pathlib.Path(workdir).expanduser()
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"--workdir {path} is a file; give a folder.")
    except (OSError, ValueError) as error:
        raise UserError(f"--workdir {str(path)[:80]} cannot be used: {getattr(error, 'strerror', error)}.") from None
    return path


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_list(value: Any, length: int | None, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == (length or len(value)) and all(good(item) for item in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# What each key of dataset.json may be, in words and as a check.
_INFO_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("text", _is_text),
    "num_classes": ("a whole number of 1 or more", lambda v: _is_count(v) and v > 0),
    "image_shape": ("three whole numbers [H, W, 3]", lambda v: _is_list(v, 3, lambda n: _is_count(n) and n > 0)),
    "class_names": ("a list of texts", lambda v: _is_list(v, None, _is_text)),
    "mean": ("three numbers", lambda v: _is_list(v, 3, _is_number)),
    "std": ("three numbers of 0 or more", lambda v: _is_list(v, 3, lambda n: _is_number(n) and n >= 0)),
    "train_examples": ("a whole number", _is_count),
    "eval_examples": ("a whole number", _is_count),
    "fingerprint": ("text", _is_text),
    "streamed": ("true or false", lambda v: isinstance(v, bool)),
}


def read_info(folder: pathlib.Path) -> data.DatasetInfo | None:
    """The data set that ``dataset.json`` describes; None if there is no such file.

    Raises:
      UserError: the file describes no data set; the message names file and key.
    """
    path = folder / DATASET_FILE
    try:
        known = read_object(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} {error}; put the file of the run back.") from None
    return info_from_dict(known, str(path))


def info_from_dict(stored: dict[str, Any], source: str) -> data.DatasetInfo:
    """The data set that a stored description is of; ``source`` is where it is from.

    Raises:
      UserError: it describes no data set; the message names the key.
    """
    known = {"streamed": False, **stored}
    for key in known.keys() - _INFO_KEYS.keys():
        raise UserError(f"{source} has an unknown key {key!r}; put the file of the run back.")
    for key, (words, good) in _INFO_KEYS.items():
        if key not in known or not good(known[key]):
            found = json.dumps(known[key])[:60] if key in known else "missing"
            raise UserError(f"{source}: {key} is {found}; it must be {words}.")
    if len(known["class_names"]) != known["num_classes"]:
        raise UserError(
            f"{source}: num_classes is {known['num_classes']}, but class_names has {len(known['class_names'])} names."
        )
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in known.items()}
    return data.DatasetInfo(**fields)


def describe_run(config: ConfigDict, info: data.DatasetInfo | None) -> Record:
    """What a checkpoint records: the keys that results depend on, with their values, by file."""
    record = {CONFIG_FILE: configuration.fixed_keys(config)}
    if info is not None:
        record[DATASET_FILE] = info._asdict()
    return json.loads(json.dumps(record))


def difference(recorded: Any, record: Record) -> str:
    """The first key in which a run differs from what a checkpoint recorded, as one line; empty if there is none.

    A key that the checkpoint has not recorded is new since then, and not compared.
    """
    if not isinstance(recorded, dict):
        return "its record of the run is unreadable"
    for name, values in recorded.items():
        found = record.get(name)
        if found is None or not isinstance(values, dict):
            continue
        for key, value in values.items():
            if key not in found or not _same(value, found[key]):
                short = [json.dumps(v)[:60] for v in (found.get(key), value)]
                return f"{name}: {key} is {short[0]}, but this checkpoint was saved with {short[1]}"
    return ""


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if type(one) is float and type(other) is float:
        return one == other or math.isclose(one, other, rel_tol=_TOLERANCE)
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other
