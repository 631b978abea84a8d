"""The command line: ``rmn COMMAND``, the same as ``python -m rmn_jax.main COMMAND``.

What a user can get wrong ends in one line on stderr and exit status 2; a run that was asked to stop saves and exits
with 75. The last line on stdout is JSON.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rmn_jax import commands
from rmn_jax.errors import Preempted, UserError

USER_ERROR, PREEMPTED, INTERRUPTED = 2, 75, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{plainly(message)} (see {self.prog} --help)")


def plainly(message: str) -> str:
    """What argparse says of a wrong value, "argument --top: is 0; ...", as "--top is 0; ..."."""
    return message.removeprefix("argument ").replace(": is ", " is ", 1)


def main(argv: Sequence[str]) -> int:
    """Runs a command; returns the exit status."""
    try:
        arguments, rest = make_parser().parse_known_args(list(argv))
        _check_rest(arguments, rest)
        result = arguments.function(arguments, rest)
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


def _check_rest(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Lets only ``--config.key=value`` through, and that only to commands that take it."""
    before = ""
    for word in rest:
        override = arguments.takes_overrides and word.startswith("--config.")
        if not override and before and "=" not in before:
            raise UserError(f"write {before}={word}, with an equals sign.")
        if not override:
            raise UserError(f"unknown argument {word!r} (see {arguments.prog} --help)")
        before = word


def run() -> None:
    """The console script."""
    # XLA's C++ log lines would stand between a user and the one line that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv[1:]))


_OVERRIDES = "Any key of the configuration can be set: --config.batch_size=256 --config.model.num_units=4"


def make_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = _Parser(prog="rmn", description="Neural Routing by Memory: train, evaluate and look into routed networks.")
    tree = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_run_commands(tree)
    _add_table_and_import(tree)
    _add_data(tree)
    _add_bench(tree)
    return parser


def _add(tree, name: str, function, text: str, overrides: bool = False) -> argparse.ArgumentParser:
    command = tree.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=_OVERRIDES if overrides else None,
    )
    command.set_defaults(function=function, takes_overrides=overrides, prog=command.prog)
    return command


def _add_config(command: argparse.ArgumentParser, required: bool = True) -> None:
    command.add_argument(
        "--config", type=filled, required=required, help="a page of configs/, say configs/digits.py (or :plain)"
    )


def _add_workdir(command: argparse.ArgumentParser, text: str = "the folder of `rmn train`") -> None:
    command.add_argument("--workdir", type=filled, required=True, help=text)


def _add_run_commands(tree) -> None:
    train = _add(tree, "train", commands.train, "train a configuration through all steps; resumes by itself", True)
    _add_config(train)
    _add_workdir(train, "the run's folder: checkpoints, metrics.jsonl, config.json")
    train.add_argument("--distributed", action="store_true", help="one process of several: call jax.distributed first")

    evaluate = _add(tree, "eval", commands.evaluate, "evaluate the newest good checkpoint of a run")
    _add_workdir(evaluate)
    evaluate.add_argument("--split", default="eval", choices=("eval", "train"), help="which images (default: eval)")

    predict = _add(tree, "predict", commands.predict, "classify image files with a trained run; needs no data set")
    _add_workdir(predict)
    predict.add_argument("--top", type=positive, default=5, help="classes an image (default: 5)")
    predict.add_argument("images", type=filled, nargs="+", metavar="IMAGE", help="image files")

    analyze = _add(tree, "analyze", commands.analyze, "show the images nearest to each memory of a run")
    _add_workdir(analyze)
    analyze.add_argument("--top_k", type=positive, default=8, help="images a memory (default: 8)")


def _add_table_and_import(tree) -> None:
    table = _add(tree, "table", commands.table, "parameters and multiply-adds of all networks beside the paper's")
    form = table.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a row")
    form.add_argument("--markdown", action="store_true", help="the page docs/table.md")

    weights = _add(
        tree,
        "import",
        commands.import_weights,
        "make a run of pretrained weights (torchvision's or timm's names)",
        True,
    )
    weights.add_argument("--backbone", required=True, help="resnet18, resnet50, vgg16_bn or efficientnet_b0")
    weights.add_argument("--weights", type=filled, required=True, help="a safetensors file")
    _add_workdir(weights, "the new run's folder")
    weights.add_argument("--num_units", type=positive, help="N: an RMN that goes on with steps 2-4; else a plain run")
    weights.add_argument("--num_classes", type=positive, default=1000, help="K of the network (default: 1000)")
    weights.add_argument("--fresh_head", action="store_true", help="start the classifier anew, for other classes")
    _add_config(weights, required=False)


def _add_data(tree) -> None:
    data = tree.add_parser("data", help="prepare and look at data sets", description="Prepare and look at data sets.")
    verbs = data.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    prepare = _add(verbs, "prepare", commands.data_prepare, "build a tfds data set from a local archive")
    prepare.add_argument("name", help="tiny_imagenet, cifar100 or imagenet2012")
    prepare.add_argument("--source", required=True, help="the published archive, or the folder that holds it")
    prepare.add_argument("--data_dir", default="", help="where to (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)")

    show = _add(verbs, "show", commands.data_show, "draw an augmented batch with the names of its classes", True)
    _add_config(show)
    show.add_argument("--out", type=filled, default="batch.png", help="the figure (default: batch.png)")


def _add_bench(tree) -> None:
    bench = tree.add_parser("bench", help="measure, both sides in one run", description="Measure, in JSON lines.")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=_Parser)
    inputs = _add(
        kinds, "input", commands.bench_input, "images per second of each feeding path and of the update", True
    )
    _add_config(inputs)

    conv = _add(kinds, "conv", commands.bench_conv, "routed convolution against plain, forward and both gradients")
    conv.add_argument("--num_units", type=positive, default=8, help="N (default: 8)")
    conv.add_argument("--backend", default="auto", help="of the routed side, see rmn_jax/ops/conv.py (default: auto)")

    step = _add(kinds, "step", commands.bench_step, "a whole update, plain and routed, over the number of units")
    step.add_argument("--num_units", type=positive, nargs="+", default=[1, 2, 4, 8, 16], help="each N to measure")
    step.add_argument("--load", default="random", choices=("balanced", "random", "zipf", "all-to-one"))

    latency = _add(kinds, "latency", commands.bench_latency, "inference of one image or a batch, plain and routed")
    latency.add_argument("--num_units", type=positive, default=8, help="N (default: 8)")
    for command, batch, rounds, size in ((conv, 256, 5, None), (step, 256, 3, 32), (latency, 1, 30, 224)):
        command.add_argument("--batch", type=positive, default=batch, help=f"B (default: {batch})")
        command.add_argument("--rounds", type=positive, default=rounds, help=f"of timing (default: {rounds})")
        command.add_argument(
            "--out", type=filled, help="also write all lines to this JSON file, with machine and versions"
        )
        if size:
            command.add_argument("--backbone", default="resnet18", help="(default: resnet18)")
            command.add_argument("--image_size", type=positive, default=size, help=f"pixels (default: {size})")


def positive(text: str) -> int:
    """The type of an argument that counts something."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number of 1 or more")
    return number


def filled(text: str) -> str:
    """The type of an argument that names a file or folder: empty, it would be the current one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a file or folder")
    return text


if __name__ == "__main__":
    run()
