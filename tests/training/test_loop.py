"""The loop of an epoch: what the host waits for, on a run without a network."""

import contextlib
import types

import pytest

from rmn_jax.training import loop
from rmn_jax.training.state import Phase


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_only_the_first_step_and_the_last_state_of_an_epoch_are_waited_for(steps, monkeypatch):
    waited = []
    monkeypatch.setattr(loop.jax, "block_until_ready", waited.append)
    nothing = lambda *_: None  # noqa: E731
    reporter = types.SimpleNamespace(start_epoch=nothing, advance=nothing, end_epoch=nothing)
    reporter.compiling = lambda what: contextlib.nullcontext()
    run = types.SimpleNamespace(
        networks=types.SimpleNamespace(train_step=lambda routed: lambda state, batch, key: (state + 1, float(state))),
        config=types.SimpleNamespace(epochs=1),
        dataset=types.SimpleNamespace(train_batch=nothing),
        stop=types.SimpleNamespace(reached=lambda *_: False),
        timer=types.SimpleNamespace(due=lambda: False),
        phase_name=lambda phase: "stem",
        reporter=reporter,
        steps_per_epoch=steps,
        trace=None,
        key=None,
    )
    assert loop._train_epoch(run, 0, 0, steps, Phase.STEM)[0] == steps
    # The loss of the first step is 0.0. It is not waited for on its own if it is also the last.
    assert waited == ([0.0] if steps > 1 else []) + [steps]
