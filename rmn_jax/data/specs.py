"""The interface of every data set: its facts, its batches and its methods.

Axes: B batch, H W height and width, C channels (always 3: a grey channel is repeated), K classes.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypedDict

import jax

# The data sets that ``rmn data prepare`` can build.
PREPARABLE = ("tiny_imagenet", "cifar100", "imagenet2012")


class DatasetInfo(NamedTuple):
    """Facts about a data set. A run stores them in its folder.

    Attributes:
      name: as in the config, for example ``tiny_imagenet`` or ``tfds:flowers``.
      num_classes: K.
      image_shape: (H, W, C) of the network's input.
      class_names: K human-readable names, in label order.
      mean: of each channel over all pixels of the training images, in 0..1.
      std: standard deviation of each channel over the same pixels, in 0..1.
      train_examples: size of the training split.
      eval_examples: size of the evaluation split.
      fingerprint: changes when the data set on disk changes; see ``fingerprint.py``.
      streamed: True in the stream pipeline: workers decode the images during the run and do the random resized crop.
        False in the device pipeline: the whole data set is in device memory.
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
    """One batch, on the device or devices.

    Attributes:
      image: uint8 [B, H, W, C]. H W are those of ``DatasetInfo.image_shape``, or larger with ``resized_crop_flip``;
        ``Preprocess`` then crops to the image shape. (Training batches of the stream pipeline are already cropped.)
      label: int32 [B].
      index: int32 [B], the position of the example in its split.
      mask: bool [B], False for padding and for unusable examples that were skipped. Always True in training.
    """

    image: jax.Array
    label: jax.Array
    index: jax.Array
    mask: jax.Array


class BatchSizes(NamedTuple):
    """Examples in a global batch, for training and for evaluation."""

    train: int
    evaluation: int


class Dataset(Protocol):
    """A data set with its pipeline.

    Attributes:
      info: facts about the data set.
      steps_per_epoch: training batches in an epoch; the remainder of the training split is dropped.
      notes: a line for people: numbers of classes and images, and what was skipped, by reason.
    """

    info: DatasetInfo
    steps_per_epoch: int
    notes: str

    def train_batch(self, step: int) -> Batch:
        """The training batch of ``step``, counted over all epochs: a function of (seed, step)."""
        ...

    def eval_batches(self, split: str = "eval", batch_size: int | None = None) -> Iterator[Batch]:
        """Yields every example of a split once, in order, without augmentation. The last batch is padded.

        Args:
          split: ``eval`` or ``train``.
          batch_size: global batch; None is the batch size of evaluation.
        """
        ...

    def close(self) -> None:
        """Stops the workers and frees the device memory of the images."""
        ...
