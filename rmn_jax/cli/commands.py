"""The commands. To add one, write its two functions here and list it in ``COMMANDS``.

Imports of JAX are inside the functions, so that ``rmn --help`` is fast.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from rmn_jax.cli import bench
from rmn_jax.cli.arguments import Command, add_config, add_workdir, filled, positive
from rmn_jax.cli.pages import load_config
from rmn_jax.errors import UserError


def _train_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    add_workdir(parser, "the run folder: checkpoints, metrics.jsonl, config.json")
    parser.add_argument("--distributed", action="store_true", help="one process of several: call jax.distributed first")


def train(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn train``: the four phases, or the plain backbone."""
    config = load_config(arguments.config, overrides)
    if arguments.distributed:
        _join_processes()
    from rmn_jax.training.phases import run_training
    from rmn_jax.training.run import Run

    return run_training(Run(config, arguments.workdir))


def _join_processes() -> None:
    """``jax.distributed.initialize``, from the cluster or from JAX_COORDINATOR_ADDRESS and the two variables below."""
    import os

    import jax

    def number(variable: str) -> int | None:
        return int(os.environ[variable]) if variable in os.environ else None

    try:
        jax.distributed.initialize(num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID"))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed cannot join the other processes: {str(error).splitlines()[0]} Outside of a cluster that "
            "JAX knows, set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each."
        ) from None


def _eval_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--split", default="eval", choices=("eval", "train"), help="which images (default: eval)")


