"""Arguments that several commands have, and their types."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rmn_jax.errors import UserError


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
      help: one line, without a capital and without a full stop.
      run: takes the parsed arguments and the ``--config.key=value`` words. Its result is printed as the last line on
        stdout, as JSON; None if the command has printed its own lines.
      add_arguments: adds its arguments to a parser.
      takes_overrides: whether it accepts ``--config.key=value``.
    """

    help: str
    run: Callable[[argparse.Namespace, Sequence[str]], dict[str, Any] | None]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    takes_overrides: bool = False


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ``UserError``."""

    def error(self, message: str):
        """See ``argparse.ArgumentParser``."""
        raise UserError(f"{plainly(message)} (see {self.prog} --help)")


def plainly(message: str) -> str:
    """A message of argparse without its prefix: "argument --top: is 0; ..." becomes "--top is 0; ..."."""
    return message.removeprefix("argument ").replace(": is ", " is ", 1)


def add_config(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds ``--config``."""
    parser.add_argument(
        "--config",
        type=filled,
        required=required,
        help="a Python file, or a page of configs/ by name: digits, digits:plain",
    )


def add_workdir(
    parser: argparse.ArgumentParser, text: str = "the folder of `rmn train`", required: bool = True
) -> None:
    """Adds ``--workdir``."""
    parser.add_argument("--workdir", type=filled, required=required, help=text)


def add_best(parser: argparse.ArgumentParser) -> None:
    """Adds ``--best``."""
    parser.add_argument(
        "--best",
        action="store_true",
        help="the best checkpoint by held-out top-1, of phase 4 if there is any, instead of the newest",
    )


def positive(text: str) -> int:
    """Type of an argument that is a number of things: a whole number of 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number of 1 or more")
    return number


def filled(text: str) -> str:
    """Type of an argument that names a file or folder; ``~`` is expanded.

    Empty text is refused: it would be the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a file or folder")
    return os.path.expanduser(text)


def warn(line: str) -> None:
    """Prints a line on stderr."""
    print(line, file=sys.stderr)


def table_console(width: int):
    """A console as wide as the terminal, or of ``width`` columns where stdout is no terminal."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else width)
