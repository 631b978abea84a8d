import numpy as np
import pytest

from rmn_jax.data import order


def test_an_epoch_visits_every_example_once():
    np.testing.assert_array_equal(np.sort(order.epoch_permutation(3, 5, 1000)), np.arange(1000))


def test_order_differs_between_epochs_and_seeds_but_not_between_calls():
    first = order.epoch_permutation(0, 0, 100).copy()
    order.epoch_permutation.cache_clear()
    np.testing.assert_array_equal(first, order.epoch_permutation(0, 0, 100))
    assert not np.array_equal(first, order.epoch_permutation(0, 1, 100))
    assert not np.array_equal(first, order.epoch_permutation(1, 0, 100))


def test_the_random_stream_is_the_documented_one():
    # Philox keyed by SeedSequence((seed, 0 for the shuffle, epoch)): a change here would change every run.
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((7, 0, 2))))
    np.testing.assert_array_equal(order.epoch_permutation(7, 2, 50), generator.permutation(50))


@pytest.mark.parametrize(("step", "epoch", "start"), [(0, 0, 0), (2, 0, 6), (3, 1, 0), (7, 2, 3)])
def test_batches_divide_the_order_of_the_epoch_and_drop_the_remainder(step, epoch, start):
    # 10 examples in batches of 3: an epoch has 3 batches.
    found = order.batch_indices(4, step, num_examples=10, batch_size=3)
    np.testing.assert_array_equal(found, order.epoch_permutation(4, epoch, 10)[start : start + 3])


def test_example_generators_are_independent_of_each_other_and_of_the_shuffle():
    draws = {order.example_generator(*key).integers(2**63) for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert len(draws) == 4
    assert order.example_generator(0, 0, 0).random() == order.example_generator(0, 0, 0).random()


def test_repeated_examples_are_in_a_batch_as_often_as_asked_and_neighbours_differ():
    # 12 examples in batches of 6, each 3 times: an epoch has 2 batches, of the first 4 examples of its order.
    for step, start in ((0, 0), (1, 2)):
        found = order.batch_indices(4, step, num_examples=12, batch_size=6, repeats=3)
        np.testing.assert_array_equal(found, np.tile(order.epoch_permutation(4, 0, 12)[start : start + 2], 3))
    np.testing.assert_array_equal(
        order.batch_indices(4, 2, num_examples=12, batch_size=6, repeats=3)[:2], order.epoch_permutation(4, 1, 12)[:2]
    )
