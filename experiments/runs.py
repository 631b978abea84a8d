"""One run of an experiment: trained once, resumed if it was stopped, read if it is finished.

Runs whose phase 1 is the same share its training: it runs once in ``ROOT/stems/`` and is copied.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax.analysis.counts import count_parameters, trace_shapes
from rmn_jax.bench.measure import machine
from rmn_jax.errors import Preempted, UserError
from rmn_jax.files import write_file
from rmn_jax.models import build_model
from rmn_jax.routing import ROUTERS
from rmn_jax.training.manifest import checkpoint_paths, read_manifest, write_manifest
from rmn_jax.training.phases import run_training
from rmn_jax.training.progress import METRICS_FILE, read_metrics
from rmn_jax.training.run import CONFIG_FILE, Run
from rmn_jax.training.state import Phase
from rmn_jax.training.stopping import StopRequest

RESULT_FILE = "result.json"


def with_settings(config: ConfigDict, **settings: Any) -> ConfigDict:
    """A copy of a configuration with other values. In a keyword, two underscores stand for a dot."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return config


def as_published(config: ConfigDict) -> dict[str, Any]:
    """The configuration as stored in a results file: without the paths of this machine's data."""
    return json.loads(configuration.to_json(with_settings(config, data__data_dir="", data__path="")))


def run_once(
    config: ConfigDict,
    root: pathlib.Path,
    slug: str,
    until: float,
    *,
    also: Callable[[Run], dict[str, Any]] | None = None,
    curves: pathlib.Path | None = None,
) -> dict[str, Any]:
    """The result of a run: read from its ``result.json``, or trained (resumed) and written there.

    Args:
      config: complete, with the seed.
      root: the folder of all runs of a scale.
      slug: the row's name, for a new folder.
      until: time of ``time.monotonic()`` at which to stop.
      also: more results of the finished run, as a dictionary.
      curves: a folder. Each epoch's line is also appended to ``SLUG-SEED.jsonl`` there, as it comes.

    Returns:
      See ``result_of``; ``made`` is added (see ``made``), and what ``also`` returns.

    Raises:
      UserError: see ``Run``. Or another process trains this run, or the phase 1 that it shares.
      Preempted: asked to stop, or the time is over. The state is saved; the same call goes on.
    """
    workdir = folder_of(config, root, slug)
    result = known_result(workdir)
    if result is not None:
        return result
    print(f"\n{workdir.name}", file=sys.stderr, flush=True)
    with lock(root, workdir.name):
        if not (workdir / "checkpoints").exists():
            _copy_stem(config, root, workdir, until)
        run = Run(config, workdir)
        if curves is not None:
            _follow(run, curves / f"{slug}-{config.seed}.jsonl")
        with _Deadline(run, until):
            run_training(run)
        result = {**result_of(run), **(also(run) if also else {}), "made": made()}
        write_file(workdir / RESULT_FILE, json.dumps(result) + "\n")
    return result


def _follow(run: Run, path: pathlib.Path) -> None:
    """Appends the line of each epoch to ``path`` too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = run.reporter.record

    def record_twice(line: dict[str, Any]) -> None:
        record(line)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    run.reporter.record = record_twice  # type: ignore[method-assign]


def folder_of(config: ConfigDict, root: pathlib.Path, slug: str) -> pathlib.Path:
    """The folder of a configuration's run: an existing one, finished ones first, or the name of a new one.

    An existing folder may have been started by another experiment or by an earlier release.
    """
    same = existing_folders(config, root)
    finished = [folder for folder in same if (folder / RESULT_FILE).exists()]
    return (finished + same + [root / f"{slug}-{config.seed}-{digest(config)}"])[0]


def existing_folders(config: ConfigDict, root: pathlib.Path) -> list[pathlib.Path]:
    """Folders in ``root`` with a run of this configuration.

    Folder names do not matter: a digest changes when a key gets a new name. Configurations are compared without
    ``CHANGEABLE_KEYS``. In a stored one, renamed keys are mapped and missing keys get their defaults first.
    """
    same = []
    for path in sorted(root.glob(f"*/{CONFIG_FILE}")):
        with contextlib.suppress(UserError):  # a damaged configuration matches nothing
            if not configuration.differences(configuration.from_json(path), config):
                same.append(path.parent)
    return same


def known_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The result of the run in this folder; None if it is not finished."""
    path = workdir / RESULT_FILE
    return json.loads(path.read_text()) if path.exists() else None


def made() -> dict[str, str]:
    """Commit, date, device, processor and version of JAX, as a run ends."""
    about = machine()
    return {"commit": commit(), **{key: str(about[key]) for key in ("date", "device", "processor", "jax")}}


def commit() -> str:
    """The checkout's short commit, with "+" if tracked files differ from it; "unknown" outside a checkout."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent.parent)]
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    try:
        name = run([*git, "rev-parse", "--short", "HEAD"]).stdout
        state = run([*git, "status", "--porcelain", "-uno"]).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.strip() + ("+" if state.strip() else "")


@contextlib.contextmanager
def lock(root: pathlib.Path, name: str):
    """Locks a run's folder against other processes. The lock ends with the process, however it ends."""
    path = root / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process trains {root / name}; wait for it, or give another --workdir.") from None
        yield


def digest(config: ConfigDict) -> str:
    """A short digest of the keys that the results depend on, for the name of a new folder."""
    return hashlib.sha256(json.dumps(configuration.fixed_keys(config), sort_keys=True).encode()).hexdigest()[:10]


