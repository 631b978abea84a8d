"""Progress of a run: a bar or plain lines for people, JSON lines (``metrics.jsonl``) for programs."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rmn_jax.errors import UserError
from rmn_jax.files import free_name, read_regular, write_file
from rmn_jax.training.state import Phase
from rmn_jax.training.tensorboard import TensorBoard

METRICS_FILE = "metrics.jsonl"
# Release 0.1 called a step an update and a phase a step.
_RENAMED_KEYS = {"update": "step", "step": "phase", "seconds_per_update": "seconds_per_step"}

# Seconds without a word to people within an epoch, and seconds of a compilation whose end is told.
_SILENCE, _LONG = 30.0, 5.0
# From more units than this a line for people has a summary of their loads.
_MANY_UNITS = 8
# Values of a line that are arrays, with their dimensions: [S, N] or [S].
_ARRAYS = {"load": 2, "eval_load": 2, "entropy": 1, "dead_units": 1, "memory_drift": 1, "churn": 1}


class Reporter:
    """Progress by epoch on stderr, and ``metrics.jsonl`` in the run's folder.

    Args:
      workdir: the run's folder.
      quiet: True writes the files only (hosts other than the first, tests).
      tensorboard: True writes the metrics also for TensorBoard.
    """

    def __init__(self, workdir: pathlib.Path, quiet: bool = False, tensorboard: bool = False):
        self._file = workdir / METRICS_FILE
        self._console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self._writes = not quiet or _first_host()
        self._board = TensorBoard(workdir, self.say) if tensorboard and self._writes else None
        self._bar: Progress | None = None
        self._title, self._first, self._done, self._total = "", 0, 0, 0
        self._said = self._begun = time.monotonic()
        self._compiled: set[str] = set()

    def close(self) -> None:
        """Closes the files of TensorBoard."""
        if self._board is not None:
            self._board.close()

    def say(self, line: str) -> None:
        """Prints one line for people. A run does not end because its terminal is gone."""
        with contextlib.suppress(OSError):
            self._console.print(line, markup=False)

    def start_epoch(self, title: str, total: int, done: int) -> None:
        """Opens the bar of an epoch on a terminal. Elsewhere there is a line every 30 seconds, see ``advance``."""
        self._title, self._first, self._done, self._total = title, done, done, total
        self._said = self._begun = time.monotonic()
        if not self._console.is_terminal or self._console.quiet:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def advance(self, loss: float) -> None:
        """Advances the bar by one step, or says where the epoch is if nothing was said for ``_SILENCE`` seconds."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=f"loss {loss:.3f}")
            return
        now = time.monotonic()
        if now - self._said >= _SILENCE:
            self._said = now
            speed = (now - self._begun) / (self._done - self._first)
            self.say(f"{self._title}  step {self._done}/{self._total}  loss {loss:.4f}  {speed * 1e3:.0f} ms/step")

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Says that ``what`` is compiled when it is used for the first time, and how long that took if it was long."""
        if not self.compiles(what):
            yield
            return
        begun = time.monotonic()
        yield
        seconds = time.monotonic() - begun
        if seconds >= _LONG:
            self.say(f"the {what} is compiled after {seconds:.0f} s")
        self._begun, self._first = time.monotonic(), self._done

    def compiles(self, what: str) -> bool:
        """Says that ``what`` is compiled when it is used for the first time; whether this is that time."""
        if what in self._compiled:
            return False
        self._compiled.add(what)
        self.say(f"compiling the {what}")
        return True

    def end_epoch(self) -> None:
        """Closes the bar, also if the epoch ends early."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def record(self, line: dict[str, Any]) -> None:
        """Appends one JSON line to ``metrics.jsonl``.

        Raises:
          UserError: the file cannot be written, for example because the disk is full.
        """
        if not self._writes:
            return
        if self._board is not None:
            self._board.write(line)
        try:
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self._file}: {error.strerror}. Make room (or mend the permissions) and start again; "
                "the run goes on from its last checkpoint."
            ) from None

    def rewind(self, step: int) -> None:
        """Removes lines later than ``step``: the run was stopped after it wrote them, and will write them again.

        TensorBoard gets a new file that hides what earlier ones have after ``step``.

        Lines that cannot be read are removed too, for example one that was being written when the process died. If
        there are others than the last one, the old file is kept beside the new one.

        Raises:
          UserError: the file cannot be read or written.
        """
        if not self._writes:
            return
        if self._board is not None:
            self._board.begin(step)
        unreadable: list[int] = []
        found = read_metrics(self._file, unreadable)
        kept = [line for line in found if line["step"] <= step]
        if len(kept) == len(found) and not unreadable:
            return
        try:
            if unreadable and unreadable[0] <= len(found):
                copy = free_name(self._file, "damaged")
                copy.write_bytes(self._file.read_bytes())
                self.say(f"{self._file} is kept as {copy.name}, because lines before the last cannot be read")
            for number in unreadable:
                self.say(f"line {number} of {self._file} cannot be read and is removed")
            write_file(self._file, "".join(json.dumps(line) + "\n" for line in kept))
        except OSError as error:
            raise UserError(f"cannot write {self._file}: {error.strerror}.") from None


