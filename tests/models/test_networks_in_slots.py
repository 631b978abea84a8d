"""Networks whose stages are in slots against the same networks on sorted rows: all outputs, statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmn_jax.models import RMN, convnext, efficientnet, initialise, resnet, vgg

UNITS, BATCH, SIZE = 3, 11, 12
MBCONVS = ((((1, 3, 1, 16), 1),), (((6, 5, 2, 16), 2),))
NETWORKS = {  # every kind of block, few of each
    "basic block": resnet.resnet(resnet.BasicBlock, (1, 1), 8, 5, stem_kernel=3, stem_strides=1, pool=False),
    "bottleneck": resnet.resnet(resnet.Bottleneck, (1, 1), 8, 5, stem_kernel=7, stem_strides=2, pool=True),
    "vgg": vgg.vgg(((8,), (8, 16)), 5, dropped_pools=1, grid=4, width=32),
    "mbconv": efficientnet.efficientnet(MBCONVS, 5, small=False),
    "convnext": convnext.convnext((1, 1), 8, 5, small=True),
}
# By stage: any load, with a unit that gets nothing, and all to one.
LOADS = [[0, 2, 0, 0, 2, 2, 0, 0, 0, 0, 0], [1] * BATCH]


@pytest.mark.parametrize("name", NETWORKS)
def test_training_and_evaluation(name, rng, monkeypatch):
    monkeypatch.setattr(convnext, "LAYER_SCALE", 0.5)  # at 1e-6 no difference in a block would show
    model = RMN(NETWORKS[name], UNITS, attention="conditional", router="memory")
    images = jnp.float32(rng.normal(size=(BATCH, SIZE, SIZE, 3)))
    keys = jax.random.split(jax.random.key(3), BATCH)
    variables = initialise(model.clone(backend="loop"), jax.random.key(1), images, keys=keys)
    params = variables.pop("params")
    # Draws from the unit's own leaves must differ, or a wrong unit would go unseen: they do, each is drawn apart.
    stages = len(model.backbone.stages)
    assignment = jnp.array([LOADS[i % 2] for i in range(stages)], jnp.int32)
    weights = jnp.float32(rng.normal(size=(BATCH, 5)))

    def step(params, backend, train):
        network = model.clone(backend=backend)

        def loss(params):
            outputs, changed = network.apply(
                {"params": params, **variables},
                images,
                train=train,
                assignment=assignment,
                keys=keys,
                mutable=["batch_stats"],
            )
            return jnp.sum(outputs.logits * weights), (outputs, changed)

        return jax.value_and_grad(loss, has_aux=True)(params)

    for train in (True, False):
        expected = jax.jit(step, static_argnums=(1, 2))(params, "loop", train)
        found = jax.jit(step, static_argnums=(1, 2))(params, "slots", train)
        paths = jax.tree_util.tree_leaves_with_path(expected)
        assert len(paths) > 20
        for (path, wanted), value in zip(paths, jax.tree.leaves(found), strict=True):
            scale = float(np.max(np.abs(wanted), initial=1.0))
            np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=2e-4 * scale, err_msg=str(path))


def test_a_prediction_of_one_image(rng):
    model = RMN(NETWORKS["basic block"], UNITS)
    image = jnp.float32(rng.normal(size=(1, SIZE, SIZE, 3)))
    variables = initialise(model, jax.random.key(1), image)
    found, expected = (model.clone(backend=name).apply(variables, image).logits for name in ("mosaic", "loop"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
