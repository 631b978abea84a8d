"""``metrics.jsonl``: read with damaged lines and old keys, and rewound when a run goes on."""

import json

from rmn_jax.training import progress
from rmn_jax.training.progress import Reporter, epoch_line, read_metrics
from rmn_jax.training.state import Phase


def test_a_damaged_line_is_removed_and_the_others_stay(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    lines = ['{"step": 4}', '{"oops', '{"step": 8}', '{"step": 12}', '{"st']
    file.write_bytes("\n".join(lines).replace("oops", "oo\udcffps").encode("utf-8", "surrogateescape"))
    Reporter(tmp_path).rewind(8)
    assert file.read_text().splitlines() == [lines[0], lines[2]]
    assert "line 2 of" in capsys.readouterr().err


def test_lines_without_a_step_are_unreadable(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 4}\n{"epoch": 2}\n[1]\n3\n{"step": null}\n')
    unreadable = []
    assert read_metrics(file, unreadable) == [{"step": 4}]
    assert unreadable == [2, 3, 4, 5]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_keys_of_release_0_1_are_mapped_in_old_lines_only(tmp_path):
    file = tmp_path / "metrics.jsonl"
    old = {"epoch": 1, "update": 5, "step": 4, "seconds_per_update": 0.5, "train_loss": 2.0}
    new = {"epoch": 2, "step": 10, "phase": 4, "seconds_per_step": 0.25, "train_loss": 1.0}
    file.write_text(f"{json.dumps(old)}\n{json.dumps(new)}\n")
    assert read_metrics(file) == [
        {"epoch": 1, "step": 5, "phase": 4, "seconds_per_step": 0.5, "train_loss": 2.0},
        new,
    ]


def test_recorded_lines_are_read_again(tmp_path):
    reporter = Reporter(tmp_path, quiet=True)
    reporter.record({"step": 4, "phase": Phase.ROUTED})
    reporter.record({"step": 8, "phase": Phase.ROUTED})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "phase": 4}, {"step": 8, "phase": 4}]


def test_the_line_for_people_has_loads_and_dead_units():
    line = {
        "epoch": 2,
        "phase": Phase.ROUTED,
        "learning_rate": 0.1,
        "train_loss": 1.5,
        "train_top1": 0.25,
        "eval_top1": 0.5,
        "seconds_per_step": 0.012,
        "load": [[3, 1, 0], [0, 0, 4]],
        "dead_units": [1, 2],
    }
    text = epoch_line(line, 10)
    # Shares of stage 1: 3/4, 1/4, 0; of stage 2: 0, 0, 4/4. Dead units: 1 + 2.
    for part in ("epoch  2/10", "routed", "train  25.00%", "eval  50.00%", "12 ms/step", "dead 3"):
        assert part in text
    assert "load 75% 25% 0% | 0% 0% 100%" in text


def test_of_many_units_the_line_says_least_median_most_and_dead():
    line = {
        "epoch": 2,
        "phase": Phase.ROUTED,
        "learning_rate": 0.1,
        "train_loss": 1.5,
        "train_top1": 0.25,
        "seconds_per_step": 0.012,
        "load": [[0, 0, 1, 2, 3, 4, 5, 6, 19], [1] * 9],
        "dead_units": [2, 0],
    }
    text = epoch_line(line, 10, "routed")
    # Of 40 inputs: the median of nine is the fifth, 3/40. Even loads are 1/9.
    assert "load least 0.0% | 11.1%  median 7.5% | 11.1%  most 47.5% | 11.1%  dead 2 | 0" in text
    assert "dead" not in epoch_line({**line, "dead_units": [0, 0]}, 10, "routed")
    assert "plain   rate" in epoch_line({**line, "load": [], "dead_units": []}, 10, "plain")


def test_without_a_terminal_an_epoch_has_a_line_every_30_seconds(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reporter = Reporter(tmp_path)
    reporter.start_epoch("epoch 3/9 routed", total=100, done=40)
    for _ in range(50):  # a step takes 2 s
        now[0] += 2
        reporter.advance(1.25)
    reporter.end_epoch()
    # Resumed at step 40; after 15 steps 30 seconds have gone, and again after 30 and 45.
    assert capsys.readouterr().err.splitlines() == [
        f"epoch 3/9 routed  step {step}/100  loss 1.2500  2000 ms/step" for step in (55, 70, 85)
    ]


def test_a_compilation_is_told_once_and_its_time_if_it_was_long(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reporter = Reporter(tmp_path)
    for seconds, what in ((42, "step"), (42, "step"), (1, "evaluation")):
        with reporter.compiling(what):
            now[0] += seconds
    assert capsys.readouterr().err.splitlines() == [
        "compiling the step",
        "the step is compiled after 42 s",
        "compiling the evaluation",
    ]
