"""Curves of runs from what they wrote: plain beside routed, unfinished, of earlier releases, edited."""

import json
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from rmn_jax import config as configuration
from rmn_jax.analysis import curves
from rmn_jax.analysis.curves_figure import draw
from rmn_jax.cli.main import main


def line(epoch, routed=False, **more):
    """The line of an epoch; ``more`` replaces values, None removes them."""
    values = {
        "epoch": epoch,
        "step": 5 * epoch,
        "phase": 4 if routed else 1,
        "learning_rate": 0.1 / epoch,
        "train_loss": 2.0 / epoch,
        "train_top1": 0.1 * epoch,
        "seconds_per_step": 0.0123,
        "load": [[3, 1, 0, 0], [2, 2, 2, 2]] if routed else [],
        "dead_units": [2, 0] if routed else [],
        "eval_top1": 0.08 * epoch,
        "eval_loss": 2.5 / epoch,
        **more,
    }
    return {key: value for key, value in values.items() if value is not None}


@pytest.fixture
def make_run(tmp_path):
    def make(name, lines, method="rmn", **settings):
        config = configuration.default_config()
        config.update({"method": method, "epochs": 10, "stem_epochs": 2, **settings})
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(configuration.to_json(config))
        text = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines)
        (folder / "metrics.jsonl").write_text(text)
        return str(folder)

    return make


ROUTED = [line(1), line(2, eval_top1=0.9), line(3, True), line(4, True, churn=[0.25, 0.125])]


def cells(capsys, status=0):
    """The rows of the table, without empty ends, and the result."""
    captured = capsys.readouterr()
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in captured.out.splitlines() if "│" in row]
    return rows, json.loads(captured.out.splitlines()[-1])


def test_a_plain_and_a_routed_run_in_one_figure(make_run, tmp_path, capsys):
    plain, routed = make_run("plain", [line(1), line(2)], method="plain"), make_run("routed", ROUTED)
    assert main(["plot", plain, routed, f"--out={tmp_path}/figures/both"]) == 0
    rows, result = cells(capsys)
    assert result == {"figure": f"{tmp_path}/figures/both.png"}
    assert np.asarray(Image.open(result["figure"])).std() > 10
    assert rows[0][:6] == ["plain", "plain resnet18", "2/10", "plain", "16.00", "16.00 (2)"]
    # Of phase 4 the last epoch is the best, 4 x 0.08. Shares: 3/4 .. 0 of four inputs, 2/8 each of eight.
    assert rows[1][:6] == ["routed", "RMN resnet18, N = 8", "4/10", "routed", "32.00", "32.00 (4)"]
    assert rows[1][10] == "12.3"
    tail = " ".join(rows[1][11:])
    assert "0-75" in tail and "25-25" in tail and "2" in tail and "25.0" in tail and "12.5" in tail


def test_the_figure_has_the_panels_of_what_the_runs_have(make_run):
    plain, routed = make_run("plain", [line(1), line(2)], method="plain"), make_run("routed", ROUTED)
    assert [axis.get_title() for axis in draw(curves.read_curves([plain])).axes] == [
        "loss",
        "top-1",
        "learning rate",
    ]
    figure = draw(curves.read_curves([plain, routed]))
    assert len(figure.axes) == 6
    loss, top1, _, share, dead, churn = figure.axes
    # In each of the first panels: training and held out of either run, and the beginning of phase 4.
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2, 1])
    np.testing.assert_allclose(top1.lines[3].get_ydata(), [0.08, 0.9, 0.24, 0.32])
    assert [list(curve.get_xdata()) for curve in dead.lines[:1]] == [[3, 4]]
    np.testing.assert_allclose(share.lines[0].get_ydata(), [0.25, 0.25])  # of 0, 0, 1/4, 1/4, 1/4, 1/4, 1/4, 3/4
    assert [list(curve.get_ydata()) for curve in churn.lines[:3]] == [[0.25], [0.125], [0.1875]]
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names[:2] == ["plain: plain resnet18, 16.00%", "routed: RMN resnet18, N = 8, 32.00%"]


def test_names_tell_the_runs_apart(make_run):
    runs = [make_run(name, ROUTED) for name in ("a/run", "b/run")]
    assert [found.name for found in curves.read_curves(runs)] == ["a/run", "b/run"]
    assert [found.name for found in curves.read_curves([*runs[:1], *runs[:1]])] == ["run", "run"]


SPARSE = {
    "evaluated every second epoch": [line(1, eval_top1=None, eval_loss=None), line(2), line(3, True, eval_top1=None)],
    "never evaluated": [line(1, eval_top1=None, eval_loss=None)],
    "hardly any keys": [{"step": 5, "epoch": 1}, {"step": 10}],
    "a damaged line": [line(1), '{"epoch": 2, "st'],
    "an edited load": [line(1), line(2, True, load=[3, 1]), line(3, True, load="many")],
    "an edited churn": [line(3, True), line(4, True, churn=["a"]), line(5, True, churn=None)],
    "another number of stages": [line(3, True, churn=[0.5]), line(4, True, churn=[0.5, 0.5])],
    "not a number": ['{"epoch": 1, "step": 5, "train_loss": NaN}\n'],
}


@pytest.mark.parametrize("kind", SPARSE)
def test_what_a_run_did_not_write_is_a_gap(kind, make_run, tmp_path, capsys):
    assert main(["plot", make_run("run", SPARSE[kind]), f"--out={tmp_path}/c.png"]) == 0
    rows, result = cells(capsys)
    assert len(rows) == 1 and result == {"figure": f"{tmp_path}/c.png"}


def test_runs_of_release_0_1_are_drawn(tmp_path, capsys):
    archive = pathlib.Path(__file__).parent.parent / "training" / "runs_of_release_0_1.zip"
    with zipfile.ZipFile(archive) as files:
        files.extractall(tmp_path)
    assert main(["plot", f"{tmp_path}/plain", f"{tmp_path}/rmn", f"--out={tmp_path}/c.png"]) == 0
    rows, _ = cells(capsys)
    assert rows[0][4] == "20.83"  # 75 of 360, as in test_old_runs


def test_what_cannot_be_drawn_is_one_line(make_run, tmp_path, capsys):
    run, empty = make_run("run", ROUTED), make_run("empty", [])
    for words, message in {
        (str(tmp_path),): "holds no run",
        (run, f"{tmp_path}/nowhere"): "nowhere holds no run",
        (run, f"{run}/config.json"): "is a file; give a folder",
        (empty,): "has no finished epoch yet",
        (run, f"--out={run}/config.json/c.png"): "choose another --out",
        (run, f"--out={tmp_path}/c.docx"): "choose another --out",
        (run, "--out="): "--out is empty",
        (): "RUN",
    }.items():
        assert main(["plot", *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1 and message in captured.err
