"""CIFAR-100 and ImageNet from local archives, with tfds's builders. Only these builders need TensorFlow."""

import importlib.util
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rmn_jax.errors import UserError

CIFAR_FOLDER = "cifar-100-binary"
CIFAR_ARCHIVE = "cifar-100-binary.tar.gz"
IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")

# Coarse label, fine label, 3 x 32 x 32 values.
_CIFAR_RECORD = 2 + 3 * 32 * 32


@contextmanager
def builder(name: str, source: Path, root: Path, scratch: Path) -> Iterator[tuple[Any, dict]]:
    """Yields a tfds builder that prepares ``name`` from ``source`` under ``root``, and its ``DownloadConfig`` options.

    Args:
      name: ``cifar100`` or ``imagenet2012``.
      source: cifar-100-binary.tar.gz or its unpacked folder; or a folder with ImageNet's two archives.
      root: the folder where tfds keeps data sets.
      scratch: an empty folder for unpacking.

    Raises:
      UserError: TensorFlow is not installed, or ``source`` is missing a file, incomplete or damaged.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"Preparing {name} needs TensorFlow: pip install 'rmn-jax[prepare]'. Reading it afterwards does not."
        )
    if name == "imagenet2012":
        yield _imagenet(source, root)
    else:
        yield _cifar(source, root, scratch)


def _imagenet(source: Path, root: Path) -> tuple[Any, dict]:
    missing = [archive for archive in IMAGENET_ARCHIVES if not (source / archive).is_file()]
    if missing:
        raise UserError(f"{source} has no {missing[0]}; --source is the folder with {' and '.join(IMAGENET_ARCHIVES)}.")
    for archive in IMAGENET_ARCHIVES:
        _check_tar(source / archive)
    return tfds.builder_cls("imagenet2012")(data_dir=root), {"manual_dir": source}


def _check_tar(path: Path) -> None:
    """Raises UserError unless the archive is complete. A truncated archive then costs seconds, not hours."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
        if not members:
            raise tarfile.ReadError("it is empty")
        if members[-1].offset_data + members[-1].size > path.stat().st_size:
            raise tarfile.ReadError("its last member is truncated")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a complete tar archive ({error}); download it again.") from error


class _Unpacked:
    """Replaces tfds's download manager: the archive is already unpacked into ``folder``."""

    def __init__(self, folder: Path):
        self._folder = folder

    def download_and_extract(self, url: str) -> str:
        return str(self._folder)


def _cifar(source: Path, root: Path, scratch: Path) -> tuple[Any, dict]:
    folder = _unpack_cifar(source, scratch)
    for file in ("train.bin", "test.bin"):
        _check_cifar_records(folder / CIFAR_FOLDER / file)

    class LocalCifar100(tfds.builder_cls("cifar100"), skip_registration=True):  # type: ignore[call-arg, misc]
        name = "cifar100"

        def _split_generators(self, dl_manager):
            return super()._split_generators(_Unpacked(folder))

    return LocalCifar100(data_dir=root), {}


def _unpack_cifar(source: Path, scratch: Path) -> Path:
    """The folder that contains the folder ``cifar-100-binary``."""
    if source.is_dir():
        for candidate in (source.parent, source):
            if (candidate / CIFAR_FOLDER / "train.bin").is_file() and (
                candidate == source or source.name == CIFAR_FOLDER
            ):
                return candidate
        if not (source / CIFAR_ARCHIVE).is_file():
            raise UserError(f"{source} has neither {CIFAR_ARCHIVE} nor the folder {CIFAR_FOLDER}.")
        source = source / CIFAR_ARCHIVE
    try:
        with tarfile.open(source) as archive:
            archive.extractall(scratch, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{source} has an entry that points outside its folder ({error}); do not use it.") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{source} is not a complete archive ({reason}); download it again.") from error
    if not (scratch / CIFAR_FOLDER / "train.bin").is_file():
        raise UserError(f"{source} is not CIFAR-100's binary version; download {CIFAR_ARCHIVE}.")
    return scratch


def _check_cifar_records(path: Path) -> None:
    """Raises UserError if the file is missing, is truncated or has a label out of range."""
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack {CIFAR_ARCHIVE} again.")
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % _CIFAR_RECORD:
        raise UserError(
            f"{path} has {len(data):,} bytes, not a multiple of {_CIFAR_RECORD}; download {CIFAR_ARCHIVE} again."
        )
    labels = data.reshape(-1, _CIFAR_RECORD)[:, :2]
    wrong = np.flatnonzero((labels[:, 0] >= 20) | (labels[:, 1] >= 100))
    if len(wrong):
        found = labels[wrong[0]].tolist()
        raise UserError(
            f"{path}, record {wrong[0]}: its labels {found} are out of range; download {CIFAR_ARCHIVE} again."
        )
