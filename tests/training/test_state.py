"""The phases of training, and which variables a state is trained and evaluated with."""

import json

import pytest

from rmn_jax.training.state import Metrics, Phase, TrainState


def test_the_network_is_routed_from_phase_2_on():
    assert [phase.routed for phase in Phase] == [False, True, True, True]


def test_a_phase_is_stored_as_its_number():
    assert json.dumps({"phase": Phase.ROUTED}) == '{"phase": 4}'
    assert f"{Phase.STEM:d}" == "1" and Phase(3) is Phase.MEMORIES
    assert [phase.label for phase in Phase] == ["stem", "cloning", "memories", "routed"]


@pytest.mark.parametrize("memory", [{}, {"memory1": "m"}], ids=["plain", "routed"])
def test_evaluation_uses_the_average_with_the_trained_statistics_and_memories(memory):
    state = TrainState(0, "params", "statistics", memory, None, Metrics.zeros(0, 2))
    trained = {"params": "params", "batch_stats": "statistics"} | ({"memory": memory} if memory else {})
    assert state.variables == state.eval_variables == trained
    averaged = state._replace(ema="average")
    assert averaged.variables == trained
    assert averaged.eval_variables == {**trained, "params": "average"}
