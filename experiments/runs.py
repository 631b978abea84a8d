"""One run of an experiment: trained to its end once, resumed or read; step 1 shared by runs that agree in it."""

import hashlib
import json
import pathlib
import shutil
import sys
import threading
import time
from typing import Any

from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax.analysis.counts import count_multiply_adds, count_parameters
from rmn_jax.errors import Preempted
from rmn_jax.four_step import run_training
from rmn_jax.train.run import Run, write_file

RESULT_FILE = "result.json"
# Keys that step 1 does not depend on, beside those that nothing does (and see ``stem_key``).
_AFTER_STEM = ("unit_gradient", "balance_loss", "method", "model.memory_momentum", "model.metric")


def with_settings(config: ConfigDict, **settings: Any) -> ConfigDict:
    """A copy with other values, with two underscores for a dot."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return config


def as_published(config: ConfigDict) -> dict[str, Any]:
    """The configuration for a results file, without where this machine keeps its data."""
    return json.loads(configuration.to_json(with_settings(config, data__data_dir="", data__path="")))


def run_once(config: ConfigDict, root: pathlib.Path, slug: str, until: float) -> dict[str, Any]:
    """A run's result, from its ``result.json`` or by training; see ``result_of`` and ``folder_of``."""
    workdir = folder_of(config, root, slug)
    result = known_result(workdir)
    if result is not None:
        return result
    print(f"\n{workdir.name}", file=sys.stderr, flush=True)
    if not (workdir / "checkpoints").exists():
        _copy_stem(config, root, workdir, until)
    run = Run(config, workdir)
    with _Deadline(run, until):
        run_training(run)
    result = result_of(run)
    write_file(workdir / RESULT_FILE, json.dumps(result) + "\n")
    return result


def folder_of(config: ConfigDict, root: pathlib.Path, slug: str) -> pathlib.Path:
    """Where a configuration's run is, whichever experiment's row began it, or else will be: ``SLUG-SEED-KEY``."""
    key = _digest(configuration.binding(config))
    return next(root.glob(f"*-{key}"), root / f"{slug}-{config.seed}-{key}")


def known_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The result of the finished run in this folder, or None."""
    path = workdir / RESULT_FILE
    return json.loads(path.read_text()) if path.exists() else None


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def _copy_stem(config: ConfigDict, root: pathlib.Path, workdir: pathlib.Path, until: float) -> None:
    """Trains step 1 once for all rows that share it, and copies it to where a run expects its own."""
    if not 0 < config.stem_epochs < config.epochs:
        return
    stem = root / "stems" / stem_key(config)
    finished = stem / "finished"
    if not finished.exists():
        run = _StemRun(with_settings(config, method="rmn"), stem)
        try:
            with _Deadline(run, until):
                run_training(run)
        except Preempted:
            if not run.reached_end:
                raise
        finished.touch()
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.copy(stem / "metrics.jsonl", workdir)
    partial = workdir / "checkpoints.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(stem / "checkpoints", partial)
    partial.rename(workdir / "checkpoints")


def stem_key(config: ConfigDict) -> str:
    """The same for two configurations exactly if their step 1 is the same."""
    values = configuration.binding(config)
    unused = list(_AFTER_STEM)
    if config.model.router != "learned":  # whose gates are parameters from the start
        unused.append("model.router")
        if config.model.attention != "conditional":  # whose random condition is one of N
            unused.append("model.num_units")
    return _digest({key: value for key, value in values.items() if key not in unused})


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
    """What a finished run's ``metrics.jsonl`` says: accuracies in per cent, the last epoch's loads, seconds, curve."""
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
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
