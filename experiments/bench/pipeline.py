"""Times the data pipeline against PyTorch's DataLoader: JPEG files in a zip archive to batches, images a second.

    python experiments/bench/pipeline.py --data imagenet_sample_1000_256px.zip --json pipeline.json

Both read the same archive, decode with Pillow, crop the central square, resize it (Lanczos) and stack batches of
uint8, in a shuffled order, with the same number of workers: ours are Grain's threads, PyTorch's are processes, its
common way. They work in turn, a pass over all images each, after one pass that does not count. Parity comes first: the
same image from both must be equal, pixel for pixel. Needs PyTorch beside JAX (`pip install -e '.[parity]'`). Two
minutes on two cores.
"""

import dataclasses
import functools
import io
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import tyro
from PIL import Image

from ganstyle_jax import data
from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is timed, and how."""

    data: Path  # zip archive of JPEG files
    sizes: tuple[int, ...] = (64, 256)  # pixels of the images that come out
    workers: tuple[int, ...] = (1, 2)
    batch_size: int = 64
    rounds: int = 5
    json: Path | None = Path("pipeline.json")  # file for the record; a bare name goes into experiments/results/


class Zipped:
    """A data set of PyTorch's kind, as a tutorial would write it: (size, size, 3) uint8."""

    def __init__(self, path: Path, names: list[str], size: int):
        self.path, self.names, self.size = path, names, size
        self.archive: zipfile.ZipFile | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> np.ndarray:
        if self.archive is None:  # each worker opens its own
            self.archive = zipfile.ZipFile(self.path)
        image = Image.open(io.BytesIO(self.archive.read(self.names[i]))).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        return np.array(image.resize((self.size, self.size), Image.Resampling.LANCZOS))


def main(bench: Bench) -> dict[str, Any]:
    """Measures and writes the record, which is returned."""
    try:
        import torch.utils.data
    except ImportError:
        raise UserError("PyTorch is not installed: pip install -e '.[parity]'") from None
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "grain", "pillow", "numpy", "torch")),
        "settings": dataclasses.asdict(bench) | {"data": bench.data.name, "json": str(bench.json)},
        "results": [],
    }
    for size in bench.sizes:
        source = data.open_source(str(bench.data), size, 3)
        assert source.size is not None
        with zipfile.ZipFile(bench.data) as archive:
            names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))
        theirs = Zipped(bench.data, names, size)
        check_parity(source, theirs)
        passes = source.size // bench.batch_size
        for workers in bench.workers:
            contestants: dict[str, Callable[[], int]] = {
                machine.OURS: functools.partial(ours, source, bench.batch_size, passes, workers),
                "DataLoader": functools.partial(dataloader, torch.utils.data, theirs, bench.batch_size, workers),
            }
            rates: dict[str, list[float]] = {name: [] for name in contestants}
            for i in range(bench.rounds + 1):
                for name, go in contestants.items():
                    start = time.perf_counter()
                    count = go()
                    if i:
                        rates[name].append(count / (time.perf_counter() - start))
            medians = {name: statistics.median(of) for name, of in rates.items()}
            ratio = medians[machine.OURS] / medians["DataLoader"]
            record["results"].append(
                {"pixels": size, "workers": workers, "images_per_second": rates, "medians": medians, "ratio": ratio}
            )
            shown = ", ".join(f"{name} {rate:.0f}" for name, rate in medians.items())
            machine.say(f"{size} pixels, {workers} workers: {shown} images/s; ours over theirs {ratio:.2f}")
    if bench.json is not None:
        machine.say(f"record: {machine.write_record(bench.json, record)}")
    return record


def check_parity(source: data.Source, theirs: Zipped) -> None:
    """UserError unless both give the same images; a few are enough to show it."""
    if source.size != len(theirs):
        raise UserError(f"ours has {source.size} images, PyTorch's {len(theirs)}")
    for i in range(0, len(theirs), max(1, len(theirs) // 16)):
        if not np.array_equal(source.read(i)["image"], theirs[i]):
            raise UserError(f"the two sides decode {theirs.names[i]} differently")
    theirs.archive = None  # or the workers, who are copies of this process, would share its place in the file


def ours(source: data.Source, batch_size: int, count: int, workers: int) -> int:
    batches = data.Batches(source, batch_size, seed=0, workers=workers)
    return sum(len(batch["image"]) for batch in batches.stream(0, count))


def dataloader(module: Any, theirs: Zipped, batch_size: int, workers: int) -> int:
    loader = module.DataLoader(theirs, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    return sum(len(batch) for batch in loader)


if __name__ == "__main__":
    with flags.errors_for_people():
        main(tyro.cli(Bench, description=__doc__))
