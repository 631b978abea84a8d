"""The command line: ``rmn COMMAND``, the same as ``python -m rmn_jax.main COMMAND``.

What a user can get wrong ends in one line on stderr and exit status 2; a run that was asked to stop saves and exits
with 75. The last line on stdout is JSON.
"""

import argparse
import difflib
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rmn_jax.errors import Preempted, UserError

USER_ERROR, PREEMPTED = 2, 75


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str]) -> int:
    """Runs a command; returns the exit status."""
    try:
        arguments, rest = make_parser().parse_known_args(list(argv))
        if rest and arguments.command != "train":
            raise UserError(f"unknown argument {rest[0]!r} (see rmn {arguments.command} --help)")
        result = arguments.function(arguments, rest)
    except UserError as error:
        print(f"rmn: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except Preempted as message:
        print(f"rmn: {message}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        print("rmn: interrupted", file=sys.stderr)
        return 130
    if result is not None:
        print(json.dumps(result), flush=True)
    return 0


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def make_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = _Parser(prog="rmn", description="Neural Routing by Memory: train, evaluate and look into routed networks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    train = commands.add_parser(
        "train",
        help="the four steps, or the plain backbone; resumes by itself",
        description="Trains a configuration; the same command again goes on where it stopped.",
        epilog="Any key of the configuration can be set: --config.batch_size=256 --config.model.num_units=4",
    )
    train.add_argument("--config", required=True, help="a page of configs/, say configs/digits.py (or :plain)")
    train.add_argument("--workdir", required=True, help="the run's folder: checkpoints, metrics.jsonl, config.json")
    train.add_argument("--distributed", action="store_true", help="one process of several: call jax.distributed first")
    train.set_defaults(function=_train)

    evaluate = commands.add_parser("eval", help="evaluate the newest good checkpoint of a run")
    evaluate.add_argument("--workdir", required=True, help="the folder of `rmn train`")
    evaluate.add_argument("--split", default="eval", choices=("eval", "train"), help="which images (default: eval)")
    evaluate.set_defaults(function=_eval)
    return parser


def load_config(page: str, overrides: Sequence[str] = ()):
    """The configuration of a page with ``--config.key=value`` overrides.

    Args:
      page: path of a Python file with ``get_config()``, optionally ``:variant``.
      overrides: as typed.

    Raises:
      UserError: no such file, no such key, or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    if not pathlib.Path(page.split(":")[0]).is_file():
        raise UserError(f"no configuration {page.split(':')[0]}; the ready ones are in configs/, say configs/digits.py")
    values = flags.FlagValues()
    typed = ["rmn", f"--config={page}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=typed)
    unknown = [word for word in overrides if not word.startswith("--config.")]
    if unknown:
        raise UserError(f"unknown argument {unknown[0]!r} (see rmn train --help)")
    try:
        values(typed)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_config_problem(page, overrides, error)) from None
    return values.config


def _config_problem(page: str, overrides: Sequence[str], error: Exception) -> str:
    """Names the key that no configuration has, and the one that was probably meant."""
    from rmn_jax.config import default_config

    known = list(_keys(default_config()))
    for word in overrides:
        key = word.removeprefix("--config.").split("=")[0]
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            return f"unknown key config.{key}." + (f" Did you mean config.{close[0]}?" if close else "")
    return f"{page}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _keys(tree, prefix: str = ""):
    for key, value in tree.items():
        if hasattr(value, "items"):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _train(arguments, rest: Sequence[str]) -> dict[str, Any]:
    config = load_config(arguments.config, rest)
    if arguments.distributed:
        import jax

        jax.distributed.initialize()
    from rmn_jax.four_step import run_training
    from rmn_jax.train.run import Run

    return run_training(Run(config, arguments.workdir))


def _eval(arguments, rest: Sequence[str]) -> dict[str, Any]:
    del rest
    from rmn_jax import config as configuration
    from rmn_jax.train import loop
    from rmn_jax.train.run import CONFIG_FILE, Run

    workdir = pathlib.Path(arguments.workdir)
    run = Run(configuration.from_json(workdir / CONFIG_FILE), workdir)
    found = run.restore()
    if found is None:
        raise UserError(f"{workdir} has no checkpoint yet; run `rmn train` first.")
    state, position = found
    result = loop.evaluate(run, state, routed=position.step > 1, split=arguments.split)
    return {key: result[key] for key in ("top1", "top5", "loss", "examples")}


if __name__ == "__main__":
    # XLA's C++ log lines would stand between a user and the one line that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run()
