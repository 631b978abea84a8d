"""Routed stages and the statistics of batch norm, by configuration: what they change, and what they must not."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_states import CLASSES, UNITS, make_batch, noisy
from test_phases import make_config, make_run

from rmn_jax.analysis.counts import trace_shapes
from rmn_jax.analysis.study import stage_results, study
from rmn_jax.config import validate
from rmn_jax.errors import Preempted, UserError
from rmn_jax.inference import compile_inference
from rmn_jax.inference.features import extract_features, feature_names
from rmn_jax.inference.predict import _units
from rmn_jax.models import RMN, initialise, parse_stages
from rmn_jax.models.resnet import BasicBlock, resnet
from rmn_jax.training import phases
from rmn_jax.training.cloning import clone
from rmn_jax.training.networks import make_state
from rmn_jax.training.phases import run_training
from rmn_jax.training.state import Phase
from rmn_jax.training.step import AXIS, make_mesh, make_train_step

BACKBONE = resnet(BasicBlock, (1, 1), 4, CLASSES, stem_kernel=3, stem_strides=1, pool=False)


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("all", None),
        ("last", (4,)),
        ("last1", (4,)),
        ("last2", (3, 4)),
        ("3,4", (3, 4)),
        ("4, 1", (1, 4)),
        ("2", (2,)),
        ("1,2,3,4", None),
        ("last4", None),
    ],
)
def test_routed_stages_are_named_as_text(text, stages):
    assert parse_stages(text, 4) == stages


@pytest.mark.parametrize("text", ["", "none", "0", "5", "1,5", "3,3", "last0", "last5", "last-1", "3;4", "3,", "first"])
def test_stages_that_the_backbone_does_not_have_are_one_line(text):
    config = make_config()  # resnet8 has three stages
    config.model.routed_stages = text
    with pytest.raises(UserError, match=r"config\.model\.routed_stages is .*; this backbone has the stages 1 to 3"):
        validate(config, 1)
    config.model.routed_stages, config.model.statistics = "all", "bacth"
    with pytest.raises(UserError, match=r"config\.model\.statistics is 'bacth'.*Did you mean 'batch'"):
        validate(config, 1)


@pytest.fixture(scope="module")
def plain():
    """A plain network with conditional attention in its last stage only; variables with moved statistics; images."""
    model = RMN(BACKBONE, UNITS, routed=False, attention="conditional", routed_stages=(2,))
    images, keys = jax.random.normal(jax.random.key(1), (24, 8, 8, 3)), jax.random.split(jax.random.key(2), 24)
    variables = initialise(model, jax.random.key(0), images, keys=keys)
    moved = jax.tree.map(lambda leaf: leaf * 1.3 + 0.1, variables["batch_stats"])
    return model, {**variables, "batch_stats": moved}, images, keys


@pytest.fixture(scope="module")
def last_routed(plain):
    """The network cloned from ``plain``, and its variables: only stage 2 has units."""
    model, variables, images, keys = plain
    pooled = jax.jit(model.apply)(variables, images, keys=keys).pooled
    memory = {"memory2": pooled[1][:UNITS]}
    return model.clone(routed=True), {**{k: clone(v, UNITS, (2,)) for k, v in variables.items()}, "memory": memory}


def test_only_routed_stages_have_units_memories_and_a_condition(plain, last_routed):
    variables, images = last_routed[1], plain[2]
    shapes = jax.eval_shape(last_routed[0].init, jax.random.key(0), images)
    for name in ("params", "batch_stats", "memory"):
        assert jax.tree.map(jnp.shape, variables[name]) == jax.tree.map(jnp.shape, shapes[name])
    kernels = {stage: shapes["params"][stage]["block1"]["conv1"]["kernel"].shape for stage in ("stage1", "stage2")}
    assert kernels == {"stage1": (3, 3, 4, 4), "stage2": (UNITS, 3, 3, 4, 8)}
    assert {name: leaf.shape for name, leaf in shapes["memory"].items()} == {"memory2": (UNITS, 4)}
    # The hidden width is 1: the gate of stage 1 sees the code alone, that of stage 2 also one of N units.
    gates = {name: shapes["params"][name]["excite"]["kernel"].shape for name in ("attention1", "attention2")}
    assert gates == {"attention1": (1, 4), "attention2": (1 + UNITS, 8)}


def test_only_routed_stages_cost_multiply_adds_for_distances():
    counts = {
        stages: trace_shapes(RMN(BACKBONE, UNITS, routed_stages=stages), 8).multiply_adds for stages in (None, (2,))
    }
    assert counts[None] - counts[(2,)] == UNITS * 4  # stage 1's memories have 4 channels
    plain = trace_shapes(RMN(BACKBONE, UNITS, routed=False), 8).multiply_adds
    assert counts[(2,)] - plain == UNITS * 4  # so have those of stage 2


def test_with_the_last_stage_routed_cloning_changes_nothing_in_evaluation(plain, last_routed):
    model, variables, images, _ = plain
    routed, routed_variables = last_routed
    result = jax.jit(routed.apply)(routed_variables, images)
    assert (result.assignment[0] == -1).all() and len(np.unique(result.assignment[1])) > 1
    expected = jax.jit(model.apply)(variables, images, assignment=result.assignment)
    np.testing.assert_allclose(result.logits, expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 6])
def test_compiled_inference_and_features_follow_the_routed_stages(plain, last_routed, batch):
    images, (model, variables) = plain[2][:batch], last_routed
    noise = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(4), leaf.shape)  # noqa: E731
    variables = {**variables, "params": jax.tree.map(noise, variables["params"])}
    expected = jax.jit(model.apply)(variables, images)
    compiled = compile_inference(model, variables, jax.ShapeDtypeStruct(images.shape, images.dtype))
    found = compiled(images)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found.assignment, expected.assignment)
    names = feature_names(model)
    assert [name for name in names if name[:4] in ("assi", "dist")] == ["assignment2", "distances2"]
    features = extract_features(model, variables, images)
    np.testing.assert_array_equal(features["assignment2"], expected.assignment[1])
    np.testing.assert_allclose(features["distances2"], expected.distances[0], rtol=1e-4)
    assert _units(np.array([-1, 2])) == [None, 2]


@pytest.fixture(scope="module")
def first_losses():
    """A function: the losses of one training batch right after cloning, with statistics, after steps of phase 4."""
    optimizer, batch, key = optax.sgd(0.1, momentum=0.9), make_batch(np.random.default_rng(0)), jax.random.key(7)

    def make_step(routed, statistics="unit"):
        model = RMN(BACKBONE, UNITS, routed=routed, axis_name=AXIS, statistics=statistics)
        state = make_state(make_config(), model, optimizer, (6, 6, 3), jax.random.key(3))
        mesh = make_mesh(jax.devices()[:1])
        return make_train_step(model, optimizer, noisy, mesh, alpha=0.9, mixing=(0, 100)), state

    plain_step, plain_state = make_step(routed=False)
    parts = {name: clone(getattr(plain_state, name), UNITS) for name in ("params", "batch_stats", "opt_state")}
    plain_loss = float(plain_step(jax.tree.map(jnp.copy, plain_state), batch, key)[1])  # a step reuses the buffers
    lean = 0.3 * (-1.0) ** jnp.arange(4)

    def losses(statistics, steps=(0,)):
        found = []
        step, state = make_step(routed=True, statistics=statistics)
        memory = {name: jnp.stack([0.4 + lean, 0.4 - lean, jnp.full(4, 1e4)]) for name in state.memory}
        for number in steps:
            start = state._replace(**parts, memory=memory, step=jnp.int32(number))
            moved, loss = step(jax.tree.map(jnp.copy, start), batch, key)
            load = moved.metrics.load
            assert (load[:, :2] > 0).all() and (load[:, 2] == 0).all()  # otherwise nothing was routed
            found.append(float(loss))
        return plain_loss, found

    return losses


def test_with_the_whole_batchs_statistics_cloning_changes_nothing_in_training(first_losses):
    plain_loss, (of_batch,) = first_losses("batch")
    _, (mixed_first, mixed_later) = first_losses("mixed", (0, 100))
    np.testing.assert_allclose([of_batch, mixed_first], plain_loss, rtol=1e-5)
    _, (of_units,) = first_losses("unit")  # here cloning does change the loss: the test above can fail
    assert abs(of_units - plain_loss) > 1e-4 and abs(mixed_later - plain_loss) > 1e-4


@pytest.mark.parametrize("place", [(6, Phase.ROUTED), (4, Phase.MEMORIES)], ids=["in phase 4", "before phase 4"])
def test_a_stopped_run_of_a_regime_goes_on_to_the_same_bits(place, regime, tmp_path):
    workdir, config = regime
    with pytest.raises(Preempted):
        run_training(make_run(tmp_path, place, config))
    run_training(make_run(tmp_path, config=config))
    manifest = "checkpoints/step_00000012.phase4/manifest.json"
    assert (
        json.loads((tmp_path / manifest).read_text())["leaves"]
        == json.loads((workdir / manifest).read_text())["leaves"]
    )
    assert lines_of(tmp_path) == lines_of(workdir)


def lines_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in lines]


@pytest.fixture(scope="module")
def regime(tmp_path_factory):
    """A run on the digits with two of three stages routed, mixed statistics, conditional attention: folder, config."""
    config, workdir = make_config(), tmp_path_factory.mktemp("regime")
    config.model.routed_stages, config.model.statistics = "last2", "mixed"
    run_training(make_run(workdir, config=config))
    return workdir, config


def test_metrics_and_analysis_have_the_routed_stages_alone(regime):
    workdir, config = regime
    first, *routed = lines_of(workdir)
    assert first["stages"] == [] == first["load"] and "churn" not in first
    for line in routed:
        assert line["stages"] == [2, 3]
        for key in ("load", "entropy", "dead_units", "memory_drift", "eval_load"):
            assert len(line[key]) == 2
    assert routed[0]["churn"] is None  # there is no routed evaluation before the first one
    assert len(routed[1]["churn"]) == 2 and all(0 < share < 1 for share in routed[1]["churn"])
    run = make_run(workdir, config=config)
    state, _ = run.restore()
    assert set(state.memory) == {"memory2", "memory3"}
    found = study(run, state, top=2)
    assert [result["stage"] for result in stage_results(found)] == [2, 3]
    assert found.assignment.shape == (2, 360) and found.nearest.load.tolist() == routed[1]["eval_load"]
    assert [epoch for epoch, _ in found.churn] == [3] and found.churn[0][1] == routed[1]["churn"]
    for views in found.views:
        assert views.inputs == 288 and 1 / 3 < views.chance < views.share <= 1


def test_memories_of_routed_stages_start_at_their_own_centres(regime, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(phases, "k_means", lambda rows, num_units, seed: seen.append(rows.shape) or rows[:num_units])
    run = make_run(tmp_path, config=regime[1])
    stem = run.initial_state()
    memory = phases.initialise_memories(run, phases.clone_procedures(run, stem), stem).memory
    assert seen == [(1437, 16), (1437, 32)] and sorted(memory) == ["memory2", "memory3"]
