"""A published archive, as a zip file or as its unpacked folder, behind one interface. Nothing is unpacked to disk."""

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from rmn_jax.errors import UserError

# Limit against zip bombs: a larger entry is not unpacked into memory. The files of the benchmarks are far smaller.
MAX_ENTRY_BYTES = 64 * 2**20


class Folder:
    """Files under a folder, by their path relative to it."""

    def __init__(self, root: Path):
        self.root = root

    def names(self) -> list[str]:
        """The relative paths of all files, sorted, with forward slashes."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
          UserError: the file is missing or cannot be read.
        """
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.root / name} cannot be read ({error.strerror}).") from error

    def describe(self, name: str) -> str:
        """The location of a file, for messages."""
        return str(self.root / name)


class Zip:
    """Entries of a zip file under a folder inside it, by their path relative to that folder.

    Raises:
      UserError: the zip file is damaged, or an entry points outside its folder (path traversal).
    """

    def __init__(self, path: Path, root: str):
        self.path, self._prefix = path, f"{root}/"
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path} is not a complete zip file ({error}); download it again.") from error
        for name in self._zip.namelist():
            if _points_outside(name):
                raise UserError(f"{path} has an entry {name!r} that points outside its folder; do not use this file.")

    def names(self) -> list[str]:
        """The relative paths of all entries under the folder, sorted."""
        start = len(self._prefix)
        return sorted(
            name[start:] for name in self._zip.namelist() if name.startswith(self._prefix) and not name.endswith("/")
        )

    def read(self, name: str) -> bytes:
        """The content of an entry, with its checksum verified.

        Raises:
          UserError: the entry is missing, damaged, or larger than ``MAX_ENTRY_BYTES``.
        """
        try:
            entry = self._zip.getinfo(self._prefix + name)
        except KeyError:
            raise UserError(f"{self.path} has no entry {self._prefix + name}.") from None
        if entry.file_size > MAX_ENTRY_BYTES:
            raise UserError(f"{self.describe(name)} claims {entry.file_size:,} bytes; do not use this file.")
        try:
            return self._zip.read(entry)
        except (
            zipfile.BadZipFile,
            zlib.error,
            OSError,
            EOFError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise UserError(f"{self.describe(name)} cannot be read ({error}); download the zip again.") from error

    def describe(self, name: str) -> str:
        """The location of an entry, for messages."""
        return f"{self.path}: {self._prefix}{name}"


def _points_outside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else False


def open_archive(source: Path, root: str, marker: str) -> Folder | Zip:
    """Opens ``source``: a zip file, the folder unpacked from it, or a folder that contains one of the two.

    Args:
      source: the path that the user gave.
      root: name of the folder inside the zip file, and of the zip file without its suffix.
      marker: name of a file directly in that folder. The folder is recognised by it.

    Raises:
      UserError: neither is found, or the zip file is damaged.
    """
    if source.is_file():
        archive = Zip(source, root)
        archive.read(marker)
        return archive
    for candidate in (source, source / root):
        if (candidate / marker).is_file():
            return Folder(candidate)
    if (source / f"{root}.zip").is_file():
        return open_archive(source / f"{root}.zip", root, marker)
    raise UserError(f"{source} is neither {root}.zip nor its unpacked folder (no {marker} in it).")
