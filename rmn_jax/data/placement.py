"""Placement of host arrays on the devices: one interface for one device, several devices and several hosts."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from rmn_jax.errors import UserError


class Placement:
    """Puts batches on the devices. ``sharding`` shards the batch axis; None is the first local device."""

    def __init__(self, sharding: jax.sharding.Sharding | None):
        default = SingleDeviceSharding(jax.local_devices()[0])
        self.sharding: jax.sharding.Sharding = default if sharding is None else sharding
        if isinstance(self.sharding, NamedSharding):
            self.replicated_sharding: jax.sharding.Sharding = NamedSharding(self.sharding.mesh, PartitionSpec())
        else:
            self.replicated_sharding = self.sharding

    def check_batch_size(self, name: str, batch_size: int) -> None:
        """Raises UserError unless the batch divides evenly over the devices."""
        if batch_size < 1:
            raise UserError(f"{name} is {batch_size}; it must be 1 or more.")
        try:
            self.sharding.shard_shape((batch_size,))
        except ValueError:
            devices = len(self.sharding.device_set)
            raise UserError(f"{name} is {batch_size}, which does not divide over {devices} devices.") from None

    def local_rows(self, batch_size: int) -> np.ndarray:
        """The rows of a batch that this host's devices hold, sorted: int64 [rows]."""
        indices = self.sharding.addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))

    def batch(self, host: np.ndarray) -> jax.Array:
        """Puts a batch on the devices. A host needs correct values in its ``local_rows`` only."""
        if self.sharding.is_fully_addressable:
            return jax.device_put(host, self.sharding)
        return jax.make_array_from_callback(host.shape, self.sharding, lambda index: host[index])

    def local_batch(self, rows: np.ndarray, batch_size: int, *, shared: bool = False) -> jax.Array:
        """Puts a batch on the devices, from the rows that ``local_rows`` names.

        ``shared`` rows are copied also where the device could use them as they are: their memory is needed again.
        """
        if self.sharding.is_fully_addressable:
            return jax.device_put(rows, self.sharding, may_alias=False if shared else None)
        whole = np.empty((batch_size, *rows.shape[1:]), rows.dtype)
        whole[self.local_rows(batch_size)] = rows
        return self.batch(whole)

    def replicated(self, host: np.ndarray) -> jax.Array:
        """Puts a copy of an array on every device."""
        if self.sharding.is_fully_addressable:
            return jax.device_put(host, self.replicated_sharding)
        return jax.make_array_from_callback(host.shape, self.replicated_sharding, lambda index: host[index])

    def jit_per_device(self, function: Callable) -> Callable:
        """Jits ``function(replicated, replicated, batch) -> batches`` so that each device works on its rows.

        Uses ``shard_map``, because it works for meshes with automatic and with explicit axes.
        """
        if not isinstance(self.sharding, NamedSharding):
            return jax.jit(function)
        replicated, rows = PartitionSpec(), self.sharding.spec
        in_specs = (replicated, replicated, rows)
        return jax.jit(jax.shard_map(function, mesh=self.sharding.mesh, in_specs=in_specs, out_specs=rows))
