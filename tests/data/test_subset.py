import numpy as np
import pytest

from rmn_jax.data import load
from rmn_jax.errors import UserError


def test_the_first_classes_are_kept_in_the_order_of_the_split(data_config):
    whole = load(data_config(), batch_size=16, eval_batch_size=400, seed=0)
    part = load(data_config(classes=3), batch_size=16, eval_batch_size=400, seed=0)
    assert part.info.num_classes == 3 and part.info.class_names == whole.info.class_names[:3]
    assert part.info.fingerprint != whole.info.fingerprint
    for split, count in (("train", part.info.train_examples), ("eval", part.info.eval_examples)):
        found = [np.asarray(b[k])[np.asarray(b["mask"])] for b in part.eval_batches(split) for k in ("image", "label")]
        images, labels = np.concatenate(found[::2]), np.concatenate(found[1::2])
        known = [np.asarray(b[k])[np.asarray(b["mask"])] for b in whole.eval_batches(split) for k in ("image", "label")]
        all_images, all_labels = np.concatenate(known[::2]), np.concatenate(known[1::2])
        assert len(images) == count
        np.testing.assert_array_equal(labels, all_labels[all_labels < 3])
        np.testing.assert_array_equal(images, all_images[all_labels < 3])


@pytest.mark.parametrize("classes", [-1, 11])
def test_an_impossible_number_of_classes_is_refused(data_config, classes):
    with pytest.raises(UserError, match=r"config\.data\.classes is .*; digits has 10 classes"):
        load(data_config(classes=classes), batch_size=16, eval_batch_size=16, seed=0)
