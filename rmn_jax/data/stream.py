"""The stream pipeline: Grain's threads or worker processes decode uint8 batches ahead of the one in use."""

import contextlib
import gc
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

import grain
import numpy as np
from absl import flags

from rmn_jax.data.decode import available_cores
from rmn_jax.data.options import augment_options
from rmn_jax.data.placement import Placement
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.data.skipping import SkippedExamples
from rmn_jax.data.sources import ImageSet
from rmn_jax.data.specs import Batch, BatchSizes, DatasetInfo
from rmn_jax.data.worker import CHUNK, Chunk, ChunkGrid, EvaluationChunks, TrainChunks, concatenate, start_worker
from rmn_jax.errors import UserError

# Batches ahead of the one in use: one is ready, the next is being decoded.
_BATCHES_AHEAD = 2

# Batches of the training stream: it has no end, so this is more than any run needs.
_ENDLESS = 2**40


class StreamDataset:
    """A data set that is decoded during the run; see ``specs.Dataset``.

    ``config.data.workers`` = 0 decodes in threads of this process (decoding releases Python's global lock), n > 0 in n
    processes.
    """

    def __init__(
        self,
        info: DatasetInfo,
        image_set: ImageSet,
        config_data,
        sizes: BatchSizes,
        seed: int,
        placement: Placement,
        skipped: SkippedExamples,
    ):
        self.info = info
        self.notes = ""
        self.steps_per_epoch = info.train_examples // sizes.train
        self._sources = {"train": image_set.train, "eval": image_set.evaluation}
        self._sizes = sizes
        self._seed, self._placement, self._skipped = seed, placement, skipped
        self._workers = config_data.workers
        self._options = augment_options(config_data)
        self._stored_shape = stored_shape(config_data.augment, info.image_shape)
        self._stream: Iterator[Chunk] | None = None
        self._next_step = -1

    def train_batch(self, step: int) -> Batch:
        """See ``specs.Dataset``. Fast if called in order; any other step restarts the stream."""
        starts = self._stream is None or step != self._next_step
        if self._stream is None or starts:
            self._stop()
            self._stream = self._train_stream(step)
        self._next_step = step + 1
        return self._to_devices(self._next(self._stream, starts), self._sizes.train)

    def eval_batches(self, split: str = "eval", batch_size: int | None = None) -> Iterator[Batch]:
        """See ``specs.Dataset``."""
        source, batch_size = self._sources[split], batch_size or self._sizes.evaluation
        grid = self._grid(batch_size, 0, -(-len(source) // batch_size))
        chunks = EvaluationChunks(source, grid, self.info.num_classes, self._stored_shape)
        stream = self._start(chunks, grid)
        try:
            for batch in range(grid.num_batches):
                yield self._to_devices(self._next(stream, starts=batch == 0), batch_size)
        finally:
            self._close(stream)

    def close(self) -> None:
        """Stops the workers."""
        self._stop()

    def _train_stream(self, first_step: int) -> Iterator[Chunk]:
        batch_size = self._sizes.train
        grid = self._grid(batch_size, first_step, _ENDLESS)
        crops = self._options.augment == "resized_crop_flip"
        shape = self.info.image_shape if crops else self._stored_shape
        chunks = TrainChunks(
            self._sources["train"],
            grid,
            self.info.num_classes,
            shape,
            seed=self._seed,
            options=self._options,
            attempts=self._skipped.limit,
        )
        return self._start(chunks, grid)

    def _grid(self, batch_size: int, first_batch: int, num_batches: int) -> ChunkGrid:
        rows = self._placement.local_rows(batch_size)
        # A worker process makes whole batches. In one chunk they need not be put together, which would copy them.
        return ChunkGrid(batch_size, rows, first_batch, num_batches, len(rows) if self._workers else CHUNK)

    def _start(self, chunks: TrainChunks | EvaluationChunks, grid: ChunkGrid) -> Iterator[Chunk]:
        chunked = grain.MapDataset.source(chunks)
        if not self._workers:
            # Threads decode the chunks of two batches at the same time.
            ahead = _BATCHES_AHEAD * grid.chunks_per_batch
            threads = min(available_cores(), ahead)
            decoded = chunked.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
            return iter(decoded.batch(grid.chunks_per_batch, batch_fn=concatenate))
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags, also in a program that does not parse them
            flags.FLAGS.mark_as_parsed()
        one_thread = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BATCHES_AHEAD)
        stream = chunked.to_iter_dataset(one_thread).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1),
            worker_init_fn=start_worker,
        )
        return iter(stream)

    def _next(self, stream: Iterator[Chunk], starts: bool) -> Chunk:
        """The next batch of a stream. The first one ``starts`` the workers."""
        held = _signals_held() if starts and self._workers else contextlib.nullcontext()
        with held, _explained():
            return next(stream)

    def _to_devices(self, chunk: Chunk, batch_size: int) -> Batch:
        for problem in chunk.problems:
            self._skipped.add(*problem.split("\t", 1))
        # Arrays of worker processes are in shared memory, which the device must not keep in use.
        shared = bool(self._workers)
        arrays = [np.asarray(array) for array in chunk[:4]]
        image, label, index, mask = (self._placement.local_batch(a, batch_size, shared=shared) for a in arrays)
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
            # Grain's iterators are in reference cycles. Their last batches use shared memory until they are collected.
            del close, stream
            gc.collect()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes that start within this context never see a signal to stop: the main process saves and ends them."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        # The first worker would start this process, which would lift the block of two of the signals.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns the end of a worker, or shared memory that is full, into a UserError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and "terminated unexpectedly" not in text:
            raise
        ended = {
            "-7": " with SIGBUS: shared memory (/dev/shm) is full. Give it more (docker run --shm-size=1g)",
            "-9": " with SIGKILL, most often because memory is full. Lower config.data.workers",
        }
        code = text.partition("exit code ")[2].split(".")[0]
        if isinstance(error, OSError):
            ended[code] = f": {error.strerror} (shared memory, /dev/shm, may be full). Give it more"
        raise UserError(
            f"a process that decodes images ended{ended.get(code, f' with exit code {code}. Start again')}, "
            "or set config.data.workers=0 to decode in this process; the run goes on from its last checkpoint."
        ) from None
