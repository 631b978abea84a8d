"""Timing of several sides in turn, and the report of the lines."""

import json

import numpy as np
import pytest

from rmn_jax.bench.measure import interleave, report, summary
from rmn_jax.errors import UserError


def test_every_side_runs_once_in_each_round_in_random_order_after_before():
    calls = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = interleave(sides, 20, before=lambda: calls.append("-"))
    assert {name: times.shape for name, times in seconds.items()} == dict.fromkeys("abc", (20,))
    assert calls[::2] == ["-"] * 63  # a warm-up round and 20 rounds, three sides
    rounds = ["".join(calls[1::2][start : start + 3]) for start in range(0, 63, 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) == 6  # all 3! orders occur


def test_the_ratio_is_taken_in_each_round():
    # A slow round of both sides does not change the ratio.
    line = summary(np.array([2.0, 20.0, 2.0]), np.array([1.0, 10.0, 1.0]))
    assert line["ratio"] == 2.0 and line["ratio_quartiles"] == [2.0, 2.0]
    assert line["milliseconds"] == 2000.0


def test_a_file_that_cannot_be_written_is_an_error_before_the_first_measurement(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    measured = []
    lines = ({"side": side} for side in "ab" if not measured.append(side))
    for out in (tmp_path, tmp_path / "file" / "below.json"):
        with pytest.raises(UserError, match=f"cannot write to --out {out}: .*; name another file"):
            report(lines, str(out), "rmn bench")
    assert measured == [] and capsys.readouterr().out == "" and (tmp_path / "file").read_text() == "kept"
    report(lines, str(tmp_path / "new" / "out.json"), "rmn bench")
    assert json.loads((tmp_path / "new" / "out.json").read_text())["lines"] == [{"side": "a"}, {"side": "b"}]


def test_an_interrupted_measurement_keeps_the_old_file(tmp_path):
    def stopped():
        yield {"side": "a"}
        raise KeyboardInterrupt

    out = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        report(stopped(), str(out), "rmn bench")
    assert not out.exists()
    out.write_text("kept")
    with pytest.raises(KeyboardInterrupt):
        report(stopped(), str(out), "rmn bench")
    assert out.read_text() == "kept"
