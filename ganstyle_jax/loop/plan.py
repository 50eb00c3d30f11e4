"""`ganstyle plan`: what a step takes on TPUs that are not here: memory, FLOPs, traffic, and an estimate of its time.

The true training step is compiled for a true topology by the compiler that TPUs use, which comes with the package
libtpu and runs on any machine. What it reports is exact; the time is a roofline estimate from the chips' published
figures: the longer of arithmetic and memory traffic, and after it the collectives, as if nothing overlapped.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from ganstyle_jax import builtin, contract, data
from ganstyle_jax.contract import Method
from ganstyle_jax.io.files import UserError, first_line, gigabytes
from ganstyle_jax.loop import sources
from ganstyle_jax.loop.feed import Feed
from ganstyle_jax.loop.settings import Loop
from ganstyle_jax.loop.step import abstract_state, make_advance, mesh_of
from ganstyle_jax.nn import layers


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's published figures (Google Cloud's documentation of each version)."""

    kind: str  # as JAX calls the device
    flops: float  # a second, of bfloat16 products, which are what float32 takes too by default
    memory: float  # bytes
    bandwidth: float  # bytes of memory a second
    links: float  # bytes a second to other chips, over all links


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1228e9, 2400e9 / 8),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * 2**30, 819e9, 1600e9 / 8),
    "v5p": Chip("TPU v5", 459e12, 95 * 2**30, 2765e9, 4800e9 / 8),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * 2**30, 1640e9, 3584e9 / 8),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


class DoesNotFitError(Exception):
    """The compiler finds no way to do the step in a chip's memory."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of one step on one chip of many."""

    chips: int
    arguments: int  # bytes: state, data
    temporary: int  # bytes
    flops: float
    traffic: float  # bytes between chip and its memory
    collectives: tuple[tuple[str, int], ...]  # kind and bytes of the result, in the program's order

    @property
    def memory(self) -> int:
        return self.arguments + self.temporary


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What is planned of `ganstyle train`."""

    topology: str  # the TPUs, such as v5e:2x4, v5e:16x16, v4:2x2x2 or v5p:4x4x4
    batch_size: int = 64  # images of the global batch, over all chips
    shard_state: bool = False  # each chip keeps its part of the state
    shard_devices: int | None = None  # chips that have the state between them with --shard-state; by default all


def module_and_settings(name: str) -> tuple[ModuleType, type]:
    """The method's module and the dataclass of what is planned of it. UserError for no method of that name."""
    if contract.trains(name):
        return contract.find(name).module, TrainingSettings
    module = contract.module_of(name)
    if not hasattr(module, "PlanSettings"):
        raise UserError(f"{name} has no plan, as each of its pictures is one chip's: give {builtin.OR_FILE}")
    return module, module.PlanSettings


def run(module: ModuleType, settings: Any, cfg: Any) -> None:
    """Plans and prints. UserError with advice where it does not fit, after printing what is needed if that is known."""
    chip, devices = topology_devices(settings.topology)
    advice = "take more chips, --shard-state, --dtype bfloat16 or a smaller --batch-size"
    try:
        if isinstance(settings, TrainingSettings):
            shared = {name: getattr(settings, name) for name in ("batch_size", "shard_state", "shard_devices")}
            found = plan_training(module, cfg, Loop(**shared), devices)
            unit = f"a training step of {settings.batch_size} images"
        else:
            with layers.compiling_for(devices[0].platform):
                lowered = module.lower_step(settings, cfg, devices)
                advice, unit = lowered.advice, lowered.unit
                found = plan_lowered(lowered.lowered, len(devices), lowered.kept)
    except DoesNotFitError as error:
        raise UserError(f"{error}: {advice}") from error
    print(report(found, chip, unit))
    check_memory(found, chip, advice)


# ---------------------------------------------------------------------------------------------------------------------
# What the compiler says


def topology_devices(name: str) -> tuple[Chip, list[Any]]:
    """The chips of a topology such as "v5e:2x4". UserError for one that there is not, or without libtpu."""
    version, _, shape = name.partition(":")
    if version not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(f"--topology must be such as v5e:2x4 or v4:2x2x1, of {', '.join(CHIPS)}, got {name!r}")
    # libtpu would ask the network, for minutes, what machine this is.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{version}-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several may compile: there is no chip to fight for
    from jax.experimental import topologies

    try:
        return CHIPS[version], topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # of many types: libtpu is missing, is too old, or knows no such slice
        try:
            import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(
                "the TPU compiler is not installed: pip install -e '.[tpu-plan]', which needs no TPU"
            ) from error
        raise UserError(f"there is no topology {name}: {first_line(error)}") from error


