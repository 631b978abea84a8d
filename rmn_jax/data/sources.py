"""Splits as random-access sources of undecoded examples, and the data set they make up.

Sources are what worker processes receive: they pickle small, open their files on first use, and know nothing
of JAX.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rmn_jax.data.decode import Encoded


class Source(Protocol):
    """One split, in a fixed order."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """Returns (encoded bytes or a decoded uint8 array [H, W, C], label) of the examples at `positions`.

        Several at once, because ArrayRecord gives hundreds of small records in the time of ten single ones.
        """
        ...

    def describe(self, position: int) -> str:
        """Returns how a person finds that example: a file, or a split and record number."""
        ...


class ImageSet(NamedTuple):
    """A data set before it is chosen how to feed it.

    Attributes:
        name: as in `DatasetInfo`.
        class_names: in label order.
        native_size: (H, W) when all images share it, else None.
        train, evaluation: the two splits.
        fingerprint: as in `DatasetInfo`.
        folder: where computed facts may be stored, or None when nowhere.
    """

    name: str
    class_names: tuple[str, ...]
    native_size: tuple[int, int] | None
    train: Source
    evaluation: Source
    fingerprint: str
    folder: Path | None


class ArraySource:
    """Images that are in memory already: uint8 [n, H, W, 3] and int32 labels [n]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str):
        self._images, self._labels, self._name = images, labels, name

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """Returns (image, label) of the examples at `positions`; see `Source`."""
        return [(self._images[position], int(self._labels[position])) for position in positions]

    def describe(self, position: int) -> str:
        """Returns how a person finds the example."""
        return f"{self._name}, example {position}"
