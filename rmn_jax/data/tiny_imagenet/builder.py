"""The tfds builder of Tiny ImageNet. It writes the published JPEGs unchanged into ArrayRecord, without TensorFlow.

Labels number the 200 classes in the order of ``wnids.txt``. tfds's label names are these WordNet ids. The
human-readable names, from ``words.txt``, are in the metadata of the data set under ``class_names``. The unlabelled test
images are not included.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from rmn_jax.data.archive import Folder, Zip, open_archive
from rmn_jax.data.decode import UnreadableImage, check_jpeg
from rmn_jax.errors import UserError

ROOT = "tiny-imagenet-200"
IMAGE_SHAPE = (64, 64, 3)

_DESCRIPTION = """\
200 classes of ImageNet at 64 x 64 pixels: 500 training and 50 validation images a class. The order of
the labels is that of wnids.txt. Some images are greyscale JPEGs; they decode to RGB.
"""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Builds the data set ``tiny_imagenet``.

    Args:
      source: the published zip file, its unpacked folder, or a folder that contains one of the two; None is tfds's
        folder for manual downloads.
      **options: those of ``tfds.core.GeneratorBasedBuilder``.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Training and validation split, JPEGs as published."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {ROOT}.zip, or the folder unpacked from it, into the manual folder."
    name = "tiny_imagenet"

    def __init__(self, *, source: str | Path | None = None, **options: Any):
        self._source = source
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(doc="The published file's name without its suffix."),
                    "image": tfds.features.Image(shape=IMAGE_SHAPE, encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=200),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        source = Path(self._source if self._source is not None else dl_manager.manual_dir)
        archive = open_archive(source, ROOT, "wnids.txt")
        class_ids = _text(archive, "wnids.txt").split()
        if len(class_ids) != 200 or len(set(class_ids)) != 200:
            found = len(set(class_ids))
            raise UserError(
                f"{archive.describe('wnids.txt')} names {found} classes instead of 200; unpack the zip again."
            )
        self.info.features["label"].names = class_ids
        self.info.metadata["class_names"] = _class_names(archive, class_ids)
        train, validation = _list_images(archive, class_ids)
        return {
            "train": self._generate_examples(archive, train),
            "validation": self._generate_examples(archive, validation),
        }

    def _generate_examples(self, archive: Folder | Zip, images: dict[str, str]) -> Iterator[tuple[str, dict]]:
        for name, class_id in images.items():
            data = archive.read(name)
            try:
                check_jpeg(data, IMAGE_SHAPE[:2])
            except UnreadableImage as error:
                raise UserError(f"{archive.describe(name)}: {error}. Download the data set again.") from error
            identity = Path(name).stem
            yield identity, {"id": identity, "image": data, "label": class_id}


def _text(archive: Folder | Zip, name: str) -> str:
    try:
        return archive.read(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{archive.describe(name)} is not a text file ({error}); unpack the zip again.") from error


def _class_names(archive: Folder | Zip, class_ids: list[str]) -> list[str]:
    """The human-readable names, in the order of ``class_ids``. Two classes may have the same name."""
    words = dict(line.split("\t", 1) for line in _text(archive, "words.txt").splitlines() if "\t" in line)
    missing = [class_id for class_id in class_ids if class_id not in words]
    if missing:
        raise UserError(f"{archive.describe('words.txt')} has no name for {missing[0]}; unpack the zip again.")
    return [words[class_id].strip() for class_id in class_ids]


def _list_images(archive: Folder | Zip, class_ids: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """{path: class id} of the training and of the validation images, in a fixed order.

    The lists come from the archive's tables (boxes and annotations). Every image in the tables must exist, so a folder
    that was not completely unpacked is detected.
    """
    present = set(archive.names())
    train: dict[str, str] = {}
    for class_id in class_ids:
        for line in _text(archive, f"train/{class_id}/{class_id}_boxes.txt").splitlines():
            train[f"train/{class_id}/images/{line.split()[0]}"] = class_id
    validation: dict[str, str] = {}
    known = set(class_ids)
    annotations = "val/val_annotations.txt"
    for number, line in enumerate(_text(archive, annotations).splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in known:
            raise UserError(
                f"{archive.describe(annotations)}, line {number}: its label is not in wnids.txt; unpack the zip again."
            )
        validation[f"val/images/{fields[0]}"] = fields[1]
    missing = [name for name in (*train, *validation) if name not in present]
    if missing:
        raise UserError(
            f"{archive.describe(missing[0])} is missing, and {len(missing) - 1} other images; unpack the zip again."
        )
    return train, validation
