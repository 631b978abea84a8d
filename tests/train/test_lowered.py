"""The lowered update: what it sums over devices, and that no layer computes all units for every input."""

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
from lowered import bounded, collectives, equations, executed

from rmn_jax.bench.measure import load_assignment
from rmn_jax.bench.traffic import data_parallel_reductions, describe
from rmn_jax.dispatch import make_plan
from rmn_jax.models import RMN
from rmn_jax.models.resnet import BasicBlock, resnet
from rmn_jax.ops import routed_conv
from rmn_jax.ops.window import convolve
from rmn_jax.train.state import Metrics, TrainState
from rmn_jax.train.step import AXIS, make_mesh, make_train_step

UNITS, SIZE, STAGES, NORMS = 8, 8, 2, 6  # norms: the stem's, two a block, the second stage's shortcut


def network(routed, width=4, backend="auto"):
    backbone = resnet(BasicBlock, (1, 1), width, 5, stem_kernel=3, stem_strides=1, pool=False)
    return RMN(backbone, UNITS, routed=routed, axis_name=AXIS, backend=backend)


def trace_update(routed, batch, width=4, devices=8, backend="auto"):
    """The traced update of a small network on shapes alone."""
    model, optimizer = network(routed, width, backend), optax.sgd(0.1, momentum=0.9)
    image, shape = jnp.zeros((1, SIZE, SIZE, 3)), jax.ShapeDtypeStruct
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    state = TrainState(
        update=shape((), jnp.int32),
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
    step = make_train_step(model, optimizer, lambda keys, x: x.astype(jnp.float32) / 64 - 2, mesh, alpha=0.9)
    return step.trace(state, rows, jax.eval_shape(jax.random.key, 0))


@pytest.fixture(scope="module")
def traced():
    """Plain and routed, for eight devices."""
    return {routed: trace_update(routed, 64) for routed in (False, True)}


@pytest.fixture(scope="module")
def compiled(traced):
    """What the compiled routed update sums over devices."""
    return collectives(traced[True].lower().compile().as_text())


@pytest.mark.parametrize("routed", [False, True], ids=["plain", "routed"])
def test_each_norm_is_summed_over_devices_once_a_pass(traced, routed):
    # As traced, before a compiler joins any: (sum, sum of squares, count) of C channels is one array of 2 C + 1.
    sums = list(equations(traced[routed].jaxpr.jaxpr, "psum"))
    places = [str(equation.source_info.name_stack) for equation in sums]
    norms = Counter(place for place in places if re.search(r"/(bn\d|downsample_bn)$", place))
    assert len(norms) == 2 * NORMS and set(norms.values()) == {1}
    assert sum("transpose" in place for place in norms) == NORMS
    for equation, place in zip(sums, places, strict=True):
        if place in norms:
            assert len(equation.invars) == 1
            channels = 8 if "stage2" in place else 4
            units = (UNITS,) if routed and "stem" not in place else ()
            assert equation.invars[0].aval.shape == (*units, 2 * channels + 1)


def test_routing_adds_the_memories_sums_alone(traced):
    plain, routed = (len(list(equations(update.jaxpr.jaxpr, "psum"))) for update in traced.values())
    assert routed == plain + 2 * STAGES  # of each stage the sum of its inputs and their number


def test_the_update_sums_what_the_scaling_model_says(traced, compiled):
    reductions = data_parallel_reductions(describe(network(True), SIZE))
    assert len(reductions) == 2 * NORMS + 2
    expected = sum(reduction.bytes for reduction in reductions)
    sums = equations(traced[True].jaxpr.jaxpr, "psum")
    assert sum(4 * math.prod(value.aval.shape) for equation in sums for value in equation.invars) == expected
    # The biases of a block's last norm and of its shortcut's have one gradient, which the compiler sums once.
    assert sum(sum(collective.bytes) for collective in compiled) == expected - 4 * UNITS * 8
    norms = [c for c in compiled if "bn" in c.name and "transpose" not in c.name]
    forward = Counter(reduction.bytes for reduction in reductions if reduction.name == "norm forward")
    assert Counter(size for collective in norms for size in collective.bytes) == forward


def test_the_compiled_update_waits_for_no_more_sums(compiled):
    # At most one for each norm and pass, one for the gradients and one for the memories: the compiler joins those of
    # a block's first norm and its shortcut's, and adds gradients and memories to sums that it waits for anyway.
    assert {collective.kind for collective in compiled} == {"all-reduce"}
    assert len(compiled) <= 2 * NORMS + 2


def products_of_update(monkeypatch, routed, backend="auto"):
    """Operations of every product of an update, traced as for an accelerator (nothing is compiled)."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return list(bounded(trace_update(routed, 1024, width=8, devices=1, backend=backend).jaxpr.jaxpr))


@pytest.mark.parametrize("backend", ["auto", "tiles", "visits"])
def test_a_routed_update_computes_no_more_than_its_tiles(backend, monkeypatch):
    plain, routed = products_of_update(monkeypatch, False), products_of_update(monkeypatch, True, backend)
    # 8 units with 1,024 inputs fill at most 39 tiles of 32: 1.22 of the rows. Norms and distances take little more.
    assert sum(routed) < 1.3 * sum(plain)
    assert max(routed) < 1.3 * max(plain)


class Dense:
    """What must not slip in: every unit's convolution of every input, and then a choice."""

    def forward(self, x, kernel, plan, window):
        everything = jax.vmap(lambda own: convolve(x, own, window))(kernel)
        return jnp.take_along_axis(everything, plan.unit[None, :, None, None, None], axis=0)[0]

    def input_gradient(self, dy, kernel, plan, window, shape):
        x = jnp.zeros(shape, dy.dtype)
        return jax.vjp(lambda x: self.forward(x, kernel, plan, window), x)[1](dy)[0]

    def kernel_gradient(self, x, dy, plan, window, shape):
        kernel = jnp.zeros(shape, dy.dtype)
        return jax.vjp(lambda kernel: self.forward(x, kernel, plan, window), kernel)[1](dy)[0]


class DenseInALoop(Dense):
    """The same behind a loop over units, where no single product is large."""

    def forward(self, x, kernel, plan, window):
        def unit(total, j):
            own = (plan.unit == j)[:, None, None, None]
            return jnp.where(own, convolve(x, kernel[j], window), total), None

        out = jax.eval_shape(lambda: convolve(x, kernel[0], window))
        return lax.scan(unit, jnp.zeros(out.shape, out.dtype), jnp.arange(plan.num_units))[0]


@pytest.mark.parametrize("dense", [Dense(), DenseInALoop()], ids=["at once", "in a loop"])
def test_a_dense_implementation_would_be_seen(monkeypatch, dense):
    plain = products_of_update(monkeypatch, False)
    monkeypatch.setitem(sys.modules[routed_conv.__module__].BACKENDS, "visits", dense)
    routed = products_of_update(monkeypatch, True, "visits")
    # All but the stem and the head are N times as much.
    assert sum(routed) > 0.7 * UNITS * sum(plain)
    assert max(routed) > 0.9 * UNITS * max(plain)


@pytest.mark.parametrize("backend", ["loop", "tiles", "visits"])
def test_a_routed_convolution_executes_no_more_than_its_tiles(backend, rng):
    # Where a loop's trips follow the load, only running it tells.
    batch, size, channels = 512, 4, 4
    x, dy = (jnp.asarray(rng.normal(size=(batch, size, size, channels)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(UNITS, 1, 1, channels, channels)), jnp.float32)
    each_pass = 2 * batch * size * size * channels**2

    def passes(x, kernel, dy, plan):
        output, pull = jax.vjp(lambda x, kernel: routed_conv(x, kernel, plan, backend=backend), x, kernel)
        return output, *pull(dy)

    for load in ("random", "zipf", "all-to-one"):
        plan = make_plan(jnp.sort(jnp.asarray(load_assignment(load, batch, UNITS))), UNITS)
        results, total = executed(jax.make_jaxpr(passes)(x, kernel, dy, plan), x, kernel, dy, *plan)
        np.testing.assert_allclose(results[0], jnp.einsum("bhwc,bco->bhwo", x, kernel[plan.unit, 0, 0]), atol=1e-4)
        # Tiles of at most 32 rows: 8 units with 512 inputs fill at most 23 of them, 1.44 of the rows.
        assert 3 * each_pass <= total <= 1.45 * 3 * each_pass, (load, total / each_pass / 3)
