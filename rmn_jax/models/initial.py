"""Fresh variables of a network."""

from typing import Any

import flax.linen as nn
import jax


def initialise(model: nn.Module, key: jax.Array, images: jax.Array, **arguments: Any) -> dict[str, Any]:
    """``model.init(key, images, **arguments)`` as one program: images [B, H, W, 3] of any values give the shapes.

    On CPU it is compiled without optimisation: it runs once, and optimising a generator of random numbers for each
    leaf takes far longer than drawing them. Not for use inside another transformation; there call ``model.init``.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(model.init, compiler_options=options)(key, images, **arguments)
