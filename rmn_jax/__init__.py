"""Neural Routing by Memory (RMN) in JAX and Flax.

Axes, everywhere in this package:

    B    inputs in a batch                N    units in a stage
    H W  height and width, in pixels      C    channels in
    S    routed stages                    O    channels out
    K    classes                          L V  slots in a tile, tiles (``rmn_jax.routing.layout``)
    M    images of a split

A *row* of an array is one input of a batch.

A *stage* is the blocks between two downsamplings. A routed network has N copies of the parameters of each stage; a copy
is a *procedure*. Each procedure has a *memory*, a vector with the C input channels of the stage. A procedure and its
memory together are a *unit* (in the paper a procedural unit). Each input goes to the unit with the nearest memory.

Equation numbers are those of the paper: Zhang, Li, Li, Liu, Sato, "Neural Routing by Memory", NeurIPS 2021.

Where to find what:

    routing    memories, the nearest unit, batch layouts, routers
    ops        routed convolutions and norms: all hand-written performance code
    models     layers, backbones, and the network that routes them
    data       data sets, augmentation, input pipelines
    training   the four phases, the optimizer step, checkpoints
    inference  compiled networks, predictions, features
    interop    weights of torchvision and timm
    analysis   memory report, counts, tables, charts
    bench      the measurements of ``rmn bench`` (that of the input pipelines is in ``data``)
    cli        the command line ``rmn``
    config     every key of a configuration, with its default
    files      atomic writes
    api        the public names of ``import rmn_jax``
    errors     the exceptions that the command line shows as one line
"""

__version__ = "0.2.0"

# The names of ``rmn_jax.api``, loaded on first use: the command line's help must not import JAX.
_PUBLIC = (
    "RMN",
    "convert",
    "create_backbone",
    "export_run",
    "extract_features",
    "init",
    "initialise_memories",
    "load_exported",
    "load_trained",
    "register_backbone",
)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("rmn_jax.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
