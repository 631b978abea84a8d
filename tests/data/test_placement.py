import jax
import numpy as np
import pytest

from rmn_jax.data.placement import Placement
from rmn_jax.errors import UserError


def test_one_device_has_every_row():
    placement = Placement(None)
    np.testing.assert_array_equal(placement.local_rows(5), np.arange(5))
    placed = placement.batch(np.arange(5))
    assert placed.devices() == {jax.local_devices()[0]}
    np.testing.assert_array_equal(placed, np.arange(5))


def test_eight_devices_have_an_eighth_each(eight_way):
    placement = Placement(eight_way)
    np.testing.assert_array_equal(placement.local_rows(16), np.arange(16))
    for placed in (placement.batch(np.arange(16)), placement.local_batch(np.arange(16), 16)):
        shards = sorted((shard.device.id, np.asarray(shard.data).tolist()) for shard in placed.addressable_shards)
        assert [rows for _, rows in shards] == [[2 * k, 2 * k + 1] for k in range(8)]
    whole = placement.replicated(np.arange(3))
    assert all(shard.data.shape == (3,) for shard in whole.addressable_shards)


def test_uneven_and_empty_batches_are_refused(eight_way):
    with pytest.raises(UserError, match="batch_size is 20, which does not divide over 8 devices"):
        Placement(eight_way).check_batch_size("batch_size", 20)
    with pytest.raises(UserError, match="batch_size is 0; it must be 1 or more"):
        Placement(None).check_batch_size("batch_size", 0)
