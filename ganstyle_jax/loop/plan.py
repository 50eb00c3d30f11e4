"""`ganstyle plan`: what a step takes on TPUs and GPUs that are not here: memory, FLOPs, traffic, a guess at its time.

The true training step is compiled for a true topology by the compiler that the chips use, which comes with a package
and runs on any machine: libtpu for TPUs, JAX's CUDA plugin for NVIDIA's GPUs. What it reports is exact. The time is a
roofline estimate (Williams et al. 2009) from the chips' published figures, as if nothing overlapped:

TPUs    the longer of all arithmetic and all memory traffic, at their peaks, and after it the exchanges;
GPUs    kernel by kernel the longer of the two, at the shares of the peaks that large convolutions and streams of memory
        commonly reach, and between two kernels a pause; FLOPs and bytes are counted in the program, see kernels.py.
        Not in it: which algorithm cuDNN takes, what the second-level cache saves, and the host.

What a method does in each so manieth step only, in a scope such as `every_16_steps`, counts so much less, in all but
memory: figures are those of an average step.
"""

import collections
import dataclasses
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
from ganstyle_jax.loop.chips import Chip, topology_devices
from ganstyle_jax.loop.feed import Feed
from ganstyle_jax.loop.kernels import Kernel, kernels
from ganstyle_jax.loop.settings import Loop
from ganstyle_jax.loop.step import abstract_state, make_advance, mesh_of
from ganstyle_jax.nn import layers

# Of GPUs, assumed and not measured: the shares of the peaks that large convolutions and streams of memory reach, the
# pause between two kernels, and what an exchange takes at the least.
ARITHMETIC, BANDWIDTH = 0.5, 0.8
PAUSE = 2e-6  # seconds
LATENCY, LATENCY_BETWEEN_HOSTS = 15e-6, 30e-6
# Products by cuBLAS: which of them Triton does better is measured on the card, and without one the compiler fails to
# cut some of them into tiles.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


