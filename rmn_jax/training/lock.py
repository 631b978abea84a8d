"""One process trains in a run folder. A lock on ``run.lock`` names the host and the process that holds it.

The lock is the operating system's (``flock``). It ends with its process, however that ends: a dead owner never blocks
the next one.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

from rmn_jax.errors import UserError

LOCK_FILE = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def own(workdir: pathlib.Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a run folder.

    Args:
      workdir: an existing folder.
      warn: receives a line if the file system cannot lock; the run then goes on without.

    Raises:
      UserError: another process holds it, or ``run.lock`` cannot be written.
    """
    path = workdir / LOCK_FILE
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from None
    try:
        locked = _lock(file, path, warn)
        yield
        if locked:  # a process that was refused must not erase the name of the owner
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
    finally:
        os.close(file)


def _lock(file: int, path: pathlib.Path, warn: Callable[[str], None]) -> bool:
    """Takes the lock and writes the owner's name; whether the file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{_owner(file)} trains in {path.parent} already (it holds {path.name}); wait for its end or stop it."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(f"cannot lock {path}: {error.strerror}.") from None
        warn(f"{path.parent} is on a file system without locks; make sure that no other process trains there")
        return False
    with contextlib.suppress(OSError):  # the disk may be full; the lock holds without a name in the file
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
    return True


def _owner(file: int) -> str:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
