"""A dry run says what a run needs and writes nothing; a profile traces ten steps."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rmn_jax.cli.dry_run import bytes_per_device
from rmn_jax.cli.main import main
from rmn_jax.training import trace
from rmn_jax.training.state import Phase
from rmn_jax.training.step import AXIS
from rmn_jax.training.trace import Trace

CONFIG = str(pathlib.Path(__file__).parent.parent.parent / "configs" / "digits.py")
# As in test_main, so that programs are compiled once: 1,437 images, one step in an epoch.
TINY = ["epochs=2", "stem_epochs=1", "batch_size=720", "learning_rate.warmup_epochs=1", "checkpoint.every_epochs=1"]
WORDS = [f"--config.{setting}" for setting in TINY]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_describes_both_networks_and_writes_nothing(folder, capsys):
    assert main(["train", "--dry_run", f"--config={CONFIG}", "--workdir=run", *WORDS]) == 0
    assert list(folder.iterdir()) == []
    captured = capsys.readouterr()
    shown, _ = json.JSONDecoder().raw_decode(captured.out)
    assert shown["batch_size"] == 720 and shown["model"]["num_units"] == 4
    result = json.loads(captured.out.splitlines()[-1])
    stem, routed = result["networks"]
    assert (result["steps"], result["steps_per_epoch"], result["devices"]) == (2, 1, 1)
    assert [(network["phase"], network["name"], network["steps"]) for network in (stem, routed)] == [
        (1, "stem", 1),
        (4, "routed", 1),
    ]
    for network in (stem, routed):
        sizes = network["bytes"]
        assert sizes["parameters"] == 4 * network["parameters"]  # float32
        assert sizes["optimizer"] == sizes["parameters"] + 4  # momentum, and the schedule's counter
        assert sizes["ema"] == 0 and network["temporary_bytes"] > 720 * 8 * 8 * 16 * 4  # one feature map of the batch
        # Beside these parts: the step's number, and loss, correct, count, load [S, N] and drift [S] of the epoch.
        stages = 3 if network is routed else 0
        assert network["state_bytes"] == {"0": sum(sizes.values()) + 4 * (1 + 3 + 4 * stages + stages)}
        assert network["seconds_per_step"] > 0
    # Stages 1 to 3 have inputs of 16, 16 and 32 channels: a memory of a unit has so many values.
    assert stem["bytes"]["memories"] == 0 and routed["bytes"]["memories"] == 4 * 4 * (16 + 16 + 32)
    assert routed["multiply_adds"] - stem["multiply_adds"] == 4 * (16 + 16 + 32)
    assert routed["parameters"] > 3 * stem["parameters"]
    assert all(sum(stage) == pytest.approx(1, abs=1e-3) and max(stage) < 1 for stage in routed["load"])


def test_what_a_device_holds_follows_the_sharding():
    mesh = jax.make_mesh((8,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(jnp.zeros((16, 3)), NamedSharding(mesh, P(AXIS)))  # two rows of 12 bytes each
    copied = jax.device_put(jnp.zeros((5,)), NamedSharding(mesh, P()))  # 20 bytes everywhere
    alone = jax.device_put(jnp.zeros((2,)), mesh.devices[3])
    found = bytes_per_device({"a": split, "b": (copied, alone)})
    assert found == {device.id: 44 + 8 * (index == 3) for index, device in enumerate(mesh.devices)}


def test_what_a_dry_run_refuses_is_one_line(folder, capsys):
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text("{}")
    for words, message in {
        ("--dry_run",): "give --config PAGE",
        ("--dry_run", f"--config={CONFIG}", "--profile"): "write --profile=FOLDER",
        ("--dry_run", f"--config={CONFIG}", "--config.batch_size=2000"): "set a batch size of at most 1437",
        ("--dry_run", f"--config={CONFIG}", "--config.epochs=0"): "config.epochs is 0",
        ("--dry_run", f"--config={CONFIG}", "--config.data.name=folder", "--config.data.path=none"): "none",
        ("--dry_run", f"--config={CONFIG}", "--workdir=other"): "another configuration",
        ("--dry_run", "--workdir=new"): "new holds no run yet",
        (f"--config={CONFIG}",): "--workdir",
    }.items():
        assert main(["train", *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1 and message in captured.err
    assert [path.name for path in folder.rglob("*")] == ["other", "config.json"]


def follow(folder, phases, monkeypatch):
    """The profiler's calls as ``(call, steps done)``, and what was said, for ``phases``: numbers of steps by phase."""
    calls, said, done = [], [], [0]
    monkeypatch.setattr(trace.jax.profiler, "start_trace", lambda path: calls.append((path, done[0])))
    monkeypatch.setattr(trace.jax.profiler, "stop_trace", lambda: calls.append(("stop", done[0])))
    with Trace(folder, said.append) as traced:
        for phase, steps in phases.items():
            traced.begin_phase(phase)
            for _ in range(steps):
                done[0] += 1
                traced.after_step(jnp.zeros(()))
    return calls, said


def test_ten_steps_of_each_phase_are_traced_after_those_that_compile(tmp_path, monkeypatch):
    calls, said = follow(tmp_path, {Phase.STEM: 20, Phase.ROUTED: 7}, monkeypatch)
    # Steps 3 to 12 of phase 1; of phase 4, which begins after step 20, the five from step 23 on.
    assert calls == [(f"{tmp_path}/phase1", 2), ("stop", 12), (f"{tmp_path}/phase4", 22), ("stop", 27)]
    assert said == [f"a trace of {n} steps is in {tmp_path}/phase{p}" for n, p in ((10, 1), (5, 4))]


def test_a_trace_that_a_stop_interrupts_or_that_cannot_be_written_is_ended(tmp_path, monkeypatch):
    calls, said = [], []
    monkeypatch.setattr(trace.jax.profiler, "start_trace", lambda path: calls.append("start"))

    def full():
        calls.append("stop")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace.jax.profiler, "stop_trace", full)
    with pytest.raises(KeyboardInterrupt), Trace(tmp_path, said.append) as traced:
        traced.begin_phase(Phase.STEM)
        for _ in range(4):
            traced.after_step(jnp.zeros(()))
        raise KeyboardInterrupt
    assert calls == ["start", "stop"] and len(said) == 1 and "No space left on device" in said[0]


def test_a_trace_is_written(tmp_path):
    with Trace(tmp_path, lambda line: None) as traced:
        traced.begin_phase(Phase.STEM)
        for step in range(12):
            traced.after_step(jnp.sin(step))
    assert list((tmp_path / "phase1").rglob("*.xplane.pb"))
