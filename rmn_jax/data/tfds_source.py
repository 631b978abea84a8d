"""Prepared tfds data sets as image sets, read from ArrayRecord files without TensorFlow and without builder code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from rmn_jax.data import fingerprint
from rmn_jax.data.decode import Encoded
from rmn_jax.data.sources import ImageSet
from rmn_jax.data.specs import PREPARABLE
from rmn_jax.errors import UserError

# Evaluation uses the first of these splits that a data set has. Validation comes first, because the test labels of
# ImageNet and Tiny ImageNet are not public. CIFAR has only ``test``.
EVALUATION_SPLITS = ("validation", "test")


def find(name: str, data_dir: str) -> Path | None:
    """The folder of the prepared data set ``name`` ("mnist", "mnist:3.0.1", "set/config"), or None.

    Raises:
      UserError: the data set is there but cannot be opened.
    """
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError:
        return None
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"The tfds data set {name} cannot be opened ({_first_line(error)}).") from error
    return Path(builder.data_dir)


def count_examples(builder_dir: Path) -> dict[str, int]:
    """{split: number of examples} of a prepared data set."""
    splits = tfds.builder_from_directory(builder_dir).info.splits
    return {name: split.num_examples for name, split in splits.items()}


def open_image_set(name: str, data_dir: str) -> ImageSet:
    """Opens a prepared image-classification data set.

    Args:
      name: one of ``PREPARABLE``, or "tfds:NAME" with any NAME that tfds accepts.
      data_dir: as in ``prepare``.

    Raises:
      UserError: the data set is not prepared, is incomplete, or is not for image classification.
    """
    tfds_name = name.removeprefix("tfds:")
    if not tfds_name:
        raise UserError("config.data.name is 'tfds:' without a name; write tfds:NAME, for example tfds:mnist.")
    builder_dir = find(tfds_name, data_dir)
    if builder_dir is None:
        where = data_dir or tfds.core.constants.DATA_DIR
        command = (
            f"rmn data prepare {name} --source PATH"
            if name in PREPARABLE
            else f"tfds build {tfds_name} --file_format=array_record"
        )
        raise UserError(f"No data set {tfds_name} in {where}; prepare it with: {command} --data_dir={where}")
    return from_directory(name, builder_dir)


def from_directory(name: str, builder_dir: Path) -> ImageSet:
    """Opens the image set in the folder of one version of a data set (``data_dir/name/version``)."""
    builder = tfds.builder_from_directory(builder_dir)
    image_key, label_key = _keys(name, builder.info)
    splits = builder.info.splits
    evaluation = next((split for split in EVALUATION_SPLITS if split in splits), None)
    if "train" not in splits or evaluation is None:
        raise UserError(f"{name} has the splits {', '.join(splits)}; `train` and `validation` or `test` are needed.")
    label = builder.info.features[label_key]
    names = (builder.info.metadata or {}).get("class_names") or label.names
    shape = builder.info.features[image_key].shape
    files = [Path(file) for split in ("train", evaluation) for file in splits[split].filepaths]
    return ImageSet(
        name=name,
        class_names=tuple(names),
        native_size=None if None in shape[:2] else tuple(shape[:2]),
        train=RecordSource(builder_dir, "train", image_key, label_key, splits["train"].num_examples),
        evaluation=RecordSource(builder_dir, evaluation, image_key, label_key, splits[evaluation].num_examples),
        fingerprint=_fingerprint(name, files, builder_dir),
        folder=builder_dir,
    )


def _fingerprint(name: str, files: list[Path], builder_dir: Path) -> str:
    try:
        described = [path for path in builder_dir.glob("*.json") if path.name in ("dataset_info.json", "features.json")]
        return fingerprint.of_files([*files, *described, *builder_dir.glob("*.labels.txt")], builder_dir)
    except OSError as error:
        raise UserError(f"{name} is incomplete ({error}); remove {builder_dir} and prepare it again.") from error


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The keys of image and label: the supervised keys, or the only image and the only label."""
    features = info.features
    if info.supervised_keys and len(info.supervised_keys) == 2:
        image, label = info.supervised_keys
    else:
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        if len(images) != 1 or len(labels) != 1:
            raise UserError(f"{name} does not say which of its features {', '.join(features)} are image and label.")
        image, label = images[0], labels[0]
    if not isinstance(features[image], tfds.features.Image) or not isinstance(
        features[label], tfds.features.ClassLabel
    ):
        raise UserError(f"{name} is not for image classification: {image} -> {label}.")
    return image, label


class RecordSource:
    """A split in ArrayRecord files. Pickles as names; each process opens the files again."""

    def __init__(self, builder_dir: Path, split: str, image_key: str, label_key: str, num_examples: int):
        self._builder_dir, self._split = builder_dir, split
        self._image_key, self._label_key = image_key, label_key
        self._num_examples = num_examples
        self._records: Any = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_records": None}

    def __len__(self) -> int:
        return self._num_examples

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """See ``Source``.

        Raises:
          UserError: a damaged file, or a format without random access.
        """
        if self._records is None:
            self._records = self._open()
        try:
            records = self._records.__getitems__([int(position) for position in positions])
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"{self.describe(positions[0])} or a record near it is damaged ({_first_line(error)}); "
                f"remove {self._builder_dir} and prepare it again."
            ) from error
        return [self._parse(record) for record in records]

    def _parse(self, record: bytes) -> tuple[bytes, int]:
        # Ten times as fast as tfds's parser, which checks and converts every feature.
        features = tf_example_pb2.Example.FromString(record).features.feature
        return features[self._image_key].bytes_list.value[0], features[self._label_key].int64_list.value[0]

    def describe(self, position: int) -> str:
        """See ``Source``."""
        return f"{self._builder_dir}, split {self._split}, record {position}"

    def _open(self):
        builder = tfds.builder_from_directory(self._builder_dir)
        try:
            return builder.as_data_source(self._split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        except NotImplementedError as error:
            raise UserError(
                f"{self._builder_dir} is not in a random-access format; prepare it again with "
                "--file_format=array_record."
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
