"""What one or several runs wrote at the end of their epochs, as arrays and as a table of the last numbers.

Read from ``metrics.jsonl``, also of earlier releases: a value that a run did not write is a gap in its curve.

Axes: E epochs, S routed stages, N units (see ``rmn_jax``).
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from rmn_jax.errors import UserError
from rmn_jax.training.progress import METRICS_FILE, read_metrics
from rmn_jax.training.run_folder import read_run
from rmn_jax.training.state import Phase


class Curves(NamedTuple):
    """What a run wrote at the end of its epochs.

    Attributes:
      name: of the run, short and unlike those of the other runs.
      network: what was trained, for people: "plain resnet8", "RMN resnet8, N = 4".
      epochs: of the whole run; ``lines`` may have fewer.
      phase4: the epoch after which phase 4 begins; None for a plain run.
      lines: of ``metrics.jsonl``, one for each epoch, at least one.
    """

    name: str
    network: str
    epochs: int
    phase4: int | None
    lines: list[dict[str, Any]]

    @property
    def epoch(self) -> np.ndarray:
        """[E] int."""
        return np.array([line["epoch"] for line in self.lines])

    def series(self, key: str) -> np.ndarray:
        """[E] float, NaN where a line has no such value."""
        return np.array([line.get(key, np.nan) for line in self.lines], float)

    def last(self, key: str) -> float:
        """The last value that is a number; NaN if there is none."""
        values = self.series(key)
        known = values[np.isfinite(values)]
        return float(known[-1]) if known.size else float("nan")

    def by_stage(self, key: str) -> list[np.ndarray]:
        """E arrays [S]; an empty one where a line has no such value (phase 1, earlier releases)."""
        return [np.array(line.get(key) or [], float) for line in self.lines]

    @property
    def shares(self) -> list[np.ndarray]:
        """E arrays [S, N], each unit's share of the inputs of its stage; an empty one where nothing is routed."""
        loads = [np.array(line.get("load") or np.zeros((0, 1)), float) for line in self.lines]
        return [load / np.maximum(load.sum(axis=1, keepdims=True), 1) for load in loads]

    @property
    def routed(self) -> bool:
        """Whether any epoch was routed."""
        return any(share.size for share in self.shares)

    @property
    def best(self) -> int | None:
        """The place in ``lines`` of the best evaluation, of phase 4 if it has any, as for `rmn eval --best`."""
        scores = [
            (Phase(line.get("phase", 1)).routed, line["eval_top1"], -place)
            for place, line in enumerate(self.lines)
            if "eval_top1" in line
        ]
        return -max(scores)[2] if scores else None


def read_curves(runs: Sequence[str]) -> list[Curves]:
    """The curves of run folders.

    Raises:
      UserError: a folder that is no run, or a run without a finished epoch.
    """
    found = []
    for folder, name in zip(runs, _names(runs), strict=True):
        path, config, _ = read_run(folder)
        lines = {line["epoch"]: line for line in read_metrics(path / METRICS_FILE) if line.get("epoch", 0) > 0}
        if not lines:
            raise UserError(f"{path} has no finished epoch yet ({METRICS_FILE}); run `rmn train` first.")
        routed = config.method == "rmn"
        curves = Curves(
            name,
            _network(config),
            config.epochs,
            config.stem_epochs if routed else None,
            [lines[epoch] for epoch in sorted(lines)],
        )
        found.append(curves)
    return found


def _names(runs: Sequence[str]) -> list[str]:
    """The folders' last parts, as many as tell the runs apart."""
    parts = [pathlib.Path(run).expanduser().resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]).replace("//", "/") for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _network(config: ConfigDict) -> str:
    attention = {"none": "", "se": ", SE", "conditional": ", CA"}[config.model.attention]
    if config.method == "plain":
        return f"plain {config.model.backbone}{attention}"
    router = "" if config.model.router == "memory" else f", {config.model.router} router"
    return f"RMN {config.model.backbone}, N = {config.model.num_units}{attention}{router}"


_COLUMNS = (
    "Run",
    "Network",
    "Epochs",
    "Phase",
    "Top-1 %",
    "Best (epoch)",
    "Loss",
    "Train %",
    "Train loss",
    "Rate",
    "ms/step",
    "Load least-most %",
    "Dead",
    "Churn %",
)


def to_table(runs: Sequence[Curves]) -> Table:
    """A row for each run: its last evaluation, its best one, and what its last epoch says of the routing by stage."""
    table = Table()
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right")
    for run in runs:
        table.add_row(*_cells(run))
    return table


def _cells(run: Curves) -> tuple[str, ...]:
    line, top1 = run.lines[-1], run.series("eval_top1")
    at = run.best
    best = "" if at is None else f"{100 * top1[at]:.2f} ({run.epoch[at]})"
    share, churn, dead = run.shares[-1], run.by_stage("churn")[-1], run.by_stage("dead_units")[-1]
    return (
        run.name,
        run.network,
        f"{line['epoch']}/{run.epochs}",
        "plain" if run.phase4 is None else Phase(line.get("phase", 1)).label,
        _number(100 * run.last("eval_top1"), 2),
        best,
        _number(run.last("eval_loss"), 4),
        _number(100 * line.get("train_top1", np.nan), 2),
        _number(line.get("train_loss", np.nan), 4),
        _number(line.get("learning_rate", np.nan), 5),
        _number(1e3 * line.get("seconds_per_step", np.nan), 1),
        " | ".join(f"{100 * stage.min():.0f}-{100 * stage.max():.0f}" for stage in share),
        " | ".join(f"{count:.0f}" for count in dead),
        " | ".join(_number(100 * value, 1) for value in churn),
    )


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ""
