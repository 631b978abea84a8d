"""The console script ``rmn COMMAND``, the same as ``python -m rmn_jax COMMAND``.

A user error ends in one line on stderr and exit status 2. A run that was asked to stop saves and exits with 75. A
result is the last line on stdout, as JSON. A bug of this package shows its traceback and exits with 1.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence

from rmn_jax import __version__
from rmn_jax.cli import cache, processes
from rmn_jax.cli.arguments import Command, Parser
from rmn_jax.cli.commands import COMMANDS
from rmn_jax.errors import Preempted, UserError, as_line

BUG, USER_ERROR, PREEMPTED, INTERRUPTED = 1, 2, 75, 130


def main(argv: Sequence[str]) -> int:
    """Runs a command; returns the exit status. The one place that turns an expected exception into a line."""
    try:
        arguments, rest = make_parser().parse_known_args(list(argv))
        _check_rest(arguments, rest)
        result = arguments.run(arguments, rest)
        if result is not None:
            print(json.dumps(result))
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # `rmn table | head`
        _forget_stdout()
        return 0
    except Preempted as message:
        _say(f"rmn: {message}")
        return PREEMPTED
    except KeyboardInterrupt:
        _say("rmn: interrupted")
        return INTERRUPTED
    except Exception as error:
        line = as_line(error)
        lost = processes.FLAG in argv and isinstance(error, RuntimeError) and processes.signs_of_loss(str(error))
        if line is None and lost:
            line = processes.LOST
        if line is None:
            _say(traceback.format_exc().rstrip())
            _say("rmn: this is a bug of rmn_jax; please report it with the lines above. What was saved stays.")
            return BUG
        _say(f"rmn: {' '.join(line.split())}")
        if isinstance(error, OSError) and error.filename is None:
            _forget_stdout()
        return USER_ERROR
    return 0


def run() -> None:
    """The console script."""
    # XLA's C++ log lines would hide the one line that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["JAX_ENABLE_X64"] = "0"  # runs are in float32, whatever other programs of this user want
    if sys.argv[1:2] != ["bench"]:  # it measures how long compilation takes
        cache.enable(os.environ)
    _open_standard_files()
    processes.run_in_child()  # for --distributed
    if not os.environ.get("RMN_DEBUG"):
        _silence_libraries()
    status = main(sys.argv[1:])
    processes.leave(status)
    sys.exit(status)


def _say(line: str) -> None:
    """Prints a line on stderr. What happens to the terminal does not change what the command does."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def _forget_stdout() -> None:
    """Redirects stdout to /dev/null, so that later writes, also at exit, cannot fail."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_files() -> None:
    """Opens closed standard streams (``2>&-``) on /dev/null; otherwise the next opened file would get their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


def _silence_libraries() -> None:
    """Only this package's own log lines are shown. ``RMN_DEBUG=1`` shows all."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for the processes that this one starts
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: record.name.startswith("rmn_jax"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    sys.unraisablehook = lambda _: None


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="rmn", description="Neural Routing by Memory: train, evaluate and analyse routed networks.")
    parser.add_argument("--version", action="version", version=f"rmn {__version__}")
    _add_commands(
        parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser), COMMANDS
    )
    return parser


def _add_commands(tree, commands: Mapping[str, Command | tuple[str, dict[str, Command]]]) -> None:
    for name, command in commands.items():
        if isinstance(command, Command):
            _add_command(tree, name, command)
            continue
        text, inner = command
        group = tree.add_parser(name, help=text, description=_sentence(text))
        _add_commands(
            group.add_subparsers(dest=f"{name}_command", required=True, metavar="COMMAND", parser_class=Parser), inner
        )


def _add_command(tree, name: str, command: Command) -> None:
    overrides = "Any key of the configuration can be set: --config.batch_size=256 --config.model.num_units=4"
    parser = tree.add_parser(
        name,
        help=command.help,
        description=_sentence(command.help),
        epilog=overrides if command.takes_overrides else None,
    )
    parser.set_defaults(run=command.run, takes_overrides=command.takes_overrides, prog=parser.prog)
    command.add_arguments(parser)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _check_rest(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raises UserError for unknown words: only ``--config.key=value`` is allowed, for commands that take it."""
    before = ""
    for word in rest:
        override = arguments.takes_overrides and word.startswith("--config.")
        if not override and before and "=" not in before:
            raise UserError(f"write {before}={word}, with an equals sign.")
        if not override:
            raise UserError(f"unknown argument {word!r} (see {arguments.prog} --help)")
        before = word


if __name__ == "__main__":
    run()
