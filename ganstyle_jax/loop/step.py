"""Devices and the compiled step: many training steps in one dispatch, by `jit` over a mesh or by `pmap`.

The same step is compiled in one of two ways: by `jit` over a mesh whose axes are all the batch's, where XLA sees the
global batch and inserts the collectives (default), or by `pmap`, where the step sees one device's part and averages
over `axis_name` itself. Both give the same numbers.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ganstyle_jax import data
from ganstyle_jax.contract import Method
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import processes
from ganstyle_jax.loop.settings import Loop
from ganstyle_jax.nn import layers

AXIS = "batch"
SMALLEST_CUT = 4096  # values of an array that is worth cutting


def make_mesh(loop: Loop) -> jax.sharding.Mesh:
    """The mesh over the first `loop.devices` devices; UserError where they cannot share the batch or the state."""
    devices = jax.devices()
    if processes.several() and loop.devices not in (None, len(devices)):
        raise UserError(f"--devices is for one process; the {jax.process_count()} together have {len(devices)}")
    if loop.devices is not None and not 1 <= loop.devices <= len(devices):
        raise UserError(f"--devices must be from 1 to the {len(devices)} that are here, got {loop.devices}")
    return mesh_of(devices[: loop.devices], loop)


def mesh_of(devices: Sequence[Any], loop: Loop) -> jax.sharding.Mesh:
    """These devices, whose last axis shares the state if anything does and of which all axes share the batch.

    One axis, or two for `loop.shard_devices`: groups, and the neighbours in each. UserError where they cannot share.
    """
    if loop.batch_size % len(devices):
        raise UserError(
            f"--batch-size {loop.batch_size} cannot be divided among {len(devices)} devices: "
            f"choose a multiple of {len(devices)}, or fewer devices"
        )
    if loop.shard_devices is None:
        return jax.sharding.Mesh(np.asarray(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    if loop.shard_devices < 1 or len(devices) % loop.shard_devices:
        raise UserError(f"--shard-devices {loop.shard_devices} must divide the number of devices, {len(devices)}")
    groups = np.asarray(devices).reshape(-1, loop.shard_devices)
    return jax.sharding.Mesh(groups, ("groups", AXIS), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def by_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """How chunks (rows, batch, ...) lie on the devices."""
    return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))


def abstract_state(
    method: Method, cfg: Any, key: jax.Array, loop: Loop, mesh: jax.sharding.Mesh, constants: Any = ()
) -> Any:
    """The state's shapes and types, and how it lies on the devices: whole on each, or cut with `shard_state`."""

    def placed(x):
        axes = [axis for axis in range(x.ndim) if x.shape[axis] % mesh.shape[AXIS] == 0]
        cut = loop.shard_state and x.size >= SMALLEST_CUT and axes
        longest = max(axes, key=lambda axis: x.shape[axis]) if cut else None
        spec = PartitionSpec(*(AXIS if axis == longest else None for axis in range(x.ndim))) if cut else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, jax.eval_shape(init_of(method, cfg), key, constants))


@functools.lru_cache(1)  # so that it is traced once, for its shapes and to be compiled
def init_of(method: Method, cfg: Any) -> Callable:
    """(key, constants) -> a new state."""
    return jax.jit(lambda key, constants: method.init(key, cfg, constants))


def shardings_of(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)


def everywhere(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def make_advance(
    method: Method, cfg: Any, key: jax.Array, loop: Loop, mesh: jax.sharding.Mesh, abstract: Any, rows: int
) -> Callable:
    """advance(state, constants, stored, chunk, start, count) -> (state, {name: (rows,)}): `count` steps at once.

    At most `rows` of them. Step t draws from fold_in(key, t) and sees row t - start of the chunk, so what it computes
    depends on neither the chunk's length nor the count: single steps, remainders and resumed runs all go through this
    one compiled loop and agree bit for bit. stored and chunk are what `Feed` gives. The state is donated.
    """

    def steps(state, constants, stored, chunk, start, count, axis_name):
        @jax.jit  # which is traced once, although it is asked below for its shapes too
        def one(i, state):
            batch = batch_of(stored, chunk, i)
            return method.train_step(state, batch, jax.random.fold_in(key, start + i), cfg, constants, axis_name)

        def body(i, carry):
            state, log = carry
            state, metrics = one(i, state)
            return state, {name: log[name].at[i].set(metrics[name]) for name in log}

        shapes = jax.eval_shape(lambda state: one(0, state)[1], state)
        log = {name: jnp.zeros((rows, *shape.shape), shape.dtype) for name, shape in shapes.items()}
        return lax.fori_loop(0, count, body, (state, log))

    if loop.parallel == "jit":
        whole = everywhere(mesh)

        # The key is closed over, not an argument: it is the same for all steps.
        def advance(state, constants, stored, chunk, start, count):
            gathering = layers.gathering(whole) if loop.shard_state else contextlib.nullcontext()
            with gathering, layers.sharing(mesh):
                return steps(state, constants, stored, chunk, start, count, None)

        return jax.jit(
            advance,
            in_shardings=(shardings_of(abstract), whole, whole, by_batch(mesh), whole, whole),
            out_shardings=(shardings_of(abstract), whole),
            donate_argnums=0,
        )
    mapped = jax.pmap(
        lambda device, state, constants, stored, chunk, start, count: steps(
            state, constants, stored, chunk, start, count, AXIS
        ),
        axis_name=AXIS,
        in_axes=(0, None, None, None, 1, None, None),  # the chunk is (rows, devices, batch / devices, ...)
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=1,
    )
    return _Mapped(mapped, mesh)


class _Mapped:
    """`pmap`'s program, given an argument that has the devices' axis, which a method without data would lack."""

    def __init__(self, mapped: Any, mesh: jax.sharding.Mesh):
        self.mapped = mapped
        self.call = processes.on_local_arrays(mapped, mesh) if processes.several() else mapped
        self.device = np.arange(len(mesh.local_devices))

    def __call__(self, *args: Any) -> Any:
        return self.call(self.device, *args)

    def lower(self, *args: Any) -> Any:
        return self.mapped.lower(self.device, *args)


def batch_of(stored: dict, chunk: dict, i: Any) -> dict:
    """Row i of a chunk as `train_step` takes it, {source: {"image": float in [-1, 1], ...}}."""
    batch = {}
    for source, arrays in chunk.items():
        row = {name: values[i] for name, values in arrays.items()}
        if source in stored:
            row = {name: values[row["index"]] for name, values in stored[source].items()}
        batch[source] = row | {"image": data.to_float(row["image"])}
    return batch
