"""Data sets: images, labels and batch order for training and evaluation.

``load`` opens the data set that ``config.data`` names; ``describe`` only says what it is. ``make_preprocess`` makes
the augmentation and normalisation functions that run inside the jitted training and evaluation steps.

Batches come from one of two pipelines. ``device`` keeps the decoded data set in device memory. ``stream`` decodes the
images during the run. In both, training batch k is a function of (seed, k).
"""

from rmn_jax.data.loading import describe, load, open_images, placeholder
from rmn_jax.data.preprocess import Preprocess, make_preprocess
from rmn_jax.data.specs import Batch, Dataset, DatasetInfo

__all__ = [
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Preprocess",
    "describe",
    "load",
    "make_preprocess",
    "open_images",
    "placeholder",
]
