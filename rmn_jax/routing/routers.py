"""Routers: how a stage chooses the unit of each input.

``memory`` is the paper's router, the nearest memory (eq. 4). ``random``, ``hash`` and ``learned`` are baselines to
compare it with. A router is one object that is called once for each stage: features and keys in, a ``Routing`` out.
To add one, write a subclass of ``Router``, set its attributes, and list it in ``ROUTERS``; nothing else changes.

Axes: B batch, N units, H W height and width, C channels (see ``rmn_jax``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax.routing.memory import squared_distances

_THUMBNAIL = 4  # pixels on a side of the image that the hash router sees


class StageInput(NamedTuple):
    """What a router may use at one stage.

    Attributes:
      stage: index of the stage, from 0.
      num_units: N.
      features: [B, C] float32, GAP(f_{i-1}) in batch order, without gradient.
      images: [B, H, W, 3], the network's input.
      keys: [B] random keys, one for each input, or None.
      metric: of features and memories, see ``rmn_jax.routing.squared_distances``.
      norm: constructor of a plain batch norm, for routers with parameters: ``norm(name=...)(x)``.
      axis_name: mesh axis of the global batch, or None.
    """

    stage: int
    num_units: int
    features: jax.Array
    images: jax.Array
    keys: jax.Array | None = None
    metric: str = "euclidean"
    norm: Callable[..., nn.Module] | None = None
    axis_name: Any = None


class Routing(NamedTuple):
    """The result of a router.

    Attributes:
      assignment: [B] int32, the unit of each input, in [0, N).
      gain: [B] float32, factor on the unit's output, or None for 1. Gives a learned router its gradient.
      auxiliary_loss: [] float32, added to the training loss with the weight ``config.balance_loss``.
      metrics: ``distances`` [B, N] float32, squared distances to the memories.
    """

    assignment: jax.Array
    gain: jax.Array | None
    auxiliary_loss: jax.Array
    metrics: dict[str, jax.Array]


class Router:
    """Base class. A subclass defines ``choose``, and ``scores`` and ``gate`` if it has parameters.

    Attributes:
      needs_keys: it draws at random, so one image has no fixed unit.
      has_parameters: ``scores`` creates parameters, in phase 1 too.
      by_memory: it takes the nearest memory and nothing else, so inference may compute it alone.
    """

    needs_keys = False
    has_parameters = False
    by_memory = False

    def scores(self, inputs: StageInput) -> jax.Array | None:
        """[B, N] float32 from parameters, or None. The plain network calls it too, so that the parameters exist."""
        del inputs
        return None

    def choose(self, inputs: StageInput, scores: jax.Array | None, distances: jax.Array) -> jax.Array:
        """The assignment [B] int32, from the inputs, the scores and the distances [B, N] to the memories."""
        raise NotImplementedError

    def gate(
        self, inputs: StageInput, scores: jax.Array | None, assignment: jax.Array
    ) -> tuple[jax.Array | None, jax.Array]:
        """Gain [B] (or None) and auxiliary loss [] of an assignment [B]."""
        del inputs, scores, assignment
        return None, jnp.zeros((), jnp.float32)

    def __call__(self, inputs: StageInput, memory: jax.Array, assignment: jax.Array | None = None) -> Routing:
        """Routes a batch at one stage.

        Args:
          inputs: see ``StageInput``.
          memory: [N, C] float32.
          assignment: [B] int32, overrides the router's choice.

        Raises:
          AssertionError: shapes that do not fit.
        """
        chex.assert_shape(memory, (inputs.num_units, inputs.features.shape[-1]))
        scores = self.scores(inputs)
        distances = squared_distances(inputs.features, memory, inputs.metric)
        if assignment is None:
            assignment = self.choose(inputs, scores, distances)
        chex.assert_shape(assignment, (inputs.features.shape[0],))
        gain, loss = self.gate(inputs, scores, assignment)
        return Routing(assignment, gain, loss, {"distances": distances})


class NearestMemory(Router):
    """R = argmin_j || m_j - GAP(f) ||_2 (eq. 4); the lowest index wins a tie."""

    by_memory = True

    def choose(self, inputs: StageInput, scores: jax.Array | None, distances: jax.Array) -> jax.Array:
        """See ``Router``."""
        del inputs, scores
        return jnp.argmin(distances, axis=-1).astype(jnp.int32)


class Random(Router):
    """A uniform draw for each input and stage."""

    needs_keys = True

    def choose(self, inputs: StageInput, scores: jax.Array | None, distances: jax.Array) -> jax.Array:
        """See ``Router``."""
        del scores, distances
        return random_unit(inputs.keys, inputs.stage, inputs.num_units)


class Hash(Router):
    """A fixed function of the image; nothing is learned."""

    def choose(self, inputs: StageInput, scores: jax.Array | None, distances: jax.Array) -> jax.Array:
        """See ``Router``."""
        del scores, distances
        return hashed_unit(inputs.images, inputs.stage, inputs.num_units)


class Learned(Router):
    """A top-1 gate (Switch Transformer, 2021): a linear layer over normalised features.

    The features receive no gradient from it. Without the normalisation, what all inputs have in common would send
    them all to one unit.
    """

    has_parameters = True

    def scores(self, inputs: StageInput) -> jax.Array:
        """The gate's logits, [B, N] float32."""
        assert inputs.norm is not None, "a learned router needs a batch norm"
        features = inputs.norm(name=f"gate_norm{inputs.stage + 1}")(inputs.features[:, None, None, :])[:, 0, 0]
        return nn.Dense(inputs.num_units, use_bias=False, name=f"gate{inputs.stage + 1}")(features)

    def choose(self, inputs: StageInput, scores: jax.Array | None, distances: jax.Array) -> jax.Array:
        """See ``Router``."""
        assert scores is not None
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)

    def gate(
        self, inputs: StageInput, scores: jax.Array | None, assignment: jax.Array
    ) -> tuple[jax.Array | None, jax.Array]:
        """See ``top1_gate``."""
        assert scores is not None
        return top1_gate(scores, assignment, inputs.axis_name)


