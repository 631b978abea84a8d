import numpy as np
from sklearn.datasets import load_digits

from rmn_jax.data import digits


def test_split_is_complete_disjoint_and_stratified():
    arrays = digits.load_arrays()
    train, held_out = arrays["train"], arrays["eval"]
    assert train[0].shape == (1437, 8, 8, 3) and held_out[0].shape == (360, 8, 8, 3)
    assert train[0].dtype == np.uint8 and train[1].dtype == np.int32
    together = np.concatenate([train[0], held_out[0]])[..., 0].reshape(1797, 64)
    source = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(source, axis=0))
    # Ten classes have between 174 and 183 images each: a fifth is 35, 36 or 37.
    counts = np.bincount(held_out[1])
    assert counts.sum() == 360 and counts.min() >= 34 and counts.max() <= 37


def test_values_reach_0_and_255_and_channels_are_equal():
    images, _ = digits.load_arrays()["train"]
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_array_equal(images[..., 0], images[..., 2])
