"""Every page of configs/ builds: its values are valid and the shapes of its network fit. Nothing is run."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from rmn_jax import config as configuration
from rmn_jax.cli.pages import load_config
from rmn_jax.models import build_model
from rmn_jax.training.optimizer import learning_rate, make_optimizer

PAGES = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))
SIZES = {"digits": (8, 10), "cifar100": (32, 100), "tiny_imagenet": (64, 200), "imagenet2012": (224, 1000)}


@pytest.mark.parametrize("variant", ["rmn", "plain"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_builds(page, variant):
    config = load_config(f"{page}:{variant}")
    configuration.validate(config, device_count=8)
    assert config.method == variant
    size, classes = SIZES[config.data.name]
    assert config.data.image_size in (0, size)
    model = build_model(config, classes, size, routed=variant == "rmn")
    keys = jax.random.split(jax.random.key(0), 2)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, size, size, 3)), keys=keys))
    assert shapes["params"]["stage1"]
    jax.eval_shape(make_optimizer(config, 10).init, shapes["params"])


def test_the_learning_rate_follows_the_paper():
    config = configuration.default_config()
    rate = learning_rate(config, steps_per_epoch=100)
    assert float(rate(0)) == pytest.approx(1e-5, rel=0.01)
    assert float(rate(250)) == pytest.approx((1e-5 + 0.48) / 2, rel=1e-4)  # half way up the 5 epochs
    assert float(rate(500)) == pytest.approx(0.48)
    assert float(rate(6250)) == pytest.approx((0.48 + 1e-5) / 2, rel=1e-3)  # half way down the cosine
    assert float(rate(12000)) == pytest.approx(1e-5, rel=0.01)


def test_linear_scaling_multiplies_the_rate_by_the_batch_over_its_reference():
    config = configuration.default_config()
    config.learning_rate.scaling = "linear"
    config.learning_rate.peak = 0.1
    assert float(learning_rate(config, 100)(500)) == pytest.approx(0.4)  # 1024 / 256


def test_a_configuration_is_the_same_after_json(tmp_path):
    config = configuration.default_config()
    config.model.num_units = 5
    path = tmp_path / "config.json"
    path.write_text(configuration.to_json(config))
    assert configuration.from_json(path) == config
    assert configuration.differences(config, configuration.default_config()) == [
        "config.model.num_units is 5 in the run folder, 8 now"
    ]
