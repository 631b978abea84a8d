"""The first classes of an image set, for smaller experiments."""

from collections.abc import Sequence

import numpy as np

from rmn_jax.data.decode import Encoded
from rmn_jax.data.sources import ImageSet, Source
from rmn_jax.errors import UserError

_CHUNK = 1024


class SubsetSource:
    """Some examples of a split, in the order of the split. Pickles as their positions and the split's source."""

    def __init__(self, source: Source, positions: np.ndarray):
        self._source, self._positions = source, positions

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """See ``Source``."""
        return self._source.read([int(self._positions[position]) for position in positions])

    def describe(self, position: int) -> str:
        """See ``Source``."""
        return self._source.describe(int(self._positions[position]))


def first_classes(image_set: ImageSet, classes: int) -> ImageSet:
    """The examples with a label below ``classes``; 0 keeps all.

    Raises:
      UserError: ``classes`` is negative or larger than the number of classes.
    """
    known = len(image_set.class_names)
    if not 0 <= classes <= known:
        raise UserError(f"config.data.classes is {classes}; {image_set.name} has {known} classes (0 takes all).")
    if classes in (0, known):
        return image_set
    return image_set._replace(
        class_names=image_set.class_names[:classes],
        train=_subset(image_set.train, classes, known),
        evaluation=_subset(image_set.evaluation, classes, known),
        fingerprint=f"{image_set.fingerprint}-first-{classes}",
        notes="",
    )


def _subset(source: Source, classes: int, known: int) -> SubsetSource:
    labels = [
        label
        for start in range(0, len(source), _CHUNK)
        for _, label in source.read(range(start, min(start + _CHUNK, len(source))))
    ]
    label = np.asarray(labels)
    kept = (label < classes) | (label >= known)  # an invalid label is kept, so that it is reported as in the full set
    return SubsetSource(source, np.flatnonzero(kept))
