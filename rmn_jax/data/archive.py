"""One view of a published archive and of its unpacked folder: names in, bytes out, nothing unpacked."""

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from rmn_jax.errors import UserError

# No file of the benchmarks is near this; what claims more is not unpacked into memory.
MAX_ENTRY_BYTES = 64 * 2**20


class Folder:
    """Files under a folder, by their path relative to it."""

    def __init__(self, root: Path):
        self.root = root

    def names(self) -> list[str]:
        """Returns the relative paths of all files, sorted, with forward slashes."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def read(self, name: str) -> bytes:
        """Returns a file's content.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.root / name} cannot be read ({error.strerror}).") from error

    def describe(self, name: str) -> str:
        """Returns how a person finds the file."""
        return str(self.root / name)


class Zip:
    """Entries of a zip under a folder inside it, by their path relative to that folder."""

    def __init__(self, path: Path, root: str):
        self.path, self._prefix = path, f"{root}/"
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path} is not a whole zip file ({error}); fetch it again.") from error
        for name in self._zip.namelist():
            if _climbs_out(name):
                raise UserError(f"{path} has an entry {name!r} that leads out of its folder; do not use this file.")

    def names(self) -> list[str]:
        """Returns the relative paths of all entries under the folder, sorted."""
        start = len(self._prefix)
        return sorted(
            name[start:] for name in self._zip.namelist() if name.startswith(self._prefix) and not name.endswith("/")
        )

    def read(self, name: str) -> bytes:
        """Returns an entry's content; its checksum is verified.

        Raises:
            UserError: it is not there, is damaged, or claims an absurd size.
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
            raise UserError(f"{self.describe(name)} cannot be read ({error}); fetch the zip again.") from error

    def describe(self, name: str) -> str:
        """Returns how a person finds the entry."""
        return f"{self.path}: {self._prefix}{name}"


def _climbs_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else False


def open_archive(source: Path, root: str, marker: str) -> Folder | Zip:
    """Opens `source`: a zip, the folder unpacked from it, or a folder that contains either.

    Args:
        source: what the user gave.
        root: the name of the folder inside the zip, and of the zip without its suffix.
        marker: a file that is directly in that folder, by which it is recognised.

    Raises:
        UserError: nothing of the kind is there, or the zip is damaged.
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
