"""Features and assignments of a whole split, in the order of the split and without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.config import default_config
from rmn_jax.data.digits import load_arrays
from rmn_jax.training.extraction import extract
from rmn_jax.training.phases import clone_procedures
from rmn_jax.training.run import Run

UNITS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = default_config()
    config.model.backbone, config.model.width, config.model.num_units = "resnet8", 2, UNITS
    config.batch_size, config.eval_batch_size = 288, 100  # 360 images: the fourth batch has 40 rows of padding
    config.data.name = "digits"
    return Run(config, tmp_path_factory.mktemp("run"), devices=jax.devices()[:1], quiet=True)


@pytest.fixture(scope="module")
def plain(run):
    return extract(run, run.initial_state().variables, routed=False)


def test_a_split_comes_in_its_order_with_each_image_once(run, plain):
    images, labels = load_arrays()["eval"]
    np.testing.assert_array_equal(plain.label, labels)
    np.testing.assert_array_equal(plain.position, np.arange(360))
    # The stages of ResNet-8 at width 2 have 2, 2 and 4 input channels.
    assert [features.shape for features in plain.pooled] == [(360, 2), (360, 2), (360, 4)]
    np.testing.assert_array_equal(plain.assignment, np.full((3, 360), -1))  # neither routed nor conditional
    outputs = run.networks.model(False).apply(
        run.initial_state().variables, run.preprocess.evaluate(jnp.asarray(images))
    )
    for found, expected in zip(plain.pooled, outputs.pooled, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_routed_inputs_are_assigned_to_the_nearest_memory(run, plain):
    # Clones compute the same features whatever the assignment. The memories are the features of three images.
    cloned = clone_procedures(run, run.initial_state())
    memory = {f"memory{i + 1}": jnp.asarray(features[:UNITS]) for i, features in enumerate(plain.pooled)}
    routed = extract(run, cloned._replace(memory=memory).variables, routed=True)
    np.testing.assert_array_equal(routed.label, plain.label)
    for i, features in enumerate(plain.pooled):
        np.testing.assert_allclose(routed.pooled[i], features, rtol=1e-4, atol=1e-5)
        distances = np.linalg.norm(features[:, None] - features[None, :UNITS], axis=-1)
        ordered = np.sort(distances, axis=-1)
        clear = ordered[:, 1] - ordered[:, 0] > 1e-4  # rounding does not decide
        assert clear.sum() > 300
        np.testing.assert_array_equal(routed.assignment[i][clear], distances.argmin(-1)[clear])
        assert len(set(routed.assignment[i].tolist())) > 1


def test_the_training_split_and_another_batch_size(run):
    found = extract(run, run.initial_state().variables, routed=False, split="train", batch_size=288)
    np.testing.assert_array_equal(found.label, load_arrays()["train"][1])
    np.testing.assert_array_equal(found.position, np.arange(1437))
