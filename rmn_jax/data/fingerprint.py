"""Fingerprints: a short text that changes when a data set does, so that no run goes on with other images."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rmn_jax.data.types import DatasetInfo
from rmn_jax.errors import UserError

# The end of an ArrayRecord file holds the index of its chunks, which a different content changes.
_TAIL_BYTES = 16384


def of_arrays(*arrays: np.ndarray) -> str:
    """Returns the fingerprint of arrays, by their whole content."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def of_files(paths: Iterable[Path], relative_to: Path, read_tails: bool = True) -> str:
    """Returns the fingerprint of files by their names, sizes and, if `read_tails`, last 16 KiB.

    Reading every byte of ImageNet before each start would take minutes, so a change that keeps a file's size
    and end goes unseen.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(relative_to).as_posix()}\0{size}\0".encode())
        if read_tails:
            with path.open("rb") as file:
                file.seek(max(0, size - _TAIL_BYTES))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def check_fingerprint(info: DatasetInfo, recorded: str) -> None:
    """Raises UserError when the data set is not the one whose fingerprint a run recorded."""
    if info.fingerprint != recorded:
        raise UserError(
            f"The data set {info.name} has changed since this run began (fingerprint {info.fingerprint}, "
            f"the run recorded {recorded}). Put the former data back, "
            "or begin a new run in another --workdir."
        )
