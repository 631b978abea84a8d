"""What each command of the command line does; ``rmn_jax.main`` has their arguments.

Each takes the parsed arguments and returns what the last line on stdout shows as JSON (None where the command has
printed its lines itself). Imports stand inside: ``rmn --help`` need not wait for JAX.
"""

import importlib.machinery
import importlib.util
import pathlib
import traceback
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, cast

from rmn_jax.errors import UserError


def load_config(page: str, overrides: Sequence[str] = ()):
    """The configuration of a page with ``--config.key=value`` overrides.

    Args:
      page: path of a Python file with ``get_config()``, optionally ``:variant``.
      overrides: as typed.

    Raises:
      UserError: no such file, a page that cannot be used, no such key, or a value of the wrong type.
    """
    from rmn_jax.config import set_from_text

    config = _load_page(page)
    for word in overrides:
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{word} has no value; write {word}=VALUE, with an equals sign.")
        set_from_text(config, key, text)
    return config


def _load_page(page: str):
    """What the page's ``get_config`` returns, locked; a page is anybody's Python and may raise anything."""
    from ml_collections import ConfigDict

    from rmn_jax.config import explain, misfit

    path, *variant = page.split(":", 1)
    if not pathlib.Path(path).is_file():
        raise UserError(f"no configuration {path}; the ready ones are in configs/, say configs/digits.py")
    loader = importlib.machinery.SourceFileLoader("config_page", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(cast(importlib.machinery.ModuleSpec, spec))
    try:
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config(*variant) if callable(get_config) else None
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"line {lines[-1]}: " if lines else ""
        raise UserError(f"{path} cannot be loaded: {where}{explain(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} must have a get_config() that returns default_config() with changes.")
    wrong = misfit(config)
    if wrong:
        raise UserError(f"{path} must return default_config() with changes: {wrong}")
    return config.lock()


def _join_processes() -> None:
    """``jax.distributed.initialize`` with what the cluster tells, or JAX_COORDINATOR_ADDRESS and the two below."""
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


def train(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn train``: the four steps, or the plain backbone."""
    config = load_config(arguments.config, overrides)
    if arguments.distributed:
        _join_processes()
    from rmn_jax.four_step import run_training
    from rmn_jax.train.run import Run

    return run_training(Run(config, arguments.workdir))


def _open_trained(workdir: str):
    """A run, the state of its newest good checkpoint, and whether that is routed."""
    from rmn_jax import config as configuration
    from rmn_jax.train.run import CONFIG_FILE, Run

    folder = pathlib.Path(workdir)
    run = Run(configuration.from_json(folder / CONFIG_FILE), folder)
    found = run.restore()
    if found is None:
        raise UserError(f"{folder} has no checkpoint yet; run `rmn train` first.")
    return run, found[0], found[1].step > 1


def evaluate(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn eval``: accuracy and loss of the newest good checkpoint."""
    from rmn_jax.train import loop

    run, state, routed = _open_trained(arguments.workdir)
    result = loop.evaluate(run, state, routed, split=arguments.split)
    return {key: result[key] for key in ("top1", "top5", "loss", "examples")}


def predict(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn predict``: the classes of image files, one JSON object a file."""
    import json
    import sys

    from rmn_jax.predict import load_trained, predict_files

    trained = load_trained(arguments.workdir, warn=lambda line: print(line, file=sys.stderr))
    for line in predict_files(trained, arguments.images, arguments.top):
        print(json.dumps(line), flush=True)


def analyze(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn analyze``: the memory analysis; a figure, a page and ``routing.json`` in the run's folder."""
    from rmn_jax.analysis import report
    from rmn_jax.analysis.study import study

    run, state, routed = _open_trained(arguments.workdir)
    if not routed:
        raise UserError(f"{arguments.workdir} is not routed (yet): only a run past step 3 has memories to look into.")
    return report.write(study(run, state, arguments.top_k), run.workdir)


def table(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn table``: parameters and multiply-adds of all networks beside the paper's."""
    import json

    from rich.console import Console

    from rmn_jax.analysis import table as tables

    rows = tables.rows()
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


def import_weights(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn import``: pretrained weights as a plain run, or instead of step 1 of an RMN."""
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


def data_prepare(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn data prepare``: a tfds data set from a local archive."""
    from rmn_jax.data import commands

    return commands.prepare(arguments.name, arguments.source, arguments.data_dir)


def data_show(arguments: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """``rmn data show``: a figure of an augmented batch."""
    from rmn_jax.data import commands

    config = load_config(arguments.config, overrides)
    return {"figure": str(commands.show(config.data, arguments.out, config.seed))}


def bench_input(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn bench input``: images per second of both feeding paths beside what the update consumes."""
    import tempfile

    from rmn_jax.data import commands
    from rmn_jax.train import step as steps
    from rmn_jax.train.run import Run

    config = load_config(arguments.config, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, folder, quiet=True)
        routed = config.method == "rmn"
        state = run.place(run.initial_state(routed))
        train_step = run.train_step(routed)

        def update(batch):
            nonlocal state
            state, loss = train_step(state, batch, run.key)
            return loss

        commands.bench_input(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            sharding=steps.batch_sharding(run.mesh),
            update=update,
        )


def bench_conv(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn bench conv``: the routed convolution against the plain one."""
    from rmn_jax.bench.conv import bench_conv as lines
    from rmn_jax.bench.measure import report
    from rmn_jax.ops import BACKENDS

    backends = ("auto", *BACKENDS)
    if arguments.backend not in backends:
        raise UserError(f"--backend is {arguments.backend!r}; use one of {', '.join(backends)}.")
    report(
        lines(arguments.num_units, arguments.batch, arguments.rounds, arguments.backend),
        arguments.out,
        f"rmn bench conv --num_units={arguments.num_units} --batch={arguments.batch} --rounds={arguments.rounds} "
        f"--backend={arguments.backend}",
    )


def bench_step(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn bench step``: a whole update, plain and routed."""
    from rmn_jax.bench.measure import report
    from rmn_jax.bench.step import bench_step as lines

    units = tuple(arguments.num_units)
    report(
        lines(arguments.backbone, arguments.image_size, arguments.batch, units, arguments.rounds, arguments.load),
        arguments.out,
        f"rmn bench step --backbone={arguments.backbone} --image_size={arguments.image_size} "
        f"--batch={arguments.batch} --num_units {' '.join(map(str, units))} --rounds={arguments.rounds} "
        f"--load={arguments.load}",
    )


def bench_latency(arguments: Namespace, overrides: Sequence[str]) -> None:
    """``rmn bench latency``: inference of one image or a batch, plain and routed."""
    from rmn_jax.bench.latency import bench_latency as lines
    from rmn_jax.bench.measure import report

    report(
        lines(arguments.backbone, arguments.image_size, arguments.batch, arguments.num_units, arguments.rounds),
        arguments.out,
        f"rmn bench latency --backbone={arguments.backbone} --image_size={arguments.image_size} "
        f"--batch={arguments.batch} --num_units={arguments.num_units} --rounds={arguments.rounds}",
    )
