"""A user's image folder as a data set: one folder for each class, with or without separate evaluation images."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmn_jax.data import fingerprint, statistics
from rmn_jax.data.decode import Encoded
from rmn_jax.data.sources import ImageSet
from rmn_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Names of images that are not read; they are counted, so that nobody misses them.
OTHER_SUFFIXES = (
    ".jfif",
    ".jpe",
    ".gif",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".dds",
    ".tga",
    ".ppm",
    ".pgm",
    ".npy",
    ".raw",
)
TRAINING_FOLDERS = ("train", "training", "train_set", "training_set", "seg_train", "train_images")
EVALUATION_FOLDERS = (
    "eval", "validation", "val", "valid", "test", "testing", "dev",
    "val_set", "validation_set", "test_set", "testing_set", "seg_test", "val_images", "test_images",
)  # fmt: skip
# Folders that programs leave behind; they are never classes.
_JUNK = {"__macosx", "__pycache__", "$recycle.bin", "system volume information", "lost+found", "thumbs", "@eadir"}

# Without an evaluation folder, one image in ten of each class is held out.
HELD_OUT = 10


class Skipped:
    """What an image folder holds beside the images that are used: numbers by reason."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, reason: str, count: int = 1) -> None:
        """Counts ``count`` files or folders that are skipped."""
        self._counts[reason] = self._counts.get(reason, 0) + count

    def __str__(self) -> str:
        listed = [f"{count} {reason}" for reason, count in sorted(self._counts.items())]
        return f"; skipped: {', '.join(listed)}" if listed else ""


