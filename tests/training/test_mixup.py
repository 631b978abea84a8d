"""Mixup: its formula, the distribution of its weights, and the training step with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_states import BATCH, make, make_batch, normalise, normless

from rmn_jax.training.mixup import mix, mixup_weights, partners
from rmn_jax.training.step import make_mesh, make_train_step


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_have_the_beta_distribution(alpha):
    weights = np.asarray(mixup_weights(jax.random.split(jax.random.key(0), 4000), alpha))
    assert weights.min() >= 0 and weights.max() <= 1
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); 4,000 draws give both to about a hundredth.
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)


def test_neighbours_are_mixed_by_the_weight_of_each_row():
    rows = jnp.array([[0.0, 8.0], [4.0, 0.0], [1.0, 1.0], [3.0, 5.0]])
    weights = jnp.array([0.75, 1.0, 0.5, 0.0])
    assert partners(jnp.arange(4)).tolist() == [1, 0, 3, 2]
    # 0.75 (0, 8) + 0.25 (4, 0); (4, 0) alone; half of each; the partner alone
    assert mix(rows, weights).tolist() == [[1, 6], [4, 0], [2, 3], [1, 1]]
    images = jnp.broadcast_to(rows[:, None, None], (4, 2, 2, 2))
    assert mix(images, weights)[:, 1, 0].tolist() == [[1, 6], [4, 0], [2, 3], [1, 1]]


@pytest.mark.parametrize("devices", [1, 8])
def test_the_loss_weighs_each_label_by_its_share(devices, rng):
    optimizer, alpha, steps_done = optax.sgd(0.1), 0.4, 3
    model, state = make(False, "none", optimizer, normless())
    state, batch = state._replace(step=jnp.int32(steps_done)), make_batch(rng)
    key = jax.random.fold_in(jax.random.key(7), steps_done)  # a weight depends on key, step and example alone
    draw = lambda i: jax.random.beta(jax.random.fold_in(jax.random.fold_in(key, i), 2), alpha, alpha)  # noqa: E731
    weights = np.array([draw(i) for i in batch["index"]])
    images, labels = np.asarray(normalise(batch["image"])), batch["label"]
    other = np.arange(BATCH) ^ 1
    w = weights[:, None, None, None]
    mixed = w * images + (1 - w) * images[other]
    logits = jax.jit(model.clone(axis_name=None).apply)(state.variables, mixed).logits
    log_p = np.asarray(jax.nn.log_softmax(logits))
    rows = np.arange(BATCH)
    losses = -weights * log_p[rows, labels] - (1 - weights) * log_p[rows, labels[other]]
    heavier = np.where(weights > 0.5, labels, labels[other])
    augment = lambda keys, images: normalise(images)  # noqa: E731
    mesh = make_mesh(jax.devices()[:devices])
    step = make_train_step(model, optimizer, augment, mesh, alpha=0.9, mixup=alpha)
    after, loss = jax.device_get(step(state, batch, jax.random.key(7)))
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    assert float(after.metrics.correct) == (log_p.argmax(-1) == heavier).sum()
