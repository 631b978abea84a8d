"""Neural Routing by Memory (RMN) in JAX and Flax.

Axes, everywhere in this package:

    B  inputs in a batch           H W  height and width of a feature map
    N  procedural units a stage    C O  channels in and out
    S  routed stages               K    classes

A *stage* is the run of blocks between two downsamplings. In a routed network each stage holds N copies of
its parameters (*procedures*), each with a *memory*, a vector of the stage's C input channels. Memory and
procedure together are a *procedural unit*. Equation numbers are those of the paper:
Zhang, Li, Li, Liu, Sato, "Neural Routing by Memory", NeurIPS 2021.
"""

__version__ = "0.1.0"
