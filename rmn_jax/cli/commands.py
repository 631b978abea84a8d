"""The commands. To add one, write its two functions here and list it in ``COMMANDS``.

Imports of JAX are inside the functions, so that ``rmn --help`` is fast.
"""

import os
import pathlib
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from rmn_jax.cli import bench, plot, predict, processes, weights
from rmn_jax.cli.arguments import Command, add_best, add_config, add_workdir, filled, positive, table_console, warn
from rmn_jax.cli.pages import load_config, with_overrides
from rmn_jax.errors import UserError


def _train_arguments(parser: ArgumentParser) -> None:
    add_config(parser, required=False)
    add_workdir(parser, "the run folder: checkpoints, metrics.jsonl, config.json", required=False)
    dry = "print configuration, parameters, memory and the time of a step, without training; writes nothing"
    parser.add_argument("--dry_run", action="store_true", help=dry)
    profile = "trace ten steps of each phase into a folder (default: profile/ in the run folder)"
    parser.add_argument("--profile", type=os.path.expanduser, nargs="?", const="", metavar="FOLDER", help=profile)
    parser.add_argument("--distributed", action="store_true", help="this is one of several processes; join the others")
    parser.add_argument(
        "--join_timeout",
        type=positive,
        default=300,
        metavar="SECONDS",
        help="with --distributed: how long to wait for all processes to come (default: 300)",
    )
    parser.add_argument(
        "--heartbeat_timeout",
        type=positive,
        default=60,
        metavar="SECONDS",
        help="with --distributed: a process that is silent for so long is taken for lost (default: 60)",
    )