def _copy_stem(config: ConfigDict, root: pathlib.Path, workdir: pathlib.Path, until: float) -> None:
    """Trains phase 1 once for all runs that share it, and copies its checkpoints and metrics into a run's folder."""
    if not 0 < config.stem_epochs < config.epochs:
        return
    shared = stem_config(config)
    stem = [*existing_folders(shared, root / "stems"), root / "stems" / digest(shared)][0]
    with lock(root, f"stem-{stem.name}"):
        if not (stem / "finished").exists():
            run = Run(shared, stem)
            run.stop = stop = _StopAt(run.stem_steps)
            try:
                with _Deadline(run, until):
                    run_training(run)
            except Preempted:
                if not stop.arrived:
                    raise
            (stem / "finished").touch()
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.copy(stem / METRICS_FILE, workdir)
    partial = workdir / "checkpoints.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(stem / "checkpoints", partial)
    for position, path in checkpoint_paths(partial).items():  # they now belong to a run of this configuration
        manifest = read_manifest(path, position)
        record = {**manifest.get("record", {}), CONFIG_FILE: configuration.fixed_keys(config)}
        write_manifest(path, position, record, manifest["leaves"], manifest.get("top1"))
    partial.rename(workdir / "checkpoints")


def stem_config(config: ConfigDict) -> ConfigDict:
    """The configuration of a run's phase 1: keys that phase 1 does not depend on are set to their defaults.

    Two runs share phase 1 exactly if this is the same for both.
    """
    plain = configuration.default_config()
    unused = {
        "method": "rmn",
        "unit_gradient": plain.unit_gradient,
        "revive_after": plain.revive_after,
        "balance_loss": plain.balance_loss,
        "model__memory_momentum": plain.model.memory_momentum,
        "model__metric": plain.model.metric,
        "model__statistics": plain.model.statistics,
    }
    if not ROUTERS[config.model.router].has_parameters:
        unused["model__router"] = plain.model.router
        if config.model.attention != "conditional":  # in phase 1 its condition is one of N, at random
            unused["model__num_units"] = plain.model.num_units
            unused["model__routed_stages"] = plain.model.routed_stages
    return with_settings(config, **unused)


class _StopAt(StopRequest):
    """Stops a run after a number of steps; its state is saved."""

    def __init__(self, step: int):
        super().__init__()
        self._step, self.arrived = step, False

    def reached(self, step: int, phase: Phase) -> bool:
        self.arrived = step == self._step
        return self.arrived or super().reached(step, phase)


class _Deadline:
    """Within this context, a timer asks the run to stop at the time ``until`` of ``time.monotonic()``."""

    def __init__(self, run: Run, until: float):
        self._timer = threading.Timer(max(0.0, min(until - time.monotonic(), threading.TIMEOUT_MAX)), self._stop)
        self._timer.daemon = True
        self._run = run

    def _stop(self) -> None:
        self._run.stop.requested = True

    def __enter__(self):
        self._timer.start()

    def __exit__(self, *_):
        self._timer.cancel()


def result_of(run: Run) -> dict[str, Any]:
    """The result of a finished run, from its ``metrics.jsonl``.

    Returns:
      See ``result_of_lines``.

    Raises:
      UserError: the file has no line of the last epoch.
    """
    lines = read_metrics(run.workdir / METRICS_FILE)
    if not lines or lines[-1]["epoch"] != run.config.epochs:
        raise UserError(
            f"{run.workdir / METRICS_FILE} does not have the last epoch of its finished run; "
            f"move {run.workdir} away to train it again."
        )
    return result_of_lines(lines, run.config, run.info.num_classes, run.info.image_shape[0], run.steps_per_epoch)


def result_of_lines(
    lines: list[dict[str, Any]], config: ConfigDict, num_classes: int, image_size: int, steps_per_epoch: int
) -> dict[str, Any]:
    """The result of the lines of a run's ``metrics.jsonl``, up to the last evaluation in them.

    Args:
      lines: under today's keys, in order.
      config: of the run.
      num_classes: of its data.
      image_size: of its images, in pixels.
      steps_per_epoch: of the run.

    Returns:
      Of the last evaluation: accuracies in per cent, losses, and of each routed stage load, dead units and entropy in
      nats. ``seconds`` of all training steps together; ``curve`` has ``[epoch, top-1]`` of each evaluation. A value
      that the lines do not have is None.
    """
    last = [line for line in lines if "eval_top1" in line][-1]
    lines = [line for line in lines if line["epoch"] <= last["epoch"]]
    routed = config.method == "rmn"
    shapes = trace_shapes(build_model(config, num_classes, image_size, routed), image_size)
    per_cent = lambda key: round(100 * last[key], 2) if key in last else None  # noqa: E731
    load = last.get("eval_load", last["load"])
    timed = "seconds_per_step" in last
    return {
        "seed": config.seed,
        "top1": per_cent("eval_top1"),
        "top5": per_cent("eval_top5"),
        "eval_loss": round(last["eval_loss"], 4),
        "train_top1": per_cent("train_top1"),
        "train_loss": round(last["train_loss"], 4),
        "parameters": count_parameters(shapes.variables),
        "multiply_adds": shapes.multiply_adds,
        "dead_units": [stage.count(0) for stage in load] if routed else [],
        "load": load,
        "entropy": [round(value, 3) for value in last.get("entropy", [])],
        "seconds": round(sum(line["seconds_per_step"] for line in lines) * steps_per_epoch) if timed else None,
        "curve": [[line["epoch"], round(100 * line["eval_top1"], 2)] for line in lines if "eval_top1" in line],
    }
