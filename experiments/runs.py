"""One run of an experiment: trained to its end once, resumed or read; step 1 shared by runs that agree in it."""

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
from typing import Any

from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax.analysis.counts import count_multiply_adds, count_parameters
from rmn_jax.analysis.study import read_metrics
from rmn_jax.bench.measure import machine
from rmn_jax.errors import Preempted, UserError
from rmn_jax.four_step import run_training
from rmn_jax.train.run import CONFIG_FILE, Run, write_file

RESULT_FILE = "result.json"


def with_settings(config: ConfigDict, **settings: Any) -> ConfigDict:
    """A copy with other values, with two underscores for a dot."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return config


def as_published(config: ConfigDict) -> dict[str, Any]:
    """The configuration for a results file, without where this machine keeps its data."""
    return json.loads(configuration.to_json(with_settings(config, data__data_dir="", data__path="")))


def run_once(config: ConfigDict, root: pathlib.Path, slug: str, until: float) -> dict[str, Any]:
    """A run's result, from its ``result.json`` or by training; see ``result_of`` and ``folder_of``.

    Raises:
      UserError: see ``Run``; another process trains this run, or the step 1 it shares.
      Preempted: asked to stop, or past ``until``.
    """
    workdir = folder_of(config, root, slug)
    result = known_result(workdir)
    if result is not None:
        return result
    print(f"\n{workdir.name}", file=sys.stderr, flush=True)
    with _alone(root, workdir.name):
        if not (workdir / "checkpoints").exists():
            _copy_stem(config, root, workdir, until)
        run = Run(config, workdir)
        with _Deadline(run, until):
            run_training(run)
        result = {**result_of(run), "made": made()}
        write_file(workdir / RESULT_FILE, json.dumps(result) + "\n")
    return result


def folder_of(config: ConfigDict, root: pathlib.Path, slug: str) -> pathlib.Path:
    """Where a configuration's run is, whichever experiment's row began it, or else will be.

    Configurations are compared but for ``FREE_KEYS``, with today's defaults for keys that a stored one does not have.
    """
    same = []
    for path in sorted(root.glob(f"*/{CONFIG_FILE}")):
        with contextlib.suppress(UserError):  # a damaged one is nobody's
            if not configuration.differences(configuration.from_json(path), config):
                same.append(path.parent)
    finished = [folder for folder in same if (folder / RESULT_FILE).exists()]
    return (finished + same + [root / f"{slug}-{config.seed}-{_digest(config)}"])[0]


def known_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The result of the finished run in this folder, or None."""
    path = workdir / RESULT_FILE
    return json.loads(path.read_text()) if path.exists() else None


def made() -> dict[str, str]:
    """When, on what and from which commit a run was finished."""
    about = machine()
    return {"commit": commit(), **{key: str(about[key]) for key in ("date", "device", "processor", "jax")}}


def commit() -> str:
    """The checkout's commit, with a plus if files differ from it; "unknown" outside a checkout."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent.parent)]
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    try:
        name = run([*git, "rev-parse", "--short", "HEAD"]).stdout
        state = run([*git, "status", "--porcelain", "-uno"]).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.strip() + ("+" if state.strip() else "")


@contextlib.contextmanager
def _alone(root: pathlib.Path, name: str):
    """Keeps other processes out of a folder below ``root``; the lock goes with the process that holds it."""
    path = root / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process trains {root / name}; wait for it, or give another --workdir.") from None
        yield


def _digest(config: ConfigDict) -> str:
    return hashlib.sha256(json.dumps(configuration.binding(config), sort_keys=True).encode()).hexdigest()[:10]


def _copy_stem(config: ConfigDict, root: pathlib.Path, workdir: pathlib.Path, until: float) -> None:
    """Trains step 1 once for all rows that share it, and copies it to where a run expects its own."""
    if not 0 < config.stem_epochs < config.epochs:
        return
    shared = stem_config(config)
    stem = root / "stems" / _digest(shared)
    with _alone(root, f"stem-{stem.name}"):
        if not (stem / "finished").exists():
            run = _StemRun(shared, stem)
            try:
                with _Deadline(run, until):
                    run_training(run)
            except Preempted:
                if not run.reached_end:
                    raise
            (stem / "finished").touch()
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.copy(stem / "metrics.jsonl", workdir)
    partial = workdir / "checkpoints.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(stem / "checkpoints", partial)
    partial.rename(workdir / "checkpoints")


def stem_config(config: ConfigDict) -> ConfigDict:
    """The same for two configurations exactly if their step 1 is: what it does not depend on as by default."""
    plain = configuration.default_config()
    unused = {
        "method": "rmn",
        "unit_gradient": plain.unit_gradient,
        "balance_loss": plain.balance_loss,
        "model__memory_momentum": plain.model.memory_momentum,
        "model__metric": plain.model.metric,
    }
    if config.model.router != "learned":  # whose gates are parameters from the start
        unused["model__router"] = plain.model.router
        if config.model.attention != "conditional":  # whose random condition is one of N
            unused["model__num_units"] = plain.model.num_units
    return with_settings(config, **unused)


class _StemRun(Run):
    """A run that stops, saved, where step 1 ends."""

    reached_end = False

    def should_stop(self, update: int, step: int) -> bool:
        self.reached_end = update == self.stem_updates
        return self.reached_end or super().should_stop(update, step)


class _Deadline:
    """Asks a run to stop when the time is over."""

    def __init__(self, run: Run, until: float):
        self._timer = threading.Timer(max(0.0, min(until - time.monotonic(), threading.TIMEOUT_MAX)), self._stop)
        self._timer.daemon = True
        self._run = run

    def _stop(self) -> None:
        self._run.stop_requested = True

    def __enter__(self):
        self._timer.start()

    def __exit__(self, *_):
        self._timer.cancel()


def result_of(run: Run) -> dict[str, Any]:
    """What a finished run's ``metrics.jsonl`` says: accuracies in per cent, the last epoch's loads, seconds, curve.

    Raises:
      UserError: it has no line of the last epoch.
    """
    lines = read_metrics(run.workdir / "metrics.jsonl")
    if not lines or lines[-1]["epoch"] != run.config.epochs:
        raise UserError(
            f"{run.workdir / 'metrics.jsonl'} does not have the last epoch of its finished run; "
            f"move {run.workdir} away to train it again."
        )
    last = lines[-1]
    routed = run.config.method == "rmn"
    variables = run.state_shapes(routed).variables
    return {
        "seed": run.config.seed,
        "top1": round(100 * last["eval_top1"], 2),
        "top5": round(100 * last["eval_top5"], 2),
        "eval_loss": round(last["eval_loss"], 4),
        "train_top1": round(100 * last["train_top1"], 2),
        "train_loss": round(last["train_loss"], 4),
        "parameters": count_parameters(variables),
        "multiply_adds": count_multiply_adds(run.model(routed), run.info.image_shape[0]),
        "dead_units": [load.count(0) for load in last["eval_load"]] if routed else [],
        "load": last["eval_load"],
        "entropy": [round(value, 3) for value in last["entropy"]],
        "seconds": round(sum(line["seconds_per_update"] for line in lines) * run.updates_per_epoch),
        "curve": [[line["epoch"], round(100 * line["eval_top1"], 2)] for line in lines if "eval_top1" in line],
    }
