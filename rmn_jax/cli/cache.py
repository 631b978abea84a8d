"""The compilation cache: programs compiled by an earlier command are read from the user's cache folder.

It changes no result: a program is found by its own text, the versions of JAX and XLA, and the device. A folder that
cannot be used costs time, never a run.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import tempfile
from collections.abc import MutableMapping

# Moves the cache, or turns it off. JAX's own variable, if it is set, is left alone.
VARIABLE, OFF = "RMN_CACHE_DIR", ("off", "0", "none", "false")
_JAX_FOLDER = "JAX_COMPILATION_CACHE_DIR"
# Beyond this the oldest programs are removed.
_LARGEST_BYTES = 4 * 2**30


def enable(environment: MutableMapping[str, str]) -> str | None:
    """Sets JAX's variables for the cache; to be called before JAX is imported.

    Args:
      environment: of the process. ``RMN_CACHE_DIR`` names another folder, or is "off"; ``JAX_COMPILATION_CACHE_DIR``
        counts first, and then nothing is changed. Without both it is ``rmn_jax`` in ``XDG_CACHE_HOME`` or ~/.cache.

    Returns:
      The folder; None if this function sets none.
    """
    if _JAX_FOLDER in environment:
        return None
    wanted = environment.get(VARIABLE, "").strip()
    if wanted.lower() in OFF:
        return None
    folder = _usable(wanted or _default(environment))
    if folder is None:
        return None
    environment[_JAX_FOLDER] = folder
    # XLA's own cache beside it (autotuning on GPUs) would fail a compilation when the disk is full.
    environment.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
    with contextlib.suppress(OSError):  # another process may remove the same files
        _shrink(pathlib.Path(folder))
    return folder


def _default(environment: MutableMapping[str, str]) -> str:
    base = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the standard of XDG ignores relative paths
        base = os.path.join("~", ".cache")
    return os.path.join(base, "rmn_jax")


def _usable(folder: str) -> str | None:
    """The folder of this machine's programs in ``folder``, created; None if it cannot be written.

    Programs for a CPU use its instructions. Machines that share a home folder have a folder each.
    """
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = pathlib.Path(folder).expanduser().absolute() / f"compiled-{_machine()}"
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
            file.flush()
        return str(path)
    return None


def _shrink(folder: pathlib.Path) -> None:
    """Removes the oldest files until the rest has at most ``_LARGEST_BYTES``, and those that a full disk left empty."""
    files = sorted(
        ((file.stat(), file) for file in folder.iterdir() if file.is_file()), key=lambda each: each[0].st_mtime
    )
    total = sum(found.st_size for found, _ in files)
    for found, file in files:
        if total > _LARGEST_BYTES or not found.st_size:
            file.unlink()
            total -= found.st_size


def _machine() -> str:
    """A short name of the kind of CPU."""
    kind = platform.machine() + platform.processor()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        kind += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return hashlib.blake2b(kind.encode(), digest_size=4).hexdigest()
