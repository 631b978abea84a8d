"""Part ``kernels`` of the GPU benchmark: tiny on a CPU, its choice of block sizes, and what it writes."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is used from the checkout, not installed

from benchmarks.gpu import kernels  # noqa: E402
from benchmarks.gpu.layers import Layer  # noqa: E402
from benchmarks.gpu.record import Record  # noqa: E402
from benchmarks.gpu.settings import Settings, dry_run  # noqa: E402
from rmn_jax.ops import choose, mosaic, mosaic_blocks  # noqa: E402


def test_a_dry_run_checks_and_times_all_it_names():
    record = Record(None)
    kernels.run(dry_run()._replace(backends=("mosaic",)), record)
    passes = [line for line in record.lines if "pass" in line and "right" in line]
    assert {line["pass"] for line in passes} == {"fwd", "dgrad", "wgrad"}
    assert all(line["right"] for line in passes) and all(len(line["differences"]) == 4 for line in passes)
    (step,) = (line for line in record.lines if line.get("step"))
    assert "failed" not in step and step["ratio"] > 0
    assert any("move" in line for line in record.lines)
    before = len(record.lines)
    kernels.run(dry_run()._replace(backends=("mosaic",)), record)  # all is there
    assert len(record.lines) == before


def test_a_wrong_pass_is_called_wrong(monkeypatch):
    right = kernels.slots.forward
    monkeypatch.setattr(kernels.slots, "forward", lambda x, kernel, *rest: right(x, kernel[::-1], *rest))
    arrays = kernels._Layer(Layer(4, 4, 4, 3, 1, routed=True), 16, dry_run())
    figures = kernels._figures(arrays, "fwd", None, False, dry_run())
    assert figures["right"] is False


def test_no_time_no_work():
    record = Record(None, seconds=1)
    kernels.run(dry_run(), record)
    assert record.lines == []


def test_apply_writes_the_fastest_that_is_right(tmp_path, monkeypatch):
    blocks = {"columns": 128, "runs": 2, "sources": 2, "kernels": 4, "halo": True}
    line = {"side": "mosaic", "key": "fwd 3x3/1 128-128 @32x32", "right": True, "kernel_ms": 0.5, "blocks": blocks}
    lines = [
        {**line, "id": "1"},
        {**line, "id": "2", "kernel_ms": 0.4, "blocks": {**blocks, "columns": 256}},
        {**line, "id": "3", "kernel_ms": 0.1, "right": False, "blocks": {**blocks, "columns": 64}},
        {"id": "4", "side": "mosaic", "key": "dgrad", "failed": "no"},
        {**line, "id": "5", "key": "other", "side": "slots"},
    ]
    file, out = tmp_path / "lines.jsonl", tmp_path / "blocks.py"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setitem(mosaic_blocks.BLOCKS, "kept", {**blocks, "columns": 64})
    kernels.apply(str(file), out)
    written: dict = {}
    exec(out.read_text(), written)
    assert written["BLOCKS"] == {line["key"]: {**blocks, "columns": 256}, "kept": {**blocks, "columns": 64}}


@pytest.mark.parametrize(
    ("tiles", "mosaic_step", "right", "expected"),
    [
        ({"ratio": 1.8}, {"ratio": 1.2}, True, True),
        ({"ratio": 1.1}, {"ratio": 1.2}, True, False),
        ({"ratio": 1.8}, {"ratio": 1.2}, False, False),
        ({"ratio": 1.8}, {"failed": "no"}, True, False),
        ({"ratio": 1.8}, None, True, None),
    ],
)
def test_apply_decides_whether_the_kernels_are_the_default(tiles, mosaic_step, right, expected, tmp_path):
    about = {"network": "resnet18-64", "batch": 1024}
    blocks = {"columns": 128, "runs": 2, "sources": 2, "kernels": 4, "halo": True}
    rule = {"id": "fwd/rule", "side": "mosaic", "key": "fwd", "right": right, "kernel_ms": 0.5, "blocks": blocks}
    lines = [rule, {"id": "1", **about, "step": "tiles", **tiles}]
    lines += [] if mosaic_step is None else [{"id": "2", **about, "step": "mosaic", **mosaic_step}]
    file, out = tmp_path / "lines.jsonl", tmp_path / "blocks.py"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kernels.apply(str(file), out)
    written: dict = {}
    exec(out.read_text(), written)
    assert kernels.faster_than_tiles(lines) is expected
    assert written["FASTER_THAN_TILES"] is (mosaic_blocks.FASTER_THAN_TILES if expected is None else expected)


def test_the_committed_table_is_read(monkeypatch):
    blocks = {"columns": 64, "runs": 1, "sources": 2, "kernels": 4, "halo": True}
    monkeypatch.setitem(mosaic_blocks.BLOCKS, "fwd 3x3/1 128-128 @32x32", blocks)
    if not mosaic.available():
        pytest.skip(f"jax {jax.__version__} has no Mosaic GPU that the kernels can use")
    window = kernels.Window.make(3, 3, 1, None)
    found = mosaic.blocks_of("fwd", (32, 32, 1080, 128), (8, 3, 3, 128, 128), window)
    assert found._asdict() == blocks


def test_kinds_of_kernels():
    names = {
        "mosaic_gpu_routed_product_kernel": "kernels of mosaic",
        "void cudnn::ops::nhwcSliceCKernel": "cuDNN's slices",
        "gather_fusion": "gathers",
        "sm90_xmma_fprop_implicit_gemm_bf16": "convolutions",
        "input_reduce_fusion_3": "reductions",
        "input_add_reduce_fusion": "reductions",
        "MemcpyD2D": "copies",
        "loop_multiply_fusion": "element-wise",
        "something": "others",
    }
    assert {name: kernels.kind_of(name) for name in names} == names


# The layers whose block sizes matter most, and one of each kind.
LAYERS = (
    Layer(64, 64, 64, 3, 1, True),
    Layer(16, 256, 256, 3, 1, True),
    Layer(8, 512, 512, 3, 1, True),
    Layer(32, 128, 256, 3, 2, True),
    Layer(14, 256, 1024, 1, 1, True),
)


@pytest.mark.skipif(not mosaic.available(), reason=f"jax {jax.__version__} has no Mosaic GPU that the kernels can use")
@pytest.mark.parametrize("which", ["fwd", "dgrad", "wgrad"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_all_block_sizes_that_it_tries_can_be_lowered(layer, which, monkeypatch):
    monkeypatch.setattr(choose, "kernels_run_here", lambda: True)
    settings = Settings(conv_layers=1)
    arrays = object.__new__(kernels._Layer)  # shapes alone: no arrays of 1,024 inputs
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    arrays.dtype, arrays.num_units = jnp.dtype(settings.dtype), 8
    x, arrays.window = (
        array(1024, layer.size, layer.size, layer.channels),
        kernels.Window.make(layer.kernel, layer.kernel, layer.strides, None),
    )
    arrays.x, arrays.dy = x, array(1024, layer.out_size, layer.out_size, layer.features)
    arrays.kernel = array(8, layer.kernel, layer.kernel, layer.channels, layer.features)
    sort = lambda: kernels.make_slots(kernels.sort_by_unit(jnp.zeros(1024, jnp.int32), 8))  # noqa: E731
    layout = jax.eval_shape(sort)
    arrays.layouts = {"random": layout}
    num_slots = layout.unit.shape[0]
    given = (
        array(layer.size, layer.size, num_slots, layer.channels),
        arrays.kernel,
        array(layer.out_size, layer.out_size, num_slots, layer.features),
        layout,
    )
    choices = [pair for rule in (True, False) for pair in kernels._choices(layer, which, arrays, True, rule)]
    assert 3 <= len(choices) <= 12
    for name, (key, blocks, _) in choices:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(mosaic_blocks.BLOCKS, key, blocks)
            traced = jax.jit(arrays.pass_in_slots(which, mosaic)).trace(*given)
            assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text(), name
