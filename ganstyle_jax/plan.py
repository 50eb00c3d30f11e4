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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax import data, layers, runs, train, vgg
from ganstyle_jax.files import UserError, first_line
from ganstyle_jax.style import gatys, memory
from ganstyle_jax.style.memory import gigabytes
from ganstyle_jax.vgg import VGG


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

NETWORKS = {"vgg19": vgg.VGG19, "vgg16": vgg.VGG16, "compact": vgg.COMPACT}


@dataclasses.dataclass(frozen=True)
class StyleSettings:
    """What is planned of `ganstyle stylize --parallel rows`."""

    topology: str  # the TPUs, such as v5e:2x4, v5e:16x16, v4:2x2x2 or v5p:4x4x4
    features: Literal["vgg19", "vgg16", "compact"] = "vgg19"  # network to compare by
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the features
    remat: bool = False  # compute features again rather than keep them


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What is planned of `ganstyle train`."""

    topology: str  # the TPUs, such as v5e:2x4, v5e:16x16, v4:2x2x2 or v5p:4x4x4
    batch_size: int = 64  # images of the global batch, over all chips
    shard_state: bool = False  # each chip keeps its part of the state
    shard_devices: int | None = None  # chips that have the state between them with --shard-state; by default all


def settings_of(name: str) -> type:
    """The dataclass of the command's flags, with fields `way` and `config`. UserError for no method of that name."""
    way, config = (
        (StyleSettings, gatys.Config) if name == "gatys" else (TrainingSettings, runs.find_method(name).Config)
    )
    fields: list[Any] = [("way", way), ("config", config, dataclasses.field(default=config()))]
    return dataclasses.make_dataclass("Settings", fields, frozen=True)


def run(name: str, settings: Any) -> None:
    """Plans and prints. UserError with advice where it does not fit, after printing what is needed if that is known."""
    way, cfg = settings.way, settings.config
    chip, devices = topology_devices(way.topology)
    try:
        if isinstance(way, StyleSettings):
            advice = "take more chips, --remat, --precision bfloat16 or a smaller --memory or --size"
            network = dataclasses.replace(NETWORKS[way.features], dtype=way.precision, remat=way.remat)
            found = plan_style(network, cfg, (cfg.size, cfg.size), devices)
            unit = f"an evaluation of {cfg.size} x {cfg.size} pixels, {way.features} in {way.precision}"
        else:
            advice = "take more chips, --shard-state, --dtype bfloat16 or a smaller --batch-size"
            shared = {name: getattr(way, name) for name in ("batch_size", "shard_state", "shard_devices")}
            found = plan_training(runs.find_method(name), cfg, train.Loop(**shared), devices)
            unit = f"a training step of {way.batch_size} images"
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


def plan_training(method: ModuleType, cfg: Any, loop: train.Loop, devices: Sequence[Any]) -> Plan:
    """One training step of a method as `train.run` compiles it, with streamed images, for devices of any platform.

    Raises DoesNotFitError, and UserError for devices that cannot share the batch or the state.
    """
    mesh = train.mesh_of(devices, loop)
    loop = dataclasses.replace(loop, data_on_device="no", steps_per_dispatch=1)
    cfg = dataclasses.replace(cfg, channels=cfg.channels or 3)  # which training learns from its images
    shape = (cfg.image_size, cfg.image_size, cfg.channels)

    def unread(i: int) -> dict[str, np.ndarray]:
        raise NotImplementedError("a plan reads no images")

    source = data.Source("no images", shape, np.dtype(np.uint8), None, None, unread)
    feed = train.Feed(data.Batches(source, train.images_per_step(method, cfg, loop), loop.seed), loop, mesh)
    key = jax.random.key(loop.seed)
    with layers.compiling_for(devices[0].platform):
        abstract = train.abstract_state(method, cfg, key, loop, mesh)
        advance = train.make_advance(method, cfg, key, loop, mesh, abstract, feed)
        stored, chunk = feed.abstract()
        scalar = jax.ShapeDtypeStruct((), np.int32)
        return _plan(advance.lower(abstract, stored, chunk, scalar, scalar), mesh.size)


def plan_style(network: VGG, cfg: gatys.Config, shape: tuple[int, int], devices: Sequence[Any]) -> Plan:
    """One evaluation of an image of (h, w) pixels whose rows the chips share: loss and gradient.

    Raises DoesNotFitError, and ValueError for an image that cannot be cut so.
    """
    mesh = Mesh(np.asarray(devices), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    canvas = gatys.canvas_of(shape, network, cfg, mesh)

    def array(shape: tuple[int, ...], rows: int | None = None, dtype: Any = jnp.float32) -> Any:
        spec = PartitionSpec() if rows is None else PartitionSpec(*[None] * rows, "rows")
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(lambda x: array(x.shape), jax.eval_shape(network.init, jax.random.key(0)))
    image = jax.ShapeDtypeStruct((1, *canvas.shape, 3), jnp.float32)
    with layers.compiling_for(devices[0].platform):
        taps: Any = jax.eval_shape(lambda params, x: network.apply(params, x, cfg.layers), params, image)
        features = {layer: x.shape[1:] for layer, x in taps.items()}
        content = {layer: array(features[layer], 0, taps[layer].dtype) for layer in cfg.content_layers}
        masks = {} if canvas.padded is None else {layer: array((1, *x[:2], 1), 1) for layer, x in features.items()}
        channels = {layer: features[layer][2] for layer in cfg.style_layers}
        targets = gatys.Targets(
            content=content,
            style={layer: gatys.Moments(array((1, c)), array((1, c, c))) for layer, c in channels.items()},
            factors={layer: array((1, c, c)) for layer, c in channels.items() if cfg.style_loss == "wasserstein"},
            share=array((1,)),
            regions={layer: masks[layer] for layer in cfg.style_layers if masks},
            areas={layer: array((1,)) for layer in cfg.style_layers},
            inside={layer: masks[layer] for layer in cfg.content_layers if masks},
            canvas=canvas,
        )
        lowered = gatys.evaluate.lower(network, params, targets, array((*canvas.shape, 3), 0), cfg)
        plan = _plan(lowered, mesh.size)
    # The optimizer's memory lies beside it: images, of which each chip has its rows.
    pixels = canvas.shape[0] * canvas.shape[1] // mesh.size
    return dataclasses.replace(plan, arguments=plan.arguments + memory.images_kept(cfg) * memory.PIXEL * pixels)


def _plan(lowered: Any, chips: int) -> Plan:
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
        planned.argument_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes,
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
