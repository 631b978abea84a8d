"""The regimes' plan, their paired comparisons against arithmetic by hand, and the measured rows."""

import json
import sys

import numpy as np
import pytest

from experiments import measured, pairs, regimes, suite
from rmn_jax import config as configuration
from rmn_jax.errors import UserError


def a_run(seed, top1, train_top1, correct=None):
    return {"seed": seed, "top1": top1, "train_top1": train_top1, "correct": correct, "curve": [[1, top1]]}


def test_differences_are_paired_by_seed():
    runs = [a_run(2, 57.0, 70.0), a_run(0, 55.0, 68.0), a_run(7, 1.0, 1.0)]
    found = pairs.paired(runs, [a_run(0, 54.0, 68.5), a_run(1, 50.0, 60.0), a_run(2, 54.0, 69.5)], "top1")
    assert (found.seeds, found.differences, found.agree) == ([0, 2], [1.0, 3.0], True)
    # The deviation of 1 and 3 is sqrt(2); over sqrt(2) seeds that is 1.
    assert found.mean == 2.0 and found.standard_error == pytest.approx(1.0)
    assert not pairs.paired(runs, [a_run(0, 54.0, 68.5), a_run(2, 54.0, 69.5)], "train_top1").agree
    assert pairs.paired(runs[:1], [a_run(2, 54.0, 0)], "top1").standard_error is None


def test_mcnemar_by_hand():
    bits = lambda *rows: np.packbits(np.array(rows, bool)).tobytes().hex()  # noqa: E731
    # Of eight images the first alone gets four, the second alone one. Of 2^5 equally likely splits of five, those with
    # at most one on a side are (1 + 5) on each side: 12 / 32.
    found = pairs.mcnemar(bits(1, 1, 1, 1, 0, 0, 1, 1), bits(0, 0, 0, 0, 1, 0, 1, 1))
    assert found == (4, 1, 12 / 32)
    assert pairs.mcnemar(bits(1, 0, 1), bits(1, 0, 1)) == (0, 0, 1.0)


def test_the_standard_error_of_an_accuracy():
    assert pairs.binomial_error(50.0, 1000) == pytest.approx(1.58, abs=0.01)  # sqrt(0.25 / 1000) = 0.0158
    assert pairs.binomial_error(20.0, 10_000) == pytest.approx(0.40)


def plan_with(training_differences):
    """The plan of the first table if cells have these differences to Original on seeds 0, 1, 2."""
    first = regimes.cells(regimes.SCALES[0])
    found = {cell.name: [a_run(s, 50.0, 60.0 + (d if cell.when else 0)) for s, d in enumerate(training_differences)]
             for cell in first}  # fmt: skip
    return [(cell.name, seed) for cell, seed in regimes.plan(found, False) if cell.scale == regimes.SCALES[0]]


def test_a_cell_stops_at_three_seeds_when_they_agree():
    cells = [cell for cell in regimes.cells(regimes.SCALES[0]) if cell.core]
    agreed, disagreed = plan_with([0.5, 0.1, 0.2]), plan_with([0.5, -0.1, 0.2])
    assert len(agreed) == 3 * len(cells) and [seed for _, seed in agreed[: len(cells)]] == [0] * len(cells)
    more = [(name, seed) for name, seed in disagreed if seed > 2]
    assert disagreed[: len(agreed)] == agreed
    # Original and all RMNs; SE is not compared by stages.
    assert len(more) == 2 * (1 + len([cell for cell in cells if cell.when])) and more[0][0].startswith("Original;")


