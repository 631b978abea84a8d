"""Which example goes where in which batch, with which random numbers: functions of seed and position.

Nothing here has state, so a run that starts again at any update, on any number of devices or workers, sees
the batches the first run would have seen. Random numbers come from NumPy's Philox, a counter-based generator
whose stream is fixed by its key on every platform.
"""

import functools

import numpy as np

# Told apart in the key, so that the shuffle and the crops of one epoch are independent streams.
_SHUFFLE, _EXAMPLE = 0, 1


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of an epoch: int64 [num_examples], each position of the split once. Read-only."""
    order = _generator(seed, _SHUFFLE, epoch).permutation(num_examples)
    order.flags.writeable = False
    return order


def batch_indices(seed: int, update: int, *, num_examples: int, batch_size: int) -> np.ndarray:
    """Returns the positions in the split of the examples of batch `update`: int64 [batch_size].

    An epoch has `num_examples // batch_size` batches; the remainder of the permutation is left out, and
    differs from epoch to epoch.
    """
    epoch, batch = divmod(update, num_examples // batch_size)
    start = batch * batch_size
    return epoch_permutation(seed, epoch, num_examples)[start : start + batch_size]


def example_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Returns the generator for host-side work on the example at `position` of the epoch's permutation."""
    return _generator(seed, _EXAMPLE, epoch, position)
