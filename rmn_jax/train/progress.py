"""What a run tells: a bar or plain lines for people, JSON lines for programs."""

import json
import pathlib
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

STEP_NAMES = {1: "stem", 2: "cloning", 3: "memories", 4: "routed"}


class Reporter:
    """Progress by epoch on stderr, and ``metrics.jsonl`` in the run's folder.

    Args:
      workdir: the run's folder.
      quiet: True writes the files only (hosts other than the first, tests).
    """

    def __init__(self, workdir: pathlib.Path, quiet: bool = False):
        self._file = workdir / "metrics.jsonl"
        self._console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self._writes = not quiet or _first_host()
        self._bar: Progress | None = None

    def say(self, line: str) -> None:
        """One line for people."""
        self._console.print(line, markup=False)

    def start_epoch(self, title: str, total: int, done: int) -> None:
        """Opens the epoch's bar on a terminal; elsewhere the line at the end of the epoch is enough."""
        if not self._console.is_terminal or self._console.quiet:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def advance(self, loss: float | None = None) -> None:
        """One update of the epoch is done."""
        if self._bar is not None:
            self._bar.advance(self._task)
            if loss is not None:
                self._bar.update(self._task, note=f"loss {loss:.3f}")

    def end_epoch(self) -> None:
        """Closes the bar, also when the epoch ends early."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def record(self, line: dict[str, Any]) -> None:
        """Appends one JSON line to ``metrics.jsonl``."""
        if self._writes:
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def rewind(self, update: int) -> None:
        """Drops lines later than ``update``: the run was stopped after writing them and will write them again.

        So does a line that cannot be read, say the one that was being written when the process died.
        """
        if not self._writes or not self._file.exists():
            return
        kept = []
        for number, line in enumerate(self._file.read_text(errors="replace").splitlines(), 1):
            try:
                if json.loads(line)["update"] <= update:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                self.say(f"line {number} of {self._file} cannot be read and is left out")
        partial = self._file.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        partial.rename(self._file)


def epoch_line(line: dict[str, Any], epochs: int) -> str:
    """The line that people read at the end of an epoch, from its JSON."""
    parts = [
        f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}",
        f"{STEP_NAMES[line['step']]:<6}",
        f"rate {line['learning_rate']:.5f}",
        f"loss {line['train_loss']:.4f}",
        f"train {line['train_top1']:6.2%}",
    ]
    if "eval_top1" in line:
        parts.append(f"eval {line['eval_top1']:6.2%}")
    parts.append(f"{line['seconds_per_update'] * 1e3:.0f} ms/update")
    if line["load"]:
        shares = [" ".join(f"{unit / max(sum(stage), 1):.0%}" for unit in stage) for stage in line["load"]]
        parts.append("load " + " | ".join(shares))
        if sum(line["dead_units"]):
            parts.append(f"dead {sum(line['dead_units'])}")
    return "  ".join(parts)


def _first_host() -> bool:
    import jax

    return jax.process_index() == 0
