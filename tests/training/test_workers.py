"""Processes that decode images: a signal to the group saves the run, and no worker outlives its parent."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SETTINGS = ("model.width=2", "batch_size=144", "epochs=60", "data.pipeline=stream", "data.workers=2")


def start(workdir):
    words = [f"--config.{setting}" for setting in SETTINGS]
    command = [sys.executable, "-m", "rmn_jax", "train", "--config=configs/digits.py:plain", f"--workdir={workdir}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([*command, *words], cwd=ROOT, env=environment, **pipes)


def wait_for(what, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not what():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group(process):
    """The processes of a process's group."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split() for line in listed]
    return [int(pid) for pid, leader, state in rows if int(leader) == process.pid and not state.startswith("Z")]


def lines_of(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps (Debian: procps)")
def test_a_signal_to_the_group_saves_and_no_worker_outlives_its_parent(tmp_path):
    stopped = start(tmp_path)
    wait_for(lambda: lines_of(tmp_path), stopped)
    assert len(group(stopped)) >= 3  # the run and two workers
    os.killpg(stopped.pid, signal.SIGHUP)
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, errors
    assert errors.splitlines()[-1].startswith("rmn: stopped after step") and "Traceback" not in errors
    assert len(list((tmp_path / "checkpoints").iterdir())) in (1, 2)  # the newest, and the best if that is another

    done = len(lines_of(tmp_path))
    killed = start(tmp_path)
    wait_for(lambda: len(lines_of(tmp_path)) > done, killed)
    killed.kill()
    killed.wait()
    wait_for(lambda: not group(killed), None, seconds=30)
    killed.communicate()
