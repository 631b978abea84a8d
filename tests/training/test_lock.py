"""One process trains in a run folder; a second one is refused, and a dead one is no obstacle."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from rmn_jax.errors import UserError
from rmn_jax.training import lock

HOLD = """
import pathlib, sys
from rmn_jax.training import lock
with lock.own(pathlib.Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_owner_is_refused_and_the_first_is_named(holder, tmp_path):
    owner = f"process {holder.pid} on {socket.gethostname()} trains in {tmp_path} already"
    for _ in range(2):  # a refusal leaves the owner's name in the file
        with pytest.raises(UserError, match=owner), lock.own(tmp_path, print):
            pytest.fail("two owners")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_owner_is_taken_over(number, holder, tmp_path):
    holder.send_signal(number)
    holder.wait()
    assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["pid"] == holder.pid
    with lock.own(tmp_path, pytest.fail):
        assert json.loads((tmp_path / lock.LOCK_FILE).read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    assert (tmp_path / lock.LOCK_FILE).read_text() == ""


def test_an_unreadable_owner_is_refused_all_the_same(holder, tmp_path):
    (tmp_path / lock.LOCK_FILE).write_text("[]")
    with pytest.raises(UserError, match="another process trains"), lock.own(tmp_path, print):
        pytest.fail("two owners")


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def fail(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    said = []
    with lock.own(tmp_path, said.append):
        pass
    assert len(said) == 1 and "without locks" in said[0]


def test_a_folder_in_place_of_the_lock_is_named(tmp_path):
    (tmp_path / lock.LOCK_FILE).mkdir()
    with pytest.raises(UserError, match="cannot write .*run.lock: Is a directory"), lock.own(tmp_path, print):
        pytest.fail("no lock")
