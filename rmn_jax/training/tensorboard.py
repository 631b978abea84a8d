"""The lines of ``metrics.jsonl`` for TensorBoard, through tensorboardX (the extra ``tensorboard``).

Events are written by tensorboardX's synchronous writer. Its usual one writes in a thread; on a full disk that thread
dies, and the run would wait for it for ever.

Axes: S routed stages, N units (see ``rmn_jax``).
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rmn_jax.errors import UserError

FOLDER = "tensorboard"
# Scalars of a line by their tag. What stands before the slash is a section of TensorBoard's page.
_SCALARS = {
    "loss/train": "train_loss",
    "loss/held_out": "eval_loss",
    "top1/train": "train_top1",
    "top1/held_out": "eval_top1",
    "top5/held_out": "eval_top5",
    "learning_rate": "learning_rate",
    "seconds_per_step": "seconds_per_step",
}
_BY_STAGE = {
    "drift": "memory_drift",
    "dead_units": "dead_units",
    "churn": "churn",
    "load_entropy": "entropy",
}


def check_installed() -> None:
    """Raises UserError if tensorboardX is not there."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            "config.tensorboard needs the package tensorboardX: pip install 'rmn_jax[tensorboard]', "
            "or set --config.tensorboard=False."
        ) from None


class TensorBoard:
    """Writes the lines of a run to ``tensorboard/`` of its folder; the step of an event is the optimizer step.

    Args:
      workdir: the run's folder.
      warn: receives a line if the files cannot be written. The run then goes on without.
    """

    def __init__(self, workdir: pathlib.Path, warn: Callable[[str], None]):
        self._folder = workdir / FOLDER
        self._warn = warn
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Opens a file for what comes after ``step``. What earlier files have from there on is no longer shown."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        def open_file() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            earlier = len(list(self._folder.iterdir()))  # the number makes the name a new one
            self._writer = EventsWriter(str(self._folder / "events"), filename_suffix=f".{earlier:04d}")
            # TensorBoard's way to purge: a new file hides what earlier files have from its first step on.
            self._writer.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
            self._writer.flush()

        self._careful(open_file)

    def write(self, line: dict[str, Any]) -> None:
        """Writes the values of one line of ``metrics.jsonl``."""
        from tensorboardX.proto.event_pb2 import Event

        def write_events() -> None:
            for summary in _summaries(line):
                self._writer.write_event(Event(wall_time=time.time(), step=line["step"], summary=summary))
            self._writer.flush()

        if self._writer is not None:
            self._careful(write_events)

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._careful(self._writer.close)
            self._writer = None

    def _careful(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except OSError as error:
            writer, self._writer = self._writer, None
            with contextlib.suppress(OSError):
                if writer is not None:
                    writer.close()
            self._warn(f"cannot write {self._folder}: {error.strerror}; the run goes on without TensorBoard")


def _summaries(line: dict[str, Any]) -> Iterator[Any]:
    """The summaries of one line. What it does not have is left out."""
    from tensorboardX import summary

    for tag, key in _SCALARS.items():
        if line.get(key) is not None:
            yield summary.scalar(tag, line[key])
    for stage, number in enumerate(line.get("stages", [])):
        for tag, key in _BY_STAGE.items():
            if line.get(key):
                yield summary.scalar(f"{tag}/stage{number}", line[key][stage])
        for tag, key in {"load": "load", "load_held_out": "eval_load"}.items():
            if line.get(key):
                yield _load(f"{tag}/stage{number}", np.asarray(line[key][stage], float))


def _load(tag: str, load: np.ndarray) -> Any:
    """The units [N] of the inputs as a histogram: a bar for each unit, from j - 1/2 to j + 1/2."""
    from tensorboardX import summary

    units = np.arange(len(load))
    return summary.histogram_raw(
        tag,
        min=-0.5,
        max=len(load) - 0.5,
        num=int(load.sum()),
        sum=float(units @ load),
        sum_squares=float(units**2 @ load),
        bucket_limits=[-0.5, *(units + 0.5).tolist()],  # a bucket begins where the one before ends; the first is empty
        bucket_counts=[0.0, *load.tolist()],
    )
