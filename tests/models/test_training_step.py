"""One optimizer step of each kind of backbone, routed, with attention, dropout and stochastic depth.

The networks have every kind of block of the full ones, but few of each: a CPU compiles a full network for up to a
minute. ``tests/training/test_step.py`` tests the step with basic blocks.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmn_jax.models import RMN, convnext, efficientnet, initialise, resnet, vgg
from rmn_jax.training.cloning import is_procedural
from rmn_jax.training.state import Metrics, TrainState
from rmn_jax.training.step import AXIS, make_mesh, make_train_step

UNITS, BATCH, SIZE = 3, 8, 12
MBCONVS = ((((1, 3, 1, 16), 1),), (((6, 5, 2, 16), 2),))
NETWORKS = {
    "bottleneck": resnet.resnet(resnet.Bottleneck, (1, 1), 8, 5, stem_kernel=7, stem_strides=2, pool=True),
    "vgg": vgg.vgg(((8,), (8, 16)), 5, dropped_pools=1, grid=4, width=32),
    "mbconv": efficientnet.efficientnet(MBCONVS, 5, small=False),
    "convnext": convnext.convnext((1, 1), 8, 5, small=True),
}


def first_state(model, images, optimizer):
    """A state whose memories 1 and 2 are the features of two inputs; memory 3 is far from all, its unit gets none.

    The two inputs have medium contrast, so that both units get several inputs. Batch norm over a single input would
    magnify rounding errors.
    """
    model = model.clone(axis_name=None)
    variables = initialise(model, jax.random.key(1), images)
    keys = jax.random.split(jax.random.key(3), BATCH)
    run = lambda v: model.apply(v, images, train=True, keys=keys, mutable=["batch_stats"])[0]  # noqa: E731
    pooled = jax.jit(run)(variables).pooled
    far = lambda p: jnp.stack([p[2], p[5], jnp.full(p.shape[1:], 1e3)])  # noqa: E731
    memory = {f"memory{i + 1}": far(p) for i, p in enumerate(pooled)}
    opt_state = optimizer.init(variables["params"])
    metrics = Metrics.zeros(len(pooled), UNITS)
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, variables["params"], variables.get("batch_stats", {}), memory, opt_state, metrics)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_depends_neither_on_the_order_nor_on_the_layout_of_the_batch(name, monkeypatch):
    monkeypatch.setattr(convnext, "LAYER_SCALE", 0.5)  # at 1e-6 the changes within a block would round to nothing
    model = RMN(NETWORKS[name], UNITS, attention="conditional", axis_name=AXIS)
    optimizer = optax.sgd(1.0)  # rate 1: the change of a parameter is its gradient
    contrast = jnp.arange(1, BATCH + 1)[:, None, None, None]
    images = jax.random.normal(jax.random.key(0), (BATCH, SIZE, SIZE, 3)) * contrast
    index = jnp.arange(BATCH)
    batch = {"image": images, "label": index % 5, "index": index, "mask": index >= 0}
    before = jax.device_get(first_state(model, images, optimizer))
    mesh = make_mesh(jax.devices()[:2])
    step = make_train_step(model, optimizer, lambda keys, x: x, mesh, alpha=0.9)

    # In reverse order the rows move to other devices and sort differently; or they are laid out in tiles. The random
    # draws of each input and its contribution stay the same.
    monkeypatch.setattr("rmn_jax.routing.layout.slots_per_tile", lambda *_: 2)
    in_tiles = make_train_step(model.clone(backend="tiles"), optimizer, lambda keys, x: x, mesh, alpha=0.9)
    states = []
    for run, order in ((step, index), (step, index[::-1]), (in_tiles, index)):
        rows = {key: array[order] for key, array in batch.items()}
        states.append(jax.device_get(run(jax.tree.map(jnp.array, before), rows, jax.random.key(2))[0]))
    one = states[0]
    for other, part in itertools.product(states[1:], ("params", "batch_stats", "memory", "metrics")):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)  # noqa: E731
        jax.tree.map(close, getattr(one, part), getattr(other, part))

    load = one.metrics.load
    assert (load[:, 2] == 0).all() and (load.sum(1) == BATCH).all()
    assert (load[0, :2] > 0).all()
    assert np.isfinite(one.metrics.loss)
    changes = jax.tree.map(lambda a, b: np.abs(a - b), before.params, one.params)
    for path, change in jax.tree_util.tree_leaves_with_path(changes):
        part, layer, leaf = path[0].key, path[-2].key, path[-1].key
        if is_procedural(path):
            used = load[int(part.removeprefix("stage")) - 1] > 0
            assert (change[~used] == 0).all(), path
            change = change[used]
        # A norm cancels the bias before it. Attention has one hidden value, whose ReLU may be 0 for all inputs.
        if not (layer.startswith("conv") and leaf == "bias") and not part.startswith("attention"):
            assert (change > 0).any(), path
