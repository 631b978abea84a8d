"""Timing side by side."""

import numpy as np

from rmn_jax.bench.measure import interleave, summary


def test_every_side_runs_once_a_round_in_an_order_of_its_own_after_what_is_not_timed():
    calls = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = interleave(sides, 20, before=lambda: calls.append("-"))
    assert {name: times.shape for name, times in seconds.items()} == dict.fromkeys("abc", (20,))
    assert calls[::2] == ["-"] * 63  # a round to warm up, and 20
    rounds = ["".join(calls[1::2][start : start + 3]) for start in range(0, 63, 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) == 6  # every order comes up


def test_the_ratio_is_taken_round_by_round():
    # A slow minute that both sides share does not show in the ratio.
    line = summary(np.array([2.0, 20.0, 2.0]), np.array([1.0, 10.0, 1.0]))
    assert line["ratio"] == 2.0 and line["ratio_quartiles"] == [2.0, 2.0]
    assert line["milliseconds"] == 2000.0
