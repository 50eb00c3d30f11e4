"""What every method takes on slices of TPUs and on GPUs that are not here, by their own compilers: docs/measured.md.

    pip install -e '.[tpu-plan,gpu-plan]'
    JAX_PLATFORMS=cpu python experiments/bench/plans.py
    JAX_PLATFORMS=cpu python experiments/bench/plans.py --topologies h200:1 h200:8 h200:2x8 --json gpu_plans.json
        --work dcgan:64 dcgan:256 gatys:512 gatys:4096 fast-style:256 adain:512 super-resolution:256 cyclegan:256
        deep-image-prior:512
    JAX_PLATFORMS=cpu python experiments/bench/plans.py --topologies h200:1 h200:8 --json gpu_plans.json
        --work stylegan2:256 r3gan:32 r3gan:256
    JAX_PLATFORMS=cpu python experiments/bench/plans.py --topologies v5e:16x16 --work stylegan2:256 r3gan:32 r3gan:256

No TPU or GPU is needed. Compiles the true training step of each method, at its default settings (DCGAN: width 64,
bfloat16; StyleGAN2 and R3GAN: the authors' preset for pictures of that size, R3GAN's for 32 pixels being CIFAR-10's,
with classes), and an evaluation of style transfer (VGG-19 in bfloat16, rows shared among the chips), for each topology.
Memory, FLOPs and exchanged bytes are the compiler's; the times are a roofline estimate, see ganstyle_jax/loop/plan.py.
Hardware: any; an hour on two cores, most of it for what hardly fits or does not; GPUs 15 minutes. No data. The record
is written after each plan; plans that it holds of other work stay.
"""

import dataclasses
import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import tyro
from PIL import Image

from ganstyle_jax import builtin
from ganstyle_jax.commands import flags
from ganstyle_jax.features import vgg
from ganstyle_jax.gan import dcgan, r3gan, stylegan2
from ganstyle_jax.io.files import UserError, gigabytes
from ganstyle_jax.loop import plan, train
from ganstyle_jax.loop.chips import Chip, topology_devices
from ganstyle_jax.restore import deep_image_prior as prior
from ganstyle_jax.style import gatys
from ganstyle_jax.style import plan as style_plan

