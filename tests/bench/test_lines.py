"""The JSON lines of ``rmn bench``, at sizes that say nothing about speed."""

import pytest

from rmn_jax.bench import conv, latency, step
from rmn_jax.bench.measure import LOADS


def checked_side(line):
    """The line's side, after a check of the times that every line has."""
    assert line["milliseconds"] > 0 and line["quartiles"][0] <= line["milliseconds"] <= line["quartiles"][1]
    return line["side"]


def test_latency_reports_time_compilation_memory_and_used_units_of_all_networks():
    lines = list(latency.bench_latency("resnet8", image_size=8, num_units=3, rounds=2))
    assert [checked_side(line) for line in lines] == ["plain", "RMN", "RMN+CA"]
    plain, routed, _ = lines
    assert plain["units_used"] == [0, 0, 0] and all(1 <= used <= 3 for used in routed["units_used"])
    assert "ratio" not in plain and routed["ratio"] > 0
    for line in lines:
        assert line["compile_seconds"] > 0 and line["temporary_megabytes"] > 0
    # Three procedures instead of one: less than three times the weights, because stem and head are shared.
    assert 2 < routed["weights_megabytes"] / plain["weights_megabytes"] < 3.2


def test_step_has_the_requested_load():
    lines = list(step.bench_step("resnet8", 8, batch=16, units=(2,), rounds=2, load="all-to-one"))
    assert [checked_side(line) for line in lines] == ["plain", "N=2"]
    assert [line["largest_share"] for line in lines] == [None, 1.0]
    assert all(line["compile_seconds"] > 0 and line["temporary_megabytes"] > 0 for line in lines)


@pytest.mark.parametrize("backend", ["loop", "scan"])
def test_conv_has_every_load_and_its_mean_ratio(backend, monkeypatch):
    monkeypatch.setattr(conv, "RESNET18_SHAPES", ((4, 8), (2, 16)))
    lines = list(conv.bench_conv(num_units=2, batch=8, rounds=2, backend=backend))
    sides = [checked_side(line) for line in lines if "shape" in line]
    assert sides == 2 * ["plain", "stock", *(f"routed {load}" for load in LOADS)]
    means = [line for line in lines if "mean_ratio" in line]
    assert [line["side"] for line in means] == [f"routed {load}" for load in LOADS]
    first, second = (line["ratio"] for line in lines if line["side"] == "routed zipf" and "shape" in line)
    assert means[2]["mean_ratio"] == pytest.approx((first + second) / 2, abs=1e-4)
