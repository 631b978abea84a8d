"""Feeding from a stream: Grain's threads or worker processes decode ahead of the uint8 batch in use."""

import gc
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from rmn_jax.data.decode import available_cores
from rmn_jax.data.placement import Placement
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.data.skipping import SkippedExamples
from rmn_jax.data.sources import ImageSet
from rmn_jax.data.types import Batch, DatasetInfo, Sizes
from rmn_jax.data.worker import Chunk, EvaluationChunks, Layout, TrainChunks, concatenate

# Batches ready ahead of the one in use: one that waits and one in the making.
_BATCHES_AHEAD = 2

# Training has no last batch; the stream is as long as any run.
_ENDLESS = 2**40


class StreamDataset:
    """A data set that is decoded while it is used; see `types.Dataset`.

    `workers` = 0 decodes in threads of this process (decoding releases Python's lock), n > 0 in n processes.
    """

    def __init__(
        self,
        info: DatasetInfo,
        image_set: ImageSet,
        config_data,
        sizes: Sizes,
        seed: int,
        placement: Placement,
        skipped: SkippedExamples,
    ):
        self.info = info
        self.updates_per_epoch = info.train_examples // sizes.train
        self._sources = {"train": image_set.train, "eval": image_set.evaluation}
        self._sizes = sizes
        self._seed, self._placement, self._skipped = seed, placement, skipped
        self._workers = config_data.workers
        self._crops = config_data.augment == "resized_crop_flip"
        self._stored_shape = stored_shape(config_data.augment, info.image_shape)
        self._stream: Iterator[Chunk] | None = None
        self._next_update = -1

    def train_batch(self, update: int) -> Batch:
        """Returns the batch of this update: a function of (seed, update) alone. Fast when called in order."""
        if self._stream is None or update != self._next_update:
            self._stop()
            self._stream = self._train_stream(update)
        self._next_update = update + 1
        return self._place(next(self._stream), self._sizes.train)

    def eval_batches(self, split: str = "eval", batch_size: int | None = None) -> Iterator[Batch]:
        """Yields every example of the split once, in order; the last batch is padded with `mask` False."""
        source, batch_size = self._sources[split], batch_size or self._sizes.evaluation
        layout = Layout(batch_size, self._placement.local_rows(batch_size), 0, -(-len(source) // batch_size))
        chunks = EvaluationChunks(source, layout, self.info.num_classes, self._stored_shape)
        stream = self._start(chunks, layout)
        try:
            for chunk in stream:
                yield self._place(chunk, batch_size)
        finally:
            self._close(stream)

    def close(self) -> None:
        """Stops the workers."""
        self._stop()

    def _train_stream(self, first_update: int) -> Iterator[Chunk]:
        batch_size = self._sizes.train
        layout = Layout(batch_size, self._placement.local_rows(batch_size), first_update, _ENDLESS)
        shape = self.info.image_shape if self._crops else self._stored_shape
        chunks = TrainChunks(
            self._sources["train"],
            layout,
            self.info.num_classes,
            shape,
            seed=self._seed,
            crops=self._crops,
            attempts=self._skipped.limit,
        )
        return self._start(chunks, layout)

    def _start(self, chunks: TrainChunks | EvaluationChunks, layout: Layout) -> Iterator[Chunk]:
        per_batch = layout.chunks_per_batch
        batches = grain.MapDataset.source(chunks).batch(per_batch, batch_fn=concatenate)
        threads = 1 if self._workers else available_cores()
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_BATCHES_AHEAD)
        stream = batches.to_iter_dataset(read)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain asks for flags of its own, in programs without absl's too
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
            )
        return iter(stream)

    def _place(self, chunk: Chunk, batch_size: int) -> Batch:
        for problem in chunk.problems:
            self._skipped.add(*problem.split("\t", 1))
        # Workers hand arrays over in shared memory; a copy lets it go at once, where the device may keep hold
        # of it.
        copy = np.array if self._workers else np.asarray
        place = self._placement.local_batch
        image, label, index, mask = (place(copy(array), batch_size) for array in chunk[:4])
        return Batch(image=image, label=label, index=index, mask=mask)

    def _stop(self) -> None:
        if self._stream is not None:
            self._close(self._stream)
        self._stream = None

    def _close(self, stream: Iterator) -> None:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
        if self._workers:
            # Grain's iterators lie in reference cycles; until they go, their last batches fill shared memory.
            del close, stream
            gc.collect()