def train(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn train``: the four phases, or the plain backbone."""
    if arguments.workdir is None and not arguments.dry_run:
        raise UserError("the following arguments are required: --workdir (see rmn train --help)")
    config = _training_config(arguments.config, arguments.workdir, overrides)
    if arguments.dry_run and arguments.distributed:
        raise UserError("a dry run is of one process; leave --distributed out.")
    if arguments.distributed:
        processes.join(arguments.join_timeout, arguments.heartbeat_timeout)
    profile = arguments.profile
    if profile == "":
        if arguments.workdir is None:
            raise UserError("--profile needs a folder where there is no --workdir; write --profile=FOLDER.")
        profile = os.path.join(arguments.workdir, "profile")
    if arguments.dry_run:
        from rmn_jax.cli.dry_run import dry_run

        return dry_run(config, arguments.workdir, profile)
    import jax

    from rmn_jax.training.phases import run_training
    from rmn_jax.training.run import Run
    from rmn_jax.training.trace import Trace

    run = Run(config, arguments.workdir)
    if profile is not None and jax.process_index() == 0:  # only the first process writes
        run.trace = Trace(pathlib.Path(profile), run.reporter.say)
    return run_training(run)


def _training_config(page: str | None, workdir: str | None, overrides: Sequence[str]):
    """The configuration of a page, or without one that of the run in ``workdir``; a dry run may have no ``workdir``."""
    from rmn_jax import config as configuration
    from rmn_jax.training.run_folder import CONFIG_FILE

    if workdir is None:
        if page is None:
            raise UserError("give --config PAGE, say --config=configs/digits.py, or the --workdir of a run.")
        return load_config(page, overrides)
    stored = pathlib.Path(workdir) / CONFIG_FILE
    if page is None:
        if not stored.exists():
            raise UserError(f"{workdir} holds no run yet; give --config PAGE, say --config=configs/digits.py.")
        return with_overrides(configuration.from_json(stored), overrides)
    config = load_config(page, overrides)
    if stored.exists():
        configuration.adopt_normalisation(config, configuration.from_json(stored))
    return config


def _eval_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    add_best(parser)
    parser.add_argument("--split", default="eval", choices=("eval", "train"), help="which images (default: eval)")
    parser.add_argument(
        "--data", type=filled, metavar="PATH", help="a folder of class folders, instead of the run's data"
    )
    parser.add_argument(
        "--out",
        type=filled,
        metavar="FOLDER",
        help="also by class: confusion.png and confusion.csv in this folder (--data: default figures/)",
    )


def evaluate(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn eval``: accuracy and loss of the newest good checkpoint, or of the best one."""
    from rmn_jax.training import loop

    if arguments.data is not None:
        return _evaluate_folder(arguments, overrides)
    run, state, position = _open_run(arguments.workdir, overrides, arguments.best)
    if arguments.best:
        name = run.phase_name(position.phase)
        run.reporter.say(f"the best checkpoint is that of step {position.step} of {run.total_steps} ({name})")
    by_class = arguments.out is not None
    result = loop.evaluate(run, state, position.phase.routed, split=arguments.split, confusion=by_class)
    scores = {key: result[key] for key in ("top1", "top5", "loss", "examples")}
    if not by_class:
        return scores
    return {**scores, **_by_class(result["confusion"], run.info.class_names, arguments.out)}


def _evaluate_folder(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Accuracy on a folder, also by class, and the confusion matrix."""
    from rmn_jax.inference.evaluate import evaluate_folder
    from rmn_jax.inference.predict import load_trained, make_predictor

    if overrides:
        raise UserError(f"{overrides[0].split('=')[0]} cannot be set with --data PATH, which names the images.")
    predictor = make_predictor(load_trained(arguments.workdir, warn, arguments.best))
    found = evaluate_folder(predictor, arguments.data, arguments.split)
    folder = arguments.out or pathlib.Path(arguments.workdir) / "figures"
    examples = int(found.confusion.sum())
    scores = {"top1": found.top1, "top5": found.top5, "loss": found.loss, "examples": examples}
    return {**scores, **_by_class(found.confusion, predictor.class_names, folder)}


def _by_class(counts, class_names: Sequence[str], folder: str | os.PathLike) -> dict[str, Any]:
    """The accuracy of each class that has images, by name, and the files of the confusion matrix."""
    from rmn_jax.analysis import confusion

    files = confusion.write(counts, tuple(class_names), pathlib.Path(folder))
    unique = len(set(class_names)) == len(class_names)
    keys = class_names if unique else [f"{label} {name}" for label, name in enumerate(class_names)]
    shares = zip(keys, confusion.per_class(counts), strict=True)
    return {"per_class": {name: round(float(share), 6) for name, share in shares if share == share}, **files}


def _open_run(workdir: str, overrides: Sequence[str], best: bool):
    """``open_run`` with other data keys, for data that was moved or another split of it."""
    from rmn_jax import config as configuration
    from rmn_jax.training.run import open_run
    from rmn_jax.training.run_folder import CONFIG_FILE

    config = None
    if overrides:
        config = configuration.from_json(pathlib.Path(workdir) / CONFIG_FILE)
        for word in overrides:
            key = word.removeprefix("--config.").partition("=")[0]
            free = configuration.CHANGEABLE_KEYS
            if not any(key == name or key.startswith(f"{name}.") for name in free):
                raise UserError(
                    f"--config.{key} belongs to the trained run; only the keys {', '.join(free)} "
                    "can be set here. For other images: rmn eval --data PATH."
                )
        config = with_overrides(config, overrides)
    return open_run(workdir, config, best)


def _analyze_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    add_best(parser)
    parser.add_argument("--top_k", type=positive, default=8, help="images for each memory (default: 8)")
    parser.add_argument("--out", type=filled, help="another folder for the results, for a run that is read-only")


def analyze(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn analyze``: the memory analysis; a figure, a page and ``routing.json`` in the run folder."""
    from rmn_jax import files
    from rmn_jax.analysis import report
    from rmn_jax.analysis.study import study

    run, state, position = _open_run(arguments.workdir, overrides, arguments.best)
    if not position.phase.routed:
        raise UserError(f"{arguments.workdir} is not routed (yet): a run has memories from phase 3 on.")
    folder = run.workdir if arguments.out is None else pathlib.Path(arguments.out)
    with files.writing_to(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        return report.write(study(run, state, arguments.top_k), folder)


def _table_arguments(parser: ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object for each row")
    form.add_argument("--markdown", action="store_true", help="the page docs/table.md")
    stages = 'as config.model.routed_stages: "last", "last2", "3,4" (default: all, as in the paper)'
    parser.add_argument("--routed_stages", type=filled, default="all", help=stages)
    parser.add_argument("--num_units", type=positive, default=8, metavar="N", help="units of a stage (default: 8)")


def table(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn table``: parameters and multiply-adds of all networks beside the paper's."""
    import json

    from rmn_jax.analysis import table as tables

    rows = tables.rows(arguments.routed_stages, arguments.num_units)
    if arguments.json:
        for row in tables.to_json(rows):
            print(json.dumps(row))
    elif arguments.markdown:
        print(tables.to_markdown(rows), end="")
    else:
        pages, notes = tables.to_terminal(rows)
        console = table_console(120)
        for page in pages:
            console.print(page)
        for note in notes:
            console.print(note, markup=False)


def _prepare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", help="tiny_imagenet, cifar100 or imagenet2012")
    parser.add_argument(
        "--source", type=filled, required=True, help="the published archive, or the folder that holds it"
    )
    parser.add_argument(
        "--data_dir",
        type=os.path.expanduser,
        default="",
        help="target folder (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )


def data_prepare(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn data prepare``: a tfds data set from a local archive."""
    from rmn_jax.data.prepare import prepare

    return prepare(arguments.name, arguments.source, arguments.data_dir)


def _show_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--out", type=filled, default="batch.png", help="the figure (default: batch.png)")
    parser.add_argument("--each", action="store_true", help="each augmentation alone, a row for each, on some images")


def data_show(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn data show``: a figure of an augmented batch, or of each augmentation alone."""
    from rmn_jax.data.show import show, show_each
    from rmn_jax.training.cutmix import mixed_images

    config = load_config(arguments.config, overrides)
    if not arguments.each:
        return {"figure": str(show(config.data, arguments.out, config.seed))}
    usual = {"mixup": 0.4, "cutmix": 1.0}  # where they are off
    mixup, cutmix = (config[key] if config[key] > 0 else alpha for key, alpha in usual.items())
    mixings = {
        f"mixup {mixup:g}": lambda keys, images: mixed_images(keys, images, mixup, 0.0)[0],
        f"cutmix {cutmix:g}": lambda keys, images: mixed_images(keys, images, 0.0, cutmix)[0],
    }
    return {"figure": str(show_each(config.data, arguments.out, config.seed, mixings))}


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
    "eval": Command("evaluate the newest good checkpoint of a run", evaluate, _eval_arguments, True),
    "predict": predict.PREDICT,
    "analyze": Command("show the images nearest to each memory of a run", analyze, _analyze_arguments, True),
    "plot": plot.PLOT,
    "table": Command("parameters and multiply-adds of all networks beside the paper's", table, _table_arguments),
    "import": weights.IMPORT,
    "export": weights.EXPORT,
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
