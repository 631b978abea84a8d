"""The device pipeline: the whole data set in device memory as uint8 arrays. A batch is a jitted gather."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.data import order
from rmn_jax.data.decode import UnreadableImage, available_cores, check_label, decode, fit
from rmn_jax.data.placement import Placement
from rmn_jax.data.skipping import SkippedExamples
from rmn_jax.data.sources import Source
from rmn_jax.data.specs import Batch, BatchSizes, DatasetInfo

# Examples that a thread reads and decodes at a time.
_CHUNK = 256


class SplitArrays(NamedTuple):
    """A decoded split of n examples.

    Attributes:
      images: uint8 [n, H, W, 3].
      labels: int32 [n].
      positions: int32 [n], the position of the example that each row holds. Row i holds example i, or its successor if
        example i is unusable.
      readable: bool [n], False in row i if example i was skipped.
    """

    images: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    readable: np.ndarray


def load_split(source: Source, shape: tuple[int, int, int], num_classes: int, skipped: SkippedExamples) -> SplitArrays:
    """Decodes a split on all cores into images of ``shape`` (H, W, 3), scaled and centre-cropped.

    Raises:
      UserError: more unusable examples than ``skipped`` allows.
    """
    count = len(source)
    images = np.zeros((count, *shape), np.uint8)
    labels = np.zeros(count, np.int32)
    readable = np.ones(count, bool)

    def load_chunk(start: int) -> list[tuple[int, str]]:
        problems = []
        positions = range(start, min(start + _CHUNK, count))
        for position, (data, label) in zip(positions, source.read(positions), strict=True):
            try:
                check_label(label, num_classes)
                labels[position] = label
                images[position] = fit(decode(data), *shape[:2])
            except UnreadableImage as error:
                problems.append((position, str(error)))
        return problems

    with ThreadPoolExecutor(available_cores()) as pool:
        for problems in pool.map(load_chunk, range(0, count, _CHUNK)):
            for position, reason in problems:
                readable[position] = False
                skipped.add(source.describe(position), reason)
    positions = successors(readable)
    unusable = np.flatnonzero(~readable)
    images[unusable], labels[unusable] = images[positions[unusable]], labels[positions[unusable]]
    return SplitArrays(images, labels, positions, readable)


def successors(readable: np.ndarray) -> np.ndarray:
    """For each position, the first readable one from there on, cyclic: bool [n] -> int32 [n]. If none, the identity."""
    found = np.flatnonzero(readable)
    if not len(found):
        return np.arange(len(readable), dtype=np.int32)
    return found[np.searchsorted(found, np.arange(len(readable))) % len(found)].astype(np.int32)


class DeviceDataset:
    """A data set in device memory; see ``specs.Dataset``."""

    def __init__(
        self,
        info: DatasetInfo,
        splits: dict[str, SplitArrays],
        sizes: BatchSizes,
        seed: int,
        placement: Placement,
        repeats: int = 1,
    ):
        self.info = info
        self.notes = ""
        self.steps_per_epoch = info.train_examples // sizes.train
        self._sizes, self._seed, self._repeats = sizes, seed, repeats
        self._placement = placement
        self._order = {name: (split.positions, split.readable) for name, split in splits.items()}
        self._arrays = {
            name: (placement.replicated(split.images), placement.replicated(split.labels))
            for name, split in splits.items()
        }
        self._gather = placement.jit_per_device(_gather)

    def train_batch(self, step: int) -> Batch:
        """See ``specs.Dataset``."""
        positions, _ = self._order["train"]
        rows = order.batch_indices(
            self._seed,
            step,
            num_examples=self.info.train_examples,
            batch_size=self._sizes.train,
            repeats=self._repeats,
        ).astype(np.int32)
        return self._batch("train", rows, positions[rows], np.ones(self._sizes.train, bool))

    def eval_batches(self, split: str = "eval", batch_size: int | None = None) -> Iterator[Batch]:
        """See ``specs.Dataset``."""
        _, readable = self._order[split]
        size = batch_size or self._sizes.evaluation
        for start in range(0, len(readable), size):
            rows = np.arange(start, start + size, dtype=np.int32)
            inside = rows < len(readable)
            rows = np.where(inside, rows, 0)
            yield self._batch(split, rows, rows, inside & readable[rows])

    def close(self) -> None:
        """Frees the device memory of the images."""
        self._arrays = {}

    def _batch(self, split: str, rows: np.ndarray, index: np.ndarray, mask: np.ndarray) -> Batch:
        put = self._placement.batch
        image, label = self._gather(*self._arrays[split], put(rows))
        return Batch(image=image, label=label, index=put(index), mask=put(mask))


def _gather(images: jax.Array, labels: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    take = partial(jnp.take, indices=rows, axis=0, mode="clip")
    return take(images), take(labels)
