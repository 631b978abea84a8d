"""Stopping a run when the process is asked to."""

import contextlib
import os
import signal

import jax
from jax.experimental import multihost_utils

from rmn_jax.training.state import Phase

# Ctrl-C, a scheduler's end, a closed terminal, and a scheduler's early warning.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopRequest:
    """Whether to stop; asked between steps and between phases.

    Attributes:
      requested: set by a signal, or by whoever else wants the run to stop.
    """

    def __init__(self) -> None:
        self.requested = False
        self._asked = 0

    def reached(self, step: int, phase: Phase) -> bool:
        """Whether to stop here, after ``step`` steps in ``phase``.

        Several processes stop together, at the same step, once one of them has received a SIGTERM.
        """
        del step, phase
        if jax.process_count() > 1:
            self._asked += 1
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self.requested

    @contextlib.contextmanager
    def on_signals(self):
        """Within this context, ``STOP_SIGNALS`` set ``requested``; a second Ctrl-C stops at once.

        With several processes JAX itself listens for SIGTERM. A handler here would replace its own, so the other
        signals are passed on to it as a SIGTERM.
        """
        several = jax.process_count() > 1

        def request(signum, frame):
            del frame
            self.requested = True
            if several:
                os.kill(os.getpid(), signal.SIGTERM)
            if signum == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)

        ours = [s for s in STOP_SIGNALS if not (several and s == signal.SIGTERM)]
        previous = {}
        with contextlib.suppress(ValueError):  # not in the main thread: the program handles signals itself
            # A signal that the program was told to ignore (nohup) stays ignored.
            kept = {s for s in ours if signal.getsignal(s) == signal.SIG_IGN}
            previous = {s: signal.signal(s, request) for s in ours if s not in kept}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