ROUTERS: dict[str, Router] = {"memory": NearestMemory(), "random": Random(), "hash": Hash(), "learned": Learned()}


def random_unit(keys: jax.Array | None, stage: int, num_units: int) -> jax.Array:
    """A uniform draw from each input's key: [B] keys -> [B] int32. Also the condition of phase 1 (eqs. 6-8).

    Raises:
      ValueError: no keys.
    """
    if keys is None:
        raise ValueError("a random unit or condition needs keys=[B], one for each input (or an assignment)")
    draw = lambda key: jax.random.randint(jax.random.fold_in(key, stage), (), 0, num_units)  # noqa: E731
    return jax.vmap(draw)(keys).astype(jnp.int32)


def hashed_unit(images: jax.Array, stage: int, num_units: int) -> jax.Array:
    """A fixed function of the image, by locality-sensitive hashing: [B, H, W, C] -> [B] int32.

    There are N fixed random directions for each stage. The unit is the direction on which the image's 4x4 thumbnail,
    less its own mean, has the largest projection. The same pixels always get the same unit. The hash sees the
    augmented image: another crop usually gets the same unit, the mirror image about half of the time.
    """
    batch, channels = images.shape[0], images.shape[-1]
    small = jax.image.resize(images.astype(jnp.float32), (batch, _THUMBNAIL, _THUMBNAIL, channels), "linear")
    flat = small.reshape(batch, -1)
    flat = flat - jnp.mean(flat, axis=-1, keepdims=True)
    directions = np.random.default_rng(stage).normal(size=(flat.shape[-1], num_units)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    scores = jnp.matmul(flat, directions, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def top1_gate(logits: jax.Array, assignment: jax.Array, axis_name: Any = None) -> tuple[jax.Array, jax.Array]:
    """Gain and load-balancing loss of a top-1 gate (Switch Transformer, 2021).

    The gain is 1 + p - stop_gradient(p), with p the probability of the chosen unit. Its value is 1, so cloning does
    not change the network's outputs. Its gradient is that of an output scaled by p.

    The loss is N sum_j f_j P_j, with f_j the share of the global batch sent to unit j (a constant) and P_j the mean
    probability of unit j. It is 1 for balanced loads. Summed over devices it is the loss of the global batch.

    Args:
      logits: [B, N] float32, of this device's inputs.
      assignment: [B] int32, their units.
      axis_name: mesh axis of the global batch, or None.

    Returns:
      Gain [B] float32 and loss [] float32.
    """
    num_units = logits.shape[-1]
    probability = jax.nn.softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(probability, assignment[:, None], axis=-1)[:, 0]
    sent = jnp.sum(jax.nn.one_hot(assignment, num_units), axis=0)
    if axis_name is not None:
        sent = jax.lax.psum(sent, axis_name)
    total = jnp.sum(sent)
    balance = num_units * jnp.sum(sent / total * jnp.sum(probability, axis=0) / total)
    return 1 + (chosen - jax.lax.stop_gradient(chosen)), balance
