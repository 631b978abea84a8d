"""Runs with ``config.shard_units``: cloned in parts, resumed to the same bits, and opened on any number of devices."""

import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_phases import StopAt, make_config, outcome

from rmn_jax.errors import Preempted
from rmn_jax.inference.trained import load_trained
from rmn_jax.training import loop
from rmn_jax.training.phases import clone_procedures, run_training
from rmn_jax.training.run import Run
from rmn_jax.training.state import Phase
from rmn_jax.training.step import AXIS

DEVICES, PLACE = 4, (6, Phase.ROUTED)


def make_run(workdir, stop_at=None, devices=DEVICES, shard=True):
    config = make_config()
    config.model.num_units, config.model.width, config.model.attention = 4, 8, "none"
    config.eval_batch_size, config.ema, config.shard_units = 184, 0.9, shard
    run = Run(config, workdir, devices=jax.devices()[:devices], quiet=True)
    run.stop = StopAt(stop_at)
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run on four devices, stopped in phase 4."""
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Preempted):
        run_training(make_run(workdir, PLACE))
    return workdir


def kernel_of(tree):
    return tree["stage1"]["block1"]["conv1"]["kernel"]


def test_cloning_makes_each_devices_part_of_the_copies(tmp_path, monkeypatch):
    run, alone = make_run(tmp_path), make_run(tmp_path, devices=1)
    stem = run.initial_state()
    expected = jax.device_get(clone_procedures(alone, alone.initial_state()))
    monkeypatch.setattr(run, "place", None)  # nothing is moved afterwards
    cloned = clone_procedures(run, stem)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(cloned), expected)
    for tree in (cloned.params, cloned.ema, cloned.opt_state[1][0].trace):
        assert kernel_of(tree).sharding.spec == P(AXIS)


def test_a_stopped_run_goes_on_to_the_same_bits(stopped, tmp_path):
    run_training(make_run(tmp_path / "whole"))
    shutil.copytree(stopped, tmp_path / "parts")
    run_training(make_run(tmp_path / "parts"))
    assert outcome(tmp_path / "whole")[0] == outcome(tmp_path / "parts")[0]


@pytest.mark.parametrize(("devices", "shard"), [(1, True), (2, False), (2, True), (8, True)])
def test_a_checkpoint_opens_on_other_devices_split_or_not(stopped, tmp_path, devices, shard):
    written = make_run(stopped).restore()
    run = make_run(stopped, devices=devices, shard=shard)
    state, position = run.restore()
    assert position == written[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(written[0]))
    split = shard and devices > 1
    for tree in (state.params, state.ema):
        kernel = kernel_of(tree)
        assert kernel.sharding.is_fully_replicated != split
        assert kernel.addressable_shards[0].data.nbytes == kernel.nbytes // (devices if split else 1)
    # And the other way round: saved from here, it is the same checkpoint.
    other = make_run(tmp_path, devices=devices, shard=shard)
    other.claim_workdir()
    other.save(state, position.phase)
    again = make_run(tmp_path).restore()[0]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))
    assert not kernel_of(again.params).sharding.is_fully_replicated


def test_evaluation_and_prediction_do_not_care(stopped):
    split, alone = make_run(stopped), make_run(stopped, devices=1, shard=False)
    found = [loop.evaluate(run, run.restore()[0], routed=True) for run in (split, alone)]
    assert found[0]["load"] == found[1]["load"] and found[0]["top1"] == found[1]["top1"]
    np.testing.assert_allclose(found[0]["loss"], found[1]["loss"], rtol=1e-5)
    trained = load_trained(stopped)
    expected = jax.device_get(split.restore()[0].ema)
    np.testing.assert_array_equal(kernel_of(trained.variables["params"]), kernel_of(expected))
