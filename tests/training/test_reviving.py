"""Reviving: which inputs a unit takes, that the network's outputs stay, and that a resumed run does the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_phases import StopAt, make_config

from rmn_jax.config import default_config, validate
from rmn_jax.errors import Preempted, UserError
from rmn_jax.training import phases, reviving
from rmn_jax.training.cloning import copy_unit, is_procedural
from rmn_jax.training.extraction import extract
from rmn_jax.training.phases import run_training
from rmn_jax.training.run import Run
from rmn_jax.training.state import Metrics, Phase


def revive_config(after, attention):
    config = make_config()
    config.model.attention = attention
    config.model.width, config.revive_after, config.ema = 2, after, 0.5
    config.batch_size = 72  # 19 steps an epoch: routing in evaluation mode is then near that in training
    config.optimizer.name, config.learning_rate.peak = "adamw", 0.005
    return config


def make_run(workdir, stop_at=None, after=1, attention="none"):
    run = Run(revive_config(after, attention), workdir, devices=jax.devices()[:1], quiet=True)
    run.stop = StopAt(stop_at)
    return run


def test_a_dead_unit_takes_the_farther_half_of_the_fullest():
    # On a line: unit 0 at 0 has the inputs 1, 2, -6, 4 and 3; unit 1 at 100 has 90; unit 2 at 1000 has none.
    features = np.float32([[1], [2], [-6], [4], [3], [90]])
    memory = np.float32([[0], [100], [1000]])
    source, centre = reviving.split_fullest(features, memory, dead=2)
    # Two of five are farthest: -6 and 4.
    assert source == 0 and centre.tolist() == [-1.0] and centre.dtype == np.float32
    # The dead unit's own memory has no part, also where it is the nearest.
    assert reviving.split_fullest(features, np.float32([[0], [100], [3]]), dead=2)[1].tolist() == [-1.0]
    # Among equals the lowest number; a unit with one input is not split.
    assert reviving.split_fullest(np.float32([[1], [2], [90], [91]]), memory, 2)[0] == 0
    assert reviving.split_fullest(np.float32([[1], [90]]), memory, 2) == (0, None)
    # By angle the inputs on one ray are equal, whatever their length: the farthest is the one off it.
    rays = np.float32([[1, 0], [9, 0], [3, 1], [0, 5]])
    assert reviving.split_fullest(rays, np.float32([[1, 0], [0, 1], [-1, 0]]), 2, "cosine")[1].tolist() == [3, 1]


def test_a_unit_is_copied_with_its_row_of_the_condition():
    tree = {
        "stage1": {"kernel": jnp.arange(6.0).reshape(3, 2)},
        "stage2": {"kernel": jnp.arange(6.0).reshape(3, 2)},
        "attention1": {"squeeze": {"kernel": jnp.ones((4, 1))}, "excite": {"kernel": jnp.arange(8.0).reshape(4, 2)}},
    }
    got = copy_unit({"mu": tree}, 1, source=2, target=0, num_conditions=3)["mu"]
    assert got["stage1"]["kernel"].tolist() == [[4, 5], [2, 3], [4, 5]]
    assert got["attention1"]["excite"]["kernel"].tolist() == [[0, 1], [6, 7], [4, 5], [6, 7]]  # one hidden, three units
    assert got["stage2"]["kernel"] is tree["stage2"]["kernel"]
    assert copy_unit(tree, 1, 2, 0)["attention1"]["excite"]["kernel"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert copy_unit(None, 1, 2, 0) is None


def test_epochs_without_inputs_are_counted_by_unit():
    state = phases.TrainState(0, {}, {}, {}, (), Metrics.zeros(2, 3), idle=jnp.int32([[0, 1, 2], [3, 0, 0]]))
    state = state._replace(metrics=state.metrics._replace(load=jnp.float32([[5, 0, 1], [0, 0, 9]])))
    assert reviving.count_idle_epochs(state).idle.tolist() == [[0, 2, 0], [4, 1, 0]]


def differing(tree, offset):
    """The tree with other values for each of three units."""

    def differ(path, leaf):
        unit = jnp.arange(3.0).reshape(-1, *(1,) * (leaf.ndim - 1))
        return (leaf + offset) * (1 + 0.1 * unit) if is_procedural(path) else leaf

    return jax.tree_util.tree_map_with_path(differ, tree)


@pytest.fixture(scope="module")
def revived(tmp_path_factory):
    """A run whose unit 2 of stage 2 is dead, and its state before and after."""
    run = make_run(tmp_path_factory.mktemp("revived"), after=2, attention="conditional")
    state = phases.clone_procedures(run, run.initial_state())
    state = phases.initialise_memories(run, state, run.initial_state())
    # Units that differ, momenta too, and one that is far from all inputs.
    state = state._replace(
        params=differing(state.params, 0.0), opt_state=differing(state.opt_state, 1.0), ema=differing(state.params, 2.0)
    )
    memory = {**state.memory, "memory2": state.memory["memory2"].at[2].set(1e3)}
    state = state._replace(memory=memory, idle=jnp.int32([[0, 1, 0], [0, 0, 2], [0, 0, 0]]))
    return run, state, *reviving.revive_units(run, state, 2)


def test_reviving_changes_no_output_and_gives_the_unit_inputs(revived):
    run, before, after, log = revived
    assert [(stage, unit) for stage, unit, _ in log] == [(2, 2)]
    source = log[0][2]
    old, new = (extract(run, state.variables, routed=True) for state in (before, after))
    jax.tree.map(np.testing.assert_array_equal, new.pooled, old.pooled)
    assert not (old.assignment[1] == 2).any()
    assert (new.assignment[1] == 2).mean() > 0.05
    changed = new.assignment != old.assignment
    assert set(old.assignment[changed]) == {source} and set(new.assignment[changed]) == {2}
    model = run.networks.model(True).clone(axis_name=None)
    images = run.preprocess.evaluate(np.asarray(next(iter(run.dataset.eval_batches()))["image"]))
    logits = [jax.jit(model.apply)(state.variables, images).logits for state in (before, after)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


def test_everything_of_the_unit_is_copied_and_nothing_else_changes(revived):
    _, before, after, ((_, unit, source),) = revived
    assert after.idle.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    seen = set()
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "stage2/" in name:
            np.testing.assert_array_equal(new[unit], old[source])
            np.testing.assert_array_equal(np.delete(new, unit, 0), np.delete(old, unit, 0))
            seen.add(name.split("/")[0])
        elif name not in ("idle", "memory/memory2") and "attention2/excite" not in name:
            np.testing.assert_array_equal(new, old)
    assert seen == {"params", "batch_stats", "opt_state", "ema"}


def test_split_units_are_revived_as_whole_ones(tmp_path):
    found = []
    for shard in (False, True):
        config = revive_config(1, "none")
        config.model.num_units, config.eval_batch_size, config.shard_units = 4, 184, shard
        run = Run(config, tmp_path / str(shard), devices=jax.devices()[:4], quiet=True)
        state = phases.clone_procedures(run, run.initial_state())
        state = phases.initialise_memories(run, state, run.initial_state())
        memory = {**state.memory, "memory2": state.memory["memory2"].at[2].set(1e3)}
        params = jax.tree.map(
            lambda leaf: leaf + 1e-4 * np.arange(leaf.size).reshape(leaf.shape), state.params
        )  # units that differ
        idle = jnp.zeros((3, 4), jnp.int32).at[1, 2].set(1)
        state = run.place(state._replace(memory=memory, params=params, idle=idle))
        revived, log = reviving.revive_units(run, state, 1)
        kernels = [each.params["stage2"]["block1"]["conv1"]["kernel"] for each in (state, revived)]
        assert kernels[0].sharding == kernels[1].sharding
        assert kernels[0].sharding.is_fully_replicated != shard
        assert len(log) == 1 and np.array_equal(kernels[1][2], kernels[0][log[0][2]])
        found.append((log, jax.device_get(revived)))
    assert found[0][0] == found[1][0]
    for one, other in zip(*(jax.tree.leaves(state) for _, state in found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def kill_unit(monkeypatch):
    """Every run begins phase 4 with unit 2 of stage 3 far from all inputs."""
    initialise = phases.initialise_memories

    def far(run, state, stem):
        state = initialise(run, state, stem)
        return run.place(state._replace(memory={**state.memory, "memory3": state.memory["memory3"].at[2].set(1e3)}))

    monkeypatch.setattr(phases, "initialise_memories", far)


def test_a_stopped_run_that_revives_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    kill_unit(monkeypatch)
    run_training(make_run(tmp_path / "whole"))
    with pytest.raises(Preempted):  # within the epoch at whose end, step 38, the unit is revived
        run_training(make_run(tmp_path / "parts", (28, Phase.ROUTED)))
    run_training(make_run(tmp_path / "parts"))
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("revived") for line in lines][:3] == [None, [[3, 2, lines[1]["revived"][0][2]]], []]
    assert lines[1]["load"][2][2] == 0 and lines[2]["load"][2][2] > 0
    manifests = [tmp_path / each / "checkpoints" / "step_00000057.phase4/manifest.json" for each in ("whole", "parts")]
    leaves, resumed = (json.loads(path.read_text())["leaves"] for path in manifests)
    assert leaves == resumed and leaves["idle"]["shape"] == [3, 3]


def test_without_reviving_the_state_has_no_count(tmp_path):
    shapes = make_run(tmp_path, after=0).networks.state_shapes(routed=True)
    assert shapes.idle is None and make_run(tmp_path, after=1).networks.state_shapes(routed=False).idle is None


@pytest.mark.parametrize(
    ("settings", "line"), [({"revive_after": -1}, "is -1"), ({"model.router": "hash"}, "hash router")]
)
def test_what_cannot_be_revived_is_one_line(settings, line):
    config = default_config()
    config.update_from_flattened_dict({"revive_after": 3, **settings})
    with pytest.raises(UserError, match=line):
        validate(config, 8)