def read_metrics(path: pathlib.Path, unreadable: list[int] | None = None) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, under today's keys; none if there is no file.

    Args:
      path: the file.
      unreadable: receives the numbers of lines that cannot be read. They are left out.

    Raises:
      UserError: it is no file that can be read.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path} {error}; move it away.") from None
    lines = []
    for number, text in enumerate(data.decode(errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            if "update" in line:
                line = {_RENAMED_KEYS.get(key, key): value for key, value in line.items()}
            _check_line(line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if unreadable is not None:
                unreadable.append(number)
            continue
        lines.append(line)
    return lines


def _check_line(line: dict[str, Any]) -> None:
    """Raises ValueError, TypeError or KeyError unless the line has the types that a run writes."""
    for key in ("step", "epoch"):
        value = line["step"] if key == "step" else line.get(key, 0)
        if type(value) is not int or value < 0:
            raise ValueError(key)
    Phase(line.get("phase", 1))
    for key, dimensions in _ARRAYS.items():
        found = np.asarray(line.get(key) or [], float)
        if found.size and found.ndim != dimensions:
            raise ValueError(key)
    for key in ("learning_rate", "train_loss", "train_top1", "seconds_per_step", "eval_top1", "eval_top5", "eval_loss"):
        if type(line.get(key, 0)) not in (int, float):
            raise ValueError(key)


def epoch_line(line: dict[str, Any], epochs: int, phase: str | None = None) -> str:
    """The line for people at the end of an epoch, from its JSON.

    Args:
      line: of ``metrics.jsonl``.
      epochs: of the whole run.
      phase: its name for people; None is that of the phase's number.
    """
    parts = [
        f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}",
        f"{phase or Phase(line['phase']).label:<6}",
        f"rate {line['learning_rate']:.5f}",
        f"loss {line['train_loss']:.4f}",
        f"train {line['train_top1']:7.2%}",
    ]
    if "eval_top1" in line:
        parts.append(f"eval {line['eval_top1']:7.2%}")
    parts.append(f"{line['seconds_per_step'] * 1e3:.0f} ms/step")
    if line["load"]:
        parts += _load_texts(line["load"], line["dead_units"])
        if line.get("churn"):
            parts.append("churn " + " | ".join(f"{share:.0%}" for share in line["churn"]))
    return "  ".join(parts)


def _load_texts(load: list[list[int]], dead: list[int]) -> list[str]:
    """The share of each unit, stage by stage; of many units the least, the median and the most of each stage."""
    shares = [np.asarray(stage) / max(sum(stage), 1) for stage in load]
    if len(shares[0]) <= _MANY_UNITS:
        told = ["load " + " | ".join(" ".join(f"{share:.0%}" for share in stage) for stage in shares)]
        return told + ([f"dead {sum(dead)}"] if sum(dead) else [])
    told = []
    for name, of in (("load least", np.min), ("median", np.median), ("most", np.max)):
        told.append(f"{name} " + " | ".join(f"{of(stage):.1%}" for stage in shares))
    return told + (["dead " + " | ".join(map(str, dead))] if sum(dead) else [])


def _first_host() -> bool:
    import jax

    return jax.process_index() == 0
