"""Kernels for Hopper without a GPU: each pass in JAX's interpreter against a loop over units, and lowered for CUDA.

They need a JAX that has Mosaic GPU as the kernels use it; on an older one all of this is skipped. ``.ci/gpu_lowering``
runs it with a newer one. The interpreter takes seconds for a small map, so maps and batches are small here; block sizes
cover both forms of each kernel.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.ops import choose, mosaic, routed_conv
from rmn_jax.ops.window import Window, convolve
from rmn_jax.routing.layout import make_slots, sort_by_unit, to_layout

if not mosaic.available():
    pytest.skip(f"jax {jax.__version__} has no Mosaic GPU that the kernels can use", allow_module_level=True)

from jax._src.pallas.mosaic_gpu.interpret import params as interpret_params  # not exported

from rmn_jax.ops import mosaic_conv, mosaic_wgrad

UNITS = 3
LOADS = {
    "random, unaligned groups": [2, 0, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1],  # unit 1 has 9 rows, in 2 groups of 8 slots
    "a unit with none": [2, 0, 2, 2, 2, 2, 2, 2, 2, 2],
    "all to one": [1] * 9,
}
TWO = [2, 0]  # the fewest slots with two units and one that has none


@pytest.fixture
def interpreted(monkeypatch):
    """Routed convolutions in slots take the kernels wherever they fit, in the interpreter."""
    monkeypatch.setattr(mosaic, "interpret", interpret_params.InterpretGPUParams())
    monkeypatch.setattr(choose, "kernels_run_here", lambda: True)


def use_blocks(monkeypatch, product=None, wgrad=None):
    """Fixes block sizes, or leaves the rules'."""
    rule = mosaic.blocks_of

    def blocks_of(which, *arguments):
        given = wgrad if which == "wgrad" else product
        return rule(which, *arguments) if given is None else given

    monkeypatch.setattr(mosaic, "blocks_of", blocks_of)


def expected_passes(x, kernel, unit, dy, window):
    """The oracle, in float32: each unit's rows through XLA's convolution and autodiff; x and dy [B, H, W, C]."""
    y, dx, dkernel = np.zeros(dy.shape, np.float32), np.zeros(x.shape, np.float32), np.zeros(kernel.shape, np.float32)
    x, kernel, dy = (jnp.float32(value) for value in (x, kernel, dy))
    for j in range(UNITS):
        rows = np.flatnonzero(np.array(unit) == j)
        if len(rows):
            y[rows], pull = jax.vjp(lambda x, k: convolve(x, k, window), x[rows], kernel[j])
            dx[rows], dkernel[j] = pull(dy[rows])
    return y, dx, dkernel


