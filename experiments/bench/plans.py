"""What training and style transfer take on slices of TPUs, by the TPUs' own compiler: the table of docs/measured.md.

    pip install -e '.[tpu-plan]'
    JAX_PLATFORMS=cpu python experiments/bench/plans.py

No TPU is needed. Compiles the true training step of DCGAN (width 64, bfloat16) and an evaluation of style transfer
(VGG-19 in bfloat16, rows shared among the chips) for each slice. Memory, FLOPs and exchanged bytes are the compiler's;
the times are a roofline estimate, see ganstyle_jax/loop/plan.py. Hardware: any; an hour on two cores, most of it for
what hardly fits or does not. No data. The record is written after each plan; plans that it holds of other work stay.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import machine
import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.features import vgg
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io.files import UserError, gigabytes
from ganstyle_jax.loop import plan, train
from ganstyle_jax.style import gatys
from ganstyle_jax.style import plan as style_plan

VGG = dataclasses.replace(vgg.VGG19, dtype="bfloat16")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which slices and which work."""

    topologies: tuple[str, ...] = ("v5e:2x4", "v5e:16x16", "v5p:4x4x4")
    # dcgan SIZE with `batch` images, and gatys SIZE, by turns
    work: tuple[str, ...] = ("dcgan", "64", "dcgan", "256", "gatys", "4096", "gatys", "8192")
    batch: int = 8192  # images of DCGAN's global batch
    json: Path | None = Path("plans.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "libtpu")),
        "settings": dataclasses.asdict(settings) | {"json": str(settings.json)},
        "plans": [],
    }
    if settings.json is not None and machine.place(settings.json).exists():
        record["plans"] = json.loads(machine.place(settings.json).read_text())["plans"]
    names = iter(settings.work)
    for kind, size in zip(names, names, strict=True):
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
    chip, devices = plan.topology_devices(topology)
    entry = {"work": f"{kind} {size}", "topology": topology, "date": machine.describe()["date"]}
    try:
        if kind == "dcgan":
            cfg = dcgan.Config(image_size=size, channels=3, dtype="bfloat16")
            made = plan.plan_training(dcgan, cfg, train.Loop(batch_size=settings.batch), devices)
        else:
            lowered = style_plan.lower(VGG, gatys.Config(size=size), (size, size), devices)
            made = plan.plan_lowered(lowered.lowered, len(devices), lowered.kept)
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
        "milliseconds": 1e3 * found.step,
        "efficiency": found.efficiency,
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def table(plans: list[dict[str, Any]]) -> str:
    """Markdown, a row for each plan."""
    head = ["work", "chips", "memory of a chip", "GFLOP of a chip", "exchanged, MB", "estimate, ms", "efficiency"]
    rows = [head, ["---"] * len(head)]
    for of in sorted(plans, key=lambda of: (of["work"].split()[0], int(of["work"].split()[1]))):
        if "refused" in of:
            rows.append([of["work"], of["topology"], "does not fit", "", "", "", ""])
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
