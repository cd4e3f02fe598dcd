"""Where a step runs: one program per device (pmap), or one program over all devices (jit over a mesh)."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.common.errors import ConfigError
from experiments.data import Batch
from experiments.engine.config import ParallelConfig

_AXIS = "devices"


class Parallel(Protocol):
    """A way to use several devices: the batch is divided among them, and each holds all variables.

    Attributes:
        num_devices: number of devices of all processes.
        axis_name: axis that a step averages over by itself, None where it sees the whole batch.
    """

    num_devices: int

    @property
    def axis_name(self) -> str | None:
        """See above."""

    def compile(self, step: Callable[..., Any], *, donate: bool) -> Callable[..., Any]:
        """Returns the compiled form of a step `(state, batch) -> …`; `donate` lets it reuse the state's memory."""

    def place_state(self, state: Any) -> Any:
        """Returns a state, held by this process, as the compiled step takes it."""

    def place_batch(self, batch: Batch) -> Batch:
        """Returns this process's part of a batch as the compiled step takes it."""

    def fetch(self, tree: Any) -> Any:
        """Returns what the compiled step returned, as NumPy arrays of their own."""


class Pmap:
    """`jax.pmap` over the devices; variables have a leading axis of devices."""

    axis_name: str | None = _AXIS

    def __init__(self, num_devices: int):
        """Takes so many of this process's devices."""
        self._devices = jax.local_devices()[:num_devices]
        self.num_devices = num_devices * jax.process_count()
        self._sharding = NamedSharding(Mesh(np.array(self._devices), (_AXIS,)), PartitionSpec(_AXIS))

    def compile(self, step: Callable[..., Any], *, donate: bool) -> Callable[..., Any]:
        """See `Parallel`."""
        devices = None if jax.process_count() > 1 else self._devices
        return jax.pmap(step, _AXIS, devices=devices, donate_argnums=(0,) if donate else ())

    def place_state(self, state: Any) -> Any:
        """See `Parallel`."""
        return jax.tree.map(lambda x: jax.device_put(np.stack([x] * len(self._devices)), self._sharding), state)

    def place_batch(self, batch: Batch) -> Batch:
        """See `Parallel`."""
        return jax.tree.map(
            lambda x: jax.device_put(x.reshape(len(self._devices), -1, *x.shape[1:]), self._sharding), batch
        )

    def fetch(self, tree: Any) -> Any:
        """See `Parallel`."""
        return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data)[0], tree)


class ShardedJit:
    """`jax.jit` over a mesh of all devices; the batch is divided along its first axis, variables are everywhere."""

    axis_name: str | None = None

    def __init__(self, num_devices: int):
        """Takes so many of each process's devices."""
        if jax.process_count() > 1 and num_devices != jax.local_device_count():
            raise ConfigError("a run on several hosts uses all devices under sharded-jit: leave out parallel.devices")
        devices = jax.devices() if jax.process_count() > 1 else jax.local_devices()[:num_devices]
        self.num_devices = len(devices)
        mesh = Mesh(np.array(devices), (_AXIS,))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._divided = NamedSharding(mesh, PartitionSpec(_AXIS))

    def compile(self, step: Callable[..., Any], *, donate: bool) -> Callable[..., Any]:
        """See `Parallel`."""
        return jax.jit(step, out_shardings=self._everywhere, donate_argnums=(0,) if donate else ())

    def place_state(self, state: Any) -> Any:
        """See `Parallel`."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._everywhere, np.asarray(x)), state)

    def place_batch(self, batch: Batch) -> Batch:
        """See `Parallel`."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._divided, x), batch)

    def fetch(self, tree: Any) -> Any:
        """See `Parallel`."""
        return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data), tree)


def start(config: ParallelConfig) -> Parallel:
    """Connects to the other hosts, where there are any, and returns the way to use the devices.

    Raises:
        ConfigError: there are not so many devices.
    """
    if config.distributed and not jax.distributed.is_initialized():
        jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
    available = jax.local_device_count()
    num_devices = available if config.devices is None else config.devices
    if not 1 <= num_devices <= available:
        raise ConfigError(f"parallel.devices is {num_devices}; this process has {available} devices")
    return Pmap(num_devices) if config.mode == "pmap" else ShardedJit(num_devices)
