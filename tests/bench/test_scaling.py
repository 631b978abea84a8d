"""The scaling model: its arithmetic by hand, its limits, and the tables in the documentation."""

import pathlib
import sys

import pytest

from rmn_jax.bench import scaling
from rmn_jax.bench.scaling import (
    Cluster,
    crossing_share,
    data_parallel,
    exchange_seconds,
    reduce_seconds,
    rows_computed,
    tables,
    unit_parallel,
)
from rmn_jax.bench.traffic import data_parallel_reductions, describe
from rmn_jax.models import RMN, create_backbone

ROOT = pathlib.Path(__file__).parents[2]
# Links so that times are easy to write down: no latency, 8 bytes a second within a node of 4, 1 between nodes.
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
    # The paper: 89.4M parameters with N = 8, of which the stem and the head are not routed.
    shared = 7 * 7 * 3 * 64 + 2 * 64 + 512 * 200 + 200
    assert resnet18.shared_parameters == shared
    assert (resnet18.routed_parameters + shared) / 1e6 == pytest.approx(89.4, abs=0.1)
    reductions = data_parallel_reductions(resnet18)
    assert len(reductions) == 20 + 20 + 2
    norms = 4 * (2 * 64 + 1) + 4 * 8 * sum(2 * c + 1 for c in resnet18.routed_norms)
    assert sum(r.bytes for r in reductions if r.waited_for) == 2 * norms
    assert next(r.bytes for r in reductions if r.name == "memories") == 4 * 8 * (65 + 65 + 129 + 257)


def test_a_sum_takes_the_quicker_of_ring_and_tree():
    # One node of 4: a ring sends 2 x 3/4 of 80 bytes at 8 a second, 15 s; the tree, 2 x 80 at 8 a second, takes 20.
    assert reduce_seconds(80, 4, PLAIN) == 15
    assert reduce_seconds(80, 1, PLAIN) == 0
    # Four nodes of 4: the same within, and each device sums its quarter, 20 bytes, over four nodes at 1 a second.
    assert reduce_seconds(80, 16, PLAIN) == 15 + 2 * 3 / 4 * 20
    # Every fourth device: nothing within a node.
    assert reduce_seconds(80, 4, PLAIN, stride=4) == 2 * 3 / 4 * 80
    # Small sums pay for hops: 2 log2(4) in the tree, 2 x 3 in the ring.
    slow = PLAIN._replace(hop_within=1.0, launch=10.0)
    assert reduce_seconds(8e-9, 4, slow) == pytest.approx(10 + 4)


def test_an_exchange_keeps_its_own_part():
    assert exchange_seconds(80, 4, PLAIN) == 80 * 3 / 4 / 8
    assert exchange_seconds(80, 1, PLAIN) == 0
    assert exchange_seconds(80, 8, PLAIN) == 80 * 4 / 8 / 1.0  # half goes to the other node, the slower half


def test_one_device_needs_nobody(resnet18):
    cluster = Cluster()
    data = data_parallel(resnet18, 1024, 1, cluster)
    assert data.total == data.compute == unit_parallel(resnet18, 1024, 1, cluster).total
    assert data.bytes == 0
    # Three passes at 2 operations a multiply-add.
    assert data.compute == pytest.approx(6 * 2.25e9 * 1024 / cluster.flops, rel=2e-3)


def test_the_field_s_figures_for_eight_devices(resnet18):
    # 89.4M gradients in float32, 7/8 sent twice: 625 MB, and half of it in bfloat16.
    full = data_parallel(resnet18, 1024, 8, Cluster())
    half = data_parallel(resnet18, 1024, 8, Cluster(gradient_bytes=2))
    assert full.bytes / 1e6 == pytest.approx(626, abs=2)
    assert half.bytes / 1e6 == pytest.approx(313, abs=2)
    # Features: 128 inputs with 64 x 64 x 64 twice, half and a quarter of it, 2 bytes, 7/8 of it forwards and backwards.
    features = 128 * 64**3 * (1 + 1 + 1 / 2 + 1 / 4) * 2 * 7 / 8 * 2
    assert unit_parallel(resnet18, 1024, 8, Cluster()).bytes == pytest.approx(features, rel=5e-3)


def test_uneven_loads_cost_and_overlap_helps(resnet18):
    cluster = Cluster()
    even, uneven = (unit_parallel(resnet18, 1024, 64, cluster, share) for share in (1 / 8, 1.0))
    stages = 3 * sum(resnet18.stage_operations) * 16 / cluster.flops
    assert uneven.compute - even.compute == pytest.approx(7 * stages)
    assert even.total == unit_parallel(resnet18, 1024, 64, cluster).total
    without = data_parallel(resnet18, 1024, 8, cluster._replace(overlap=0.0))
    assert without.total == pytest.approx(without.compute + without.norms + without.gradients)
    assert data_parallel(resnet18, 1024, 8, cluster).total == pytest.approx(without.compute + without.norms)


def test_the_crossing_is_where_both_take_as_long(resnet18):
    cluster = Cluster()
    share = crossing_share(resnet18, 1024, 64, cluster)
    both = unit_parallel(resnet18, 1024, 64, cluster, share).total, data_parallel(resnet18, 1024, 64, cluster).total
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    assert crossing_share(resnet18, 1024, 8, cluster) is None


def test_tiles_left_unfilled():
    assert rows_computed(1024, 8, 32) == 39 * 32 / 1024
    assert rows_computed(128, 8, 32) == 11 * 32 / 128
    assert rows_computed(16, 8, 32) == 8  # a tile is never longer than the batch: every unit's holds all of it
    assert rows_computed(128, 8, 1) == 1


def test_the_documentation_has_the_tables():
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert tables(Cluster()) in text


@pytest.mark.parametrize("option", ["flops=0", "node=-1", "launch=-1", "overlap=1.5", "within=nan", "node=x"])
def test_an_assumption_that_cannot_be_is_one_line(option, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling", f"--{option}"])
    with pytest.raises(SystemExit) as stopped:
        scaling.main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("scaling: ") and f"--{option.split('=')[0]}" in captured.err


def test_every_assumption_has_its_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling", "--help"])
    with pytest.raises(SystemExit):
        scaling.main()
    text = " ".join(capsys.readouterr().out.split())  # lines are as long as the terminal is wide
    assert text.count("(default: ") == 1 + len(Cluster._fields)
