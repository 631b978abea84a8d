"""Sources: random access to the undecoded examples of a split. Two sources make an image set.

Worker processes receive sources. So a source pickles small, opens its files on first use, and does not use JAX.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rmn_jax.data.decode import Encoded


class Source(Protocol):
    """One split, in a fixed order."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """(encoded bytes or a decoded uint8 array [H, W, C], label) of each example at ``positions``.

        Several positions at once, because ArrayRecord reads small records ten times as fast in bulk as one by one.
        """
        ...

    def describe(self, position: int) -> str:
        """The location of an example, for messages: a file, or a split and record number."""
        ...


class ImageSet(NamedTuple):
    """The images of a data set, independent of the pipeline.

    Attributes:
      name: as in ``DatasetInfo``.
      class_names: in label order.
      native_size: (H, W) if it is the same for all images, else None.
      train: the training split.
      evaluation: the evaluation split.
      fingerprint: as in ``DatasetInfo``.
      folder: where statistics may be stored, or None.
      notes: a line for people: what was found, and what was skipped; "" says nothing.
    """

    name: str
    class_names: tuple[str, ...]
    native_size: tuple[int, int] | None
    train: Source
    evaluation: Source
    fingerprint: str
    folder: Path | None
    notes: str = ""


class ArraySource:
    """A split in memory: images uint8 [n, H, W, 3] and labels int32 [n]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str):
        self._images, self._labels, self._name = images, labels, name

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """See ``Source``."""
        return [(self._images[position], int(self._labels[position])) for position in positions]

    def describe(self, position: int) -> str:
        """See ``Source``."""
        return f"{self._name}, example {position}"
