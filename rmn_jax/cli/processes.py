"""Several processes of one run (``rmn train --distributed``): how they join, and how each ends when one is lost.

JAX aborts a process from C++, with a stack trace, when its coordinator is lost or another process no longer answers. So
training runs in a forked child. The parent passes signals on to it, and turns such an abort into one line and exit
status 2. The child ends without JAX's own shutdown after an error, because that waits for the process that is lost.
"""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from typing import IO, NoReturn

from rmn_jax.errors import UserError

FLAG = "--distributed"
# As STOP_SIGNALS of rmn_jax/training/stopping.py, which imports JAX.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_ADDRESSES = "set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process"
LOST = (
    "another process of this run has ended or cannot be reached; see its own lines. Start all processes again; the run "
    "goes on from its last checkpoint."
)
_NOT_ALL_CAME = f"not all processes came in time (--join_timeout); start every one of them, and {_ADDRESSES}."
# Of whatever JAX prints or raises when a process is lost: from its coordination service, Gloo (CPU) and NCCL (GPU).
_SIGNS_OF_LOSS = ("oordination service", "CoordinationService", "Gloo", "gloo", "NCCL")

# The child writes it among the messages of C++ once all processes are there.
_JOINED = b"rmn: joined\n"

_in_child = False


def signs_of_loss(text: str) -> bool:
    """Whether a message of JAX says that another process is lost."""
    return any(sign in text for sign in _SIGNS_OF_LOSS)


def run_in_child() -> None:
    """Forks if ``--distributed`` is among the words of the command line. Returns in the child only.

    Call this before JAX is imported: its threads do not survive a fork. The parent exits with the child's status.
    """
    if FLAG not in sys.argv or not hasattr(os, "fork"):
        return
    try:
        messages = tempfile.TemporaryFile()  # what C++ prints
    except OSError as error:
        print(f"rmn: no temporary file can be written ({error.strerror}); make room, or set TMPDIR.", file=sys.stderr)
        sys.exit(2)
    watched, held = os.pipe()  # end of file in it tells the child that the parent has ended
    child = os.fork()
    if child:
        os.close(watched)
        _wait_for(child, messages)
    os.close(held)
    _begin_child(watched, messages)


def _begin_child(watched: int, messages: IO[bytes]) -> None:
    global _in_child
    _in_child = True
    # A group of its own: a signal to the group of the parent arrives once, through the parent.
    os.setpgid(0, 0)

    def end_with_parent() -> None:
        os.read(watched, 1)
        os.kill(os.getpid(), signal.SIGTERM)  # saves

    threading.Thread(target=end_with_parent, daemon=True).start()
    if not os.environ.get("RMN_DEBUG"):
        # Python goes on writing to the terminal; C++ writes elsewhere.
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(messages.fileno(), 1)
        os.dup2(messages.fileno(), 2)


def _wait_for(child: int, messages: IO[bytes]) -> NoReturn:
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        status = _explain_death(-status, messages)
    os._exit(status)


def _explain_death(number: int, messages: IO[bytes]) -> int:
    """Says in one line why the child was ended by a signal; the exit status."""
    messages.seek(0)
    text = messages.read().decode(errors="replace")
    if number == signal.SIGABRT and signs_of_loss(text):
        line, status = LOST if _JOINED.decode() in text else _NOT_ALL_CAME, 2
    elif number == signal.SIGKILL:
        line, status = "the training process was killed (is the memory full?); what was saved stays.", 2
    else:
        line = f"{text}\nrmn: JAX ended by {signal.Signals(number).name}; what was saved stays."
        status = 1
    with contextlib.suppress(OSError, ValueError):
        print(f"rmn: {line}", file=sys.stderr, flush=True)
    return status


def leave(status: int) -> None:
    """Ends the child with an exit status; returns at once in any other process."""
    if not _in_child:
        return
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    if status in (0, 75) and "jax" in sys.modules:  # all processes end here together
        import jax

        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
    os._exit(status)


def join(join_timeout: int, heartbeat_timeout: int) -> None:
    """``jax.distributed.initialize``, from the cluster or from JAX_COORDINATOR_ADDRESS and the two variables below.

    Args:
      join_timeout: seconds to wait for all processes to come.
      heartbeat_timeout: seconds after which a process that does not answer is taken for lost. At the end of a run
        the processes wait for one another as long.

    Raises:
      UserError: a variable that is no address or no number, or a process that did not come.
    """
    import jax

    count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
    _check_coordinator()
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            initialization_timeout=join_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except (ValueError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        if "DEADLINE_EXCEEDED" in text:
            raise UserError(_NOT_ALL_CAME) from None
        raise UserError(
            f"--distributed cannot join the other processes: {text} Outside of a cluster that JAX knows, {_ADDRESSES}."
        ) from None
    if _in_child and not os.environ.get("RMN_DEBUG"):
        os.write(2, _JOINED)
    _connect()


def _connect() -> None:
    """A first sum over all devices, while the processes are still together.

    Gloo (CPU) connects them at their first sum, and gives up if one comes 30 seconds after another. The first training
    step would be too late: some processes find it in their compilation cache, others compile it.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), "all")
    place, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("all",), ()))
    ones = jax.make_array_from_callback((mesh.size,), place, lambda _: np.ones(1, np.float32))
    jax.block_until_ready(jax.jit(jax.numpy.sum, out_shardings=whole)(ones))


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not (text.isdecimal() and text.isascii()):
        raise UserError(f"{variable} is {text!r}; it must be a whole number: {_ADDRESSES}.")
    return None if text is None else int(text)


def _check_coordinator() -> None:
    """JAX crashes if the port is not a number."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or not (port.isdecimal() and port.isascii() and 0 < int(port) < 65536):
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be host:port, with a port from 1 to 65535.")