VGG = dataclasses.replace(vgg.VGG19, dtype="bfloat16")
BATCH = {"dcgan": 8192, "cyclegan": 16, "r3gan": 256}  # of the others 64
AUTHORS = {
    "stylegan2": {
        256: stylegan2.Config(image_size=256, preset="paper256", dtype="bfloat16"),
        512: stylegan2.Config(image_size=512, preset="paper512", dtype="bfloat16"),
        1024: stylegan2.Config(image_size=1024, preset="paper1024", dtype="bfloat16"),
    },
    "r3gan": {
        32: r3gan.Config(preset="cifar10", conditional=True, classes=10),
        64: r3gan.Config(preset="ffhq64"),
        256: r3gan.Config(preset="ffhq256"),
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which chips and which work."""

    topologies: tuple[str, ...] = ("v5e:2x4", "v5e:16x16", "v5p:4x4x4")
    work: tuple[str, ...] = ("dcgan:64", "dcgan:256", "gatys:4096", "gatys:8192")  # METHOD:SIZE in pixels
    a_chip: int | None = None  # images of a chip's batch; None: as `batch_of` says
    json: Path | None = Path("plans.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "libtpu")),
        "settings": dataclasses.asdict(settings) | {"json": str(settings.json)},
        "plans": [],
    }
    if settings.json is not None and machine.place(settings.json).exists():
        before = json.loads(machine.place(settings.json).read_text())
        record["plans"] = [{"command": before["command"]} | of for of in before["plans"]]
    for work in settings.work:
        kind, _, size = work.partition(":")
        for topology in settings.topologies:
            found = one(settings, kind, int(size), topology)
            others = [of for of in record["plans"] if (of["work"], of["topology"]) != (found["work"], topology)]
            record["plans"] = [*others, found]
            if settings.json is not None:
                machine.write_record(settings.json, record)
    print(table(record["plans"]))


def one(settings: Settings, kind: str, size: int, topology: str) -> dict[str, Any]:
    """An entry of the record's "plans"."""
    start = time.perf_counter()
    chip, devices = topology_devices(topology)
    asked = machine.describe()
    entry = {"command": asked["command"], "date": asked["date"], "work": f"{kind} {size}", "topology": topology}
    batch = batch_of(settings, kind, size, chip, len(devices))
    if batch is not None:
        entry["batch_size"] = batch
    try:
        made = planned(kind, size, batch, devices)
    except (UserError, ValueError, plan.DoesNotFitError) as error:
        print(f"{kind} {size} on {topology}: {error}", flush=True)
        return entry | {"refused": str(error)}
    print(f"{kind} {size} on {topology}:\n{plan.report(made, chip, 'one step', batch)}\n", flush=True)
    found = plan.estimate(made, chip)
    return entry | {
        "chips": made.chips,
        "memory_bytes": made.memory,
        "fits": made.memory <= chip.memory,
        "flops": made.flops,
        "traffic_bytes": made.traffic,
        "collectives": {what: {"count": count, "bytes": size} for what, (count, size) in made.collectives.items()},
        "kernels": round(sum(kernel.times for kernel in made.kernels)),
        "convolutions": dict(plan.convolutions(made)),
        "milliseconds": 1e3 * found.step,
        "milliseconds_of_the_dearest_step": 1e3 * plan.estimate(made.dearest_step, chip).step,
        **({"seconds_per_1000_images": plan.per_thousand(found, batch)} if batch else {}),
        "efficiency": found.efficiency,
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def batch_of(settings: Settings, kind: str, size: int, chip: Chip, chips: int) -> int | None:
    """Images of a training step, over all chips; None of what optimises a picture."""
    if kind in ("gatys", "deep-image-prior"):
        return None
    if settings.a_chip:
        return settings.a_chip * chips
    if kind == "dcgan" and chip.gpu:
        return 1024 * chips
    if kind == "stylegan2":  # of whose path lengths half are a batch
        return 32 if chips == 1 else max(64, 2 * chips)
    return 512 if (kind, size) == ("r3gan", 32) else BATCH.get(kind, 64)


def planned(kind: str, size: int, batch: int | None, devices: list[Any]) -> plan.Plan:
    if kind == "gatys":
        lowered = style_plan.lower(VGG, gatys.Config(size=size), (size, size), devices)
        return plan.plan_lowered(lowered.lowered, devices, lowered.kept)
    if kind == "deep-image-prior":
        lowered = prior.lower_step(prior.PlanSettings(f"{len(devices)} chips", size), prior.Config(), devices)
        return plan.plan_lowered(lowered.lowered, devices, lowered.kept)
    assert batch is not None
    method, loop = importlib.import_module(builtin.TRAINED[kind]), train.Loop(batch_size=batch)
    if kind == "dcgan":
        return plan.plan_training(method, dcgan.Config(image_size=size, channels=3, dtype="bfloat16"), loop, devices)
    if kind in AUTHORS:
        return plan.plan_training(method, AUTHORS[kind][size], loop, devices)
    sides = {"cyclegan": {"image_size": size, "crop": size}}.get(kind, {"image_size": size})
    with tempfile.TemporaryDirectory() as folder:
        cfg = method.Config(**sides, **({"style": painting(Path(folder))} if kind == "fast-style" else {}))
        return plan.plan_training(method, cfg, loop, devices)


def painting(folder: Path) -> tuple[Path, ...]:
    """A picture for a method that learns the style of one: of its step nothing depends on which."""
    Image.new("RGB", (256, 256), "teal").save(folder / "style.png")
    return (folder / "style.png",)


def table(plans: list[dict[str, Any]]) -> str:
    """Markdown, a row for each plan."""
    estimates = ["estimate, ms", "efficiency", "s for 1,000 images"]
    head = ["work", "chips", "memory of a chip", "GFLOP of a chip", "exchanged, MB", *estimates]
    rows = [head, ["---"] * len(head)]
    for of in sorted(plans, key=lambda of: (of["work"].split()[0], int(of["work"].split()[1]))):
        if "refused" in of:
            rows.append([of["work"], of["topology"], of["refused"].partition(":")[0], *[""] * 5])
            continue
        memory = gigabytes(of["memory_bytes"]) + ("" if of["fits"] else ", does not fit")
        kinds = [f"{round(x['count'], 1):g} {kind} ({x['bytes'] / 1e6:.3g})" for kind, x in of["collectives"].items()]
        figures = [
            f"{of['flops'] / 1e9:,.4g}",
            ", ".join(kinds),
            f"{of['milliseconds']:.3g}",
            f"{of['efficiency']:.0%}",
            f"{of['seconds_per_1000_images']:.3g}" if "seconds_per_1000_images" in of else "",
        ]
        rows.append([of["work"], of["topology"], memory, *figures])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    with flags.errors_for_people():
        main(tyro.cli(Settings, description=__doc__))
