"""The memory analysis of a trained run, compared with the data set, and the experiment that runs the analysis."""

import json
import sys

import numpy as np
import pytest

from experiments import memory_analysis
from rmn_jax.analysis import measures
from rmn_jax.analysis.study import read_images, study
from rmn_jax.cli.pages import load_config
from rmn_jax.data import digits
from rmn_jax.errors import Preempted
from rmn_jax.training.extraction import extract
from rmn_jax.training.phases import run_training
from rmn_jax.training.run import Run
from rmn_jax.training.state import Phase
from rmn_jax.training.stopping import StopRequest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short RMN run on the digits."""
    settings = ["--config.epochs=6", "--config.stem_epochs=3", "--config.eval_batch_size=360"]
    workdir = tmp_path_factory.mktemp("study") / "run"
    run = Run(load_config("configs/digits.py", settings), workdir, quiet=True)
    run_training(run)
    return run


def test_read_images_reads_every_image_of_the_split(run):
    images, _ = digits.load_arrays()["eval"]
    config = run.config.copy_and_resolve_references()
    config.eval_batch_size = 128  # does not divide 360
    other_batches = Run(config, run.workdir, quiet=True)
    found = read_images(other_batches, np.array([[359, 0], [128, 5]]))
    np.testing.assert_allclose(found.colour, images.mean(axis=(1, 2)) / 255)
    np.testing.assert_allclose(found.edges, measures.edge_energy(images))
    assert sorted(found.shown) == [0, 5, 128, 359]
    for position, image in found.shown.items():
        np.testing.assert_array_equal(image, images[position])


def test_study_of_a_run(run):
    state, _ = run.restore()
    found = study(run, state, top=5)
    labels = digits.load_arrays()["eval"][1]
    np.testing.assert_array_equal(found.label, labels)
    assert found.nearest.position.shape == (3, 4, 5) and set(found.images) == set(np.unique(found.nearest.position))
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert found.top1 == lines[-1]["eval_top1"]
    assert [epoch for epoch, _ in found.history] == [4, 5, 6]  # the first three were phase 1
    assert all(load.shape == (3, 4) and (load.sum(axis=1) == 5 * 256).all() for _, load in found.history)
    units = extract(run, state.eval_variables, routed=True).assignment
    for stage, positions in enumerate(found.nearest.position):
        np.testing.assert_array_equal(found.nearest.assignment[stage], units[stage][positions])
    assert found.names == {int(at): f"digits eval, example {at}" for at in np.unique(found.nearest.position)}
    for stage, assigned in zip(found.information, units, strict=True):
        assert stage["class"].nats == pytest.approx(measures.mutual_information(assigned, labels))


def test_images_that_cannot_be_read_do_not_shift_the_others(run, tmp_path):
    whole = Run(run.config, run.workdir, quiet=True)
    state, _ = whole.restore()
    positions, readable = whole.dataset._order["eval"]
    readable[3] = False
    found = study(whole, state, top=5)
    assert 3 not in found.position and found.position.tolist() == [*range(3), *range(4, 360)]
    images, labels = digits.load_arrays()["eval"]
    np.testing.assert_array_equal(found.label, labels[found.position])
    assert set(found.images) == set(np.unique(found.nearest.position))
    for position, image in found.images.items():
        np.testing.assert_array_equal(image, images[position])


def test_a_run_stopped_after_phase_3_has_no_routed_accuracy_yet(run, tmp_path):
    class AfterPhase3(StopRequest):
        def reached(self, step, phase):
            return phase is Phase.MEMORIES

    stopped = Run(run.config, tmp_path / "run", quiet=True)
    stopped.stop = AfterPhase3()
    with pytest.raises(Preempted):
        run_training(stopped)
    state, _ = stopped.restore()
    assert study(stopped, state, top=2).top1 is None


def test_the_experiment_on_an_existing_run(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory_analysis", f"--run={run.workdir}", "--top_k=3"])
    assert memory_analysis.main() == 0
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert last["results"] == str(run.workdir / "memory_analysis.json")  # without --scale it is not a published result
    results = json.loads((run.workdir / "memory_analysis.json").read_text())
    assert results["seed"] == 0 and results["images"] == 360 and len(results["stages"]) == 3
    assert {"commit", "processor", "seconds", "config", "top1"} <= results.keys()
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 3
    for stage, row in zip(results["stages"], rows[1:], strict=True):
        assert sum(stage["load"]) == 360
        assert f"({stage['information']['class']['nats']:.3f} nats" in row
    assert "data:image/png" in (run.workdir / "figures" / "report.html").read_text()
    assert "image" not in json.dumps(results["stages"])  # numbers only


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--run=nowhere"], "nowhere"), (["--run=nowhere", "--top_k=0"], "--top_k")],
)
def test_a_user_error_is_one_line(arguments, word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory_analysis", *arguments])
    assert memory_analysis.main() == 2
    captured = capsys.readouterr()
    assert word in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_each_scale_has_its_results_file():
    def name(*arguments):
        return memory_analysis.results_file(memory_analysis.parse(arguments)).as_posix()

    assert name().endswith("experiments/results/memory_analysis_cpu.json")
    assert name("--scale=paper", "--run=r").endswith("experiments/results/memory_analysis_paper.json")
    assert name("--epochs=2", "--workdir=w") == "w/memory_analysis_trial.json"
    assert name("--run=r") == "r/memory_analysis.json" and name("--run=r", "--out=a.json") == "a.json"
