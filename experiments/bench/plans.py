"""What every method takes on slices of TPUs and on GPUs that are not here, by their own compilers: docs/measured.md.

    pip install -e '.[tpu-plan,gpu-plan]'
    JAX_PLATFORMS=cpu python experiments/bench/plans.py
    JAX_PLATFORMS=cpu python experiments/bench/plans.py --topologies h200:1 h200:8 h200:2x8 --json gpu_plans.json
        --work dcgan:64 dcgan:256 gatys:512 gatys:4096 fast-style:256 adain:512 super-resolution:256 cyclegan:256
        deep-image-prior:512

No TPU or GPU is needed. Compiles the true training step of each method, at its default settings (DCGAN: width 64,
bfloat16), and an evaluation of style transfer (VGG-19 in bfloat16, rows shared among the chips), for each topology.
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
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io.files import UserError, gigabytes
from ganstyle_jax.loop import plan, train
from ganstyle_jax.loop.chips import Chip, topology_devices
from ganstyle_jax.restore import deep_image_prior as prior
from ganstyle_jax.style import gatys
from ganstyle_jax.style import plan as style_plan

VGG = dataclasses.replace(vgg.VGG19, dtype="bfloat16")


BATCH = {"dcgan": 8192, "cyclegan": 16}  # of the others 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which chips and which work."""

    topologies: tuple[str, ...] = ("v5e:2x4", "v5e:16x16", "v5p:4x4x4")
    work: tuple[str, ...] = ("dcgan:64", "dcgan:256", "gatys:4096", "gatys:8192")  # METHOD:SIZE in pixels
    a_chip: int | None = None  # images of a chip's batch; None: BATCH of all chips, and 1,024 of DCGAN on each GPU
    json: Path | None = Path("plans.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "libtpu")),
        "settings": dataclasses.asdict(settings) | {"json": str(settings.json)},
        "plans": [],
    }
    if settings.json is not None and machine.place(settings.json).exists():
        record["plans"] = json.loads(machine.place(settings.json).read_text())["plans"]
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
    entry = {"work": f"{kind} {size}", "topology": topology, "date": machine.describe()["date"]}
    try:
        made = planned(settings, kind, size, chip, devices)
    except (UserError, ValueError, plan.DoesNotFitError) as error:
        print(f"{kind} {size} on {topology}: {error}", flush=True)
        return entry | {"refused": str(error)}
    print(f"{kind} {size} on {topology}:\n{plan.report(made, chip, 'one step')}\n", flush=True)
    found = plan.estimate(made, chip)
    exchanged: dict[str, list[int]] = {}
    for what, bytes_of in made.collectives:
        exchanged.setdefault(what, []).append(bytes_of)
    return entry | {
        "chips": made.chips,
        "memory_bytes": made.memory,
        "fits": made.memory <= chip.memory,
        "flops": made.flops,
        "traffic_bytes": made.traffic,
        "collectives": {what: {"count": len(of), "bytes": sum(of)} for what, of in exchanged.items()},
        "kernels": round(sum(kernel.times for kernel in made.kernels)),
        "convolutions": dict(plan.convolutions(made)),
        "milliseconds": 1e3 * found.step,
        "efficiency": found.efficiency,
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def planned(settings: Settings, kind: str, size: int, chip: Chip, devices: list[Any]) -> plan.Plan:
    if kind == "gatys":
        lowered = style_plan.lower(VGG, gatys.Config(size=size), (size, size), devices)
        return plan.plan_lowered(lowered.lowered, devices, lowered.kept)
    if kind == "deep-image-prior":
        lowered = prior.lower_step(prior.PlanSettings(f"{len(devices)} chips", size), prior.Config(), devices)
        return plan.plan_lowered(lowered.lowered, devices, lowered.kept)
    batch = settings.a_chip and settings.a_chip * len(devices)
    if kind == "dcgan":
        cfg = dcgan.Config(image_size=size, channels=3, dtype="bfloat16")
        batch = batch or (1024 * len(devices) if chip.gpu else BATCH[kind])
        return plan.plan_training(dcgan, cfg, train.Loop(batch_size=batch), devices)
    method = importlib.import_module(builtin.TRAINED[kind])
    sides = {"cyclegan": {"image_size": size, "crop": size}}.get(kind, {"image_size": size})
    with tempfile.TemporaryDirectory() as folder:
        cfg = method.Config(**sides, **({"style": painting(Path(folder))} if kind == "fast-style" else {}))
        return plan.plan_training(method, cfg, train.Loop(batch_size=batch or BATCH.get(kind, 64)), devices)


def painting(folder: Path) -> tuple[Path, ...]:
    """A picture for a method that learns the style of one: of its step nothing depends on which."""
    Image.new("RGB", (256, 256), "teal").save(folder / "style.png")
    return (folder / "style.png",)


def table(plans: list[dict[str, Any]]) -> str:
    """Markdown, a row for each plan."""
    head = ["work", "chips", "memory of a chip", "GFLOP of a chip", "exchanged, MB", "estimate, ms", "efficiency"]
    rows = [head, ["---"] * len(head)]
    for of in sorted(plans, key=lambda of: (of["work"].split()[0], int(of["work"].split()[1]))):
        if "refused" in of:
            rows.append([of["work"], of["topology"], of["refused"].partition(":")[0], "", "", "", ""])
            continue
        memory = gigabytes(of["memory_bytes"]) + ("" if of["fits"] else ", does not fit")
        kinds = [f"{x['count']} {kind} ({x['bytes'] / 1e6:.3g})" for kind, x in of["collectives"].items()]
        figures = [
            f"{of['flops'] / 1e9:,.4g}",
            ", ".join(kinds),
            f"{of['milliseconds']:.3g}",
            f"{of['efficiency']:.0%}",
        ]
        rows.append([of["work"], of["topology"], memory, *figures])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    with flags.errors_for_people():
        main(tyro.cli(Settings, description=__doc__))
