"""The first K classes of an image set, for experiments at a smaller scale."""

from collections.abc import Sequence

import numpy as np

from rmn_jax.data.decode import Encoded
from rmn_jax.data.sources import ImageSet, Source
from rmn_jax.errors import UserError

_CHUNK = 1024


class SubsetSource:
    """Some examples of a split, in its order. Pickles as its positions and the split's source."""

    def __init__(self, source: Source, positions: np.ndarray):
        self._source, self._positions = source, positions

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """Returns (image, label) of the examples at `positions`; see `Source`."""
        return self._source.read([int(self._positions[position]) for position in positions])

    def describe(self, position: int) -> str:
        """Returns how a person finds the example."""
        return self._source.describe(int(self._positions[position]))


def first_classes(image_set: ImageSet, classes: int) -> ImageSet:
    """Keeps the examples with a label below `classes`; 0 keeps all.

    Raises:
        UserError: more classes than there are, or a negative number.
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
    )


def _subset(source: Source, classes: int, known: int) -> SubsetSource:
    labels = [
        label
        for start in range(0, len(source), _CHUNK)
        for _, label in source.read(range(start, min(start + _CHUNK, len(source))))
    ]
    kept = np.asarray(labels)
    stays = (kept < classes) | (kept >= known)  # labels of no class stay, to be complained of like any wrong label
    return SubsetSource(source, np.flatnonzero(stays))
