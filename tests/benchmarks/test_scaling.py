"""The scaling model: arithmetic by hand, limits, and the tables in the documentation."""

import pathlib
import sys

import pytest

from benchmarks import scaling
from benchmarks.scaling import (
    Cluster,
    crossing_share,
    data_parallel,
    exchange_seconds,
    reduce_seconds,
    rows_computed,
    tables,
    unit_parallel,
)
from benchmarks.traffic import data_parallel_reductions, describe
from rmn_jax.models import RMN, create_backbone

ROOT = pathlib.Path(__file__).parents[2]
# Links with times that are easy to compute: no latency, 8 bytes a second within a node of 4, 1 between nodes.
PLAIN = Cluster(flops=1.0, node=4, within=8.0, between=1.0, hop_within=0.0, hop_between=0.0, launch=0.0)


@pytest.fixture(scope="module")
def resnet18():
    return describe(RMN(create_backbone("resnet18", 200, 64), num_units=8), 64)


def test_resnet18_by_hand(resnet18):
    # Plain ResNet-18: 20 norms, one of them in the stem; 2.25B multiply-adds (the paper's figure).
    assert resnet18.shared_norms == (64,)
    assert sorted(resnet18.routed_norms) == [64] * 4 + [128] * 5 + [256] * 5 + [512] * 5
    forward = resnet18.shared_operations + sum(resnet18.stage_operations)
    assert forward / 2 == pytest.approx(2.25e9, rel=2e-3)
    assert resnet18.stage_inputs == (64 * 64 * 64, 64 * 64 * 64, 32 * 32 * 128, 16 * 16 * 256)
    assert resnet18.memories == (64, 64, 128, 256)
    # The paper: 89.4M parameters with N = 8. Stem and head are not routed.
    shared = 7 * 7 * 3 * 64 + 2 * 64 + 512 * 200 + 200
    assert resnet18.shared_parameters == shared
    assert (resnet18.routed_parameters + shared) / 1e6 == pytest.approx(89.4, abs=0.1)
    reductions = data_parallel_reductions(resnet18)
    assert len(reductions) == 20 + 20 + 2
    norms = 4 * (2 * 64 + 1) + 4 * 8 * sum(2 * c + 1 for c in resnet18.routed_norms)
    assert sum(r.bytes for r in reductions if r.blocking) == 2 * norms
    assert next(r.bytes for r in reductions if r.name == "memories") == 4 * 8 * (65 + 65 + 129 + 257)


def test_a_sum_uses_the_faster_of_ring_and_tree():
    # One node of 4: the ring sends 2 x 3/4 of 80 bytes at 8 a second, 15 s; the tree sends 2 x 80 at 8 a second, 20 s.
    assert reduce_seconds(80, 4, PLAIN) == 15
    assert reduce_seconds(80, 1, PLAIN) == 0
    # Four nodes of 4: the same within a node; each device sums its quarter, 20 bytes, over four nodes at 1 a second.
    assert reduce_seconds(80, 16, PLAIN) == 15 + 2 * 3 / 4 * 20
    # Every fourth device: no traffic within a node.
    assert reduce_seconds(80, 4, PLAIN, stride=4) == 2 * 3 / 4 * 80
    # The time of a small sum is that of its hops: 2 log2(4) in the tree, 2 x 3 in the ring.
    slow = PLAIN._replace(hop_within=1.0, launch=10.0)
    assert reduce_seconds(8e-9, 4, slow) == pytest.approx(10 + 4)


def test_one_part_of_an_exchange_stays_on_its_device():
    assert exchange_seconds(80, 4, PLAIN) == 80 * 3 / 4 / 8
    assert exchange_seconds(80, 1, PLAIN) == 0
    assert exchange_seconds(80, 8, PLAIN) == 80 * 4 / 8 / 1.0  # half goes to the other node, over the slower link


def test_one_device_has_no_traffic(resnet18):
    cluster = Cluster()
    data = data_parallel(resnet18, 1024, 1, cluster)
    assert data.total == data.compute == unit_parallel(resnet18, 1024, 1, cluster).total
    assert data.bytes == 0
    # Three passes, 2 operations for a multiply-add.
    assert data.compute == pytest.approx(6 * 2.25e9 * 1024 / cluster.flops, rel=2e-3)


def test_bytes_sent_by_one_of_eight_devices(resnet18):
    # 89.4M gradients in float32, 7/8 of them sent twice: 625 MB. In bfloat16 half of that.
    full = data_parallel(resnet18, 1024, 8, Cluster())
    half = data_parallel(resnet18, 1024, 8, Cluster(gradient_bytes=2))
    assert full.bytes / 1e6 == pytest.approx(626, abs=2)
    assert half.bytes / 1e6 == pytest.approx(313, abs=2)
    # 128 inputs; stage inputs of 64 x 64 x 64 values twice, then a half and a quarter of that; 2 bytes for a value;
    # 7/8 of them move, forwards and backwards.
    features = 128 * 64**3 * (1 + 1 + 1 / 2 + 1 / 4) * 2 * 7 / 8 * 2
    assert unit_parallel(resnet18, 1024, 8, Cluster()).bytes == pytest.approx(features, rel=5e-3)


def test_uneven_loads_cost_time_and_overlap_saves_time(resnet18):
    cluster = Cluster()
    even, uneven = (unit_parallel(resnet18, 1024, 64, cluster, share) for share in (1 / 8, 1.0))
    stages = 3 * sum(resnet18.stage_operations) * 16 / cluster.flops
    assert uneven.compute - even.compute == pytest.approx(7 * stages)
    assert even.total == unit_parallel(resnet18, 1024, 64, cluster).total
    without = data_parallel(resnet18, 1024, 8, cluster._replace(overlap=0.0))
    assert without.total == pytest.approx(without.compute + without.norms + without.gradients)
    assert data_parallel(resnet18, 1024, 8, cluster).total == pytest.approx(without.compute + without.norms)


def test_at_the_crossing_both_placements_take_equally_long(resnet18):
    cluster = Cluster()
    share = crossing_share(resnet18, 1024, 64, cluster)
    both = unit_parallel(resnet18, 1024, 64, cluster, share).total, data_parallel(resnet18, 1024, 64, cluster).total
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    assert crossing_share(resnet18, 1024, 8, cluster) is None


def test_rows_computed_for_padding():
    assert rows_computed(1024, 8, 32) == 39 * 32 / 1024
    assert rows_computed(128, 8, 32) == 11 * 32 / 128
    assert rows_computed(16, 8, 32) == 8  # a tile is never longer than the batch: one tile of 16 for each of 8 units
    assert rows_computed(128, 8, 1) == 1


def test_the_documentation_has_the_tables():
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert tables(Cluster()) in text


@pytest.mark.parametrize("option", ["flops=0", "node=-1", "launch=-1", "overlap=1.5", "within=nan", "node=x"])
def test_an_impossible_assumption_ends_in_one_line(option, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling", f"--{option}"])
    with pytest.raises(SystemExit) as stopped:
        scaling.main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("scaling: ") and f"--{option.split('=')[0]}" in captured.err


def test_every_assumption_has_a_help_text(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling", "--help"])
    with pytest.raises(SystemExit):
        scaling.main()
    text = " ".join(capsys.readouterr().out.split())  # argparse wraps lines to the terminal
    assert text.count("(default: ") == 1 + len(Cluster._fields)