def test_the_grid_is_complete_and_every_cell_is_another_network():
    for scale in regimes.SCALES:
        cells = regimes.cells(scale)
        assert len(cells) == 3 * 3 * 3 + 3 == len({cell.name for cell in cells})
        assert len({json.dumps(cell.config.to_dict()) for cell in cells}) == len(cells)
        assert {cell.config.stem_epochs * 6 // cell.config.epochs for cell in cells if cell.when} == {2, 4, 5}
        assert len({suite.Row(cell.name, cell.config).slug for cell in cells}) == len(cells)


def test_the_tables_show_both_accuracies_and_the_differences():
    original, routed = regimes.cells(regimes.SCALES[0])[:2]
    found = {
        original.name: [a_run(0, 55.0, 68.0, "f0"), a_run(1, 54.0, 68.4, "f0")],
        routed.name: [a_run(0, 54.5, 66.0, "f8"), a_run(1, 54.5, 67.4, "f0")],
    }
    arguments = suite.parser("A trial.", "regimes").parse_args([])
    for run in (*found[original.name], *found[routed.name]):
        run |= {"dead_units": []}
    text = regimes.to_markdown(regimes.summarise(arguments, found))
    assert "Standard error of one accuracy on 1,000 held-out images: 1.6 points." in text
    assert "| Original | 54.50 ± 0.71 / 68.2 (2) | 54.50 ± 0.71 / 68.2 (2) | 54.50 ± 0.71 / 68.2 (2) |" in text
    assert "| RMN, all stages, unit's statistics | 54.50 ± 0.00 / 66.7 (2) | - | - |" in text
    # Training: -2.0 and -1.0, mean -1.5, deviation 0.71, over sqrt(2) seeds 0.5. Seed 0 gains one image: p = 1.
    differences = "-2.0, -1.0 | -1.50 ± 0.50 | -0.5, +0.5 | +0.00 ± 0.50 | 1.00, 1.00"
    assert f"| RMN, all stages, unit's statistics, 1/3 | {differences} |" in text
    for part in text.split("\n\n"):
        assert len({row.count("|") for row in part.splitlines() if row.startswith("|")}) <= 1


def test_finished_shows_the_published_tables_or_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["regimes", "--finished", f"--workdir={tmp_path / 'none'}"])
    assert regimes.main() == 2
    assert "no finished run" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["regimes", "--scale=paper"])
    assert regimes.main() == 2
    assert "experiments.ladder" in capsys.readouterr().err


def test_measured_lines_make_the_rows_of_a_results_file(tmp_path):
    """Two epochs of lines under the names of release 0.1, of a run that was stopped after the second."""
    folder = tmp_path / "h100-2026-11-27"
    folder.mkdir()
    line = {"update": 195, "step": 1, "train_loss": 0.5, "train_top1": 0.9, "seconds_per_update": 0.02, "load": []}
    line |= {"entropy": [], "dead_units": [], "eval_top1": 0.5692, "eval_top5": 0.8, "eval_loss": 3.4, "eval_load": []}
    routed = {**line, "eval_load": [[5000, 0, 0, 0, 0, 0, 0, 0]] * 4, "entropy": [0.0] * 4}
    for run in measured.h100().rows:
        lines = [{**(routed if "RMN" in run.name else line), "epoch": epoch, "update": 195 * epoch} for epoch in (1, 2)]
        lines += [{"epoch": 3, "update": 585, "step": 1, "train_loss": 0.4, "train_top1": 0.95, "load": []}]
        (tmp_path / run.file).write_text("".join(json.dumps(one) + "\n" for one in lines))
    summary = measured.summary_of("h100_32x32", tmp_path)
    first, last = summary["rows"][0], summary["rows"][-1]
    assert first["row"] == "Original, batch 256 (epoch 2 of 75)" and first["top1_mean"] == 56.92
    assert first["runs"][0]["train_top1"] == 90.0 and first["runs"][0]["seconds"] == round(2 * 195 * 0.02)
    assert last["runs"][0]["dead_units"] == [7] * 4 and summary["device"] == "NVIDIA H100 80GB HBM3"
    assert 89.4e6 < last["runs"][0]["parameters"] < 89.5e6 and "56.92" in suite.to_markdown(summary)
    (tmp_path / measured.h100().rows[0].file).unlink()
    with pytest.raises(UserError, match=r"there is no file .*orig256.jsonl"):
        measured.summary_of("h100_32x32", tmp_path)


@pytest.mark.parametrize("name", measured.SETS)
def test_the_published_files_have_the_measured_rows(name):
    stored = json.loads((suite.RESULTS / f"{name}.json").read_text())
    rows = measured.SETS[name]().rows
    assert [row["row"].split(" (epoch")[0] for row in stored["rows"]] == [run.name for run in rows]
    assert stored["commit"] == "e694492" and stored["date"] == "2026-11-27"
    for row, run in zip(stored["rows"], rows, strict=True):
        # Keys that are newer than the file have their defaults.
        assert suite.as_published(configuration.from_dict(row["config"], name)) == suite.as_published(run.config)
