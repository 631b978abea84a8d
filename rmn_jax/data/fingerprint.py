"""Fingerprints: short texts that change when a data set changes. A run uses them to refuse other data."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# The end of an ArrayRecord file holds the index of its chunks. It changes when the content changes.
_TAIL_BYTES = 16384


def of_arrays(*arrays: np.ndarray) -> str:
    """The fingerprint of the dtype, shape and whole content of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def of_files(paths: Iterable[Path], relative_to: Path, read_tails: bool = True) -> str:
    """The fingerprint of the names, sizes and, if ``read_tails``, last 16 KiB of files.

    To read every byte of ImageNet before each start would take minutes. So a change that keeps a file's size and end is
    not detected.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(relative_to).as_posix()}\0{size}\0".encode(errors="surrogateescape"))
        if read_tails:
            with path.open("rb") as file:
                file.seek(max(0, size - _TAIL_BYTES))
                digest.update(file.read())
    return digest.hexdigest()[:16]