class DoesNotFitError(Exception):
    """The compiler finds no way to do the step in a chip's memory."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of one step on one chip of many."""

    chips: int
    arguments: int  # bytes: state, data
    temporary: int  # bytes
    flops: float  # on TPUs of all that is computed, on GPUs of convolutions and products
    traffic: float  # bytes between chip and its memory
    kernels: tuple[Kernel, ...] = ()
    hosts: int = 1  # among which the chips are

    @property
    def collectives(self) -> dict[str, tuple[float, float]]:
        """How many exchanges between chips of each kind a step has, on average, and the bytes of their results."""
        found: dict[str, tuple[float, float]] = {}
        for kernel in self.kernels:
            if kernel.kind == "exchange" and round(kernel.times * kernel.peak):  # not what is done once for many steps
                count, size = found.get(kernel.what, (0, 0))
                found[kernel.what] = count + kernel.times, size + kernel.times * kernel.traffic
        return found

    @property
    def dearest_step(self) -> "Plan":
        """Of a step that takes the dearest branch of every conditional; all steps are alike if there is none."""
        flops, traffic = shares(self.kernels)
        run = tuple(dataclasses.replace(k, times=k.times * k.peak, peak=1) for k in self.kernels)
        return dataclasses.replace(self, flops=self.flops / flops, traffic=self.traffic / traffic, kernels=run)

    @property
    def memory(self) -> int:
        return self.arguments + self.temporary


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What is planned of `ganstyle train`."""

    # TPUs such as v5e:2x4, v5e:16x16, v4:2x2x2 or v5p:4x4x4, or GPUs such as h200:1, h200:8 or, hosts x GPUs, h200:2x8
    topology: str
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
            images, unit = settings.batch_size, f"a training step of {settings.batch_size} images"
        else:
            images = None
            with layers.compiling_for(devices[0].platform):
                lowered = module.lower_step(settings, cfg, devices)
                advice, unit = lowered.advice, lowered.unit
                found = plan_lowered(lowered.lowered, devices, lowered.kept)
    except DoesNotFitError as error:
        raise UserError(f"{error}: {advice}") from error
    print(report(found, chip, unit, images))
    check_memory(found, chip, advice)


# ---------------------------------------------------------------------------------------------------------------------
# What the compiler says


def plan_training(method: ModuleType | Method, cfg: Any, loop: Loop, devices: Sequence[Any]) -> Plan:
    """One training step of a method as `train.run` compiles it, with streamed images, for devices of any platform.

    Raises DoesNotFitError, and UserError for devices that cannot share the batch or the state.
    """
    method = contract.of(method)
    mesh = mesh_of(devices, loop)
    loop = dataclasses.replace(loop, data_on_device="no", steps_per_dispatch=1)
    classes = getattr(cfg, "classes", None)  # of a conditional method, which there are no pictures to count by
    found = {name: imagined(wanted, classes) for name, wanted in method.sources(cfg).items()}
    cfg = method.settle(cfg, found)
    feed = Feed(sources.batched(found, method, cfg, loop), loop, mesh)
    key = jax.random.key(loop.seed)
    constants = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), method.constants(cfg))
    with layers.compiling_for(devices[0].platform):
        abstract = abstract_state(method, cfg, key, loop, mesh, constants)
        advance = make_advance(method, cfg, key, loop, mesh, abstract, feed.rows)
        stored, chunk = feed.abstract()
        scalar = jax.ShapeDtypeStruct((), np.int32)
        made = plan_lowered(advance.lower(abstract, constants, stored, chunk, scalar, scalar), devices)
    # What is done before and after the loop over the steps of a dispatch, such as laying out weights anew.
    once = 1 / Loop().steps_per_dispatch
    return dataclasses.replace(
        made, kernels=tuple(k if k.looped else dataclasses.replace(k, times=once) for k in made.kernels)
    )


def imagined(wanted: data.Wanted, classes: int | None = None) -> data.Source:
    """A set of colour pictures of which there are none, unless grey ones are wanted; in classes, if so many."""

    def unread(i: int) -> dict[str, np.ndarray]:
        raise NotImplementedError("a plan reads no images")

    names = None if classes is None else tuple(map(str, range(classes)))
    return data.Source("no images", (*wanted.shape, wanted.channels or 3), np.dtype(np.uint8), None, names, unread)


def plan_lowered(lowered: Any, devices: Sequence[Any], kept: int = 0) -> Plan:
    """What the compiler says of a program for these devices. kept: bytes that lie beside it on each, unknown to it."""
    try:
        compiled = lowered.compile(GPU_OPTIONS if devices[0].platform == "gpu" else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(f"a chip has too little memory ({first_line(error)})") from error
    planned, cost = compiled.memory_analysis(), compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    run = tuple(kernels(compiled.as_text()))
    if cost:  # in which each conditional takes its dearest branch
        shared = zip(("flops", "bytes accessed"), shares(run), strict=True)
        flops, traffic = (cost.get(name, 0.0) * share for name, share in shared)
    else:  # the GPUs' compiler
        flops, traffic = counted(run)
    return Plan(
        len(devices),
        kept + planned.argument_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes,
        planned.temp_size_in_bytes,
        flops,
        traffic,
        run,
        len({device.process_index for device in devices}),
    )


def counted(run: Sequence[Kernel], peak: bool = False) -> tuple[float, float]:
    """FLOPs of convolutions and products, and bytes between chip and memory; of an average step or the dearest."""
    flops = traffic = 0.0
    for kernel in run:
        times = kernel.times * (kernel.peak if peak else 1)
        flops += times * kernel.flops * (kernel.kind in ("convolution", "product"))
        traffic += times * kernel.traffic * (kernel.kind != "exchange")
    return flops, traffic


def shares(run: Sequence[Kernel]) -> tuple[float, float]:
    """What an average step has of the FLOPs and of the traffic of the dearest."""
    pairs = zip(counted(run), counted(run, peak=True), strict=True)
    flops, traffic = (average / dearest if dearest else 1.0 for average, dearest in pairs)
    return flops, traffic


# ---------------------------------------------------------------------------------------------------------------------
# The estimate


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step."""

    arithmetic: float
    memory: float
    computing: float  # of a TPU the longer of the two, of a GPU their sum kernel by kernel with the pauses
    exchange: float

    @property
    def step(self) -> float:
        return self.computing + self.exchange

    @property
    def efficiency(self) -> float:
        """Of what as many chips would do that need not talk to each other."""
        return self.computing / self.step if self.step else 1.0


