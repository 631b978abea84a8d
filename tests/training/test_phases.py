"""The four phases on the digits: stopped in any phase or between two, a run ends with the same bits."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from rmn_jax.config import default_config
from rmn_jax.errors import Preempted, UserError
from rmn_jax.training import loop, phases
from rmn_jax.training.cloning import clone
from rmn_jax.training.extraction import extract
from rmn_jax.training.manifest import digest_of
from rmn_jax.training.optimizer import OPTIMIZERS, make_optimizer
from rmn_jax.training.phases import run_training
from rmn_jax.training.run import Run
from rmn_jax.training.run_folder import read_run
from rmn_jax.training.state import Phase
from rmn_jax.training.stopping import StopRequest


def make_config(method="rmn"):
    config = default_config()
    config.method = method
    config.epochs, config.stem_epochs = 3, 1
    config.batch_size, config.eval_batch_size = 288, 180  # 1,437 images: 4 steps an epoch
    config.learning_rate.warmup_epochs = 1
    config.learning_rate.peak = 0.05
    config.model.backbone = "resnet8"
    config.model.num_units = 3
    config.model.attention = "conditional"
    config.data.name = "digits"
    config.data.augment, config.data.crop_padding = "crop", 1
    return config


class StopAt(StopRequest):
    """Asks a run to stop at ``place`` = (step, phase), or nowhere if that is None."""

    def __init__(self, place):
        super().__init__()
        self._place = place

    def reached(self, step, phase):
        return (step, phase) == self._place


def make_run(workdir, stop_at=None, config=None):
    run = Run(config or make_config(), workdir, devices=jax.devices()[:1], quiet=True)
    run.stop = StopAt(stop_at)
    return run


def make_everything_config():
    """Gradient accumulation, moving average, mixup and label smoothing together."""
    config = make_config()
    config.accumulation, config.mixup, config.ema, config.label_smoothing = 2, 0.2, 0.9, 0.1
    return config


def outcome(workdir):
    """The digests of the final state, and the metrics without the timing."""
    final = pathlib.Path(workdir) / "checkpoints" / "step_00000012.phase4" / "manifest.json"
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds_per_step") > 0
    return json.loads(final.read_text())["leaves"], lines


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    result = run_training(make_run(workdir))
    return result, *outcome(workdir)


# Phase 1 is steps 0 to 4, phase 4 is steps 4 to 12. The loop asks before each step of an epoch except the first.
PLACES = {
    "in phase 1": (2, Phase.STEM),
    "between phases 1 and 2": (4, Phase.STEM),
    "between phases 3 and 4": (4, Phase.MEMORIES),
    "in phase 4": (6, Phase.ROUTED),
    "late in phase 4": (11, Phase.ROUTED),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_stopped_run_goes_on_to_the_same_bits(place, uninterrupted, tmp_path):
    result, leaves, lines = uninterrupted
    with pytest.raises(Preempted, match=f"after step {place[0]};"):
        run_training(make_run(tmp_path, place))
    assert not list((tmp_path / "checkpoints").glob("*damaged*"))  # nothing is saved twice
    again = run_training(make_run(tmp_path))
    assert {**again, "workdir": ""} == {**result, "workdir": ""}
    assert outcome(tmp_path) == (leaves, lines)


def test_stopping_where_it_was_restored_saves_nothing_twice(tmp_path):
    run = make_run(tmp_path)
    run.claim_workdir()
    run.save(run.initial_state(), Phase.STEM)
    again = make_run(tmp_path, (0, Phase.STEM))
    state, _ = again.restore()
    with pytest.raises(Preempted):
        again.stop_if_asked(state, 0, Phase.STEM)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000000.phase1"]


def test_a_stopped_run_with_accumulation_average_and_mixup_goes_on_to_the_same_bits(tmp_path):
    run_training(make_run(tmp_path / "whole", config=make_everything_config()))
    for place in (PLACES["in phase 1"], PLACES["between phases 3 and 4"], PLACES["in phase 4"]):
        with pytest.raises(Preempted):
            run_training(make_run(tmp_path / "parts", place, make_everything_config()))
    run_training(make_run(tmp_path / "parts", config=make_everything_config()))
    leaves, lines = outcome(tmp_path / "parts")
    assert (leaves, lines) == outcome(tmp_path / "whole")
    averages = {name for name in leaves if name.startswith("ema/")}
    assert {name.replace("ema/", "params/", 1) for name in averages} == {
        name for name in leaves if name.startswith("params/")
    }
    assert all(leaves[name] != leaves[name.replace("ema/", "params/", 1)] for name in averages)


def recipe_config(name):
    """Another optimizer, with clipping, factors and a frozen stem."""
    config = make_config()
    config.epochs, config.eval_every_epochs, config.model.width, config.model.attention = 2, 2, 2, "none"
    config.optimizer.update({"name": name, "clip_norm": 1.0, "freeze": "stem", "weight_decay_on": "kernels"})
    config.learning_rate.update({"peak": 0.005, "head_factor": 2.0})
    return config


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_checkpoint_has_the_whole_state_of_every_optimizer(name, tmp_path):
    run = make_run(tmp_path, config=recipe_config(name))
    state = run.initial_state()
    update = jax.jit(make_optimizer(run.config, run.steps_per_epoch).update)
    momenta = update(jax.tree.map(lambda leaf: leaf + 0.1, state.params), state.opt_state, state.params)[1]
    cloned = phases.clone_procedures(run, state._replace(opt_state=momenta))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(cloned.opt_state))
    run.save(cloned, Phase.MEMORIES)
    restored, _ = make_run(tmp_path, config=recipe_config(name)).restore()
    jax.tree.map(np.testing.assert_array_equal, restored, cloned)


def test_a_stopped_run_with_another_optimizer_goes_on_to_the_same_bits(tmp_path):
    """LAMB has the parts of all others. The frozen stem ends with the bits that it began with."""
    config = recipe_config("lamb")
    run = make_run(tmp_path / "whole", config=config)
    stem = run.initial_state().params["stem"]["conv1"]["kernel"]
    run_training(run)
    for place in ((2, Phase.STEM), (6, Phase.ROUTED)):
        with pytest.raises(Preempted):
            run_training(make_run(tmp_path / "parts", place, config))
    run_training(make_run(tmp_path / "parts", config=config))
    manifests = [tmp_path / each / "checkpoints" / "step_00000008.phase4/manifest.json" for each in ("whole", "parts")]
    leaves, resumed = (json.loads(path.read_text())["leaves"] for path in manifests)
    assert leaves == resumed
    assert leaves["params/stem/conv1/kernel"]["digest"] == digest_of(np.asarray(stem))
    momenta = {leaf for leaf in leaves if leaf.startswith("opt_state") and leaf.endswith("stage1/block1/conv1/kernel")}
    assert momenta and all(leaves[leaf]["shape"] == [3, 3, 3, 2, 2] for leaf in momenta)
    assert not [leaf for leaf in leaves if leaf.startswith("opt_state") and "/stem/" in leaf]


@pytest.mark.parametrize(
    ("settings", "line"),
    [({"optimizer.freeze": "stem9"}, "'stem9'"), ({"learning_rate.warmup_epochs": 4}, "longer than the run of 3")],
    ids=["a pattern without a match", "a warm-up longer than the run"],
)
def test_a_recipe_that_is_refused_leaves_no_folder(settings, line, tmp_path):
    config = make_config()
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=line):
        run_training(make_run(tmp_path / "run", config=config))
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_long_warm_up_that_exists_goes_on(tmp_path):
    """Earlier releases shortened a warm-up that is longer than the run."""
    run = make_run(tmp_path)
    run.config.learning_rate.warmup_epochs = 9
    run.claim_workdir()
    config = read_run(tmp_path).config
    assert config.learning_rate.warmup_epochs == 9
    assert float(make_run(tmp_path, config=config).learning_rate(11)) == pytest.approx(0.05)  # of 12 steps


def test_the_moving_average_is_cloned_and_evaluated(tmp_path):
    run = make_run(tmp_path, config=make_everything_config())
    trained = run.initial_state()
    jax.tree.map(np.testing.assert_array_equal, trained.ema, trained.params)  # it begins as a copy
    averaged = trained._replace(ema=jax.tree.map(lambda leaf: leaf * 0.7 + 0.01, trained.params))
    cloned = phases.clone_procedures(run, averaged)
    jax.tree.map(np.testing.assert_array_equal, cloned.ema, clone(averaged.ema, 3))
    want = loop.evaluate(run, trained._replace(params=averaged.ema, ema=None), routed=False)
    assert loop.evaluate(run, averaged, routed=False) == want
    assert loop.evaluate(run, trained, routed=False)["loss"] != want["loss"]


def test_a_killed_run_goes_on_to_the_same_bits(uninterrupted, tmp_path, monkeypatch):
    """Killed between the line of epoch 2 and its checkpoint: the line is then there once, not twice."""
    result, leaves, lines = uninterrupted
    run = make_run(tmp_path)
    save = run.save

    def die_at_step_8(state, phase, top1=None):
        if int(state.step) == 8:
            raise KeyboardInterrupt
        save(state, phase, top1)

    monkeypatch.setattr(run, "save", die_at_step_8)
    with pytest.raises(KeyboardInterrupt):
        run_training(run)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "ste')
    again = run_training(make_run(tmp_path))
    assert {**again, "workdir": ""} == {**result, "workdir": ""}
    assert outcome(tmp_path) == (leaves, lines)


def test_the_metrics_report_load_entropy_dead_units_and_drift(uninterrupted):
    result, _, lines = uninterrupted
    assert [(line["epoch"], line["step"], line["phase"]) for line in lines] == [
        (1, 4, 1),
        (2, 8, 4),
        (3, 12, 4),
    ]
    assert result["steps"] == 12 and result["epochs"] == 3
    for line in lines[1:]:
        assert np.array(line["load"]).sum(-1).tolist() == [4 * 288] * 3
        assert len(line["entropy"]) == len(line["dead_units"]) == len(line["memory_drift"]) == 3
        assert line["eval_examples"] == 360 and np.array(line["eval_load"]).sum(-1).tolist() == [360] * 3
    assert lines[0]["load"] == []
    assert result["top1"] == lines[-1]["eval_top1"]


def test_evaluation_counts_every_example_once_whatever_the_batch_size(uninterrupted, tmp_path):
    results = []
    for size in (180, 77, 360):
        config = make_config()
        config.eval_batch_size = size
        run = make_run(tmp_path, config=config)
        results.append(loop.evaluate(run, run.initial_state(), routed=False))
    assert [r["examples"] for r in results] == [360] * 3
    assert results[0]["top1"] == results[1]["top1"] == results[2]["top1"]
    np.testing.assert_allclose([r["loss"] for r in results], results[0]["loss"], rtol=1e-5)


def test_memories_start_at_the_centres_of_the_stage_inputs(tmp_path):
    run = make_run(tmp_path)
    stem = run.initial_state()
    cloned = phases.clone_procedures(run, stem)
    jax.tree.map(np.testing.assert_array_equal, cloned.params, clone(stem.params, 3))
    features = extract(run, stem.variables, routed=False, split="train", batch_size=288).pooled
    assert [f.shape for f in features] == [(1437, 16), (1437, 16), (1437, 32)]
    memory = jax.device_get(phases.initialise_memories(run, cloned, stem).memory)
    for i, stage in enumerate(features):
        centres = memory[f"memory{i + 1}"]
        nearest = np.linalg.norm(stage[:, None] - centres[None], axis=-1).argmin(-1)
        for unit in range(3):  # a k-means centre is the mean of the features nearest to it
            np.testing.assert_allclose(centres[unit], stage[nearest == unit].mean(0), rtol=1e-3, atol=1e-4)


def test_memories_do_not_depend_on_the_evaluation_batch(tmp_path, monkeypatch):
    # ``eval_batch_size`` may change within a run. It would change the last bits of the features.
    features = []
    monkeypatch.setattr(phases, "k_means", lambda stage, num_units, seed: features.append(stage) or stage[:num_units])
    for size in (180, 77):
        config = make_config()
        config.eval_batch_size = size
        run = make_run(tmp_path, config=config)
        stem = run.initial_state()
        phases.initialise_memories(run, phases.clone_procedures(run, stem), stem)
    jax.tree.map(np.testing.assert_array_equal, features[:3], features[3:])


def test_a_plain_run_is_phase_1_alone(tmp_path):
    config = make_config("plain")
    config.epochs = 1
    result = run_training(make_run(tmp_path, config=config))
    assert result["steps"] == 4
    assert (tmp_path / "checkpoints" / "step_00000004.phase1").is_dir()


def test_no_stem_epochs_starts_routed_from_the_initial_network(tmp_path):
    config = make_config()
    config.epochs, config.stem_epochs = 1, 0
    assert run_training(make_run(tmp_path, config=config))["steps"] == 4
    shutil.rmtree(tmp_path / "checkpoints")  # perhaps these were imported weights
    with pytest.raises(UserError, match="the weights it began from are gone"):
        run_training(make_run(tmp_path, config=config))
    assert [json.loads(x)["phase"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4]
