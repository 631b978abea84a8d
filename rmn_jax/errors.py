"""Errors that the command line reports in one line, without a traceback."""

import errno
import os

# What a user's disks, paths and limits can do to any write or read.
_EXPECTED = {
    getattr(errno, name)
    for name in (
        "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ENOENT ENOTDIR EISDIR ENAMETOOLONG ELOOP EMFILE ENFILE ENXIO "
        "ENODEV ESTALE ENOTEMPTY EEXIST EBUSY"
    ).split()
}
_ADVICE = {
    errno.ENOSPC: "Make room and start again",
    errno.EDQUOT: "Make room and start again",
    errno.EROFS: "Choose a place that you may write to",
    errno.EACCES: "Mend the permissions, or choose another place",
    errno.EPERM: "Mend the permissions, or choose another place",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
}


class UserError(Exception):
    """An error that the user can correct. The message is one line: what is wrong and what to do. Exit status 2."""


class Preempted(Exception):
    """The process was asked to stop and has saved its state. The same command continues. Exit status 75."""


def as_line(error: BaseException) -> str | None:
    """An exception that the machine or the user's settings cause, as one line; None for any other, which is a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _EXPECTED:
        place = "standard output" if error.filename is None else os.fsdecode(error.filename)
        advice = _ADVICE.get(error.errno or 0, "Check the path and the disk")
        return f"{place}: {error.strerror}. {advice}; what was saved stays."
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return "the memory is full. Lower config.batch_size, or raise config.accumulation; what was saved stays."
    if "nable to initialize backend" in text or _raised_in(error, "xla_bridge.py"):
        first = " ".join(text.split())[:200] or "none of them is here"
        return (
            f"JAX cannot use the device that JAX_PLATFORMS asks for ({first}). Unset JAX_PLATFORMS, or set it to cpu."
        )
    return None


def _raised_in(error: BaseException, file: str) -> bool:
    """Whether an exception comes from a file of that name: JAX has no exception of its own for a missing device."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and os.path.basename(trace.tb_frame.f_code.co_filename) == file
