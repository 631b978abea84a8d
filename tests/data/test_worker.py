import numpy as np
import pytest

from rmn_jax.data.options import augment_options
from rmn_jax.data.sources import ArraySource
from rmn_jax.data.worker import CHUNK, ChunkGrid, EvaluationChunks, TrainChunks, concatenate


def _source(count: int = 50, labels=None) -> ArraySource:
    images = np.stack([np.full((4, 4, 3), number, np.uint8) for number in range(count)])
    return ArraySource(images, np.zeros(count, np.int32) if labels is None else labels, "made")


def _options(crops: bool):
    return augment_options({"augment": "resized_crop_flip" if crops else "none", "crop_padding": 0})


def _batch(chunks, grid: ChunkGrid, batch: int):
    per_batch = grid.chunks_per_batch
    return concatenate([chunks[batch * per_batch + chunk] for chunk in range(per_batch)])


def test_chunks_divide_a_batch_in_order():
    # 40 rows are chunks of 16, 16 and 8. The first batch is 7, so chunk 4 is the second of batch 8.
    grid = ChunkGrid(batch_size=40, rows=np.arange(40), first_batch=7, num_batches=3)
    assert CHUNK == 16 and grid.chunks_per_batch == 3
    batch, rows = grid.locate(4)
    assert batch == 8
    np.testing.assert_array_equal(rows, np.arange(16, 32))
    assert len(EvaluationChunks(_source(), grid, 1, (4, 4, 3))) == 9


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_a_batch_does_not_depend_on_the_size_of_its_chunks(chunk):
    def make(chunk):
        labels = np.where(np.arange(50) % 20 == 3, 9, 0).astype(np.int32)  # out of range
        grid = ChunkGrid(40, np.arange(40), 3, 2, chunk)
        options = _options(True)
        return _batch(
            TrainChunks(_source(labels=labels), grid, 1, (4, 4, 3), seed=5, options=options, attempts=2), grid, 1
        )

    for one, other in zip(make(16), make(chunk), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("crops", [False, True])
def test_two_hosts_make_the_halves_of_the_batch_of_one(crops):
    def make(rows):
        grid = ChunkGrid(40, rows, 3, 2)
        chunks = TrainChunks(_source(), grid, 1, (4, 4, 3), seed=5, options=_options(crops), attempts=0)
        return _batch(chunks, grid, 1)

    whole, first, second = make(np.arange(40)), make(np.arange(20)), make(np.arange(20, 40))
    for both, one, other in zip(whole[:4], first[:4], second[:4], strict=True):
        np.testing.assert_array_equal(both, np.concatenate([one, other]))


def test_its_successor_replaces_an_unusable_example_up_to_the_limit():
    labels = np.zeros(50, np.int32)
    labels[[10, 11, 49]] = 9  # out of range
    grid = ChunkGrid(50, np.arange(50), 0, 1)
    chunks = TrainChunks(_source(labels=labels), grid, 1, (4, 4, 3), seed=0, options=_options(False), attempts=3)
    batch = _batch(chunks, grid, 0)
    counts = np.bincount(batch.position, minlength=50)
    expected = np.ones(50, int)
    expected[[10, 11, 49]] = 0
    expected[12], expected[0] = 3, 2
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(batch.image[:, 0, 0, 0], batch.position)
    assert batch.mask.all()
    assert sorted({problem.split("\t")[0] for problem in batch.problems}) == [
        "made, example 10",
        "made, example 11",
        "made, example 49",
    ]


def test_evaluation_masks_unusable_examples_and_rows_beyond_the_end():
    labels = np.zeros(50, np.int32)
    labels[3] = -1
    grid = ChunkGrid(40, np.arange(40), 0, 2)
    chunks = EvaluationChunks(_source(labels=labels), grid, 1, (4, 4, 3))
    first, second = _batch(chunks, grid, 0), _batch(chunks, grid, 1)
    np.testing.assert_array_equal(first.mask, np.arange(40) != 3)
    np.testing.assert_array_equal(second.mask, np.arange(40) < 10)
    assert first.problems == ["made, example 3\tits label is -1, outside 0..0"] and not second.problems
