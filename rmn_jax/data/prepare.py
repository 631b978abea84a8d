"""Builds a tfds data set from a local archive. A failed or interrupted build leaves nothing behind."""

import contextlib
import errno
import io
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmn_jax.data.specs import PREPARABLE
from rmn_jax.errors import UserError

# Most bytes written for each byte of the source: the records, and the same again while tfds shuffles.
_SPACE_FACTOR = 2.2

# tfds's prefix of the names of unfinished folders.
_INCOMPLETE = "incomplete."


def prepare(name: str, source: str, data_dir: str = "") -> dict[str, dict[str, int]]:
    """Builds the data set ``name`` under ``data_dir`` from the archive or folder ``source``.

    An existing data set is not changed.

    Args:
      name: one of ``PREPARABLE``.
      source: a local path; nothing is downloaded.
      data_dir: the folder where tfds keeps data sets; "" is tfds's default (``TFDS_DATA_DIR`` or
        ~/tensorflow_datasets).

    Returns:
      {"examples": {split: number of examples}}.

    Raises:
      UserError: an unknown name, a missing or damaged source, or a full disk.
    """
    if name not in PREPARABLE:
        raise UserError(f"Cannot prepare {name!r}: use one of {', '.join(PREPARABLE)}.")
    # Imported here: tensorflow_datasets takes a second to import.
    from rmn_jax.data import tfds_source

    builder_dir = tfds_source.find(name, data_dir)
    if builder_dir is None:
        path = Path(source).expanduser() if source else None
        if path is None or not path.exists():
            raise UserError(f"There is nothing at {source!r}; give the archive of {name} with --source PATH.")
        builder_dir = _build(name, path.resolve(), data_dir)
    return {"examples": tfds_source.count_examples(builder_dir)}


def _build(name: str, source: Path, data_dir: str) -> Path:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    _check_root(root, source)
    # tfds announces on stdout what it will do, with unknown sizes. Its progress bars go to stderr and stay visible.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        _interruptible(),
        _as_user_errors(root),
        _scratch(root, name) as scratch,
    ):
        with _builder(name, source, root, scratch) as (builder, options):
            config = tfds.download.DownloadConfig(try_download_gcs=False, **options)
            builder.download_and_prepare(
                download_dir=scratch / "downloads", file_format="array_record", download_config=config
            )
    return Path(builder.data_dir)


@contextmanager
def _builder(name: str, source: Path, root: Path, scratch: Path) -> Iterator[tuple[Any, dict]]:
    """Yields the tfds builder of ``name`` and its ``DownloadConfig`` options."""
    if name == "tiny_imagenet":
        from rmn_jax.data.tiny_imagenet import Builder

        yield Builder(source=source, data_dir=root), {"manual_dir": root}
    else:
        from rmn_jax.data import official

        with official.builder(name, source, root, scratch) as builder_and_options:
            yield builder_and_options


def _check_root(root: Path, source: Path) -> None:
    """Creates ``root``. Raises UserError if it cannot be written or has too little free space."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {root} ({error.strerror}); choose another data_dir.") from error
    size = source.stat().st_size
    if source.is_dir():
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    free, needed = shutil.disk_usage(root).free, int(size * _SPACE_FACTOR)
    if free < needed:
        raise UserError(
            f"{root} has {free / 1e9:.1f} GB free and preparing takes up to {needed / 1e9:.1f} GB; "
            "free some space, or choose another data_dir."
        )


@contextmanager
def _as_user_errors(root: Path) -> Iterator[None]:
    """Turns errors of the environment, such as a full disk, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _user_error_within(error)
        if cause is not None:
            raise cause from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"The disk of {root} is full; nothing was left behind. Free some space and try again."
            ) from error
        if isinstance(error, OSError) or "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(f"Preparing into {root} failed ({error}); nothing was left behind.") from error
        raise


def _user_error_within(error: BaseException | None) -> UserError | None:
    """The UserError that a library wrapped in another exception, or None."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _scratch(root: Path, name: str) -> Iterator[Path]:
    """Yields an empty folder. Removes it at the end, and unfinished folders of this and of killed preparations.

    tfds writes into a folder ``incomplete.*`` and renames it when it is complete.
    """
    folder = root / name
    _remove_incomplete(folder)
    scratch = folder / f"{_INCOMPLETE}scratch"
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        _remove_incomplete(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


def _remove_incomplete(folder: Path) -> None:
    for path in folder.glob(f"**/{_INCOMPLETE}*"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that unfinished folders are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signal_number, frame):
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
