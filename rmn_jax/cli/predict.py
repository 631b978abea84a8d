"""The command ``rmn predict``."""

import csv
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rmn_jax.cli.arguments import Command, add_best, filled, positive, warn
from rmn_jax.errors import UserError


def _predict_arguments(parser: ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=filled, help="the folder of `rmn train`")
    source.add_argument("--model", type=filled, metavar="FILE", help="a file of `rmn export`")
    add_best(parser)
    parser.add_argument("--top", type=positive, default=5, help="classes for each image (default: 5)")
    parser.add_argument("--csv", action="store_true", help="a table with a row for each file, instead of JSON lines")
    parser.add_argument("--list", type=filled, metavar="FILE", help="a text file with a path on each line; - is stdin")
    parser.add_argument("images", type=filled, nargs="*", metavar="IMAGE", help="image files, or folders of them")


def predict(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn predict``: the classes of image files, one line for each file, while it reads on."""
    from rmn_jax.inference.export import load_exported
    from rmn_jax.inference.predict import find_images, load_trained, make_predictor, predict_files

    if not arguments.images and arguments.list is None:
        raise UserError("no image is given; name image files or folders, or a list with --list FILE.")
    if arguments.best and arguments.workdir is None:
        raise UserError("--best is of --workdir RUN; a file of `rmn export` holds one network.")
    if arguments.model is not None:
        predictor = make_predictor(load_exported(arguments.model))
    else:
        predictor = make_predictor(load_trained(arguments.workdir, warn, arguments.best))
    unreadable = _Unreadable()
    words = [arguments.images, *([_listed(arguments.list)] if arguments.list else [])]
    paths = find_images(word for each in words for word in each)
    lines = predict_files(predictor, paths, arguments.top, unreadable.add)
    if arguments.csv:
        _write_table(lines, min(arguments.top, len(predictor.class_names)))
    else:
        for line in lines:
            print(json.dumps(line), flush=True)
    unreadable.finish()


class _Unreadable:
    """Reports unreadable files on stderr. The last report becomes the command's error."""

    def __init__(self) -> None:
        self._count, self._last = 0, ""

    def add(self, line: str) -> None:
        if self._last:
            print(f"rmn: {self._last}", file=sys.stderr)
        self._count, self._last = self._count + 1, line

    def finish(self) -> None:
        """Raises UserError if there was any."""
        if self._count == 1:
            raise UserError(self._last)
        if self._count:
            print(f"rmn: {self._last}", file=sys.stderr)
            raise UserError(f"{self._count} files cannot be read as images; the others are predicted.")


def _listed(path: str) -> Iterator[str]:
    """The lines of a text file, without empty ones."""
    if path == "-":
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    try:
        with open(path, encoding="utf-8") as file:
            yield from (line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"--list {path} cannot be read: {reason}.") from None


def _write_table(lines: Iterable[dict[str, Any]], top: int) -> None:
    """A header, then ``file,label1,name1,probability1,..,units``; units are separated by spaces."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    ranks = range(1, top + 1)
    table.writerow(["file", *(f"{name}{rank}" for rank in ranks for name in ("label", "name", "probability")), "units"])
    for line in lines:
        classes = [entry[key] for entry in line["classes"] for key in ("label", "name", "probability")]
        table.writerow([line["file"], *classes, " ".join(map(str, line["units"]))])
        sys.stdout.flush()


PREDICT = Command("classify image files with a trained run; needs no data set", predict, _predict_arguments)
