"""A request to stop: set by a signal or by the program, and seen at the next question."""

import os
import signal
import threading

import pytest

from rmn_jax.training.state import Phase
from rmn_jax.training.stopping import STOP_SIGNALS, StopRequest


def test_a_run_stops_once_it_is_requested():
    stop = StopRequest()
    assert not stop.reached(3, Phase.STEM)
    stop.requested = True
    assert stop.reached(4, Phase.STEM) and stop.reached(4, Phase.ROUTED)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_requests_a_stop_and_the_old_handlers_return(number):
    before = {s: signal.getsignal(s) for s in STOP_SIGNALS}
    stop = StopRequest()
    with stop.on_signals():
        assert not stop.reached(0, Phase.STEM)
        os.kill(os.getpid(), number)
        assert stop.reached(0, Phase.STEM)
    assert {s: signal.getsignal(s) for s in before} == before


def test_a_second_interrupt_stops_at_once():
    stop = StopRequest()
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_outside_the_main_thread_signals_stay_with_the_program():
    before = signal.getsignal(signal.SIGTERM)
    during = []

    def work():
        with StopRequest().on_signals():
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [before]
