"""The exponential moving average (EMA) of the parameters: its rule, and that training never reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_states import make, make_batch, noisy, normless

from rmn_jax.training.ema import start_ema, update_ema
from rmn_jax.training.step import make_mesh, make_train_step


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [
        (0, 0.9, 10 * 0.1 + 20 * 0.9),  # (1 + 0) / (10 + 0)
        (8, 0.9, 10 * 0.5 + 20 * 0.5),  # 9 / 18
        (8, 0.25, 10 * 0.25 + 20 * 0.75),  # the decay, because it is less than 9 / 18
        (10**6, 0.9999, 10 * 0.9999 + 20 * 0.0001),
    ],
)
def test_the_decay_grows_with_the_steps_up_to_its_limit(step, decay, expected):
    moved = update_ema({"a": jnp.float32(10)}, {"a": jnp.float32(20)}, decay, jnp.int32(step))
    assert float(moved["a"]) == pytest.approx(expected, rel=1e-6)


def test_without_a_decay_there_is_no_average():
    assert start_ema({"a": jnp.ones(2)}, 0.0) is None
    assert update_ema(None, {"a": jnp.ones(2)}, 0.0, jnp.int32(1)) is None


def test_the_average_begins_as_a_copy_of_the_parameters():
    params = {"a": jnp.arange(3.0)}
    ema = start_ema(params, 0.99)
    np.testing.assert_array_equal(ema["a"], params["a"])
    assert ema["a"].unsafe_buffer_pointer() != params["a"].unsafe_buffer_pointer()


def test_the_average_follows_the_parameters_and_changes_no_bit_of_them(rng):
    optimizer, batches = optax.sgd(0.5, momentum=0.9), [make_batch(rng) for _ in range(3)]
    ends, params = [], []
    for ema in (True, False):
        model, state = make(False, "none", optimizer, normless(), ema=ema)
        params.append(jax.device_get(state.params))
        mesh = make_mesh(jax.devices()[:2])
        step = make_train_step(model, optimizer, noisy, mesh, alpha=0.9, ema=0.15 if ema else 0.0)
        for batch in batches:
            state, _ = step(state, batch, jax.random.key(1))
            if ema:
                params.append(jax.device_get(state.params))
        ends.append(jax.device_get(state))
    assert ends[1].ema is None
    jax.tree.map(np.testing.assert_array_equal, ends[0]._replace(ema=None), ends[1])
    expected = params[0]
    for decay, after in zip((0.1, 0.15, 0.15), params[1:4], strict=True):  # 1/10; then 2/11 and 3/12 are above 0.15
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ends[0].ema, expected)
    moved = jax.tree.map(lambda a, p: np.abs(a - p).max(), ends[0].ema, ends[0].params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    assert ends[0].eval_variables["params"] is ends[0].ema
    assert ends[1].eval_variables["params"] is ends[1].params
