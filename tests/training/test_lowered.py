"""The lowered training step: its sums over devices, and that no layer computes all units for every input."""

import math
import re
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from lowered import bounded, equations, executed

from benchmarks.counted import collectives, sent, state_shapes
from benchmarks.traffic import data_parallel_reductions, describe
from rmn_jax.bench.measure import load_assignment
from rmn_jax.models import RMN, create_backbone
from rmn_jax.models.resnet import BasicBlock, resnet
from rmn_jax.ops import routed_conv
from rmn_jax.ops.window import convolve
from rmn_jax.routing.layout import sort_by_unit
from rmn_jax.training.sharding import bytes_per_device, unit_specs
from rmn_jax.training.state import Metrics, TrainState
from rmn_jax.training.step import AXIS, make_mesh, make_train_step

UNITS, SIZE, STAGES, NORMS = 8, 8, 2, 6  # norms: one in the stem, two in each block, one in the second stage's shortcut


def network(routed, width=4, backend="auto"):
    backbone = resnet(BasicBlock, (1, 1), width, 5, stem_kernel=3, stem_strides=1, pool=False)
    return RMN(backbone, UNITS, routed=routed, axis_name=AXIS, backend=backend)


def trace_step(routed, batch, width=4, devices=8, backend="auto", shard=False):
    """The traced step of a small network, from shapes alone."""
    model, optimizer = network(routed, width, backend), optax.sgd(0.1, momentum=0.9)
    image, shape = jnp.zeros((1, SIZE, SIZE, 3)), jax.ShapeDtypeStruct
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    state = TrainState(
        step=shape((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        memory=variables.get("memory", {}),
        opt_state=jax.eval_shape(optimizer.init, variables["params"]),
        metrics=jax.eval_shape(lambda: Metrics.zeros(STAGES if routed else 0, UNITS)),
    )
    rows = {
        "image": shape((batch, SIZE, SIZE, 3), jnp.uint8),
        "label": shape((batch,), jnp.int32),
        "index": shape((batch,), jnp.int32),
        "mask": shape((batch,), jnp.bool_),
    }
    mesh = make_mesh(jax.devices()[:devices])
    specs = unit_specs(state, model.stages_with_memories, devices) if shard else None
    prepare = lambda keys, x: x.astype(jnp.float32) / 64 - 2  # noqa: E731
    step = make_train_step(model, optimizer, prepare, mesh, alpha=0.9, specs=specs)
    return step.trace(state, rows, jax.eval_shape(jax.random.key, 0))


@pytest.fixture(scope="module")
def traced():
    """The plain and the routed step, for eight devices."""
    return {routed: trace_step(routed, 64) for routed in (False, True)}


@pytest.fixture(scope="module")
def compiled(traced):
    """The collectives of the compiled routed step."""
    return collectives(traced[True].lower().compile().as_text())


@pytest.mark.parametrize("routed", [False, True], ids=["plain", "routed"])
def test_each_norm_is_summed_over_devices_once_in_each_pass(traced, routed):
    # As traced, before the compiler joins sums: (sum, sum of squares, count) of C channels is one array of 2 C + 1.
    sums = list(equations(traced[routed].jaxpr.jaxpr, "psum"))
    sources = [str(equation.source_info.name_stack) for equation in sums]
    norms = Counter(source for source in sources if re.search(r"/(bn\d|downsample_bn)$", source))
    assert len(norms) == 2 * NORMS and set(norms.values()) == {1}
    assert sum("transpose" in source for source in norms) == NORMS
    for equation, source in zip(sums, sources, strict=True):
        if source in norms:
            assert len(equation.invars) == 1
            channels = 8 if "stage2" in source else 4
            units = (UNITS,) if routed and "stem" not in source else ()
            assert equation.invars[0].aval.shape == (*units, 2 * channels + 1)


def test_routing_adds_only_the_sums_of_the_memories(traced):
    plain, routed = (len(list(equations(step.jaxpr.jaxpr, "psum"))) for step in traced.values())
    assert routed == plain + 2 * STAGES  # for each stage: the sums of its inputs by unit, and their numbers


def test_the_step_sums_what_the_scaling_model_predicts(traced, compiled):
    reductions = data_parallel_reductions(describe(network(True), SIZE))
    assert len(reductions) == 2 * NORMS + 2
    expected = sum(reduction.bytes for reduction in reductions)
    sums = equations(traced[True].jaxpr.jaxpr, "psum")
    assert sum(4 * math.prod(value.aval.shape) for equation in sums for value in equation.invars) == expected
    # The biases of a block's last norm and of its shortcut's norm have the same gradient; the compiler sums it once.
    assert sum(sum(collective.bytes) for collective in compiled) == expected - 4 * UNITS * 8
    norms = [c for c in compiled if "bn" in c.name and "transpose" not in c.name]
    forward = Counter(reduction.bytes for reduction in reductions if reduction.name == "norm forward")
    assert Counter(size for collective in norms for size in collective.bytes) == forward


def test_the_compiled_step_waits_for_no_more_sums(compiled):
    # At most one for each norm and pass, one for the gradients and one for the memories. The compiler joins the sums of
    # a block's first norm and of its shortcut's norm. It joins gradients and memories to sums that it waits for anyway.
    assert {collective.kind for collective in compiled} == {"all-reduce"}
    assert len(compiled) <= 2 * NORMS + 2


def test_split_units_send_the_same_bytes(compiled):
    # One row a device: a stage has more parameters than features, so the first one is gathered again for its gradients.
    step = trace_step(True, 8, shard=True)
    split = collectives(step.lower().compile().as_text())
    bytes_of = lambda kind: sum(sum(each.bytes) for each in split if each.kind == kind)  # noqa: E731
    network_shapes = jax.eval_shape(network(True).init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    stages = [network_shapes[f"stage{i}"] for i in (1, 2)]
    first, both = (4 * sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (stages[0], stages))
    # As above, two biases have the same gradient: 8 channels of a unit on each device.
    assert bytes_of("reduce-scatter") == both / 8 - 4 * 8
    assert both <= bytes_of("all-gather") <= both + first  # XLA:CPU may join the two
    # The gradients of routed leaves are gone from the sums: an all-reduce is a reduce-scatter and an all-gather.
    again = (bytes_of("all-gather") - both) * 7 / 8
    assert sent(split, 8) - again == pytest.approx(sent(compiled, 8), rel=0.01)
    assert kernel_gathers(step) == 2 + 3 + 2  # stage 1, stage 2 with its shortcut, and stage 1 again
    assert kernel_gathers(trace_step(True, 64, shard=True)) == 2 + 3  # 8 rows a device: fewer parameters than features


def kernel_gathers(step):
    """How many kernels [N, kh, kw, C, O] a traced step gathers."""
    return sum(equation.outvars[0].aval.ndim == 5 for equation in equations(step.jaxpr.jaxpr, "all_gather"))


@pytest.mark.parametrize("units", [8, 64])
def test_split_units_keep_an_eighth_of_the_state_of_resnet18(units):
    model = RMN(create_backbone("resnet18", 200, 64), num_units=units, axis_name=AXIS)
    state = state_shapes(model, optax.sgd(0.1, momentum=0.9), 64)
    whole, split = (
        bytes_per_device(state, specs, 8)
        for specs in (jax.tree.map(lambda _: P(), state), unit_specs(state, (1, 2, 3, 4), 8))
    )
    # 11.17M parameters in the stages (the paper's 89.4M with N = 8, without 0.11M in stem and head), with momentum.
    routed = 2 * 4 * units * 11.165e6
    assert whole - split == pytest.approx(routed * 7 / 8, rel=2e-3)
    assert split / whole < (0.13 if units == 8 else 0.126)


def product_operations(monkeypatch, routed, backend="auto"):
    """Operations of every matrix product and convolution of a step, traced as for a GPU (nothing is compiled)."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return list(bounded(trace_step(routed, 1024, width=8, devices=1, backend=backend).jaxpr.jaxpr))


@pytest.mark.parametrize("backend", ["auto", "tiles", "scan"])
def test_a_routed_step_computes_no_more_than_its_tiles(backend, monkeypatch):
    plain, routed = product_operations(monkeypatch, False), product_operations(monkeypatch, True, backend)
    # 8 units with 1,024 inputs fill at most 39 tiles of 32: 1.22 of the rows. Norms and distances take little more.
    assert sum(routed) < 1.3 * sum(plain)
    assert max(routed) < 1.3 * max(plain)


class Dense:
    """What no backend may do: compute every unit's convolution of every input, then select."""

    def forward(self, x, kernel, layout, window):
        everything = jax.vmap(lambda unit_kernel: convolve(x, unit_kernel, window))(kernel)
        return jnp.take_along_axis(everything, layout.unit[None, :, None, None, None], axis=0)[0]

    def input_gradient(self, dy, kernel, layout, window, shape):
        x = jnp.zeros(shape, dy.dtype)
        return jax.vjp(lambda x: self.forward(x, kernel, layout, window), x)[1](dy)[0]

    def kernel_gradient(self, x, dy, layout, window, shape):
        kernel = jnp.zeros(shape, dy.dtype)
        return jax.vjp(lambda kernel: self.forward(x, kernel, layout, window), kernel)[1](dy)[0]


class DenseInALoop(Dense):
    """The same in a loop over units, where no single product is large."""

    def forward(self, x, kernel, layout, window):
        def unit(total, j):
            in_unit = (layout.unit == j)[:, None, None, None]
            return jnp.where(in_unit, convolve(x, kernel[j], window), total), None

        out = jax.eval_shape(lambda: convolve(x, kernel[0], window))
        return lax.scan(unit, jnp.zeros(out.shape, out.dtype), jnp.arange(layout.num_units))[0]


@pytest.mark.parametrize("dense", [Dense(), DenseInALoop()], ids=["at once", "in a loop"])
def test_the_count_detects_a_dense_implementation(monkeypatch, dense):
    plain = product_operations(monkeypatch, False)
    monkeypatch.setitem(sys.modules[routed_conv.__module__].BACKENDS, "scan", dense)
    routed = product_operations(monkeypatch, True, "scan")
    # Everything but the stem and the head costs N times as much.
    assert sum(routed) > 0.7 * UNITS * sum(plain)
    assert max(routed) > 0.9 * UNITS * max(plain)


@pytest.mark.parametrize("backend", ["loop", "tiles", "scan"])
def test_a_routed_convolution_executes_no_more_than_its_tiles(backend, rng):
    # If the trips of a loop depend on the load, only a run gives their number.
    batch, size, channels = 512, 4, 4
    x, dy = (jnp.asarray(rng.normal(size=(batch, size, size, channels)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(UNITS, 1, 1, channels, channels)), jnp.float32)
    each_pass = 2 * batch * size * size * channels**2

    def passes(x, kernel, dy, layout):
        output, pull = jax.vjp(lambda x, kernel: routed_conv(x, kernel, layout, backend=backend), x, kernel)
        return output, *pull(dy)

    for load in ("random", "zipf", "all-to-one"):
        layout = sort_by_unit(jnp.sort(jnp.asarray(load_assignment(load, batch, UNITS))), UNITS)
        results, total = executed(jax.make_jaxpr(passes)(x, kernel, dy, layout), x, kernel, dy, *layout)
        np.testing.assert_allclose(results[0], jnp.einsum("bhwc,bco->bhwo", x, kernel[layout.unit, 0, 0]), atol=1e-4)
        # Tiles of at most 32 rows: 8 units with 512 inputs fill at most 23 of them, 1.44 of the rows.
        assert 3 * each_pass <= total <= 1.45 * 3 * each_pass, (load, total / each_pass / 3)
