"""Scikit-learn's bundled handwritten digits: 1,797 real images of 8 x 8 pixels. They need no download."""

import functools

import numpy as np

EVAL_EXAMPLES = 360

# The split belongs to the data set, so it does not depend on the run's seed.
_SPLIT_SEED = 0


@functools.cache
def load_arrays() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": (images, labels), "eval": (images, labels)}, stratified by class: 1,437 and 360 examples.

    Images are uint8 [n, 8, 8, 3]: scikit-learn's 0..16 scaled to 0..255, with the grey value in each channel.
    Labels are int32 [n].
    """
    # Imported here: scikit-learn is slow to import, and only this data set needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=EVAL_EXAMPLES, random_state=_SPLIT_SEED, stratify=labels
    )
    return {"train": (images[train], labels[train]), "eval": (images[held_out], labels[held_out])}
