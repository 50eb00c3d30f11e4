"""Weak scaling, counted: what each of 1, 2, 4 and 8 devices computes, holds and exchanges as the work grows with them.

    pip install -e '.[tpu-plan]'                   # for the second half; left out where it is not installed
    python experiments/weak_scaling.py

Every device gets as much: `batch` images of a DCGAN's training step, by jit, with its state shared (`--shard-state`)
and by pmap; or `rows` rows of a picture in an evaluation of style transfer. The true step is compiled for pretended CPU
devices, by the compiler that then runs it, and for chips of a TPU v5e by theirs. Nothing is timed, for these devices
share two cores: FLOPs and bytes are the compilers', collectives are counted in the compiled programs. Perfect scaling
is the same FLOPs, memory and number of collectives on a device, however many there are; the bytes of an all-reduce do
not grow with them either. Hardware: any; ten minutes on two cores. No data.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.features import vgg
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import plan, train
from ganstyle_jax.loop.chips import topology_devices
from ganstyle_jax.style import gatys
from ganstyle_jax.style import plan as style_plan

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

WAYS = {  # of training
    "dcgan jit": {},
    "dcgan shard-state": {"shard_state": True},
    "dcgan pmap": {"parallel": "pmap"},
}
ROWS = "gatys rows"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much work, on how many devices."""

    counts: tuple[int, ...] = (1, 2, 4, 8)  # devices
    work: tuple[str, ...] = (*WAYS, ROWS)
    batch: int = 16  # images of a device
    image_size: int = 16  # pixels, of DCGAN; small, because counts do not depend on it
    width: int = 16  # channels of DCGAN's finest hidden layer
    rows: int = 128  # of a picture, of a device
    columns: int = 256  # of the picture
    tpu: bool = True  # count for a TPU v5e, too
    json: Path | None = Path("weak_scaling.json")  # file for the record; a bare name goes into experiments/results/


def count(settings: Settings, work: str, devices: Sequence[Any]) -> dict[str, Any]:
    """What one of these devices does in a step."""
    n = len(devices)
    if work == ROWS:
        network = dataclasses.replace(vgg.COMPACT, platform="xla")  # as `ganstyle stylize --parallel rows` has it
        shape = settings.rows * n, settings.columns
        lowered = style_plan.lower(network, gatys.Config(size=max(shape)), shape, devices)
        made = plan.plan_lowered(lowered.lowered, devices, lowered.kept)
    else:
        cfg = dcgan.Config(image_size=settings.image_size, channels=3, width=settings.width)
        made = plan.plan_training(dcgan, cfg, train.Loop(batch_size=settings.batch * n, **WAYS[work]), devices)
    return {
        "work": work,
        "platform": devices[0].device_kind,
        "devices": n,
        "flops": made.flops,
        "state_and_data_bytes": made.arguments,
        "temporary_bytes": made.temporary,
        "collectives": {kind: {"count": count, "bytes": size} for kind, (count, size) in made.collectives.items()},
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row for each program; everything is of one device."""
    head = ["work", "compiled for", "devices", "GFLOP", "state and data, MB", "temporary, MB", "collectives (MB)"]
    rows = [head, ["---"] * len(head)]
    for of in results:
        kinds = [f"{x['count']} {kind} ({x['bytes'] / 1e6:.3g})" for kind, x in of["collectives"].items()]
        sizes = [f"{of[name] / 1e6:.3g}" for name in ("state_and_data_bytes", "temporary_bytes")]
        rows.append(
            [
                of["work"],
                of["platform"],
                str(of["devices"]),
                f"{of['flops'] / 1e9:.4g}",
                *sizes,
                ", ".join(kinds) or "none",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(settings: Settings) -> dict[str, Any]:
    """Counts, prints a table and writes the record, which is returned. UserError for more devices than there are."""
    platforms = [jax.devices("cpu")]
    if settings.tpu:
        try:
            platforms.append(topology_devices("v5e:2x4")[1])
        except UserError as error:
            print(f"the TPU is left out: {error}", file=sys.stderr)
    most = min(map(len, platforms))
    if max(settings.counts) > most or min(settings.counts) < 1:
        raise UserError(f"--counts must be from 1 to {most}, got {settings.counts}")
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "libtpu")),
        "settings": dataclasses.asdict(settings) | {"json": str(settings.json)},
        "results": [],
    }
    for work in settings.work:
        for devices in platforms:
            for n in settings.counts:
                record["results"].append(count(settings, work, devices[:n]))
                print(table(record["results"][-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(record["results"]))
    if settings.json is not None:
        print(f"record: {machine.write_record(settings.json, record)}")
    return record


if __name__ == "__main__":
    with flags.errors_for_people():
        main(tyro.cli(Settings, description=__doc__))
