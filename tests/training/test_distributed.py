"""Two processes with two devices each train as one process with four. A signal to one of them stops and saves both."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from rmn_jax.training.manifest import checkpoint_paths, read_manifest
from rmn_jax.training.state import Phase

ROOT = pathlib.Path(__file__).parent.parent.parent
SETTINGS = ("epochs=16", "stem_epochs=1", "model.width=4", "checkpoint.every_epochs=16", "eval_every_epochs=4")

# Only the first process needs write access. Python imports ``sitecustomize`` first; this one takes the access away.
NO_WRITING = """
import os, sys

def refuse(event, arguments, folder=os.environ["READ_ONLY"]):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    writes = writes or event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    writes = writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
    if writes and any(str(path).startswith(folder) for path in arguments[:2]):
        raise PermissionError(13, "Permission denied", str(arguments[0]))

sys.addaudithook(refuse)
"""


def start(workdir, devices, *more, **variables):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    command = [sys.executable, "-m", "rmn_jax", "train", f"--config={ROOT}/configs/digits.py", *more]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *(f"--config.{setting}" for setting in SETTINGS)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def as_slurm(process, port):
    """What ``srun`` sets for each task; JAX finds the others by it, on a port that it derives from the job's number."""
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
    }


def as_variables(process, port):
    """What a JobSet or any other launcher sets."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
    }


def start_both(workdir, launcher, *more):
    hook = workdir.parent / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(NO_WRITING)
    path = os.pathsep.join(filter(None, (str(hook), str(ROOT), os.environ.get("PYTHONPATH"))))
    port = free_port()
    more = ("--distributed", "--config.checkpoint.every_minutes=1e-6", "--config.checkpoint.keep=99", *more)
    return [
        start(workdir, 2, *more, **launcher(0, port)),
        start(workdir, 2, *more, **launcher(1, port), PYTHONPATH=path, READ_ONLY=str(workdir)),
    ]


def child_of(process):
    """The process that trains; ``process`` only waits for it."""
    return int(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def lines_of(workdir):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_two_processes_train_as_four_devices_and_stop_together(tmp_path):
    alone = start(tmp_path / "alone", 4)
    errors = alone.communicate(timeout=900)[1]
    assert alone.returncode == 0, errors

    both = start_both(tmp_path / "both", as_slurm, "--config.shard_units=True")
    until = time.monotonic() + 900
    while len(lines_of(tmp_path / "both")) < 3 and time.monotonic() < until and both[1].poll() is None:
        time.sleep(0.1)
    both[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=900)[1] for process in both]
    assert [process.returncode for process in both] == [75, 75], errors
    assert "config.shard_units: each of 4 devices holds" in errors[0]
    stops = [text.strip().splitlines()[-1] for text in errors]
    assert stops[0] == stops[1] and "stopped after step" in stops[0]

    again = start_both(tmp_path / "both", as_variables)  # what was saved split goes on whole
    until = time.monotonic() + 900
    while len(lines_of(tmp_path / "both")) < 5 and time.monotonic() < until and again[1].poll() is None:
        time.sleep(0.1)
    os.kill(child_of(again[1]), signal.SIGKILL)
    errors = [process.communicate(timeout=120)[1] for process in again]
    assert [process.returncode for process in again] == [2, 2], errors
    assert "another process of this run has ended" in errors[0].strip().splitlines()[-1]
    assert "the training process was killed" in errors[1].strip().splitlines()[-1]
    assert "Check failure" not in errors[0] and "Traceback" not in errors[0]

    again = start_both(tmp_path / "both", as_slurm, "--config.shard_units=True")
    errors = [process.communicate(timeout=900)[1] for process in again]
    assert [process.returncode for process in again] == [0, 0], errors
    expected, found = lines_of(tmp_path / "alone"), lines_of(tmp_path / "both")
    assert [line["epoch"] for line in found] == [line["epoch"] for line in expected] == list(range(1, 17))
    assert abs(expected[0]["train_loss"] - found[0]["train_loss"]) < 1e-5 * expected[0]["train_loss"]
    for one, other in zip(expected[:3], found[:3], strict=True):  # in later epochs, rounding errors have grown
        assert abs(one["train_loss"] - other["train_loss"]) < 1e-2 * one["train_loss"]
    assert found[-1]["eval_top1"] > 0.3
    saved = checkpoint_paths(tmp_path / "both" / "checkpoints")
    # By the clock of the first process they agree to save, which is asked after every step, at every 16th. With 5 steps
    # in an epoch this is also within epochs.
    assert any(position.step % 5 and position.phase is Phase.ROUTED for position in saved)
    top1 = {position.step: read_manifest(path, position).get("top1") for position, path in saved.items()}
    evaluated = {line["step"]: line["eval_top1"] for line in found if "eval_top1" in line}
    assert max(filter(None, top1.values())) == max(evaluated[step] for step in evaluated if step > 5)


def test_a_process_that_does_not_come_is_one_line(tmp_path):
    for number in ("0", "1"):
        address = f"127.0.0.1:{free_port()}"
        variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": number}
        alone = start(tmp_path / "run", 1, "--distributed", "--join_timeout=1", **variables)
        lines = alone.communicate(timeout=900)[1].strip().splitlines()
        assert alone.returncode == 2 and len(lines) == 1 and "not all processes came" in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_missing_cluster_is_one_line(tmp_path):
    alone = start(tmp_path / "run", 1, "--distributed", JAX_COORDINATOR_ADDRESS="127.0.0.1:1", JAX_NUM_PROCESSES="two")
    lines = alone.communicate(timeout=900)[1].strip().splitlines()
    assert alone.returncode == 2 and len(lines) == 1
    assert "JAX_NUM_PROCESSES is 'two'" in lines[0] and "set JAX_COORDINATOR_ADDRESS" in lines[0]
    assert not (tmp_path / "run").exists()
