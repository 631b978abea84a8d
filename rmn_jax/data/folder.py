"""A user's image folder as a data set: one folder for each class, with or without separate evaluation images."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmn_jax.data import fingerprint
from rmn_jax.data.decode import Encoded
from rmn_jax.data.sources import ImageSet
from rmn_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
EVALUATION_FOLDERS = ("eval", "validation", "val", "test")

# Without an evaluation folder, one image in ten of each class is held out.
HELD_OUT = 10


def open_image_set(path: str) -> ImageSet:
    """Opens the image folder ``path``, with or without a split.

    With a split: ``path/train/CLASS/*.jpg`` and ``path/val/CLASS/*.jpg`` (or ``eval``, ``validation``, ``test``).

    Without: ``path/CLASS/*.jpg``, or ``path/train/CLASS/*.jpg`` alone. A tenth of each class is held out for
    evaluation. A hash of the file names selects it, so it is the same on every machine, and images added later hardly
    change it.

    Classes are the names of the training folders, sorted. Hidden files and files with other suffixes than ``SUFFIXES``
    are ignored.

    Raises:
      UserError: no such folder, no images, a folder that could be a class or a split, or an evaluation class without
        training images.
    """
    if not path:
        raise UserError(
            "config.data.name is 'folder' but config.data.path is empty; set it to a folder of class folders."
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; set config.data.path to a folder of class folders.")
    evaluation_root = next((root / name for name in EVALUATION_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and evaluation_root is not None:
        train, evaluation = _list_images(root / "train"), _list_images(evaluation_root)
    else:
        train, evaluation = _hold_out(_list_images(_only_split(root)))
    class_names = tuple(sorted(train))
    unknown = sorted(set(evaluation) - set(train))
    if unknown:
        raise UserError(f"The class {unknown[0]!r} in {evaluation_root} has no training images in {root / 'train'}.")
    return ImageSet(
        name="folder",
        class_names=class_names,
        native_size=None,
        train=FolderSource(train, class_names),
        evaluation=FolderSource(evaluation, class_names),
        fingerprint=fingerprint.of_files(
            [file for split in (train, evaluation) for files in split.values() for file in files],
            root,
            read_tails=False,
        ),
        folder=root,
    )


def _only_split(root: Path) -> Path:
    """The folder that holds the class folders if there are not two splits: ``root`` or ``root/train``.

    A folder ``train`` or ``val`` that holds images but no class folders is a class of that name.
    """
    for name in ("train", *EVALUATION_FOLDERS):
        if not any(_holds_images(folder) for folder in _folders(root / name)):
            continue
        if name != "train":
            raise UserError(f"{root} has {name}/ with class folders but no train/; add {root / 'train'}.")
        other = next((folder for folder in _folders(root) if folder.name != name and _holds_images(folder)), None)
        if other is not None:
            raise UserError(
                f"{root} has train/ with class folders, and {other.name}/ beside it. If {other.name} is a class, move "
                f"it into {root / 'train'}; if it holds evaluation images, rename it to val."
            )
        return root / name
    return root


def _folders(root: Path) -> list[Path]:
    """The folders in ``root`` that are not hidden, sorted. Empty if ``root`` does not exist."""
    if not root.is_dir():
        return []
    return [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]


def _images(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith("."):
            yield file


def _holds_images(folder: Path) -> bool:
    return any(True for _ in _images(folder))


def _list_images(root: Path) -> dict[str, list[Path]]:
    """{class name: image files} of the class folders in ``root`` that hold images, both sorted."""
    classes = {folder.name: sorted(_images(folder)) for folder in _folders(root)}
    classes = {name: files for name, files in classes.items() if files}
    if not classes:
        raise UserError(f"{root} has no class folders with images ({', '.join(SUFFIXES)}).")
    return classes


def _hold_out(classes: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Splits each class into training and held-out images. A class of two or more holds out at least one."""
    train, evaluation = {}, {}
    for name, files in classes.items():
        shuffled = sorted(files, key=lambda file: hashlib.sha256(f"{name}/{file.name}".encode()).digest())
        count = 0 if len(files) == 1 else max(1, len(files) // HELD_OUT)
        train[name] = sorted(shuffled[count:])
        if count:
            evaluation[name] = sorted(shuffled[:count])
    return train, evaluation


class FolderSource:
    """A split in image files. Pickles as a list of file names."""

    def __init__(self, classes: dict[str, list[Path]], class_names: tuple[str, ...]):
        self._files = [str(file) for name in class_names for file in classes.get(name, ())]
        self._labels = [label for label, name in enumerate(class_names) for _ in classes.get(name, ())]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """See ``Source``."""
        return [(_read(self._files[position]), self._labels[position]) for position in positions]

    def describe(self, position: int) -> str:
        """See ``Source``."""
        return self._files[position]


def _read(path: str) -> bytes:
    """The content of a file, empty if it cannot be read. Decoding then reports the file as it does any bad image."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
