"""The console script ``rmn COMMAND``, the same as ``python -m rmn_jax COMMAND``.

A user error ends in one line on stderr and exit status 2. A run that was asked to stop saves and exits with 75. A
result is the last line on stdout, as JSON.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence

from rmn_jax.cli.arguments import Command, Parser
from rmn_jax.cli.commands import COMMANDS
from rmn_jax.errors import Preempted, UserError

USER_ERROR, PREEMPTED, INTERRUPTED = 2, 75, 130


def main(argv: Sequence[str]) -> int:
    """Runs a command; returns the exit status."""
    try:
        arguments, rest = make_parser().parse_known_args(list(argv))
        _check_rest(arguments, rest)
        result = arguments.run(arguments, rest)
    except UserError as error:
        print(f"rmn: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except Preempted as message:
        print(f"rmn: {message}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        print("rmn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `rmn table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if result is not None:
        print(json.dumps(result), flush=True)
    return 0


def run() -> None:
    """The console script."""
    # XLA's C++ log lines would hide the one line that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv[1:]))


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="rmn", description="Neural Routing by Memory: train, evaluate and analyse routed networks.")
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