def estimate(plan: Plan, chip: Chip) -> Estimate:
    """By the roofline, see the top of this file; a ring all-reduce moves its bytes twice."""
    exchange, computing = 0.0, 0.0
    for kernel in plan.kernels:
        time = kernel.times * seconds(kernel, plan, chip)
        if kernel.kind != "exchange":
            computing += time
        elif plan.chips > 1:
            exchange += time
    if chip.gpu is None:
        arithmetic, memory = plan.flops / chip.flops, plan.traffic / chip.bandwidth
        return Estimate(arithmetic, memory, max(arithmetic, memory), exchange)
    run = [(kernel.times, *_roofline(kernel, chip)) for kernel in plan.kernels if kernel.kind != "exchange"]
    arithmetic = sum(times * arithmetic for times, arithmetic, _ in run)
    return Estimate(arithmetic, sum(times * memory for times, _, memory in run), computing, exchange)


def seconds(kernel: Kernel, plan: Plan, chip: Chip) -> float:
    """Of one kernel, each time it is run."""
    if kernel.kind != "exchange":
        return max(_roofline(kernel, chip)) + (PAUSE if chip.gpu else 0)
    if chip.gpu:
        return _exchange(kernel, plan, chip)
    return kernel.traffic * (2 if kernel.what == "all-reduce" else 1) / chip.links


def _roofline(kernel: Kernel, chip: Chip) -> tuple[float, float]:
    """Seconds of a kernel's arithmetic and of its memory traffic."""
    arithmetic, bandwidth = (ARITHMETIC, BANDWIDTH) if chip.gpu else (1.0, 1.0)
    peak = chip.flops
    if kernel.kind == "other" or (chip.gpu and (kernel.precise or kernel.dtype == "f64")):
        peak = chip.scalar
    elif kernel.dtype == "f32" and chip.flops32:
        peak = chip.flops32
    return kernel.flops / (arithmetic * peak) if peak else 0.0, kernel.traffic / (bandwidth * chip.bandwidth)


def _exchange(kernel: Kernel, plan: Plan, chip: Chip) -> float:
    """Seconds of an exchange between GPUs: in rings that use each host's network cards at once, or with a neighbour."""
    several = plan.hosts > 1
    latency = LATENCY_BETWEEN_HOSTS if several else LATENCY
    if kernel.what == "collective-permute":
        return latency + kernel.traffic / (chip.network if several else chip.links)
    together = min(chip.links, chip.network * plan.chips / plan.hosts) if several else chip.links
    share = (plan.chips - 1) / plan.chips * (2 if kernel.what == "all-reduce" else 1)
    return latency + share * kernel.traffic / together


# ---------------------------------------------------------------------------------------------------------------------
# In words


def report(plan: Plan, chip: Chip, unit: str, images: int | None = None) -> str:
    """What a person wants to know; unit: what one step does, in words; images: of a training step."""
    time = estimate(plan, chip)
    groups = plan.collectives.items()
    share = "half of " if chip.gpu else ""
    lines = [
        f"{plan.chips} {'GPU' if chip.gpu else 'chip'}{'s' * (plan.chips > 1)} {chip.kind}; {unit}",
        f"memory of a chip: {gigabytes(plan.memory)} of {gigabytes(chip.memory)} "
        f"({gigabytes(plan.arguments)} state and data, {gigabytes(plan.temporary)} temporary)",
        f"arithmetic: {plan.flops / 1e9:,.4g} GFLOP a chip, {1e3 * time.arithmetic:.3g} ms at {share}"
        f"{chip.flops / 1e12:g} TFLOP/s",
        f"memory traffic: {gigabytes(plan.traffic)} a chip, {1e3 * time.memory:.3g} ms at "
        f"{'80 % of ' if chip.gpu else ''}{chip.bandwidth / 1e9:g} GB/s",
        "exchange: "
        + ("; ".join(f"{round(count, 1):g} {kind}, {size / 1e6:,.3g} MB" for kind, (count, size) in groups) or "none")
        + f", {1e3 * time.exchange:.3g} ms at {chip.links / 1e9:g} GB/s",
        *([kernels_in_words(plan), kinds_in_words(plan, chip)] if chip.gpu else []),
        f"estimate: {1e3 * time.step:.3g} ms"
        + (f", {per_thousand(time, images):.3g} s for 1,000 images" if images else "")
        + (f", at {time.efficiency:.0%} of the speed of chips that need not talk" if plan.chips > 1 else ""),
    ]
    if any(kernel.peak != 1 for kernel in plan.kernels):
        dearest_step = estimate(plan.dearest_step, chip).step
        lines.append(f"all but memory is that of an average step; the dearest takes {1e3 * dearest_step:.3g} ms")
    return "\n".join([*lines, "", dearest(plan, chip)]) if plan.kernels else "\n".join(lines)


