import jax
import numpy as np
import pytest

from rmn_jax.data import device, digits, load
from rmn_jax.data.skipping import SkippedExamples
from rmn_jax.data.sources import ArraySource
from rmn_jax.errors import UserError


def _load(config, sharding=None, seed=0, batch_size=64, eval_batch_size=100):
    return load(config, batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, sharding=sharding)


def _same(one, other):
    for key in ("image", "label", "index", "mask"):
        np.testing.assert_array_equal(one[key], other[key])


def test_a_training_batch_holds_the_examples_it_names(data_config):
    dataset = _load(data_config())
    images, labels = digits.load_arrays()["train"]
    batch = dataset.train_batch(30)
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
        "image": ((64, 8, 8, 3), "uint8"),
        "label": ((64,), "int32"),
        "index": ((64,), "int32"),
        "mask": ((64,), "bool"),
    }
    index = np.asarray(batch["index"])
    np.testing.assert_array_equal(batch["image"], images[index])
    np.testing.assert_array_equal(batch["label"], labels[index])
    assert np.asarray(batch["mask"]).all() and len(set(index.tolist())) == 64


def test_repeats_are_in_a_batch_with_their_labels_and_must_divide_it(data_config):
    dataset = _load(data_config(repeats=4))
    images, labels = digits.load_arrays()["train"]
    batch = dataset.train_batch(3)
    index = np.asarray(batch["index"])
    np.testing.assert_array_equal(index, np.tile(index[:16], 4))
    assert len(set(index.tolist())) == 16 and dataset.steps_per_epoch == 22
    np.testing.assert_array_equal(batch["image"], images[index])
    np.testing.assert_array_equal(batch["label"], labels[index])
    with pytest.raises(UserError, match=r"batch_size is 64, not a multiple of config\.data\.repeats \(3\)"):
        _load(data_config(repeats=3))


def test_an_epoch_has_no_example_twice(data_config):
    dataset = _load(data_config())
    assert dataset.steps_per_epoch == 22  # 1437 // 64
    seen = np.concatenate([np.asarray(dataset.train_batch(22 + k)["index"]) for k in range(22)])
    assert len(np.unique(seen)) == 22 * 64


def test_a_batch_depends_on_seed_and_step_alone(data_config):
    first, second = _load(data_config()), _load(data_config())
    for step in (5, 0, 40):
        _same(first.train_batch(step), second.train_batch(step))
    assert not np.array_equal(first.train_batch(3)["index"], first.train_batch(4)["index"])
    assert not np.array_equal(first.train_batch(3)["index"], _load(data_config(), seed=1).train_batch(3)["index"])


def test_eight_devices_give_the_same_batches_as_one(data_config, eight_way):
    one, eight = (
        _load(data_config(), eval_batch_size=104),
        _load(data_config(), eight_way, eval_batch_size=104),
    )
    batch = eight.train_batch(9)
    assert batch["image"].sharding.is_equivalent_to(eight_way, 4) and batch["mask"].sharding == eight_way
    _same(one.train_batch(9), batch)
    for left, right in zip(one.eval_batches(), eight.eval_batches(), strict=True):
        _same(left, right)


def test_a_mesh_with_explicit_axes_gives_the_same_batches(data_config):
    if jax.device_count() < 8:
        pytest.skip("needs eight (simulated) devices")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    _same(_load(data_config()).train_batch(2), _load(data_config(), sharding, eval_batch_size=8).train_batch(2))


@pytest.mark.parametrize(("split", "examples"), [("eval", 360), ("train", 1437)])
def test_evaluation_yields_every_example_once_in_order(data_config, split, examples):
    images, labels = digits.load_arrays()[split]
    batches = list(_load(data_config()).eval_batches(split))
    assert len(batches) == -(-examples // 100) and all(batch["image"].shape[0] == 100 for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.sum() == examples and mask[:examples].all()
    for key, expected in (("image", images), ("label", labels), ("index", np.arange(examples))):
        np.testing.assert_array_equal(np.concatenate([batch[key] for batch in batches])[mask], expected)


def _broken_source():
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in range(6)])
    return ArraySource(images, np.array([0, 1, 7, 0, 1, -1], np.int32), "made")


def test_unusable_examples_are_replaced_by_the_next_usable_one():
    skipped = SkippedExamples(2)
    split = device.load_split(_broken_source(), (4, 4, 3), 2, skipped)
    assert skipped.count == 2
    np.testing.assert_array_equal(split.readable, [True, True, False, True, True, False])
    np.testing.assert_array_equal(split.positions, [0, 1, 3, 3, 4, 0])
    np.testing.assert_array_equal(split.images[:, 0, 0, 0], [0, 1, 3, 3, 4, 0])
    np.testing.assert_array_equal(split.labels, [0, 1, 0, 0, 1, 0])


def test_an_unusable_example_stops_the_run_by_default():
    with pytest.raises(UserError, match=r"made, example 2: its label is 7, outside 0\.\.1"):
        device.load_split(_broken_source(), (4, 4, 3), 2, SkippedExamples(0))


def test_batches_must_divide_over_the_devices(data_config, eight_way):
    with pytest.raises(UserError, match="batch_size is 12, which does not divide over 8 devices"):
        _load(data_config(), eight_way, batch_size=12)


def test_close_frees_the_images(data_config):
    dataset = _load(data_config())
    before = sum(array.nbytes for array in jax.live_arrays())
    dataset.close()
    assert before - sum(array.nbytes for array in jax.live_arrays()) >= 1797 * 192
