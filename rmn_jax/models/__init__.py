"""Backbones by name, their layers, and the network that routes them."""

from rmn_jax.models.build import BACKBONES, build_model, create_backbone, initialise, parse_stages
from rmn_jax.models.rmn import ATTENTIONS, RMN, Backbone, Outputs

__all__ = [
    "ATTENTIONS",
    "BACKBONES",
    "RMN",
    "Backbone",
    "Outputs",
    "build_model",
    "create_backbone",
    "initialise",
    "parse_stages",
]
