"""The arithmetic of the GPU benchmark, and its parts at tiny sizes on the CPU. No test depends on a time."""

import argparse
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks.gpu import conv, determinism, floor, report, step
from benchmarks.gpu.__main__ import _each_in_a_process
from benchmarks.gpu.launches import bytes_moved, count_launches
from benchmarks.gpu.layers import CHIPS, PASSES, Layer, find_chip, layers_of, work
from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import DRY_GROUPS, Group, backbone_of, dry_run

ROOT = pathlib.Path(__file__).parents[2]


def test_least_work_of_a_layer_by_hand():
    # 3x3, 64 to 128 channels, stride 2, on 32x32: 16x16 outputs, 9 x 64 products for each of 128 channels.
    layer = Layer(32, 64, 128, 3, 2, routed=True)
    operations = 2 * 10 * 16 * 16 * 128 * 9 * 64
    x, y, kernel = 10 * 32 * 32 * 64, 10 * 16 * 16 * 128, 9 * 64 * 128
    for which in PASSES:
        assert work(layer, which, 10, None) == (operations, 2 * (x + y + kernel))
        assert work(layer, which, 10, 8) == (operations, 2 * (x + y + 8 * kernel))
    assert work(layer, "fwd", 10, 8).least_seconds(CHIPS["NVIDIA H200"]) == pytest.approx(
        max(operations / 989e12, 2 * (x + y + 8 * kernel) / 4.8e12)
    )
    # A 1x1 layer of stride 2 reads a quarter of the pixels.
    assert work(Layer(32, 64, 128, 1, 2, routed=True), "fwd", 1, None).bytes == 2 * (16 * 16 * 192 + 64 * 128)
    assert layer.name == "3x3/2 64-128 @32" and layer.out_size == 16


def test_layers_of_resnet18_have_the_papers_multiply_adds():
    found = layers_of(backbone_of("resnet18", 64), 64)
    # Stem; ten shapes in the stages (3x3, strided 3x3, 1x1 shortcuts); head.
    assert len(found) == 12 and sum(found.values()) == 1 + 16 + 3 + 1
    assert sum(layer.routed for layer in found) == 10
    total = sum(count * work(layer, "fwd", 1, None).operations for layer, count in found.items())
    assert total / 2 == pytest.approx(2.25e9, rel=2e-3)  # the paper: 2.25B


def test_floor_sums_three_passes_without_the_gradient_of_the_images():
    lines = list(floor.lines(Group("resnet18", 64, 1024, ()), 8, CHIPS["NVIDIA H200"]))
    stem = 2 * 1024 * 64 * 64 * 64 * 7 * 7 * 3 / 1e9
    assert lines[-1]["gigaoperations"] == pytest.approx(6 * 2.25 * 1024 - stem, rel=2e-3)
    by_layer = sum(line["count"] * line["least_ms"] for line in lines[:-1])
    assert lines[-1]["least_ms"] == pytest.approx(by_layer, rel=1e-3)
    assert {line["bound"] for line in lines[:-1]} == {"operations", "bytes"}


def test_an_unknown_chip_needs_figures():
    assert find_chip("NVIDIA H200", bandwidth=1e12) == (989e12, 1e12)
    assert find_chip("abacus", 1.0, 2.0) == (1.0, 2.0)
    with pytest.raises(SystemExit, match="--peak_flops"):
        find_chip("abacus", 1.0)


def test_record_continues_after_an_incomplete_line(tmp_path, capsys):
    path = tmp_path / "folder" / "lines.jsonl"
    record = Record(str(path))
    record.add({"id": "a", "value": 1})
    record.add({"id": "a", "value": 2})
    with path.open("a") as file:
        file.write('{"id": "b", "val')
    record = Record(str(path), seconds=0.0)
    assert "a" in record and "b" not in record and record.missing("ab") == ["b"]
    assert not record.go_on("b")
    record.add({"id": "b", "value": 3})
    assert [line["value"] for line in Record(str(path)).lines] == [1, 3]
    capsys.readouterr()


def test_record_reads_names_of_earlier_releases():
    lines = Record(str(ROOT / "benchmarks" / "results" / "h100-launches.jsonl")).lines
    sides = {line["id"]: line["side"] for line in lines}
    assert sides["launches/resnet18-64/B1024/bfloat16/RMN N=8 none scan"] == "RMN N=8 none scan"
    assert not any("visits" in name for name in (*sides, *sides.values()))


def test_conv_and_step_measure_once_and_report(tmp_path, capsys):
    path = str(tmp_path / "lines.jsonl")
    settings = dry_run()._replace(passes=("together",), backends=("scan", "tiles"), loads=("random", "all-to-one"))
    for part in (conv, step):
        part.run(settings, Record(path))
    lines = {line["id"]: line for line in Record(path).lines}
    sides = {(line["part"], line["side"], line.get("load")): line for line in lines.values()}
    assert set(sides) == {
        ("conv", "plain", None),
        ("conv", "lax", None),
        *(("conv", name, load) for name in ("scan", "tiles") for load in ("random", "all-to-one")),
        ("step", "plain", None),
        ("step", "RMN+CA N=4 scan", None),
        ("step", "RMN+CA N=4 tiles", None),
    }
    for key, line in sides.items():
        if key[0] == "step" or not key[2]:
            continue
        assert line["right"] and line["difference"] < 1e-5 and line["ratio"] > 0 and line["over_least"] > 0
    routed = sides["step", "RMN+CA N=4 scan", None]
    assert routed["images_per_second"] > 0 and routed["ratio"] > 0 and 0 < routed["mfu"] < 1
    assert routed["planned_megabytes"] > 0 and routed["peak_megabytes"] is None  # a CPU does not report its peak
    before = pathlib.Path(path).read_text()
    for part in (conv, step):
        part.run(settings, Record(path))
    assert pathlib.Path(path).read_text() == before
    capsys.readouterr()
    report.run(settings, Record(path))
    table = capsys.readouterr().out
    assert "### conv" in table and "### step" in table and "| RMN+CA N=4 scan |" in table


