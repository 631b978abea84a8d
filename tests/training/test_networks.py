"""The networks of a run: each program is compiled once, and the shapes of a state need no computation."""

import jax
import pytest

from rmn_jax import data
from rmn_jax.config import default_config
from rmn_jax.training import step as steps
from rmn_jax.training.networks import Networks


@pytest.fixture(scope="module")
def networks():
    config = default_config()
    config.model.backbone, config.model.width, config.model.num_units = "resnet8", 2, 3
    config.data.name, config.ema = "digits", 0.5
    dataset = data.load(config.data, batch_size=288, eval_batch_size=360, seed=0)
    preprocess = data.make_preprocess(config.data, dataset.info)
    return Networks(config, dataset.info, preprocess, steps.make_mesh(jax.devices()[:1]), dataset.steps_per_epoch)


def test_a_step_is_made_once(networks):
    for make in (networks.train_step, networks.eval_step):
        assert make(True) is make(True)
        assert make(False) is make(False)
        assert make(True) is not make(False)


def test_plain_and_routed_networks_share_a_backbone(networks):
    plain, routed = networks.model(False), networks.model(True)
    assert not plain.routed and routed.routed
    assert plain.num_units == routed.num_units == 3
    assert plain.axis_name == routed.axis_name == steps.AXIS


@pytest.mark.parametrize("routed", [False, True], ids=["plain", "routed"])
def test_the_shapes_are_those_of_the_initial_state(networks, routed):
    state = networks.initial_state(jax.random.key(0), routed)
    shapes = networks.state_shapes(routed)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    # The stages of ResNet-8 at width 2 have 2, 2 and 4 input channels.
    memories = {f"memory{i + 1}": (3, channels) for i, channels in enumerate((2, 2, 4))}
    assert jax.tree.map(lambda leaf: leaf.shape, shapes.memory, is_leaf=lambda x: hasattr(x, "shape")) == (
        memories if routed else {}
    )
    assert jax.tree.structure(shapes.ema) == jax.tree.structure(shapes.params)


def test_the_step_gets_the_augmentation_of_whole_batches(networks, monkeypatch):
    given = {}
    monkeypatch.setattr(steps, "make_train_step", lambda *_, **settings: given.update(settings))
    config = default_config()
    config.model.backbone, config.mixup, config.cutmix, config.data.repeats = "resnet8", 0.1, 0.7, 4
    mesh = steps.make_mesh(jax.devices()[:1])
    Networks(config, networks._info, networks._preprocess, mesh, 5).train_step(False)
    assert (given["mixup"], given["cutmix"], given["repeats"]) == (0.1, 0.7, 4)