def evaluate(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn eval``: accuracy and loss of the newest good checkpoint."""
    from rmn_jax.training import loop
    from rmn_jax.training.run import open_run

    run, state, position = open_run(arguments.workdir)
    result = loop.evaluate(run, state, position.phase.routed, split=arguments.split)
    return {key: result[key] for key in ("top1", "top5", "loss", "examples")}


def _predict_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--top", type=positive, default=5, help="classes for each image (default: 5)")
    parser.add_argument("images", type=filled, nargs="+", metavar="IMAGE", help="image files")


def predict(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn predict``: the classes of image files, one JSON object for each file."""
    import json
    import sys

    from rmn_jax.inference.predict import load_trained, predict_files

    trained = load_trained(arguments.workdir, warn=lambda line: print(line, file=sys.stderr))
    for line in predict_files(trained, arguments.images, arguments.top):
        print(json.dumps(line), flush=True)


def _analyze_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--top_k", type=positive, default=8, help="images for each memory (default: 8)")


def analyze(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn analyze``: the memory analysis; a figure, a page and ``routing.json`` in the run folder."""
    from rmn_jax.analysis import report
    from rmn_jax.analysis.study import study
    from rmn_jax.training.run import open_run

    run, state, position = open_run(arguments.workdir)
    if not position.phase.routed:
        raise UserError(f"{arguments.workdir} is not routed (yet): a run has memories from phase 3 on.")
    return report.write(study(run, state, arguments.top_k), run.workdir)


def _table_arguments(parser: ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object for each row")
    form.add_argument("--markdown", action="store_true", help="the page docs/table.md")
    stages = 'as config.model.routed_stages: "last", "last2", "3,4" (default: all, as in the paper)'
    parser.add_argument("--routed_stages", type=filled, default="all", help=stages)


def table(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn table``: parameters and multiply-adds of all networks beside the paper's."""
    import json

    from rich.console import Console

    from rmn_jax.analysis import table as tables

    rows = tables.rows(arguments.routed_stages)
    if arguments.json:
        for row in tables.to_json(rows):
            print(json.dumps(row))
    elif arguments.markdown:
        print(tables.to_markdown(rows), end="")
    else:
        pages, notes = tables.to_terminal(rows)
        console = Console(width=None if Console().is_terminal else 120)
        for page in pages:
            console.print(page)
        for note in notes:
            console.print(note, markup=False)


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--backbone", required=True, help="resnet18, resnet50, vgg16_bn or efficientnet_b0")
    parser.add_argument("--weights", type=filled, required=True, help="a safetensors file")
    add_workdir(parser, "the new run folder")
    parser.add_argument("--num_units", type=positive, help="N: an RMN that goes on with phases 2-4; else a plain run")
    parser.add_argument("--num_classes", type=positive, default=1000, help="K of the network (default: 1000)")
    parser.add_argument("--fresh_head", action="store_true", help="initialise the classifier, for other classes")
    add_config(parser, required=False)


def import_weights(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn import``: pretrained weights as a plain run, or in place of phase 1 of an RMN."""
    from rmn_jax.interop.pretrained import import_run

    if overrides and arguments.config is None:
        raise UserError(f"{overrides[0].split('=')[0]} needs --config PAGE, the configuration that it changes.")
    config = None if arguments.config is None else load_config(arguments.config, overrides)
    report = import_run(
        backbone=arguments.backbone,
        weights=arguments.weights,
        workdir=arguments.workdir,
        num_units=arguments.num_units,
        num_classes=arguments.num_classes,
        fresh_head=arguments.fresh_head,
        config=config,
    )
    return {
        "loaded": len(report.loaded),
        "missing": list(report.missing),
        "unexpected": list(report.unexpected),
        "fresh": list(report.fresh),
        "workdir": arguments.workdir,
    }


def _prepare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", help="tiny_imagenet, cifar100 or imagenet2012")
    parser.add_argument("--source", required=True, help="the published archive, or the folder that holds it")
    parser.add_argument(
        "--data_dir", default="", help="target folder (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)"
    )


def data_prepare(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn data prepare``: a tfds data set from a local archive."""
    from rmn_jax.data.prepare import prepare

    return prepare(arguments.name, arguments.source, arguments.data_dir)


def _show_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--out", type=filled, default="batch.png", help="the figure (default: batch.png)")


def data_show(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn data show``: a figure of an augmented batch."""
    from rmn_jax.data.show import show

    config = load_config(arguments.config, overrides)
    return {"figure": str(show(config.data, arguments.out, config.seed))}


def _pack_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--out", type=filled, required=True, help="the new folder of the parts")
    parser.add_argument("--split", choices=("train", "eval"), help="only this split (default: both)")


def data_pack(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn data pack``: a data set in parts below 60 MiB, to carry it to another machine."""
    from rmn_jax.data.pack import SPLITS, pack

    config = load_config(arguments.config, overrides)
    return pack(config.data, arguments.out, (arguments.split,) if arguments.split else SPLITS)


def _unpack_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("parts", type=filled, help="the folder of `rmn data pack`")
    parser.add_argument("--out", type=filled, required=True, help="the new folder of class folders")


def data_unpack(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn data unpack``: the parts as a folder of class folders, for ``config.data.name = "folder"``."""
    from rmn_jax.data.pack import unpack

    return unpack(arguments.parts, arguments.out)


# By name; a pair is a group of commands with its help.
COMMANDS: dict[str, Command | tuple[str, dict[str, Command]]] = {
    "train": Command(
        "train a configuration through all phases; resumes a run that was stopped", train, _train_arguments, True
    ),
    "eval": Command("evaluate the newest good checkpoint of a run", evaluate, _eval_arguments),
    "predict": Command("classify image files with a trained run; needs no data set", predict, _predict_arguments),
    "analyze": Command("show the images nearest to each memory of a run", analyze, _analyze_arguments),
    "table": Command("parameters and multiply-adds of all networks beside the paper's", table, _table_arguments),
    "import": Command(
        "start a run from pretrained weights (torchvision's or timm's names)", import_weights, _import_arguments, True
    ),
    "data": (
        "prepare and show data sets",
        {
            "prepare": Command("build a tfds data set from a local archive", data_prepare, _prepare_arguments),
            "show": Command("draw an augmented batch with its class names", data_show, _show_arguments, True),
            "pack": Command("pack a data set into parts below 60 MiB", data_pack, _pack_arguments, True),
            "unpack": Command("unpack such parts into a folder of class folders", data_unpack, _unpack_arguments),
        },
    ),
    "bench": ("measure ratios, both sides in one process; JSON lines", bench.KINDS),
}
