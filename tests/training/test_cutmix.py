"""CutMix: its weights are shares of pixels, alone and beside mixup, and the training step with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_states import BATCH, make, make_batch, normalise, normless

from rmn_jax.training.cutmix import mixed_images, sample_mask
from rmn_jax.training.step import make_mesh, make_train_step, repeated_keys


def constant_images(count, side=16):
    """Image b is b everywhere, so a pixel tells which image it is from."""
    return jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32)[:, None, None, None], (count, side, side, 3))


def test_the_weight_of_a_label_is_the_share_of_its_pixels():
    images, keys = constant_images(400), jax.random.split(jax.random.key(0), 400)
    found, weights = jax.jit(mixed_images, static_argnums=(2, 3))(keys, images, 0.0, 1.0)
    own = np.asarray(found == images).all(-1)
    other = np.asarray(found == images[np.arange(400) ^ 1]).all(-1)
    assert (own ^ other).all()
    np.testing.assert_allclose(weights, own.mean((1, 2)), rtol=1e-6)
    # A rectangle: as many pixels as its rows times its columns.
    assert all(mask.sum() == mask.any(1).sum() * mask.any(0).sum() for mask in other)
    # lambda is uniform; borders cut rectangles, so that more than half of an image stays. 400 draws: error 0.015.
    assert 0.55 < float(weights.mean()) < 0.75


def test_beside_mixup_each_image_takes_one_of_the_two():
    images, keys = constant_images(400), jax.random.split(jax.random.key(1), 400)
    found, weights = jax.jit(mixed_images, static_argnums=(2, 3))(keys, images, 0.8, 1.0)
    values = np.asarray(found)[..., 0]
    own = np.arange(400.0)[:, None, None]
    cut = ((values == own) | (values == (np.arange(400) ^ 1)[:, None, None])).all((1, 2))
    assert 140 < cut.sum() < 260  # 200 expected, standard deviation 10
    w = np.asarray(weights)[~cut, None, None]
    mixed = w * own[~cut] + (1 - w) * (np.arange(400) ^ 1)[~cut, None, None]
    np.testing.assert_allclose(values[~cut], np.broadcast_to(mixed, values[~cut].shape), rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_loss_weighs_each_label_by_its_pixels(devices, rng):
    optimizer = optax.sgd(0.1)
    model, state = make(False, "none", optimizer, normless())
    batch = make_batch(rng)
    key = jax.random.fold_in(jax.random.key(7), 0)  # a rectangle depends on key, step and example alone

    def mask_of(index):
        row = jax.random.fold_in(jax.random.fold_in(key, index), 2)
        return sample_mask(jax.random.fold_in(row, 2), 1.0, 6, 6)

    masks = np.asarray(jax.vmap(mask_of)(batch["index"]))
    images, labels, other = np.asarray(normalise(batch["image"])), batch["label"], np.arange(BATCH) ^ 1
    logits = jax.jit(model.clone(axis_name=None).apply)(
        state.variables, np.where(masks[..., None], images, images[other])
    ).logits
    log_p, rows, weights = np.asarray(jax.nn.log_softmax(logits)), np.arange(BATCH), masks.mean((1, 2))
    losses = -weights * log_p[rows, labels] - (1 - weights) * log_p[rows, labels[other]]
    mesh = make_mesh(jax.devices()[:devices])
    step = make_train_step(model, optimizer, lambda keys, x: normalise(x), mesh, alpha=0.9, cutmix=1.0)
    np.testing.assert_allclose(step(state, batch, jax.random.key(7))[1], losses.mean(), rtol=1e-5)


def test_repeats_have_keys_of_their_own_however_the_batch_is_split():
    # Three inputs, three times.
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.array([5, 2, 9] * 3))
    whole = jax.random.key_data(repeated_keys(keys, 0, 3))
    assert len({tuple(row) for row in whole.tolist()}) == 9
    parts = [jax.random.key_data(repeated_keys(keys[at : at + 3], at, 3)) for at in (0, 3, 6)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
