"""Images for training and evaluation; `load` opens a data set, `make_preprocess` makes its jitted half."""

from rmn_jax.data.fingerprint import check_fingerprint
from rmn_jax.data.loading import load
from rmn_jax.data.preprocess import AUGMENTATIONS, Preprocess, make_preprocess
from rmn_jax.data.types import Batch, Dataset, DatasetInfo

__all__ = [
    "AUGMENTATIONS",
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Preprocess",
    "check_fingerprint",
    "load",
    "make_preprocess",
]
