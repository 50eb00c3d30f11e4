"""One program for one device and for many: what a method does with the axis along which devices share a batch.

Under `jit` a method sees the global batch and `axis_name` is None: then all of these are the identity. Under `pmap`
each device sees its part, and they average, exchange and draw so that the result is the same.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def axis_size(axis_name: str | None) -> int:
    """Devices along the mapped axis; 1 without one."""
    return 1 if axis_name is None else lax.axis_size(axis_name)


def pmean(tree, axis_name: str | None):
    """Mean over the mapped axis; the identity without one (`jit` sees the global batch and needs none)."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


_whole: contextvars.ContextVar[jax.sharding.Sharding | None] = contextvars.ContextVar("whole", default=None)


@contextlib.contextmanager
def gathering(whole: jax.sharding.Sharding) -> Iterator[None]:
    """Within it, `gathered` brings weights of which each device keeps a part together, as the sharding says."""
    token = _whole.set(whole)
    try:
        yield
    finally:
        _whole.reset(token)


def gathered(params):
    """Weights as a network is to compute with them: whole, where each device keeps a part; else the identity.

    Without it the compiler may compute each part's share of the result, for the global batch, instead.
    """
    whole = _whole.get()
    return params if whole is None else lax.with_sharding_constraint(params, whole)


_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def sharing(mesh: Mesh) -> Iterator[None]:
    """Within it, draws and `by_device` know that all axes of the mesh share the batch, as they do under `jit`."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def by_device(operation: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """An operation on a batch (b, ...) and weights, such that each device computes its own part of the batch.

    For operations of which the compiler does not know that they can be cut along the batch: it would bring the whole
    batch to every device. The identity without a mesh, or where its devices do not divide the batch.
    """
    mesh = _mesh.get()

    def cut(x: jax.Array, weights: jax.Array) -> jax.Array:
        if mesh is None or mesh.size == 1 or x.shape[0] % mesh.size:
            return operation(x, weights)
        batch = PartitionSpec(mesh.axis_names)
        return jax.shard_map(operation, mesh=mesh, in_specs=(batch, PartitionSpec()), out_specs=batch)(x, weights)

    return cut


def global_draw(draw: Callable[[Sequence[int]], jax.Array], shape: Sequence[int], axis_name: str | None) -> jax.Array:
    """This device's part, of the given shape, of a draw for the global batch: the same numbers on any device count.

    `draw` maps a shape to random numbers, such as `lambda shape: jax.random.uniform(key, shape)`. Under `jit` the
    compiler is told that devices share them: where no picture of the data is near, all would draw and compute all.
    """
    if axis_name is None:
        drawn, mesh = draw(shape), _mesh.get()
        if mesh is None or mesh.size == 1 or shape[0] % mesh.size:
            return drawn
        return lax.with_sharding_constraint(drawn, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    everything = draw((shape[0] * axis_size(axis_name), *shape[1:]))
    return lax.dynamic_slice_in_dim(everything, lax.axis_index(axis_name) * shape[0], shape[0])


def global_normal(key: jax.Array, shape: Sequence[int], axis_name: str | None, dtype=jnp.float32) -> jax.Array:
    """This device's part of a standard normal draw for the global batch."""
    return global_draw(lambda s: jax.random.normal(key, tuple(s), dtype), shape, axis_name)


def global_batch(tree, axis_name: str | None):
    """The whole batch, (n * b, ...), from every device's part (b, ...) in the devices' order; the same on all of them.

    For what enters the state from the batch, such as a buffer of pictures. A tree of arrays; the identity without an
    axis.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: lax.all_gather(x, axis_name, axis=0, tiled=True), tree)


def local_part(tree, axis_name: str | None):
    """This device's part, (b, ...), of arrays that all of them have whole, (n * b, ...): undoes `global_batch`.

    A tree of arrays; the identity without an axis. Raises ValueError for a length that the devices do not divide.
    """
    if axis_name is None:
        return tree
    count = axis_size(axis_name)

    def part(x):
        if x.shape[0] % count:
            raise ValueError(f"{x.shape[0]} rows cannot be divided among {count} devices, got shape {x.shape}")
        size = x.shape[0] // count
        return lax.dynamic_slice_in_dim(x, lax.axis_index(axis_name) * size, size)

    return jax.tree.map(part, tree)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has whole, on the devices as asked."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def agree(values: Callable[[], list[int]], mesh: Mesh) -> Callable[[], list[int]]:
    """Puts the largest of each process's values to the vote; what is returned waits for the result.

    The processes are those with devices in the mesh. The vote queues up behind what the devices have to do already.
    Alone, the values are taken when they are read.
    """
    if jax.process_count() == 1:
        return values
    votes = np.tile(np.asarray(values(), np.int32), (len(mesh.local_devices), 1))
    by_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    largest = _largest(mesh)(jax.make_array_from_process_local_data(by_device, votes))
    return lambda: np.asarray(largest).tolist()


@functools.cache
def _largest(mesh: Mesh) -> Callable:
    return jax.jit(lambda x: x.max(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
