"""Tiny ImageNet as a tfds data set. ``Builder`` writes it from the published zip file or its unpacked folder."""

from rmn_jax.data.tiny_imagenet.builder import Builder

__all__ = ["Builder"]
