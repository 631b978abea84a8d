"""Trained networks in use: compiled inference and features of inner layers.

``rmn_jax.inference.predict`` predicts image files from a run folder. It is not imported here, because it also imports
``rmn_jax.data``.
"""

from rmn_jax.inference.compile import CompiledNetwork, Prediction, compile_inference
from rmn_jax.inference.features import extract_features, feature_names

__all__ = ["CompiledNetwork", "Prediction", "compile_inference", "extract_features", "feature_names"]