def check(rng, load, height, width, channels, features, size, strides):
    """All passes of ``routed_conv`` in slots, bfloat16, against the oracle."""
    kernel = jnp.bfloat16(rng.normal(size=(UNITS, size, size, channels, features)) * 0.05)
    x = jnp.bfloat16(rng.normal(size=(len(load), height, width, channels)))
    dy = jnp.bfloat16(rng.normal(size=(len(load), -(-height // strides), -(-width // strides), features)))
    slots = make_slots(sort_by_unit(jnp.array(load, jnp.int32), UNITS))

    def passes(x, kernel, dy):
        def run(x, kernel):
            y = routed_conv(to_layout(x, None, slots), kernel, slots, strides=strides, backend="mosaic")
            return to_layout(y, slots, None)

        y, pull = jax.vjp(run, x, kernel)
        return y, *pull(dy)

    found = jax.jit(passes)(x, kernel, dy)
    wanted = expected_passes(x, kernel, load, dy, Window.make(size, size, strides, None))
    for name, value, expected in zip(("output", "input gradient", "kernel gradient"), found, wanted, strict=True):
        value = np.asarray(value, np.float32)
        assert np.isfinite(value).all(), name
        error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
        assert error < 2.5e-3, (name, error)  # a result rounded to bfloat16 once is off by 1.7e-3
    empty = [j for j in range(UNITS) if j not in load]
    assert (np.asarray(found[2], np.float32)[empty] == 0).all()


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_3x3_over_loads(load, rng, interpreted):
    check(rng, load, 2, 5, 64, 64, 3, 1)


# Map, channels, kernel and stride; with the block sizes that the rules give.
LAYERS = {
    "8x8": (4, 8, 64, 128, 3, 1),
    "narrow": (4, 4, 64, 64, 3, 1),
    "two pixels": (2, 2, 64, 64, 3, 1),
    "odd": (3, 9, 64, 64, 3, 1),
    "3x3/2": (4, 16, 64, 64, 3, 2),
    "3x3/2 narrow": (4, 4, 64, 64, 3, 2),
    "1x1": (4, 4, 64, 128, 1, 1),
    "1x1 odd": (3, 5, 128, 64, 1, 1),
    "1x1/2": (8, 6, 64, 64, 1, 2),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers(layer, rng, interpreted):
    check(rng, TWO, *layer)


PRODUCT = {
    "a tap a load, few stages": mosaic_conv.Blocks(64, 1, 2, 2, False),
    "border, few stages": mosaic_conv.Blocks(64, 1, 2, 2, True),
    "border, large tiles": mosaic_conv.Blocks(64, 2, 2, 3, True),
    "many channels": mosaic_conv.Blocks(256, 1, 2, 2, False),
}


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("blocks", PRODUCT.values(), ids=PRODUCT)
def test_block_sizes_of_output_and_input_gradient(blocks, strides, rng, interpreted, monkeypatch):
    use_blocks(monkeypatch, product=blocks)
    load = TWO if blocks.columns == 64 else [1]
    check(rng, load, 2 * blocks.runs * strides, 8 * strides, blocks.columns, blocks.columns, 3, strides)


WGRAD = {
    "shared, a row": mosaic_wgrad.Blocks(64, 1, 3, 2, 1, 1, True),
    "shared, all rows, split": mosaic_wgrad.Blocks(64, 3, 3, 2, 1, 3, True),
    "apart, long chunks": mosaic_wgrad.Blocks(64, 1, 3, 2, 2, 1, False),
    "apart, slices left over": mosaic_wgrad.Blocks(64, 1, 2, 2, 1, 1, False),
}


@pytest.mark.parametrize("blocks", WGRAD.values(), ids=WGRAD)
def test_block_sizes_of_the_kernel_gradient(blocks, rng, interpreted, monkeypatch):
    use_blocks(monkeypatch, wgrad=blocks)
    check(rng, [1] * 9, 2, 8, 64, 64, 3, 1)


def test_a_single_stage_is_refused(rng, interpreted, monkeypatch):
    # A stage is freed when the step after it has begun, so one stage alone would hang the device.
    use_blocks(monkeypatch, product=mosaic_conv.Blocks(64, 1, 1, 2, False))
    with pytest.raises(ValueError, match="fewer than 2 stages"):
        check(rng, TWO, 4, 4, 64, 64, 1, 1)
    assert not mosaic.product_fits(mosaic_conv.Blocks(64, 1, 2, 1, False), 8, 8)
    assert not mosaic.kernel_gradient_fits(mosaic_wgrad.Blocks(64, 1, 2, 1, 1, 1, False))


def test_a_wrong_unit_is_seen(rng, interpreted, monkeypatch):
    # The check itself: with another unit's kernel it must fail.
    forward = mosaic.forward
    turned = lambda x, kernel, *rest: forward(x, kernel[::-1], *rest)  # noqa: E731
    monkeypatch.setattr(mosaic, "forward", turned)
    with pytest.raises(AssertionError, match="output"):
        check(rng, TWO, 4, 4, 64, 64, 1, 1)


def test_what_fits_and_what_does_not(monkeypatch):
    kernel, three = (8, 3, 3, 64, 128), Window.make(3, 3, 1, None)
    shape = (8, 8, 32, 64)
    assert mosaic.fits(shape, kernel, three, jnp.bfloat16)
    assert not mosaic.fits(shape, kernel, three, jnp.float32)
    assert not mosaic.fits(shape, (8, 3, 3, 64, 100), three, jnp.bfloat16)
    assert not mosaic.fits(shape, (8, 3, 3, 64, 4096), three, jnp.bfloat16)
    assert not mosaic.fits(shape, (8, 7, 7, 64, 128), Window.make(7, 7, 1, None), jnp.bfloat16)
    assert not mosaic.fits((7, 7, 32, 64), kernel, Window.make(3, 3, 2, None), jnp.bfloat16)  # odd, halved
    assert not mosaic.fits(shape, kernel, Window.make(3, 3, 1, 0), jnp.bfloat16)
    assert choose.slots_backend("mosaic", shape, kernel, three, jnp.bfloat16) == "slots"  # no GPU here
    monkeypatch.setattr(choose, "kernels_run_here", lambda: True)
    assert choose.slots_backend("mosaic", shape, kernel, three, jnp.bfloat16) == "mosaic"
    assert choose.slots_backend("slots", shape, kernel, three, jnp.bfloat16) == "slots"


# All routed shapes of ResNet-18, ResNet-50 and VGG-16 at 32, 64 and 224 pixels, and the extremes of ``fits``.
SHAPES = [
    *((size, channels, channels, 3, 1) for size, channels in ((64, 64), (32, 128), (16, 256), (8, 512), (4, 512))),
    *((size, channels, channels, 3, 1) for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512), (2, 512))),
    *((size, channels, 2 * channels, 3, 2) for size, channels in ((64, 64), (32, 128), (16, 256), (56, 64), (14, 256))),
    *((size, channels, channels, 3, 2) for size, channels in ((64, 128), (32, 256), (16, 512), (14, 512), (8, 512))),
    *((size, 4 * channels, channels, 1, 1) for size, channels in ((64, 64), (32, 128), (14, 256), (7, 512))),
    *((size, channels, 4 * channels, 1, 1) for size, channels in ((56, 64), (28, 128), (8, 512), (7, 512))),
    (64, 2048, 2048, 1, 1),
    (2, 2048, 2048, 3, 1),
    (2, 64, 2048, 3, 2),
]


@pytest.mark.parametrize(("size", "channels", "features", "kernel", "strides"), SHAPES)
def test_lowered_for_cuda(size, channels, features, kernel, strides, monkeypatch):
    monkeypatch.setattr(choose, "kernels_run_here", lambda: True)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    slots = jax.eval_shape(lambda: make_slots(sort_by_unit(jnp.zeros(1024, jnp.int32), 8)))
    x = array(size, size, slots.unit.shape[0], channels)
    dy = array(size // strides, size // strides, slots.unit.shape[0], features)

    def passes(x, kernel, slots, dy):
        y, pull = jax.vjp(lambda x, k: routed_conv(x, k, slots, strides=strides, backend="mosaic"), x, kernel)
        return y, *pull(dy)

    given = (x, array(8, kernel, kernel, channels, features), slots, dy)
    text = jax.jit(passes).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu") >= 3 and "stablehlo.convolution" not in text
