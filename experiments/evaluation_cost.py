"""What an evaluation costs: seconds and memory for rising numbers of images, and what the metrics alone take of it.

Paper: none; Heusel et al. 2017 (arXiv:1706.08500) and others measure with 50,000 images.
Data: CIFAR-10 (Krizhevsky 2009) as a zip or folder of its 50,000 training images; states no licence.
Hardware and time: 2 CPU cores, three minutes.
Expected: 49 s and 0.84 GB for 50,000 against 50,000 with the compact network, on two cores of an AMD EPYC.
Command: python experiments/evaluation_cost.py --data cifar10.zip

Each number of images is measured in a process of its own, the set against itself: half of the work is reading and
decoding. Programs are compiled before, and what is kept of real images from last time is thrown away. "metrics" is what
FID and KID take once the features are there.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import evaluate

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    data: str = "cifar10.zip"  # images, as `ganstyle train --data` takes them
    counts: tuple[int, ...] = (5_000, 10_000, 25_000, 50_000)  # images, of each of the two sets
    features: str = "compact"
    only: int | None = None  # one number of images, in this process; what the others are measured by
    json: Path | None = Path("evaluation_cost.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    if settings.only is not None:
        print(json.dumps(cost(settings, settings.only)))
        return
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "numpy")),
        "features": settings.features,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as home:
        for count in (settings.counts[0], *settings.counts):  # the first one compiles
            args = [sys.executable, __file__, "--data", settings.data, "--features", settings.features]
            environment = os.environ | {"GANSTYLE_HOME": home}
            made = subprocess.run(
                [*args, "--only", str(count)], env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            record["rows"].append(json.loads(made.stdout.splitlines()[-1]))
            print(record["rows"][-1], flush=True)
    del record["rows"][0]
    if settings.json is not None:
        print(f"The record is in {machine.write_record(settings.json, record)}")


def cost(settings: Settings, count: int) -> dict[str, Any]:
    """Seconds and peak memory of FID and KID of `count` images against as many."""
    flags.use_cache()
    chosen = evaluate.Settings(("fid", "kid"), settings.features, count=count, real_count=count)
    start = time.perf_counter()
    network = evaluate.network_of(chosen)
    seen = [evaluate.look(*evaluate.images_of(settings.data, network, count, seed), network, chosen) for seed in (0, 1)]
    looked = time.perf_counter()
    evaluate.compare(seen[0], seen[1], network, chosen)
    end = time.perf_counter()
    return {
        "images": count,
        "seconds": machine.seconds(end - start),
        "metrics_seconds": machine.seconds(end - looked),
        "peak_gb": round(machine.peak_bytes() / 1e9, 3),
    }


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
