"""Counts by hand of a network with a few layers. ``test_table.py`` compares the backbones with published counts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from rmn_jax.analysis.counts import count_multiply_adds, count_parameters, trace_shapes
from rmn_jax.models import RMN, Backbone, initialise
from rmn_jax.models.dropout import Dropout
from rmn_jax.models.layers import Layers


class Stem(nn.Module):
    layers: Layers

    @nn.compact
    def __call__(self, x):
        return self.layers.conv(16, (3, 3), 2, use_bias=True, name="conv")(x)


class Stage(nn.Module):
    layers: Layers

    @nn.compact
    def __call__(self, x):
        x = self.layers.depthwise((5, 5), name="depthwise")(x)
        return self.layers.norm(name="norm")(self.layers.conv(32, (1, 1), 2, name="conv")(x))


class Head(nn.Module):
    layers: Layers

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(Dropout(0.5, self.layers)(x.mean((1, 2))))


network = functools.partial(RMN, Backbone(Stem, (Stage,), Head), 4)

# On 8x8 images. Stem: 4x4x16 outputs with 3 x 3 x 3 products each. Stage: 4x4x16 outputs with 25 products each, then
# 2x2x32 with 16. Head: 10 outputs with 32.
STEM, STAGE, HEAD = 16 * 27 * 16, 16 * 16 * 25 + 4 * 32 * 16, 320
# Memories: N = 4 distances over 16 channels. Attention: 32 -> 2, and 2 -> 32 (with the condition 2 + 4 -> 32).
DISTANCES, SE, CONDITION = 64, 64 + 64, 4 * 32
# Parameters. Stem: kernel and bias. Stage: depthwise and 1x1 kernels, two vectors of the norm. Head: with bias.
STEM_VALUES, STAGE_VALUES, HEAD_VALUES = 27 * 16 + 16, 25 * 16 + 16 * 32 + 64, 330


@pytest.mark.parametrize(
    ("settings", "operations", "values"),
    [
        ({"routed": False}, STEM + STAGE + HEAD, STEM_VALUES + STAGE_VALUES + HEAD_VALUES),
        ({}, STEM + STAGE + HEAD + DISTANCES, STEM_VALUES + 4 * STAGE_VALUES + HEAD_VALUES),
        (
            {"attention": "se"},
            STEM + STAGE + HEAD + DISTANCES + SE,
            STEM_VALUES + 4 * STAGE_VALUES + HEAD_VALUES + SE,
        ),
        (
            {"attention": "conditional"},
            STEM + STAGE + HEAD + DISTANCES + SE + CONDITION,
            STEM_VALUES + 4 * STAGE_VALUES + HEAD_VALUES + SE + CONDITION,
        ),
        (
            {"attention": "conditional", "routed": False},
            STEM + STAGE + HEAD + SE + CONDITION,
            STEM_VALUES + STAGE_VALUES + HEAD_VALUES + SE + CONDITION,
        ),
    ],
)
def test_counts_by_hand(settings, operations, values):
    model = network(**settings)
    assert count_multiply_adds(model, 8) == operations
    assert count_parameters(trace_shapes(model, 8).variables) == values


def test_multiply_adds_are_for_one_image_at_any_batch_size():
    assert trace_shapes(network(), 8, batch=6).multiply_adds == count_multiply_adds(network(), 8)


def test_arrays_have_the_same_count_as_their_shapes():
    images = jnp.zeros((1, 8, 8, 3))
    variables = initialise(network(routed=False), jax.random.key(0), images)
    assert count_parameters(variables) == STEM_VALUES + STAGE_VALUES + HEAD_VALUES


def test_shapes_in_training_mode_include_dropout():
    assert trace_shapes(network(), 8, train=True).outputs.logits.shape == (1, 10)
