"""How a stage chooses each input's unit: by nearest memory (the method), or by a router to compare it with.

All share the dispatch, the arithmetic and the four steps; only the choice differs. Axes: B inputs, N units, H W,
C channels (see ``rmn_jax``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROUTERS = ("memory", "random", "hash", "learned")

_THUMBNAIL = 4  # pixels a side of what the hash router sees


class Gate(NamedTuple):
    """What a learned gate adds to its choice.

    Attributes:
      gain: [B] float32, all ones; its gradient is that of the chosen unit's probability.
      balance: [] float32, the load-balancing loss of these inputs' stage.
    """

    gain: jax.Array
    balance: jax.Array


def random_unit(keys: jax.Array, stage: int, num_units: int) -> jax.Array:
    """A uniform draw from each input's key: [B] keys -> [B] int32. Also the condition of step 1."""
    draw = lambda key: jax.random.randint(jax.random.fold_in(key, stage), (), 0, num_units)  # noqa: E731
    return jax.vmap(draw)(keys).astype(jnp.int32)


def hashed_unit(images: jax.Array, stage: int, num_units: int) -> jax.Array:
    """A fixed function of the image, learned from nothing: [B, H, W, C] -> [B] int32.

    Locality-sensitive hashing: of N fixed random directions, the one along which the image's 4x4 thumbnail, less its
    own mean, reaches furthest. The same pixels have the same unit for ever, and each stage has directions of its own.
    What is hashed is the image as the network is fed it: another crop of it mostly shares its unit, its mirror image
    about every second time.
    """
    batch, channels = images.shape[0], images.shape[-1]
    small = jax.image.resize(images.astype(jnp.float32), (batch, _THUMBNAIL, _THUMBNAIL, channels), "linear")
    flat = small.reshape(batch, -1)
    flat = flat - jnp.mean(flat, axis=-1, keepdims=True)
    directions = np.random.default_rng(stage).normal(size=(flat.shape[-1], num_units)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    scores = jnp.matmul(flat, directions, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def gate(logits: jax.Array, unit: jax.Array, axis_name: Any = None) -> Gate:
    """The gradient's way to a top-1 gate, and the loss that balances the loads (Switch Transformer, 2021).

    The output of the unit is multiplied by 1 + p - stop_gradient(p), which is one: cloning leaves the network's
    outputs as they are, and the gate's gradient is that of an output scaled by its probability p.

    The balancing loss is N sum_j f_j P_j, with f_j the share of the global batch sent to unit j (a constant) and P_j
    the mean probability of unit j; 1 when balanced. Summed over devices it is that of the global batch.

    Args:
      logits: [B, N] float32, of this device's inputs.
      unit: [B] int32, where they are sent.
      axis_name: mesh axis of the global batch, or None.
    """
    num_units = logits.shape[-1]
    probability = jax.nn.softmax(logits, axis=-1)
    own = jnp.take_along_axis(probability, unit[:, None], axis=-1)[:, 0]
    sent = jnp.sum(jax.nn.one_hot(unit, num_units), axis=0)
    if axis_name is not None:
        sent = jax.lax.psum(sent, axis_name)
    total = jnp.sum(sent)
    balance = num_units * jnp.sum(sent / total * jnp.sum(probability, axis=0) / total)
    return Gate(1 + (own - jax.lax.stop_gradient(own)), balance)
