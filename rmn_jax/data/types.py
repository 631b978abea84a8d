"""What every data set looks like to the rest of the package: its facts, its batches, its two methods.

Axes: B batch, H W height and width, C channels (always 3: grey images are replicated), K classes.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypedDict

import jax


class DatasetInfo(NamedTuple):
    """Facts about a data set that a run stores beside its checkpoints.

    Attributes:
        name: as given in the config, e.g. `tiny_imagenet` or `tfds:flowers`.
        num_classes: K.
        image_shape: (H, W, C) of the images the network is fed.
        class_names: K names for people, in label order.
        mean: per channel, of the training images, in 0..1 units.
        std: per channel standard deviation over all pixels, in 0..1 units.
        train_examples: size of the training split.
        eval_examples: size of the evaluation split.
        fingerprint: changes when the data set on disk changes; see `fingerprint.py`.
        streamed: True when the images are decoded (and random-resized-cropped) by workers during the run,
            False when the whole set lies on the device.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_examples: int
    eval_examples: int
    fingerprint: str
    streamed: bool = False


class Batch(TypedDict):
    """One batch on the device or devices.

    Keys:
        image: uint8 [B, H, W, C]. For `resized_crop` augmentations of a set on the device, H and W are
            those of the stored images, larger than `DatasetInfo.image_shape`; `Preprocess` cuts them to it.
        label: int32 [B].
        index: int32 [B], the example's position in its split.
        mask: bool [B]; False marks padding, and unreadable examples that were skipped, in evaluation only.
    """

    image: jax.Array
    label: jax.Array
    index: jax.Array
    mask: jax.Array


class Sizes(NamedTuple):
    """Examples in a global batch, in training and in evaluation."""

    train: int
    evaluation: int


class Dataset(Protocol):
    """A data set with its feeding path. `updates_per_epoch` drops the remainder of the training split."""

    info: DatasetInfo
    updates_per_epoch: int

    def train_batch(self, update: int) -> Batch:
        """Returns the batch of this update: a function of (seed, update) alone."""
        ...

    def eval_batches(self, split: str = "eval", batch_size: int | None = None) -> Iterator[Batch]:
        """Yields every example of `eval` or `train` once, in order, unaugmented; the last batch is padded.

        `batch_size` is global; None is that of evaluation.
        """
        ...

    def close(self) -> None:
        """Stops workers and releases the device's copy of the images."""
        ...
