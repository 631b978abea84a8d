"""Training the rows of an experiment, on digits: seeds, a shared phase 1, resuming, results files, user errors."""

import argparse
import json
import pathlib
import shutil
import sys
import time

import pytest

from experiments import ablations, batch_size, ladder, pairs, regimes, routers, runs, runtime, suite
from rmn_jax.config import default_config, from_json, validate
from rmn_jax.errors import Preempted, UserError
from rmn_jax.training.phases import run_training
from rmn_jax.training.run import Run


def small(variant, **settings):
    config = default_config(variant)
    config.epochs, config.stem_epochs, config.batch_size, config.eval_batch_size = 3, 1, 256, 360
    config.model.backbone, config.model.width, config.model.num_units = "resnet8", 4, 2
    config.data.name, config.data.augment = "digits", "none"
    config.learning_rate.peak, config.learning_rate.warmup_epochs = 0.1, 0
    return suite.with_settings(config, **settings)


def rows():
    return [suite.Row("Original", small("plain"), 12.5), suite.Row("RMN", small("rmn_no_ca"))]


def arguments(tmp_path, *words):
    typed = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out.json'}", "--seeds", "3", *words]
    return suite.parser("A trial.", "trial").parse_args(typed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both rows, trained once: the folder and the summary."""
    folder = tmp_path_factory.mktemp("suite")
    return folder, suite.run_rows(arguments(folder), rows())


def test_the_results_file_has_every_run_with_its_provenance(finished):
    folder, summary = finished
    stored = json.loads((folder / "out.json").read_text())
    assert stored == json.loads(json.dumps(summary))
    assert {"commit", "date", "cores", "jax", "command"} <= stored.keys()
    plain, routed = stored["rows"]
    assert plain["paper"] == 12.5 and routed["paper"] is None
    for row in (plain, routed):
        assert row["top1_mean"] == row["runs"][0]["top1"] and row["runs"][0]["seed"] == 3
        assert [epoch for epoch, _ in row["runs"][0]["curve"]] == [1, 2, 3]
    assert len(routed["runs"][0]["dead_units"]) == 3 and plain["runs"][0]["dead_units"] == []
    table = suite.to_markdown(summary)
    assert "| RMN |" in table and "| 12.50 |" in table
    assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_sharing_phase_1_does_not_change_a_result(finished, tmp_path):
    folder, summary = finished
    assert len(list((folder / "runs" / "stems").iterdir())) == 1
    alone = Run(small("rmn_no_ca", seed=3), tmp_path / "alone", quiet=True)
    run_training(alone)
    result = runs.result_of(alone)
    known = summary["rows"][1]["runs"][0]
    assert known["made"].keys() == {"commit", "date", "device", "processor", "jax"}
    assert {**result, "seconds": 0} == {key: value for key, value in {**known, "seconds": 0}.items() if key != "made"}


def test_a_run_without_a_line_of_the_last_epoch_has_no_result(finished, tmp_path):
    source = next(path.parent for path in (finished[0] / "runs").glob("*/result.json"))
    shutil.copytree(source, tmp_path / "run")
    run = Run(from_json(source / "config.json"), tmp_path / "run", quiet=True)
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert runs.result_of(run)["top1"] == json.loads((source / "result.json").read_text())["top1"]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="does not have the last epoch"):
        runs.result_of(run)


def test_finished_runs_are_read_and_an_unfinished_one_resumes(finished, tmp_path, monkeypatch):
    folder, summary = finished
    shutil.copytree(folder / "runs", tmp_path / "runs")
    (unfinished,) = (tmp_path / "runs").glob("rmn-3-*")
    (unfinished / "result.json").unlink()
    only = suite.run_rows(arguments(tmp_path, "--finished"), rows())
    assert [row["row"] for row in only["rows"]] == ["Original"]
    trained = []
    monkeypatch.setattr(runs, "run_training", lambda run: trained.append(run.workdir.name) or run_training(run))
    again = suite.run_rows(arguments(tmp_path), rows())
    assert trained == [unfinished.name]
    assert again["rows"] == summary["rows"]


def test_rows_with_the_same_configuration_are_one_run(finished, monkeypatch):
    folder, summary = finished
    monkeypatch.setattr(runs, "run_training", lambda run: pytest.fail(f"trained {run.workdir}"))
    there = arguments(folder, f"--out={folder / 'other.json'}")
    other = suite.run_rows(there, [suite.Row("N = 2", small("rmn_no_ca", eval_every_epochs=2))])
    assert other["rows"][0]["runs"] == summary["rows"][1]["runs"]


def test_runs_of_an_earlier_release_are_found(finished, tmp_path, monkeypatch):
    folder, summary = finished
    root = tmp_path / "runs"
    shutil.copytree(folder / "runs", root)
    for path in [*root.glob("*/config.json"), *root.glob("stems/*/config.json")]:
        stored = json.loads(path.read_text())
        stored["data"]["feed"] = stored["data"].pop("pipeline")  # its earlier name
        path.write_text(json.dumps(stored))
        path.parent.rename(path.parent.with_name(f"{path.parent.name}-old"))  # the old name has another digest
    monkeypatch.setattr(runs, "run_training", lambda run: pytest.fail(f"trained {run.workdir}"))
    assert suite.run_rows(arguments(tmp_path), rows())["rows"] == summary["rows"]
    shared = runs.stem_config(small("rmn_no_ca", seed=3))
    assert [path.name[-4:] for path in runs.existing_folders(shared, root / "stems")] == ["-old"]


def test_an_unfinished_phase_1_is_finished_by_another_run_that_shares_it(tmp_path):
    root, units = tmp_path / "runs", {n: small("rmn_no_ca", model__num_units=n) for n in (1, 2)}
    with pytest.raises(Preempted):
        runs.run_once(units[1], root, "one", until=time.monotonic() - 1)
    assert runs.run_once(units[2], root, "two", until=float("inf"))["seed"] == 0


def test_two_processes_do_not_train_the_same_run(tmp_path):
    config = small("plain")
    name = runs.folder_of(config, tmp_path, "row").name
    with runs.lock(tmp_path, name), pytest.raises(UserError, match="another process trains"):
        runs.run_once(config, tmp_path, "row", until=float("inf"))


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--workdir=", "trial: --workdir is empty; name a file or folder (see python -m experiments.trial --help)"),
        ("--seeds=x", "trial: --seeds: invalid int value: 'x' (see python -m experiments.trial --help)"),
        ("--roows=x", "trial: unrecognized arguments: --roows=x (see python -m experiments.trial --help)"),
    ],
)
def test_a_wrong_argument_is_one_line(word, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        suite.parser("A trial.", "trial").parse_args([word])
    assert stopped.value.code == 2 and capsys.readouterr().err == f"{line}\n"


def test_only_the_documented_measurement_replaces_the_published_times():
    out = lambda *words: runtime.default_out(runtime.parse(words))  # noqa: E731
    published = json.loads((suite.RESULTS / "runtime.json").read_text())["command"].split()[3:]
    assert out(*published) == out("--data=tiny_imagenet") == suite.RESULTS / "runtime.json"
    for other in ([], ["--rounds=3"], ["--images=2"], ["--backbones", "resnet18"], ["--data=cifar100"]):
        words = ["--data=tiny_imagenet", *other] if other else []
        assert out(*words) == pathlib.Path("runs/runtime_trial.json")


def test_rows_are_chosen_by_name_and_an_unknown_name_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/trial.py"])
    assert [row.name for row in suite.choose(rows(), arguments(tmp_path, "--rows", "rmn"))] == ["RMN"]
    code = suite.main(lambda: suite.run_rows(arguments(tmp_path, "--rows", "wide"), rows()))
    error = capsys.readouterr().err
    assert code == 2 and error == "trial: no row is called wide; there are: Original, RMN.\n"


def test_runs_share_phase_1_unless_it_depends_on_a_key_that_differs():
    key = lambda variant="rmn_no_ca", **settings: runs.digest(runs.stem_config(small(variant, **settings)))  # noqa: E731
    assert key() == key("plain", batch_size=256)
    for same in ("model__num_units", "checkpoint__keep", "eval_every_epochs"):
        assert key(**{same: 7}) == key()
    assert key(model__router="random") == key(model__metric="cosine") == key(unit_gradient="own") == key()
    assert len({key(), key(seed=1), key(batch_size=128), key(epochs=4), key(model__router="learned")}) == 5
    attention = {"model__attention": "conditional"}
    assert key(model__num_units=4, **attention) != key(**attention)


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_every_experiment_has_rows_that_a_run_accepts(scale):
    typed = suite.parser("All.", "all").parse_args([f"--scale={scale}"])
    found = routers.rows(typed) + (batch_size.cpu_rows() if scale == "cpu" else batch_size.paper_rows(typed))
    for part in ablations.PARTS:
        typed.part = part
        found += ablations.rows(typed)
    if scale == "paper":
        found += ladder.rows(ladder_arguments())
    else:
        found += [suite.Row(cell.name, cell.config) for scale in regimes.SCALES for cell in regimes.cells(scale)]
    assert pathlib.Path(suite.RESULTS).name == "results"
    for row in found:
        validate(row.config, device_count=1)
    assert len({row.slug for row in batch_size.cpu_rows()}) == len(batch_size.cpu_rows())


def test_a_part_of_an_experiment_does_not_replace_the_published_results(tmp_path):
    parse = lambda *words: suite.parser("A trial.", "trial").parse_args([f"--workdir={tmp_path}", *words])  # noqa: E731
    assert suite.default_out(parse(), tmp_path) == suite.RESULTS / "trial_cpu.json"
    for part in (["--rows", "rmn"], ["--seeds", "1"], ["--epochs", "2"]):
        assert suite.default_out(parse(*part), tmp_path) == tmp_path / "trial_trial.json"
    paper = suite.default_out(parse("--scale=paper", "--backbone=resnet50"), tmp_path)
    assert paper.name == "trial_paper_resnet50_tiny_imagenet.json"


def test_a_trial_of_few_epochs_has_no_longer_warm_up(tmp_path):
    long = [suite.Row("RMN", small("rmn_no_ca", epochs=30, learning_rate__warmup_epochs=5))]
    for epochs, warmup in (("2", 2), ("9", 5)):
        (row,) = suite.choose(long, arguments(tmp_path, "--epochs", epochs))
        assert (row.config.epochs, row.config.learning_rate.warmup_epochs) == (int(epochs), warmup)
        validate(row.config, device_count=1)


def ladder_arguments(**settings):
    usual = {"minutes": 0, "images": "", "stages": "last", "statistics": "batch"}
    return argparse.Namespace(**(usual | settings))


def test_the_ladder_says_what_each_row_will_take(monkeypatch, capsys):
    monkeypatch.setattr(suite, "run_rows", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(sys, "argv", ["ladder", "--plan", "--rows", "1:", "3:"])
    assert ladder.main() == 0
    *lines, source = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + 2 and "H100" in source
    # Original at batch 1024: 60 epochs of 50,000 images at 26,000 a second, 30 evaluations of 5,000 at three times
    # that, 60 s of compilation and 30 s of loading: 115.4 + 1.9 + 90 = 207.3 s.
    assert lines[0].startswith("  3.5 minutes    3.0M images  1: Original, batch 1024; 32x32, 100 classes, 60 epochs")
    assert all(("second slice" in line) == (float(line.split()[0]) > 13) for line in lines)


def test_the_rows_of_a_rung_fit_the_minutes_that_they_are_given():
    for minutes in (8, 13):
        second = [row for row in ladder.rows(ladder_arguments(minutes=minutes)) if row.name.startswith("2:")]
        assert len({row.config.epochs for row in second}) == 1 and len(second) == 4
        assert 0.85 * 60 * minutes < max(ladder.seconds(row.config) for row in second) <= 60 * minutes
    regime = ladder.rows(ladder_arguments(stages="last2", statistics="mixed", images="/somewhere"))[1].config
    assert (regime.model.routed_stages, regime.model.statistics) == ("last2", "mixed")
    assert (regime.data.name, regime.data.path, regime.data.classes) == ("folder", "/somewhere", 100)


def test_curves_are_written_as_a_run_goes(tmp_path, finished):
    name = "rmn-3"
    typed = arguments(tmp_path)
    typed.curves = tmp_path / "curves"
    suite.run_rows(typed, [suite.Row("RMN", small("rmn_no_ca"))])
    lines = [json.loads(line) for line in (tmp_path / "curves" / f"{name}.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [2, 3]  # phase 1 was trained for all rows that share it
    (row,) = [row for row in finished[1]["rows"] if row["row"] == "RMN"]
    assert [[line["epoch"], round(100 * line["eval_top1"], 2)] for line in lines] == row["runs"][0]["curve"][1:]


def test_the_answers_of_a_finished_run_add_up_to_its_accuracy(finished):
    source = next(path.parent for path in (finished[0] / "runs").glob("rmn-*/result.json"))
    run = Run(from_json(source / "config.json"), source, quiet=True)
    answers = int(pairs.correct_images(run)["correct"], 16)
    known = json.loads((source / "result.json").read_text())
    assert round(100 * answers.bit_count() / 360, 2) == known["top1"]


def test_regimes_run_from_the_plan_to_the_table(finished, tmp_path, monkeypatch, capsys):
    scale = regimes.Scale("digits", 360, 3, 4, 0)
    cells = [
        regimes.Cell(scale, "Original", "", small("plain"), True),
        regimes.Cell(scale, "RMN, all stages, unit's statistics", "1/3", small("rmn_no_ca"), True),
    ]
    for name, value in {"SCALES": [scale], "SEEDS": (3,), "MORE_SEEDS": (), "cells": lambda _: cells}.items():
        monkeypatch.setattr(regimes, name, value)
    monkeypatch.setattr(runs, "run_training", lambda run: pytest.fail(f"trained {run.workdir}"))  # both are known
    words = ["regimes", f"--workdir={finished[0] / 'runs'}", f"--out={tmp_path / 'out.json'}"]
    monkeypatch.setattr(sys, "argv", words)
    assert regimes.main() == 0
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "out.json").read_text())
    plain, routed = (row["runs"][0] for row in stored["rows"])
    assert (plain["top1"], routed["top1"]) == tuple(row["top1_mean"] for row in finished[1]["rows"])
    difference = routed["train_top1"] - plain["train_top1"]
    assert stored["rows"][1]["against_original"]["train_top1"]["by_seed"] == [pytest.approx(difference, abs=0.01)]
    assert f"| RMN, all stages, unit's statistics, 1/3 | {difference:+.1f} |" in printed
    monkeypatch.setattr(sys, "argv", [*words, "--finished"])
    assert regimes.main() == 0 and capsys.readouterr().out == printed