def open_image_set(path: str) -> ImageSet:
    """Opens the image folder ``path``, with or without a split.

    With a split: ``path/train/CLASS/*.jpg`` and ``path/val/CLASS/*.jpg``. Other usual names of the two folders are
    known too (``TRAINING_FOLDERS`` and ``EVALUATION_FOLDERS``, in any case).

    Without: ``path/CLASS/*.jpg``, or ``path/train/CLASS/*.jpg`` alone. A tenth of each class is held out for
    evaluation. A hash of the file names selects it, so it is the same on every machine, and images added later hardly
    change it.

    Classes are the names of the training folders, sorted. Links to files and folders are followed. Hidden files and
    files with other suffixes than ``SUFFIXES`` are skipped; ``ImageSet.notes`` counts them by reason.

    Raises:
      UserError: no such folder, no images, one class only, a folder that could be a class or a split, or an evaluation
        class without training images.
    """
    if not path:
        raise UserError(
            "config.data.name is 'folder' but config.data.path is empty; set it to a folder of class folders."
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; set config.data.path to a folder of class folders.")
    skipped = Skipped()
    try:
        train, evaluation = _splits(root, skipped)
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read: {error.strerror}.") from None
    class_names = tuple(sorted(train))
    if len(class_names) < 2:
        raise UserError(
            f"{root} has only one class with images, {_shown(class_names[0])!r}{skipped}; set config.data.path to the "
            "folder that holds a folder for each class."
        )
    images = sum(map(len, train.values())), sum(map(len, evaluation.values()))
    return ImageSet(
        name="folder",
        class_names=tuple(map(_shown, class_names)),
        native_size=None,
        train=FolderSource(train, class_names),
        evaluation=FolderSource(evaluation, class_names),
        fingerprint=fingerprint.of_files(
            [file for split in (train, evaluation) for files in split.values() for file in files],
            root,
            read_tails=False,
        ),
        folder=root,
        notes=f"{root}: {len(class_names)} classes, {images[0]} training and {images[1]} evaluation images{skipped}",
    )


def open_labelled(path: str, split: str = "eval") -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """All images of a folder of class folders, or of one of its splits, to evaluate a network on.

    Args:
      path: ``path/CLASS/*.jpg``, or ``path/train/CLASS/*.jpg`` beside ``path/val/CLASS/*.jpg``.
      split: "eval" or "train", where there are both.

    Returns:
      (file, label) of each image, and the class names by label.

    Raises:
      UserError: no such folder, or no images in it.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; give a folder of class folders.")
    skipped = Skipped()
    train_root, evaluation_root = _split_roots(root, skipped)
    classes = _list_images(evaluation_root if evaluation_root is not None and split == "eval" else train_root, skipped)
    names = sorted(classes)
    files = [(file, label) for label, name in enumerate(names) for file in classes[name]]
    return files, tuple(_shown(name) for name in names)


def _shown(name: str) -> str:
    """A folder's name as text that can be written anywhere; bytes that are not UTF-8 become escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


_Split = dict[str, list[Path]]


def _splits(root: Path, skipped: Skipped) -> tuple[_Split, _Split]:
    """The image files of training and evaluation by class."""
    train_root, evaluation_root = _split_roots(root, skipped)
    if evaluation_root is None:
        return _hold_out(_list_images(train_root, skipped))
    train, evaluation = _list_images(train_root, skipped), _list_images(evaluation_root, skipped)
    unknown = sorted(set(evaluation) - set(train))
    if unknown:
        raise UserError(f"The class {unknown[0]!r} in {evaluation_root} has no training images in {train_root}.")
    return train, evaluation


def _split_roots(root: Path, skipped: Skipped) -> tuple[Path, Path | None]:
    """The folders that hold the class folders of training and of evaluation; None if there is no evaluation folder.

    A folder that is named like a split but holds images and no class folders is a class of that name.
    """
    folders = _folders(root)
    by_name = {folder.name.lower(): folder for folder in folders}
    named = {
        kind: [by_name[name] for name in names if name in by_name and _holds_classes(by_name[name])]
        for kind, names in (("train", TRAINING_FOLDERS), ("eval", EVALUATION_FOLDERS))
    }
    if len(named["train"]) > 1:
        first, second = named["train"][:2]
        raise UserError(f"{root} has {first.name}/ and {second.name}/ with class folders; keep one of them.")
    if not named["train"]:
        if named["eval"]:
            name = named["eval"][0].name
            raise UserError(f"{root} has {name}/ with class folders but no train/; add {root / 'train'}.")
        _check_level(root, folders)
        return root, None
    train, evaluation = named["train"][0], next(iter(named["eval"]), None)
    for other in folders:
        if other != train and other not in named["eval"] and _holds_images(other):
            raise UserError(
                f"{root} has {train.name}/ with class folders, and {other.name}/ beside it. {_advice(other, train)}"
            )
    for other in named["eval"][1:]:
        skipped.add(f"{other.name}/, because {named['eval'][0].name}/ is used for evaluation,")
    for split in (train, *named["eval"][:1]):
        _check_level(split, _folders(split))
    return train, evaluation


def _advice(other: Path, train: Path) -> str:
    if other.name.lower() in EVALUATION_FOLDERS:
        return f"Its images are in no class folders: sort them into {other}/CLASS, or move {other} away."
    return f"If {other.name} is a class, move it into {train}; if it holds evaluation images, rename it to val."


def _check_level(root: Path, folders: list[Path]) -> None:
    """Raises UserError if the class folders are a level deeper than ``root``, as in ``root/set/CLASS/*.jpg``."""
    full = [folder for folder in folders if _holds_images(folder)]
    if any(_is_image(file) for folder in full for file in folder.iterdir()):
        return
    inner = [{inside.name for inside in _folders(folder) if _holds_images(inside)} for folder in full]
    if len(full) == 1 and len(inner[0]) > 1 or len(full) == 1 and full[0].name == root.name:
        raise UserError(
            f"{root} has one folder with images, {full[0].name}/, and that holds folders again; set config.data.path "
            f"to {full[0]} if its folders are the classes."
        )
    for folder, names in zip(full[1:], inner[1:], strict=True):
        if len(names & inner[0]) > 1:
            raise UserError(
                f"{root} has {full[0].name}/ and {folder.name}/, which hold folders of the same names, as splits do; "
                "rename them to train and val, or set config.data.path to the one that holds the classes."
            )


def _folders(root: Path) -> list[Path]:
    """The folders in ``root`` that are not hidden or junk, sorted. Empty if ``root`` does not exist."""
    if not root.is_dir():
        return []
    return [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not _is_junk(folder)]


def _is_junk(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _JUNK


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not _is_junk(file) and file.is_file()


def _walk(folder: Path, skipped: Skipped | None = None) -> Iterator[Path]:
    """The image files below a folder. Links to folders are followed, but never into a folder they lie in."""

    def enter(at: Path, above: frozenset) -> Iterator[Path]:
        found = at.stat()
        inode = found.st_dev, found.st_ino
        if inode in above:
            return
        for entry in sorted(at.iterdir()):
            if _is_image(entry):
                yield entry
            elif entry.is_dir() and not _is_junk(entry):
                yield from enter(entry, above | {inode})
            elif skipped is not None:
                skipped.add(_reason(entry))

    yield from enter(folder, frozenset())


def _reason(entry: Path) -> str:
    """Why a file or folder is skipped."""
    if _is_junk(entry):
        return "hidden"
    if not entry.exists():
        return "broken links"
    if entry.suffix.lower() in OTHER_SUFFIXES:
        return f"{entry.suffix.lower()} images, which are not read (convert them to PNG)"
    return "other files"


def _holds_images(folder: Path) -> bool:
    return any(True for _ in _walk(folder))


def _holds_classes(folder: Path) -> bool:
    return any(_holds_images(inner) for inner in _folders(folder))


def _list_images(root: Path, skipped: Skipped) -> _Split:
    """{class name: image files} of the class folders in ``root`` that hold images, both sorted."""
    classes = {folder.name: sorted(_walk(folder, skipped)) for folder in _folders(root)}
    for entry in root.iterdir():
        if entry.name == statistics.FILE or entry.name.startswith(f"{statistics.FILE}."):
            continue
        if _is_image(entry):
            skipped.add("images outside of class folders")
        elif _is_junk(entry) or not entry.is_dir():
            skipped.add(_reason(entry))
    empty = sorted(name for name, files in classes.items() if not files)
    if empty:
        skipped.add(f"class folders without images ({', '.join(map(repr, empty[:3]))})", len(empty))
    classes = {name: files for name, files in classes.items() if files}
    if not classes:
        raise UserError(f"{root} has no class folders with images ({', '.join(SUFFIXES)}){skipped}.")
    return classes


def _hold_out(classes: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Splits each class into training and held-out images. A class of two or more holds out at least one."""
    train, evaluation = {}, {}
    for name, files in classes.items():
        shuffled = sorted(
            files, key=lambda file: hashlib.sha256(f"{name}/{file.name}".encode(errors="surrogateescape")).digest()
        )
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
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""
