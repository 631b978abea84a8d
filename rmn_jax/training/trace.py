"""A trace of ten training steps for `rmn train --profile`, with JAX's profiler."""

import pathlib
from collections.abc import Callable

import jax

from rmn_jax.files import writing_to
from rmn_jax.training.state import Phase

FOLDER = "profile"
STEPS = 10
_SKIPPED = 2  # steps before the trace: the first one compiles


class Trace:
    """Traces ten steps of each phase that is trained, into ``FOLDER/phase1`` and ``FOLDER/phase4``.

    As a context manager it ends a trace that is still open.

    Args:
      folder: for the traces; XProf, TensorBoard and Perfetto read them.
      say: receives a line when a trace is written.
    """

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._target: pathlib.Path | None = None
        self._count = 0
        self._tracing = False

    def begin_phase(self, phase: Phase) -> None:
        """The next steps are those of ``phase``.

        Raises:
          UserError: the folder cannot be written.
        """
        self.end()
        self._target, self._count = self._folder / f"phase{phase:d}", 0
        with writing_to(self._target, "--profile=FOLDER"):
            self._target.mkdir(parents=True, exist_ok=True)

    def after_step(self, loss: jax.Array) -> None:
        """Starts or ends the trace when it is time to; ``loss`` is that of the step."""
        self._count += 1
        if self._count in (_SKIPPED, _SKIPPED + STEPS):
            jax.block_until_ready(loss)  # what was started before is not traced, what was traced is finished
        if self._count == _SKIPPED:
            jax.profiler.start_trace(str(self._target))
            self._tracing = True
        elif self._count == _SKIPPED + STEPS:
            self.end()

    def end(self) -> None:
        """Ends the trace, if one is open. A full disk ends no run."""
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            self._say(f"a trace of {min(STEPS, self._count - _SKIPPED)} steps is in {self._target}")
        except (OSError, RuntimeError) as error:
            self._say(f"the trace cannot be written to {self._target}: {str(error).splitlines()[0]}")

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
