"""Order of the examples, and random generators on the host: pure functions of the seed and a position.

There is no state. A run that restarts at any step, on any number of devices or workers, sees the same batches. Random
numbers come from NumPy's Philox, a counter-based generator: its key fixes its stream on every platform.
"""

import functools

import numpy as np

# Part of the key, so that the shuffle and the crops of an epoch are independent streams.
_SHUFFLE, _EXAMPLE = 0, 1


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of an epoch, int64 [num_examples]: each position of the split once. Read-only."""
    order = _generator(seed, _SHUFFLE, epoch).permutation(num_examples)
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, *, num_examples: int, batch_size: int, repeats: int = 1) -> np.ndarray:
    """The positions in the split of the examples of batch ``step``: int64 [batch_size].

    An epoch has ``num_examples // batch_size`` batches. The remainder of the permutation is dropped; it differs from
    epoch to epoch.

    With ``repeats`` r (repeated augmentation; Hoffer et al., 2020) a batch has B / r examples r times: all of them,
    then all again, so that neighbouring rows differ. An epoch has as many batches, of 1 / r of the examples.
    """
    epoch, batch = divmod(step, num_examples // batch_size)
    count = batch_size // repeats
    distinct = epoch_permutation(seed, epoch, num_examples)[batch * count : (batch + 1) * count]
    return distinct if repeats == 1 else np.tile(distinct, repeats)


def example_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The generator for work on the host on the example at ``position`` of the epoch's permutation."""
    return _generator(seed, _EXAMPLE, epoch, position)