def per_thousand(time: Estimate, images: int) -> float:
    """Seconds for 1,000 images, of a step that has so many."""
    return 1000 * time.step / images


def convolutions(plan: Plan) -> dict[str, float]:
    """How many there are of each kind, with their type and, where it is not the fast one, their layout."""
    kinds: dict[str, float] = collections.defaultdict(float)
    for kernel in plan.kernels:
        if kernel.kind == "convolution":
            layout = "" if kernel.channels_last else ", channels not last"
            kinds[f"{kernel.what} {kernel.dtype}{layout}"] += kernel.times
    return kinds


def kernels_in_words(plan: Plan) -> str:
    """How many kernels there are, and of which kinds the convolutions."""
    count = sum(kernel.times for kernel in plan.kernels)
    listed = "; ".join(f"{round(times, 1):g} {kind}" for kind, times in sorted(convolutions(plan).items()))
    return f"kernels: {count:,.0f}, {PAUSE * 1e6:g} us apart" + (f"; convolutions: {listed}" if listed else "")


def kinds_in_words(plan: Plan, chip: Chip) -> str:
    """What each kind of kernel takes."""
    together: dict[str, float] = collections.defaultdict(float)
    for kernel in plan.kernels:
        together[kernel.kind] += kernel.times * seconds(kernel, plan, chip)
    return "by kind: " + ", ".join(f"{kind} {1e3 * time:.3g} ms" for kind, time in _most(together))


def dearest(plan: Plan, chip: Chip, most: int = 10) -> str:
    """A table of the kernels that take longest, those of one place in the method's code together."""
    times: dict[str, float] = collections.defaultdict(float)
    together: dict[str, float] = collections.defaultdict(float)
    for kernel in plan.kernels:
        what = f"{kernel.what or kernel.kind} {kernel.dtype}".strip()
        name = f"{what}: {place(kernel) or kernel.name}"
        times[name] += kernel.times
        together[name] += kernel.times * seconds(kernel, plan, chip)
    total = sum(together.values()) or 1.0
    lines = [f"the {min(most, len(together))} dearest kernels, by the same estimate:", "     ms  share  times  kernel"]
    for name, time in _most(together)[:most]:
        lines.append(f"{1e3 * time:7.3f} {time / total:6.1%} {times[name]:6.4g}  {name}")
    return "\n".join(lines)


def _most(values: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: -item[1])


def place(kernel: Kernel) -> str:
    """Where a kernel belongs: `Generator/double1/conv_general_dilated, backward`."""
    backward = ", backward" if "transpose(" in kernel.place else ""
    parts = []
    for part in re.sub(r"(transpose|jvp|vmap|rematted_computation)\(|\)(?=[/)]|$)", "", kernel.place).split("/"):
        if not re.fullmatch(r"|while|body|closed_call|checkpoint|cond|branch_\d+_fun|jit\(.*", part):
            parts.append(part)
    return "/".join(parts) + backward


def check_memory(plan: Plan, chip: Chip, advice: str) -> None:
    """UserError where a chip's memory is too small."""
    if plan.memory > chip.memory:
        needed, there = gigabytes(plan.memory), gigabytes(chip.memory)
        raise UserError(f"a chip {chip.kind} has {there} of memory, and {needed} are needed: {advice}")
