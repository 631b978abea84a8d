"""Unit-sharded state: split as it says, and the same steps as without, on any number of devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from small_states import CLASSES, make_batch, noisy, normalise

from rmn_jax.config import default_config
from rmn_jax.models import RMN, initialise
from rmn_jax.models.dropout import Dropout, StochasticDepth
from rmn_jax.models.layers import Layers
from rmn_jax.models.resnet import Head
from rmn_jax.models.rmn import Backbone
from rmn_jax.training.optimizer import make_optimizer
from rmn_jax.training.sharding import bytes_per_device, describe_split, split_axis, unit_specs
from rmn_jax.training.state import Metrics, TrainState
from rmn_jax.training.step import AXIS, make_eval_step, make_extract_step, make_mesh, make_train_step

OPTIMIZER = optax.sgd(0.02, momentum=0.9)


class Block(nn.Module):
    """A convolution, a norm and ReLU; with ``drop`` also dropout and stochastic depth."""

    features: int
    layers: Layers
    drop: float = 0.0

    @nn.compact
    def __call__(self, x):
        x = self.layers.conv(self.features, (3, 3), name="conv")(x)
        x = Dropout(self.drop, self.layers, name="dropout")(nn.relu(self.layers.norm(name="bn")(x)))
        return StochasticDepth(self.drop, self.layers, name="depth")(x)


def blocks(*features, drop=0.0):
    """A backbone with a stem of 4 channels and one block in each stage."""
    stages = tuple(functools.partial(Block, each, drop=drop) for each in features)
    return Backbone(functools.partial(Block, 4), stages, functools.partial(Head, CLASSES))


def make(units, ema=0.0, routed_stages=None, dtype=jnp.float32, optimizer=OPTIMIZER, drop=0.0):
    """A routed network, and its state with memories that share the inputs."""
    model = RMN(blocks(4, 8, drop=drop), units, axis_name=AXIS, routed_stages=routed_stages, dtype=dtype)
    keys = jax.random.split(jax.random.key(0), 2)
    variables = initialise(model, jax.random.key(0), jnp.zeros((2, 6, 6, 3)), keys=keys)

    def spread(leaf):  # memories on both sides of the features of normalised images
        unit, channel = (jnp.arange(size) for size in leaf.shape)
        lean = 0.3 * (-1.0) ** (unit[:, None] + channel)
        return 0.4 + lean + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape)

    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        memory=jax.tree.map(spread, variables["memory"]),
        opt_state=optimizer.init(variables["params"]),
        metrics=Metrics.zeros(len(model.stages_with_memories), units),
        ema=jax.tree.map(jnp.copy, variables["params"]) if ema else None,
    )
    return model, state


def placed(model, state, devices, shard):
    """The mesh, the specs, and the state on it."""
    mesh = make_mesh(jax.devices()[:devices])
    specs = unit_specs(state, model.stages_with_memories, devices) if shard else None
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), P() if specs is None else specs)
    return mesh, specs, jax.device_put(state, places)


def train(units, devices, shard, steps, ema=0.0, routed_stages=None, optimizer=OPTIMIZER, drop=0.0, **settings):
    """Losses and last state of a run."""
    model, state = make(units, ema, routed_stages, optimizer=optimizer, drop=drop)
    mesh, specs, state = placed(model, state, devices, shard)
    step = make_train_step(model, optimizer, noisy, mesh, alpha=0.9, specs=specs, ema=ema, **settings)
    losses, rng = [], np.random.default_rng(0)
    for _ in range(steps):
        state, loss = step(state, make_batch(rng), jax.random.key(7))
        losses.append(float(loss))
    if shard:
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
        assert held == bytes_per_device(state, specs, devices)
    return np.array(losses), jax.device_get(state)


def assert_same(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=jax.tree_util.keystr(path))


# 8 units: D divides N, so units are split; one device splits nothing. 2 units on 4 devices: channels are split. 3 units
# on 8 devices: the 4 channels of the first stage cannot be divided, the 8 of the second can.
@pytest.mark.parametrize(("units", "devices"), [(8, 1), (8, 2), (8, 4), (8, 8), (2, 4), (3, 8)])
def test_twenty_steps_are_those_of_the_data_parallel_run(units, devices):
    (losses, whole), (split_losses, split) = (train(units, devices, shard, steps=20) for shard in (False, True))
    assert np.ptp(losses) > 0.01 and ((whole.metrics.load > 0).sum(axis=1) >= 2).all()
    assert_same((losses, whole), (split_losses, split))


def test_all_settings_of_a_step_together():
    settings = {"ema": 0.5, "unit_gradient": "own", "accumulation": 2, "mixup": 0.2, "label_smoothing": 0.1}
    one, other = (train(4, 4, shard, 3, routed_stages=(1,), **settings) for shard in (False, True))
    assert_same(one, other)
    kernels = (tree["stage1"]["conv"]["kernel"] for tree in (other[1].ema, other[1].params))
    assert np.any(next(kernels) != next(kernels))


# adamw's two moments are split too. A frozen leaf has no momentum. 2 units on 4 devices: channels are split.
@pytest.mark.parametrize(("units", "name", "freeze"), [(4, "adamw", ""), (2, "nesterov", "stem, stage1/conv, */bias")])
def test_other_optimizers_frozen_leaves_and_dropout(units, name, freeze):
    config = default_config()
    config.optimizer.name, config.optimizer.freeze, config.optimizer.weight_decay_on = name, freeze, "kernels"
    config.learning_rate.peak, config.learning_rate.initial = 0.01, 0.01
    config.optimizer.adam_epsilon = 1e-4  # rounding errors of gradients near 0 are not to be magnified
    optimizer = make_optimizer(config, 10, (1, 2))
    before = make(units, optimizer=optimizer)[1]
    one, other = (train(units, 4, shard, 5, optimizer=optimizer, drop=0.3) for shard in (False, True))
    assert_same(one, other)
    for stage, frozen in (("stage1", bool(freeze)), ("stage2", False)):
        kernels = (state.params[stage]["conv"]["kernel"] for state in (before, other[1]))
        assert np.array_equal(*kernels) == frozen
    assert not np.array_equal(one[0], train(units, 4, True, 5, optimizer=optimizer)[0])  # something was dropped


def test_evaluation_and_features_are_the_same(rng):
    model, state = make(8)
    batch, found = make_batch(rng), []
    for shard in (False, True):
        mesh, specs, state = placed(model, state, 8, shard)
        steps = (make(model, normalise, mesh, specs=specs) for make in (make_eval_step, make_extract_step))
        found.append(jax.device_get([step(state.variables, batch, jax.random.key(0)) for step in steps]))
    assert_same(*found)


def test_the_first_axis_that_can_be_divided_is_split():
    assert split_axis((8, 3, 3, 64, 128), 4) == 0  # two units for each device
    assert split_axis((2, 3, 3, 64, 128), 4) == 3
    assert split_axis((8, 3, 3, 64, 128), 128) == 4
    assert split_axis((8, 64), 128) is None
    assert split_axis((8, 64), 1) is None


def test_the_optimizer_is_split_as_its_parameters_and_the_rest_is_not():
    _, state = make(8, ema=0.5)
    extra = {"stage1": {"conv": {"kernel": jnp.zeros((8,))}}, "stem": {"conv": {"kernel": jnp.zeros((8,))}}}
    specs = unit_specs(state._replace(opt_state=(state.opt_state, extra)), (1, 2), 8)
    assert specs.params["stage1"] == {"conv": {"kernel": P(AXIS)}, "bn": {"scale": P(AXIS), "bias": P(AXIS)}}
    assert specs.opt_state[0][0].trace == specs.ema == specs.params
    rest = (specs.params["stem"], specs.params["head"], specs.batch_stats, specs.memory, specs.metrics, specs.step)
    assert set(jax.tree.leaves((rest, specs.opt_state[1]))) == {P()}  # extra: other shapes than the parameters'


def test_a_nan_on_one_device_is_seen_by_all(rng):
    model, state = make(8)
    kernel = state.params["stage2"]["conv"]["kernel"].at[7, 0, 0, 0, 0].set(jnp.inf)
    state.params["stage2"]["conv"]["kernel"] = kernel
    state = state._replace(memory=jax.tree.map(lambda leaf: leaf.at[7].set(1e4), state.memory))  # unit 7 has no inputs
    mesh, specs, state = placed(model, state, 8, True)
    step = make_train_step(model, OPTIMIZER, noisy, mesh, alpha=0.9, specs=specs)
    assert np.isnan(step(state, make_batch(rng), jax.random.key(7))[1])


def test_the_line_for_people_tells_what_is_split_and_what_is_not():
    _, state = make(8)
    assert describe_split(state, (1, 2), 1) == "config.shard_units: there is one device, so nothing is split"
    # 8 units of 3 x 3 x 4 x 4 + 3 x 3 x 4 x 8 weights, and 2 x 4 + 2 x 8 of the norms, twice with the momentum.
    routed = 2 * 4 * 8 * (9 * 16 + 9 * 32 + 2 * 12)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    line = describe_split(state, (1, 2), 8)
    assert line == (
        f"config.shard_units: each of 8 devices holds {(whole - routed * 7 / 8) / 1e6:.2f} MB of the state, "
        f"not {whole / 1e6:.2f} MB"
    )
    assert describe_split(make(3)[1], (1, 2), 8).endswith(
        "; stage1/bn/bias [3, 4] and 2 more of 6 routed leaves stay whole: no axis can be divided by 8"
    )
