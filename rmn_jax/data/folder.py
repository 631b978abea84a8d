"""Anybody's own images: a folder of class folders, with or without a split made beforehand."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmn_jax.data import fingerprint
from rmn_jax.data.decode import Encoded
from rmn_jax.data.sources import ImageSet
from rmn_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
EVALUATION_FOLDERS = ("eval", "validation", "val", "test")

# Without a folder for evaluation, one image in ten of each class is held out.
HELD_OUT = 10


def open_image_set(path: str) -> ImageSet:
    """Opens `path`, laid out in one of two ways.

    Either `path/train/CLASS/*.jpg` with `path/val/CLASS/*.jpg` (or `eval`, `validation`, `test`). Or
    `path/CLASS/*.jpg`, or `path/train/CLASS/*.jpg` alone, of which a tenth is held out, chosen by a hash of the
    file names: the same on every machine, and hardly changed by images added later. Classes are the names of the
    training folders, sorted.
    Hidden files and those with other suffixes are passed over.

    Raises:
        UserError: no such folder, no images, folders that could be classes or splits, or a class to evaluate that
            has no training images.
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
    """Returns the folder of the class folders where not both splits are there: `root`, or `root/train`.

    A folder `train` or `val` that holds images and no class folders is a class of that name.
    """
    for name in ("train", *EVALUATION_FOLDERS):
        if not any(_holds_images(folder) for folder in _folders(root / name)):
            continue
        if name != "train":
            raise UserError(f"{root} has {name}/ with class folders but no train/; add {root / 'train'}.")
        other = next((folder for folder in _folders(root) if folder.name != name and _holds_images(folder)), None)
        if other is not None:
            raise UserError(
                f"{root} has train/ with class folders, and {other.name}/ beside it: is that a class? Put all classes "
                f"into {root / 'train'}, or what is to be evaluated into {root / 'val'}."
            )
        return root / name
    return root


def _folders(root: Path) -> list[Path]:
    """Returns the folders in `root` that are not hidden, sorted; none if there is no `root`."""
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
    """Returns {class name: image files}, each sorted, of the class folders of `root` that hold images."""
    classes = {folder.name: sorted(_images(folder)) for folder in _folders(root)}
    classes = {name: files for name, files in classes.items() if files}
    if not classes:
        raise UserError(f"{root} has no class folders with images ({', '.join(SUFFIXES)}).")
    return classes


def _hold_out(classes: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Splits each class into training and held-out images; at least one is held out where there are two."""
    train, evaluation = {}, {}
    for name, files in classes.items():
        shuffled = sorted(files, key=lambda file: hashlib.sha256(f"{name}/{file.name}".encode()).digest())
        count = 0 if len(files) == 1 else max(1, len(files) // HELD_OUT)
        train[name] = sorted(shuffled[count:])
        if count:
            evaluation[name] = sorted(shuffled[:count])
    return train, evaluation


class FolderSource:
    """A split in files; pickles as a list of names."""

    def __init__(self, classes: dict[str, list[Path]], class_names: tuple[str, ...]):
        self._files = [str(file) for name in class_names for file in classes.get(name, ())]
        self._labels = [label for label, name in enumerate(class_names) for _ in classes.get(name, ())]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, positions: Sequence[int]) -> list[tuple[Encoded, int]]:
        """Returns (image, label) of the examples at `positions`; see `Source`."""
        return [(_read(self._files[position]), self._labels[position]) for position in positions]

    def describe(self, position: int) -> str:
        """Returns how a person finds the example."""
        return self._files[position]


def _read(path: str) -> bytes:
    """Returns the file's bytes, or none of them: decoding then reports it with its name, as any bad image."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