def test_conv_checks_the_kernel_gradient_if_there_are_as_many_units_as_slots(capsys):
    # B = 16 and N = 2 make tiles of L = 2 slots: kernel gradients [N, ..] and feature maps [L, ..] have equal length.
    settings = dry_run()._replace(passes=("wgrad",), backends=("tiles",), loads=("random",), num_units=2)
    record = Record(None)
    conv.run(settings, record)
    routed = [line for line in record.lines if line["side"] == "tiles"]
    assert routed and all(line.get("right") for line in routed), routed
    capsys.readouterr()


def test_equal_steps_give_equal_parameters():
    found = determinism.steps(DRY_GROUPS[0], num_units=2, count=2, dtype="float32")
    first, second = found["digests"]
    assert first == second and found["milliseconds"] > 0


def test_out_of_memory_halves_the_batch(tmp_path, monkeypatch, capsys):
    tried = []

    def measure(group, settings, record):
        tried.append(group.batch)
        if group.batch > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return True

    monkeypatch.setattr(step, "_measure", measure)
    path = str(tmp_path / "lines.jsonl")
    step.run(dry_run(), Record(path))
    step.run(dry_run(), Record(path))
    assert tried == [16, 8, 4, 4]  # a batch that did not fit is not tried again
    capsys.readouterr()


def test_benchmark_and_training_core_do_not_import_the_data_libraries():
    blocked = ["tensorflow_datasets", "tensorflow", "grain", "array_record", "ml_collections", "cv2", "sklearn"]
    modules = [f"benchmarks.gpu.{name}" for name in ("floor", "step", "conv", "torch_eager", "determinism", "report")]
    program = f"""
import importlib, json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
for module in {[*modules, "rmn_jax.training.step", "rmn_jax.analysis.counts", "rmn_jax.inference.compile"]}:
    importlib.import_module(module)
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch" not in json.loads(done.stdout)  # only in the separate process of part ``torch``


HLO = """HloModule jit_step, is_scheduled=true

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %conv.2 = (f32[4]{0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convForward"
  ROOT %add_fusion = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
}

%cond.1 (p: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

ENTRY %main.3 (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %copy.1 = f32[4]{0} copy(%a)
  %while.1 = (s32[], f32[4]{0}) while(%t), body=%body.1, backend_config={"known_trip_count":{"n":"39"}}
  ROOT %out = f32[4]{0} get-tuple-element(%while.1), index=1
}
"""


def test_launches_in_a_loop_count_once_for_each_iteration():
    # Two kernels in a body that runs 39 times; one copy outside.
    assert count_launches(HLO) == {"outside": 1, "in loops": 78}
    with pytest.raises(ValueError, match="unknown trip count"):
        count_launches(HLO.replace("known_trip_count", "initial"))


def test_bytes_moved_are_those_of_operands_and_results():
    hlo = """
ENTRY %main.1 (a: bf16[2,3], b: pred[5]) -> (f32[2], s32[]) {
  %a = bf16[2,3]{1,0} parameter(0)
  %b = pred[5]{0} parameter(1)
  %two = (f32[2]{0}, s32[]) fusion(%a, %b), kind=kInput, calls=%fused, metadata={op_name="jit(f)/g"}
  %part = f32[2]{0} get-tuple-element(%two), index=0
  ROOT %out = f32[2]{0} copy(%part)
}
"""
    # The fusion reads a and b and writes both results; the copy reads and writes f32[2].
    assert bytes_moved(hlo) == (2 * 3 * 2 + 5 + 2 * 4 + 4) + (8 + 8)
    with pytest.raises(ValueError, match="cannot count bytes of a program with while"):
        bytes_moved(HLO)


def test_each_part_gets_one_process_and_a_failure_is_the_exit_status(monkeypatch):
    commands, arguments = [], argparse.Namespace(seconds=None)

    def run(command, check):
        commands.append(command[3:])
        return subprocess.CompletedProcess(command, 3 if command[3] == "launches" else 0)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="1"):
        _each_in_a_process(("launches", "report"), arguments, ["launches", "report", "--dry-run"])
    assert commands == [["launches", "--dry-run"], ["report", "--dry-run"]]
    _each_in_a_process(("floor", "report"), arguments, ["floor", "report"])


def test_routed_pytorch_networks_equal_the_plain_one_if_all_procedures_are_equal():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.gpu.torch_network import Network

    images = torch.randn(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assignment = torch.tensor([[0, 2, 2, 0, 2, 0]] * 4)  # unit 1 is empty
    logits = {}
    for side in ("plain", "masks", "split"):
        torch.manual_seed(1)  # the weights of the plain network are drawn first, so all sides have the same
        logits[side] = Network(side, 8, 3, 5).eval()(images, assignment)
    torch.testing.assert_close(logits["masks"], logits["plain"])
    torch.testing.assert_close(logits["split"], logits["plain"])


def test_a_pytorch_step_trains_all_sides():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.gpu.torch_network import Step

    for side in ("plain", "masks", "split"):  # with width 4, PyTorch 2.13 crashes on CPU
        step = Step(side, size=8, width=8, batch=12, num_units=3, dtype="float32", device="cpu")
        before = [parameter.clone() for parameter in step.network.parameters()]
        step()
        moved = [not parameter.equal(old) for parameter, old in zip(step.network.parameters(), before, strict=True)]
        assert all(moved), side
