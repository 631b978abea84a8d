"""Features of inner layers by name, compared with their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.errors import UserError
from rmn_jax.inference import extract_features, feature_names
from rmn_jax.models import RMN, create_backbone, initialise


@pytest.fixture(scope="module")
def routed():
    model = RMN(create_backbone("resnet8", 5, 8), 3)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = initialise(model, jax.random.key(1), images)
    memory = {name: jax.random.normal(jax.random.key(2), leaf.shape) for name, leaf in variables["memory"].items()}
    return model, {**variables, "memory": memory}, images


def test_each_name_gives_its_feature(routed):
    model, variables, images = routed
    found = jax.jit(lambda v, x: extract_features(model, v, x))(variables, images)
    assert set(found) == set(feature_names(model))
    assert found["stage3"].shape == (4, 2, 2, 64)
    np.testing.assert_allclose(found["pooled2"], np.mean(found["stage1"], (1, 2)), rtol=1e-5, atol=1e-6)
    for i in (1, 2, 3):
        gap = np.asarray(found[f"pooled{i}"])[:, None] - np.asarray(variables["memory"][f"memory{i}"])
        np.testing.assert_allclose(found[f"distances{i}"], (gap**2).sum(-1), rtol=1e-4)
        np.testing.assert_array_equal(found[f"assignment{i}"], found[f"distances{i}"].argmin(-1))
    head = variables["params"]["head"]["fc"]
    logits = np.mean(found["stage3"], (1, 2)) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-5)


def test_features_that_are_not_named_are_not_computed(routed):
    model, variables, images = routed
    pick = lambda names: jax.jit(lambda v, x: extract_features(model, v, x, names)).lower(variables, images)  # noqa: E731
    cost = {names: pick(names).compile().cost_analysis()["flops"] for names in (("pooled1",), ("logits",))}
    assert cost[("pooled1",)] < cost[("logits",)] / 2


def test_a_plain_network_has_no_distances():
    plain = RMN(create_backbone("resnet8", 5, 8), 3, routed=False)
    assert feature_names(plain) == ("stage1", "stage2", "stage3", "pooled1", "pooled2", "pooled3", "logits")
    with pytest.raises(UserError, match="no feature 'distances1'.*it has stage1"):
        extract_features(plain, {}, jnp.zeros((1, 8, 8, 3)), ("stage1", "distances1"))
