"""The work of the stream pipeline's workers: read, decode, crop. A pure function of the position in the stream."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rmn_jax.data import order
from rmn_jax.data.crop import random_resized_crop
from rmn_jax.data.decode import Encoded, UnreadableImage, check_label, decode, fit
from rmn_jax.data.options import AugmentOptions
from rmn_jax.data.sources import Source

# Examples that a thread reads at a time: enough to read in bulk, few enough to keep little of the files in memory.
CHUNK = 16


def start_worker(index: int, count: int) -> None:
    """Prepares a worker process: it ignores signals to stop, and ends with its parent, however the parent ends."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        assert parent is not None
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=end_with_parent, daemon=True).start()


class Chunk(NamedTuple):
    """Consecutive rows of a batch.

    Attributes:
      image: uint8 [n, H, W, 3].
      label: int32 [n].
      position: int32 [n], of the example in the split.
      mask: bool [n], False where there is no example or it was skipped.
      problems: "example<tab>reason" for each unusable example.
    """

    image: np.ndarray
    label: np.ndarray
    position: np.ndarray
    mask: np.ndarray
    problems: list[str]


class ChunkGrid(NamedTuple):
    """The division of a stream into batches, and of each batch into chunks.

    Attributes:
      batch_size: global batch.
      rows: the rows of each batch that this host needs, int64 [n].
      first_batch: the first batch of the stream.
      num_batches: number of batches in the stream.
      chunk: rows of a chunk.
    """

    batch_size: int
    rows: np.ndarray
    first_batch: int
    num_batches: int
    chunk: int = CHUNK

    @property
    def chunks_per_batch(self) -> int:
        """Number of chunks in this host's rows of a batch."""
        return -(-len(self.rows) // self.chunk)

    def locate(self, number: int) -> tuple[int, np.ndarray]:
        """(batch, rows of that batch) of chunk ``number`` of the stream."""
        batch, chunk = divmod(number, self.chunks_per_batch)
        return self.first_batch + batch, self.rows[chunk * self.chunk : (chunk + 1) * self.chunk]


class _Chunks:
    """Random access to chunks, as Grain's ``MapDataset.source`` expects it."""

    # Areas, ratios and interpolation of random resized crops, see ``crop.random_resized_crop``.
    _crop: tuple[tuple[float, float], tuple[float, float], str]

    def __init__(self, source: Source, grid: ChunkGrid, num_classes: int, shape: tuple[int, int, int]):
        self._source, self._grid, self._num_classes, self._shape = source, grid, num_classes, shape

    def __len__(self) -> int:
        return self._grid.num_batches * self._grid.chunks_per_batch

    def _decode_row(self, data, label: int, generator: np.random.Generator | None) -> np.ndarray:
        check_label(label, self._num_classes)
        if generator is None:
            return fit(decode(data), *self._shape[:2])
        height, width, _ = self._shape
        return random_resized_crop(data, generator, height, width, *self._crop)

    def _read(self, rows: np.ndarray, index: np.ndarray) -> Iterator[tuple[int, tuple[Encoded, int]]]:
        """(row, example) of these rows, ``CHUNK`` examples in memory at a time."""
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            yield from zip(part.tolist(), self._source.read(index[part].tolist()), strict=True)

    def _fill(self, positions: np.ndarray, wanted: np.ndarray, generators: list, attempts: int) -> Chunk:
        """Decodes the ``wanted`` rows. Tries up to ``attempts`` successors of an unusable example."""
        count = len(positions)
        image = np.empty((count, *self._shape), np.uint8)
        label, mask, problems = np.zeros(count, np.int32), np.zeros(count, bool), []
        index = positions.astype(np.int32)
        todo = np.flatnonzero(wanted)
        for _ in range(attempts + 1):
            if not len(todo):
                break
            failed = []
            for row, (data, number) in self._read(todo, index):
                try:
                    image[row], label[row] = self._decode_row(data, number, generators[row]), number
                    mask[row] = True
                except UnreadableImage as error:
                    problems.append(f"{self._source.describe(int(index[row]))}\t{error}")
                    failed.append(row)
            todo = np.array(failed, np.int64)
            if attempts:
                index[todo] = (index[todo] + 1) % len(self._source)
        image[~mask] = 0
        return Chunk(image, label, index, mask, problems)


class TrainChunks(_Chunks):
    """Chunks of training batches: shuffled, and cropped at random if ``options`` ask for it.

    The next usable example of the split replaces an unusable one, so the batch stays a function of (seed, step).
    """

    def __init__(self, *arguments, seed: int, options: AugmentOptions, attempts: int):
        super().__init__(*arguments)
        self._seed, self._repeats, self._attempts = seed, options.repeats, attempts
        self._crops = options.augment == "resized_crop_flip"
        self._crop = (options.crop_scale, options.crop_ratio, options.interpolation)

    def __getitem__(self, number: int) -> Chunk:
        step, rows = self._grid.locate(number)
        examples, batch_size = len(self._source), self._grid.batch_size
        positions = order.batch_indices(
            self._seed, step, num_examples=examples, batch_size=batch_size, repeats=self._repeats
        )[rows]
        epoch, batch = divmod(step, examples // batch_size)
        generators = [
            order.example_generator(self._seed, epoch, batch * batch_size + int(row)) if self._crops else None
            for row in rows
        ]
        return self._fill(positions, np.ones(len(rows), bool), generators, self._attempts)


class EvaluationChunks(_Chunks):
    """Chunks of a split in order, scaled and centre-cropped. Rows beyond the end of the split have ``mask`` False."""

    def __getitem__(self, number: int) -> Chunk:
        batch, rows = self._grid.locate(number)
        positions = batch * self._grid.batch_size + rows
        inside = positions < len(self._source)
        return self._fill(np.where(inside, positions, 0), inside, [None] * len(rows), 0)


def concatenate(chunks: list[Chunk]) -> Chunk:
    """The chunks of a batch as one chunk."""
    image, label, position, mask = (np.concatenate(parts) for parts in list(zip(*chunks, strict=True))[:4])
    return Chunk(image, label, position, mask, [problem for chunk in chunks for problem in chunk.problems])
