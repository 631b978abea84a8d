"""Churn against counts by hand, and what it compares with after a restart."""

import json
import types

import numpy as np
import pytest

from rmn_jax.training.churn import Churn
from rmn_jax.training.extraction import _views


def fake_run(workdir, keep=2, every=1):
    """A run of 4 steps an epoch and one epoch of phase 1, evaluated each epoch."""
    settings = types.SimpleNamespace(
        checkpoint=types.SimpleNamespace(keep=keep, every_epochs=every), eval_every_epochs=1
    )
    return types.SimpleNamespace(workdir=workdir, config=settings, steps_per_epoch=4, stem_steps=4)


def units(*rows):
    return np.array(rows, np.int16)


def test_churn_is_the_share_of_images_whose_unit_changed(tmp_path):
    churn = Churn(fake_run(tmp_path))
    assert churn.since_last(8, units([0, 1, 2, 0], [1, 1, 1, 1])) is None  # the first of phase 4
    # Stage 1: the last image of four moved. Stage 2: three moved.
    assert churn.since_last(12, units([0, 1, 2, 1], [1, 0, 0, 0])) == [0.25, 0.75]
    assert churn.since_last(16, units([0, 1, 2, 1], [1, 0, 0, 0])) == [0.0, 0.0]


def test_a_run_that_goes_back_to_a_checkpoint_finds_the_same_churn(tmp_path):
    rng = np.random.default_rng(0)
    found = {step: rng.integers(0, 3, (2, 50)).astype(np.int16) for step in range(8, 84, 4)}
    churn = Churn(fake_run(tmp_path, keep=2, every=3))
    whole = {step: churn.since_last(step, assignment) for step, assignment in found.items()}
    again = Churn(fake_run(tmp_path, keep=2, every=3))
    # The two checkpoints that are kept are at most 2 x 3 epochs old, here at steps 60 and 72.
    assert {step: again.since_last(step, found[step]) for step in range(64, 84, 4)} == {
        step: whole[step] for step in range(64, 84, 4)
    }
    assert len(list((tmp_path / "assignments").iterdir())) < 12


@pytest.mark.parametrize("content", ["", "[[0, 1", '{"a": 1}', "[[0, 1]]", None])
def test_an_evaluation_that_is_not_known_gives_no_churn(content, tmp_path):
    Churn(fake_run(tmp_path)).since_last(8, units([0, 1, 2]))
    path = tmp_path / "assignments" / "00000008.json"
    path.unlink() if content is None else path.write_text(content)
    churn = Churn(fake_run(tmp_path))
    assert churn.since_last(12, units([0, 1, 2])) is None
    assert json.loads((tmp_path / "assignments" / "00000012.json").read_text()) == [[0, 1, 2]]


def test_views_of_an_image_that_go_to_one_unit():
    # Of four views: image 1 always goes to unit 0, image 2 three times to unit 1, image 3 twice each.
    found = _views(np.array([[0, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]]), 2)
    assert found.share == pytest.approx((4 / 4 + 3 / 4 + 2 / 4) / 3)
    assert (found.inputs, found.views) == (3, 4)
    rng = np.random.default_rng(1)
    even = _views(rng.integers(0, 2, (16, 4000)), 2)
    # Of 16 fair draws the larger group has 8 + E|X - 8| = 8 + 1.571 on average (binomial): 59.8%.
    assert even.share == pytest.approx(0.598, abs=0.005) and even.chance == pytest.approx(even.share, abs=0.005)
