"""Packs a data set into a few tar files below a size, to carry it to another machine, and unpacks them there.

Unpacked they are a folder of class folders, which ``config.data.name = "folder"`` reads without tfds, Grain and
ArrayRecord. Packing needs what the data set itself needs.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rmn_jax.data.decode import Encoded, UnreadableImage, decode, fit
from rmn_jax.data.opening import open_image_set
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.data.sources import ImageSet, Source
from rmn_jax.data.subset import first_classes
from rmn_jax.errors import UserError

INDEX = "parts.json"
PART_BYTES = 59 * 2**20  # of a tar file: below 60 MiB with its end
SPLITS = ("train", "eval")
_CHUNK = 256
_BLOCK = 512  # a tar file's entries and their headers are whole blocks
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"BM": ".bmp"}


def pack(config_data, out: str | os.PathLike, splits: tuple[str, ...] = SPLITS, part_bytes: int = PART_BYTES) -> dict:
    """Writes the images of a data set to ``part-000.tar``, ``part-001.tar``, .. in a new folder, and ``parts.json``.

    Args:
      config_data: ``config.data``. ``classes`` takes the first classes only. With ``image_size`` the images are scaled
        as a run with this ``augment`` stores them, and written as PNG; 0 copies the files as they are.
      out: a folder without parts; created if absent.
      splits: some of ``SPLITS``.
      part_bytes: the most bytes in a part.

    Returns:
      ``{"parts": number, "bytes": of all, "images": {split: number}, "classes": number}``.

    Raises:
      UserError: as ``open_image_set``; the folder has parts already or cannot be written; an image that cannot be read,
        or that is larger than a part.
    """
    folder = Path(out)
    if (folder / INDEX).exists():
        raise UserError(f"{folder} already holds a packed data set; give another --out.")
    image_set = first_classes(open_image_set(config_data), config_data.classes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = _Parts(folder, part_bytes)
        images = {split: _write_split(image_set, split, config_data, writer) for split in splits}
        writer.close()
        index = {"parts": writer.parts, "images": images, "classes": list(image_set.class_names)}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to --out {folder}: {error.strerror}; choose another folder.") from None
    total = sum(part["bytes"] for part in writer.parts)
    return {"parts": len(writer.parts), "bytes": total, "images": images, "classes": len(image_set.class_names)}


def unpack(parts: str | os.PathLike, out: str | os.PathLike) -> dict:
    """Unpacks the parts of ``pack`` into a new folder, after checking that all are there and whole.

    Returns:
      ``{"out": folder, "images": {split: number}, "classes": number}``.

    Raises:
      UserError: no packed data set, a missing or damaged part, or a folder that exists or cannot be written.
    """
    folder, target = Path(parts), Path(out)
    try:
        index = json.loads((folder / INDEX).read_text())
        known: list[dict[str, Any]] = [{**part, "name": Path(part["name"]).name} for part in index["parts"]]
        result = {"out": str(target), "images": dict(index["images"]), "classes": len(index["classes"])}
    except FileNotFoundError:
        raise UserError(f"{folder} holds no packed data set (no {INDEX}); make it with `rmn data pack`.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / INDEX} is damaged; copy it again.") from None
    for part in known:
        path = folder / part["name"]
        if not path.is_file():
            raise UserError(f"{path} is missing; copy all {len(known)} parts into one folder.")
        if _digest(path) != part["sha256"]:
            raise UserError(f"{path} is damaged; copy it again.")
    if target.exists():
        raise UserError(f"{target} exists already; give another --out.")
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for part in known:
            with tarfile.open(folder / part["name"]) as archive:
                archive.extractall(partial, filter="data")  # refuses names outside the folder, links and devices
        partial.rename(target)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"cannot unpack to --out {target}: {error}; choose another folder.") from None
    return result


class _Parts:
    """Tar files in a folder, a new one whenever the next file would make the current one too large."""

    def __init__(self, folder: Path, limit: int):
        self.parts: list[dict[str, Any]] = []
        self._folder, self._limit = folder, limit
        self._archive: tarfile.TarFile | None = None
        self._bytes = 0

    def add(self, name: str, content: bytes) -> None:
        """Adds a file."""
        size = _BLOCK + -(-len(content) // _BLOCK) * _BLOCK
        end = tarfile.RECORDSIZE  # the end of a tar file is padded to a record
        if size + end > self._limit:
            raise UserError(f"{name} has {len(content):,} bytes, more than a part holds; set config.data.image_size.")
        if self._archive is None or self._bytes + size + end > self._limit:
            self.close()
            self._archive = tarfile.open(self._path, "w", format=tarfile.USTAR_FORMAT)
            self._bytes = 0
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        self._archive.addfile(entry, io.BytesIO(content))
        self._bytes += size

    def close(self) -> None:
        """Ends the current part, if there is one."""
        if self._archive is None:
            return
        self._archive.close()
        self._archive = None
        path = self._path
        self.parts.append({"name": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)})

    @property
    def _path(self) -> Path:
        return self._folder / f"part-{len(self.parts):03d}.tar"


def _write_split(image_set: ImageSet, split: str, config_data, writer: _Parts) -> int:
    source: Source = image_set.train if split == "train" else image_set.evaluation
    names = [f"{label:04d}_{_safe(name)}" for label, name in enumerate(image_set.class_names)]
    size = config_data.image_size
    shape = stored_shape(config_data.augment, (size, size, 3))[:2] if size else None
    for position, (data, label) in enumerate(_examples(source)):
        try:
            content = _encoded(data, shape)
        except UnreadableImage as error:
            raise UserError(f"{source.describe(position)} cannot be packed: {error}.") from None
        suffix = _SUFFIXES.get(content[:2], ".tif")
        folder = "train" if split == "train" else "val"
        writer.add(f"{folder}/{names[label]}/{position:07d}{suffix}", content)
    return len(source)


def _examples(source: Source) -> Iterator[tuple[Encoded, int]]:
    for start in range(0, len(source), _CHUNK):
        yield from source.read(range(start, min(start + _CHUNK, len(source))))


def _encoded(data: Encoded, shape: tuple[int, int] | None) -> bytes:
    """The image scaled to ``shape`` as PNG; without a shape the file as it is, or an array as PNG."""
    image = decode(data)  # also checks a file that is copied
    if shape is None and isinstance(data, bytes):
        return data
    pixels = image if shape is None else fit(image, *shape)
    return cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR))[1].tobytes()


def _safe(name: str) -> str:
    """A class name as part of a folder name; its label before it keeps the order of the classes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-=.") else "_" for c in name)[:40]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
