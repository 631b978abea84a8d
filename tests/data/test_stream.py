import itertools
import threading

import jax
import numpy as np
import pytest

from rmn_jax.data import load, stream, worker
from rmn_jax.data.crop import random_resized_crop


def _load(config, sharding=None, seed=0, batch_size=24, eval_batch_size=16):
    return load(config, batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, sharding=sharding)


@pytest.fixture
def stream_config(data_config, image_folder):
    def make(**overrides):
        settings = {"name": "folder", "path": str(image_folder), "image_size": 16, "pipeline": "stream"}
        return data_config(**{**settings, **overrides})

    return make


def _same(one, other):
    for key in ("image", "label", "index", "mask"):
        np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("augment", ["none", "resized_crop_flip"])
def test_both_pipelines_give_the_same_examples_and_the_same_evaluation(stream_config, augment):
    stream, device = (_load(stream_config(pipeline=name, augment=augment)) for name in ("stream", "device"))
    assert stream.info.streamed and not device.info.streamed
    for step in (0, 1, 4):
        one, other = stream.train_batch(step), device.train_batch(step)
        np.testing.assert_array_equal(one["index"], other["index"])
        np.testing.assert_array_equal(one["label"], other["label"])
        if augment == "none":
            _same(one, other)
    for split in ("eval", "train"):
        for one, other in zip(stream.eval_batches(split), device.eval_batches(split), strict=True):
            np.testing.assert_array_equal(one["mask"], other["mask"])
            mask = np.asarray(one["mask"])
            for key in ("image", "label", "index"):
                np.testing.assert_array_equal(np.asarray(one[key])[mask], np.asarray(other[key])[mask])
    assert stream.info._replace(streamed=False) == device.info
    stream.close()


def test_a_batch_depends_on_seed_and_step_alone(stream_config):
    config = stream_config(augment="resized_crop_flip")
    one, other = _load(config), _load(config)
    in_order = [one.train_batch(step) for step in range(5)]
    for step in (3, 4, 1):
        _same(in_order[step], other.train_batch(step))
    assert in_order[0]["image"].shape == (24, 16, 16, 3)
    different = _load(config, seed=1).train_batch(0)
    assert not np.array_equal(in_order[0]["index"], different["index"])
    one.close(), other.close()


def test_crops_differ_between_epochs(stream_config):
    dataset = _load(stream_config(augment="resized_crop_flip"), batch_size=54)
    first, second = dataset.train_batch(0), dataset.train_batch(1)
    rows = {int(position): row for row, position in enumerate(np.asarray(second["index"]))}
    same = [
        np.array_equal(first["image"][row], second["image"][rows[int(position)]])
        for row, position in enumerate(np.asarray(first["index"]))
    ]
    assert len(same) == 54 and sum(same) < 5
    dataset.close()


def test_eight_devices_give_the_same_batches_as_one(stream_config, eight_way):
    config = stream_config(augment="resized_crop_flip")
    one, eight = _load(config), _load(config, eight_way)
    batch = eight.train_batch(2)
    assert batch["image"].sharding == eight_way
    _same(one.train_batch(2), batch)
    for left, right in zip(one.eval_batches(), eight.eval_batches(), strict=True):
        _same(left, right)
    one.close(), eight.close()


def test_two_worker_processes_give_the_same_batches_as_threads(stream_config):
    none, two = (_load(stream_config(augment="resized_crop_flip", workers=count)) for count in (0, 2))
    try:
        for step in (1, 2, 3):
            _same(none.train_batch(step), two.train_batch(step))
    finally:
        none.close(), two.close()


def test_evaluation_pads_the_last_batch(stream_config):
    dataset = _load(stream_config())
    batches = list(dataset.eval_batches("train"))
    masks = [np.asarray(batch["mask"]) for batch in batches]
    assert [mask.sum() for mask in masks] == [16, 16, 16, 6]  # 54 in batches of 16
    index = np.concatenate([np.asarray(batch["index"]) for batch in batches])
    np.testing.assert_array_equal(index[np.concatenate(masks)], np.arange(54))
    assert isinstance(batches[0]["image"], jax.Array)


def test_without_workers_more_threads_than_two_decode_at_the_same_time(stream_config, monkeypatch, caplog):
    monkeypatch.setattr(stream, "available_cores", lambda: 3)
    together = threading.Barrier(3)  # three threads have to meet in it
    calls = itertools.count()

    def crop(*arguments):
        if next(calls) < 3:
            together.wait(timeout=20)
        return random_resized_crop(*arguments)

    monkeypatch.setattr(worker, "random_resized_crop", crop)
    dataset = _load(stream_config(augment="resized_crop_flip"), batch_size=54)
    dataset.train_batch(0)
    dataset.close()
    assert next(calls) >= 54 and not together.broken and not caplog.records
