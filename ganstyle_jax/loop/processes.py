"""Several processes, on one machine or many, that do one run together.

    join(Processes(...))      before any device is touched: the processes find each other, and `jax.devices()` is all
    with leaving_together():  an error in one of them ends them all within seconds

Every process runs the same program on its share of the data. What they must not decide each for itself, because their
clocks and their signals differ, they `agree` upon. Process 0 alone writes what is for people.
"""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax.io.files import UserError, first_line
from ganstyle_jax.loop.devices import devices_or_sentence
from ganstyle_jax.nn.devices import agree, put

__all__ = ["Processes", "agree", "join", "leaving_together", "put"]

HEARTBEAT = 15  # seconds of silence after which a process counts as dead
# Environment variables that launchers set for the processes of a job: which one this is, and how many there are.
LAUNCHERS = {
    "Slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "Kubernetes": ("JOB_COMPLETION_INDEX", "KUBERNETES_SERVICE_HOST"),
    "Cloud TPU": ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"),
}


@dataclasses.dataclass(frozen=True)
class Processes:
    """How the processes of one run find each other; a launcher's are detected."""

    # auto: together if Slurm, Open MPI, Kubernetes or Cloud TPU started several, or --coordinator is given; yes: ask
    # JAX, which also knows other clusters; no: alone
    distributed: Literal["auto", "yes", "no"] = "auto"
    coordinator: str | None = None  # HOST:PORT of process 0, where no launcher is detected
    process_count: int | None = None  # how many there are, with --coordinator
    process_id: int | None = None  # which of them this is, from 0, with --coordinator
    join_timeout: int = 120  # seconds to wait for the others at the beginning

    def __post_init__(self):
        given = {name: getattr(self, name) for name in ("coordinator", "process_count", "process_id")}
        if 0 < sum(value is not None for value in given.values()) < 3:
            missing = ", ".join(f"--{name.replace('_', '-')}" for name, value in given.items() if value is None)
            raise ValueError(f"coordinator, process_count and process_id belong together: {missing} is missing")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"coordinator must be HOST:PORT such as node1:1234, got {self.coordinator!r}")
            if self.distributed == "no":
                raise ValueError("distributed is no, but a coordinator is given: leave out one of them")
        if self.process_count is not None and not 0 <= (self.process_id or 0) < self.process_count:
            raise ValueError(
                f"process_id must be from 0 to {self.process_count - 1}, below process_count, got {self.process_id}"
            )
        if self.join_timeout < 1:
            raise ValueError(f"join_timeout must be at least 1 second, got {self.join_timeout}")


def launcher(environment: Any = os.environ) -> str | None:
    """The name of what started this process as one of several, None if nothing did."""
    for name, (index, count) in LAUNCHERS.items():
        value = environment.get(count, "")
        several = value.isdigit() and int(value) > 1
        if name == "Cloud TPU":  # the names of all hosts
            several = "," in value
        if name == "Kubernetes":  # which is asked how many there are, by a package that comes with jax[k8s]
            several = bool(value) and importlib.util.find_spec("kubernetes") is not None
        if index in environment and several:
            return name
    return None


def join(processes: Processes) -> None:
    """Finds the other processes, if there are to be any, and the devices.

    UserError where they cannot be reached in time, or there are no devices.
    """
    _meet(processes)
    devices_or_sentence()


def _meet(processes: Processes) -> None:
    found = launcher()
    if processes.distributed == "no" or (processes.distributed == "auto" and not (processes.coordinator or found)):
        return
    count = f"{processes.process_count} " if processes.process_count else ""
    where = processes.coordinator or f"the address that {found or 'the cluster'} gives"
    alone = (
        f"the {count}processes did not meet at {where} within {processes.join_timeout} s: are all of them started, "
        "with the same settings, and is the port open?"
    )
    # JAX would abort the process when the time is up, with a stack trace.
    watch = threading.Timer(processes.join_timeout, _leave, [f"ganstyle: error: {alone}", 1])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            processes.coordinator,
            processes.process_count,
            processes.process_id,
            cluster_detection_method="deactivate" if processes.coordinator else None,
            initialization_timeout=processes.join_timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:  # among them JAX's own
        if found is None and processes.coordinator is None:
            raise UserError(
                "no cluster was detected: give --coordinator HOST:PORT, --process-count and --process-id, or "
                "--distributed no"
            ) from error
        raise UserError(f"{alone} ({first_line(error)})") from error
    finally:
        watch.cancel()


def _leave(message: str, status: int) -> None:
    """Ends the process at once. The usual way out waits for all processes, and aborts when they do not come."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def is_first() -> bool:
    """Whether this process is the one that writes for people."""
    return jax.process_index() == 0


def several() -> bool:
    return jax.process_count() > 1


def together(name: str) -> None:
    """Waits until all processes are here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def joined(tree: Any, sharding: NamedSharding) -> Any:
    """The global arrays of which every process has its part; alone they are left to `jit`."""
    if not several():
        return tree
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def on_local_arrays(function: Callable, mesh: Mesh) -> Callable:
    """A function of global arrays from one, such as `pmap`'s, that takes and returns what each process has of them.

    All global arrays, and all results, are whole on every device; no value is copied.
    """
    from jax.experimental import multihost_utils

    def local(x: Any) -> Any:
        is_global = isinstance(x, jax.Array) and not x.is_fully_addressable
        return multihost_utils.global_array_to_host_local_array(x, mesh, PartitionSpec()) if is_global else x

    def call(*args: Any) -> Any:
        results = function(*jax.tree.map(local, args))
        return multihost_utils.host_local_array_to_global_array(results, mesh, PartitionSpec())

    return call


def decided_by_first(decide: Callable[[], int]) -> int:
    """What the first process decides, known to all; an exception there has all of them leave."""
    if not several():
        return decide()
    from jax.experimental import multihost_utils

    decision, raised = np.zeros(2, np.int64), None
    if is_first():
        try:
            decision[0] = decide()
        except Exception as error:
            decision[1], raised = 1, error
    decision = multihost_utils.broadcast_one_to_all(decision.astype(np.int32))
    if raised is not None:
        raise raised
    if decision[1]:
        raise UserError("the first process cannot go on, and says why")
    return int(decision[0])


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """Within it, no process outlives the others.

    What raises in one process has it leave at once, without waiting for the others, which could not come: they learn of
    it from the broken connection, or after `HEARTBEAT` seconds, and leave too.
    """
    try:
        yield
    except SystemExit:  # which they have agreed upon
        if several():
            jax.distributed.shutdown()
        raise
    except BaseException as error:
        if not several():
            raise
        _leave(farewell(error), 130 if isinstance(error, KeyboardInterrupt) else 1)
    if several():
        jax.distributed.shutdown()


def farewell(error: BaseException) -> str:
    """What a process that leaves says."""
    who = f"ganstyle: process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UserError):
        return f"{who}: error: {str(error).rstrip('.')}."
    if isinstance(error, KeyboardInterrupt):
        return f"{who}: stopped."
    if is_lost_connection(error):
        return (
            f"{who}: error: another process has died or cannot be reached any more ({first_line(error)}). "
            "Run the same command with --resume auto; it may have fewer processes."
        )
    return "".join(traceback.format_exception(error)) + f"{who} ends with this error."


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because a process is no longer there."""
    signs = ("gloo", "connection closed", "connection reset", "heartbeat", "unavailable", "barrier", "nccl", "peer")
    return isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error).lower() for sign in signs)