def plan_training(method: ModuleType | Method, cfg: Any, loop: Loop, devices: Sequence[Any]) -> Plan:
    """One training step of a method as `train.run` compiles it, with streamed images, for devices of any platform.

    Raises DoesNotFitError, and UserError for devices that cannot share the batch or the state.
    """
    method = contract.of(method)
    mesh = mesh_of(devices, loop)
    loop = dataclasses.replace(loop, data_on_device="no", steps_per_dispatch=1)
    found = {name: imagined(wanted) for name, wanted in method.sources(cfg).items()}
    cfg = method.settle(cfg, found)
    feed = Feed(sources.batched(found, method, cfg, loop), loop, mesh)
    key = jax.random.key(loop.seed)
    constants = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), method.constants(cfg))
    with layers.compiling_for(devices[0].platform):
        abstract = abstract_state(method, cfg, key, loop, mesh, constants)
        advance = make_advance(method, cfg, key, loop, mesh, abstract, feed.rows)
        stored, chunk = feed.abstract()
        scalar = jax.ShapeDtypeStruct((), np.int32)
        return plan_lowered(advance.lower(abstract, constants, stored, chunk, scalar, scalar), mesh.size)


def imagined(wanted: data.Wanted) -> data.Source:
    """A set of colour pictures of which there are none, unless grey ones are wanted."""

    def unread(i: int) -> dict[str, np.ndarray]:
        raise NotImplementedError("a plan reads no images")

    return data.Source("no images", (*wanted.shape, wanted.channels or 3), np.dtype(np.uint8), None, None, unread)


def plan_lowered(lowered: Any, chips: int, kept: int = 0) -> Plan:
    """What the compiler says of a program. kept: bytes that lie beside it on a chip, of which it knows nothing."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(f"a chip has too little memory ({first_line(error)})") from error
    planned, cost = compiled.memory_analysis(), compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return Plan(
        chips,
        kept + planned.argument_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes,
        planned.temp_size_in_bytes,
        cost.get("flops", 0.0),
        cost.get("bytes accessed", 0.0),
        tuple(collectives(compiled.as_text())),
    )


def collectives(program: str) -> list[tuple[str, int]]:
    """(kind, bytes of the result on a chip) of each collective in the text of a compiled program."""
    found = []
    for line in program.splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if match is None:
            continue
        shapes, kind, started = match.groups()
        sizes = [
            BYTES.get(dtype, 4) * int(np.prod([int(side) for side in sides.split(",") if side]))
            for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        ]
        # What starts an exchange gives back operand and result, and counters.
        both = started and kind != "all-reduce"
        found.append((kind, max(sizes) if both else sum(sizes)))
    return found


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step."""

    arithmetic: float
    memory: float
    exchange: float

    @property
    def step(self) -> float:
        return max(self.arithmetic, self.memory) + self.exchange

    @property
    def efficiency(self) -> float:
        """Of what as many chips would do that need not talk to each other."""
        return max(self.arithmetic, self.memory) / self.step if self.step else 1.0


def estimate(plan: Plan, chip: Chip) -> Estimate:
    """By the roofline (Williams et al. 2009); a ring all-reduce moves its bytes twice."""
    moved = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in plan.collectives)
    return Estimate(plan.flops / chip.flops, plan.traffic / chip.bandwidth, moved / chip.links if plan.chips > 1 else 0)


def report(plan: Plan, chip: Chip, unit: str) -> str:
    """What a person wants to know; unit: what one step does, in words."""
    time = estimate(plan, chip)
    groups: dict[str, list[int]] = {}
    for kind, size in plan.collectives:
        groups.setdefault(kind, []).append(size)
    lines = [
        f"{plan.chips} chips {chip.kind}; {unit}",
        f"memory of a chip: {gigabytes(plan.memory)} of {gigabytes(chip.memory)} "
        f"({gigabytes(plan.arguments)} state and data, {gigabytes(plan.temporary)} temporary)",
        f"arithmetic: {plan.flops / 1e9:,.4g} GFLOP a chip, {1e3 * time.arithmetic:.3g} ms at {chip.flops / 1e12:g} "
        "TFLOP/s",
        f"memory traffic: {gigabytes(plan.traffic)} a chip, {1e3 * time.memory:.3g} ms at "
        f"{chip.bandwidth / 1e9:g} GB/s",
        "exchange: "
        + ("; ".join(f"{len(sizes)} {kind}, {sum(sizes) / 1e6:,.3g} MB" for kind, sizes in groups.items()) or "none")
        + f", {1e3 * time.exchange:.3g} ms at {chip.links / 1e9:g} GB/s",
        f"estimate: {1e3 * time.step:.3g} ms, at {time.efficiency:.0%} of the speed of chips that need not talk",
    ]
    return "\n".join(lines)


def check_memory(plan: Plan, chip: Chip, advice: str) -> None:
    """UserError where a chip's memory is too small."""
    if plan.memory > chip.memory:
        needed, there = gigabytes(plan.memory), gigabytes(chip.memory)
        raise UserError(f"a chip {chip.kind} has {there} of memory, and {needed} are needed: {advice}")
