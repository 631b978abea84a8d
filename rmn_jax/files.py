"""Writing small files whole or not at all, and reading JSON files that people may have edited."""

import contextlib
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

from rmn_jax.errors import UserError

# Larger than any file of a run folder that is read whole.
_MAX_BYTES = 2**28


def write_file(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8: readers see the old file or the new one, never a part.

    A device or pipe (say /dev/stdout) is written to directly, because it cannot be replaced.

    Args:
      path: the file; its folder must exist.
      text: its whole content.

    Raises:
      OSError: it cannot be written. The old file stays, and no partial file is left.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a binary file, whole or not at all; a device or pipe as ``write_file`` does.

    Raises:
      UserError: it cannot be written. The old file stays, and no partial file is left.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            path.write_bytes(content)
            return
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file.") from None
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_to(folder: pathlib.Path, option: str) -> Iterator[None]:
    """Within this context, a write that fails is a UserError that names ``folder`` and the option for another one."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}. Make room, or name another place with {option}."
        ) from None


def save_figure(figure: Any, out: str | os.PathLike, name: str) -> pathlib.Path:
    """Saves a matplotlib figure and returns the path of the file.

    Args:
      figure: to save.
      out: path of the file; missing folders are created. ``.png`` is added where there is no suffix. (Matplotlib would
        do so itself, and the caller would not know the path.)
      name: of the file, if ``out`` is a folder.

    Raises:
      UserError: it cannot be written, or the suffix is that of no kind of figure.
    """
    path = pathlib.Path(out)
    if path.is_dir() or os.fspath(out).endswith(os.sep):
        path = path / name
    elif not path.suffix:
        path = path.with_name(f"{path.name}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"The figure cannot be written to {path} ({error}); choose another --out.") from None
    return path


def free_name(path: pathlib.Path, word: str) -> pathlib.Path:
    """The first of ``PATH.word1``, ``PATH.word2`` .. that does not exist."""
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.{word}{number}")):
        number += 1
    return path.with_name(f"{path.name}.{word}{number}")


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no regular file, cannot be read, or is not a JSON object. The message says which, and begins
        with a verb: "is a folder".
    """
    try:
        return _parse_object(read_regular(path))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None


def read_regular(path: pathlib.Path) -> bytes:
    """The content of a regular file. A pipe in its place would block the reader for ever, so it is refused.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: as in ``read_object``.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise ValueError("is a folder, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is not a regular file")
        if found.st_size > _MAX_BYTES:
            raise ValueError(f"has {found.st_size} bytes, too many")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:  # the folder that would hold it is a file
        raise FileNotFoundError(*error.args) from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None


def _parse_object(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"holds {constant}, which is not JSON")

    value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError(f"holds {json.dumps(value)[:40]}, not a JSON object {{...}}")
    return value
