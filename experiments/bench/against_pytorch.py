"""All comparisons with PyTorch on this machine, by one command: a table in Markdown and one in JSON.

    python experiments/bench/against_pytorch.py --data imagenet_sample_1000_256px.zip
    python experiments/bench/against_pytorch.py --device gpu --data imagenet_sample_1000_256px.zip
    python experiments/bench/against_pytorch.py --quick      # whether it runs: the figures mean nothing
    ganstyle bench                                           # the same, with its tables in the folder that one is in

What is compared, each after its check of parity and in turn with its opponents:

- a training step of DCGAN (dcgan.py), 64 pixels, batch 64, on a GPU also 1024 images in bfloat16;
- an evaluation of loss and gradient of style transfer (gatys.py), VGG-19 and the compact network;
- the data pipeline, images a second (pipeline.py);
- saving and restoring a checkpoint (checkpoint.py);
- the time from the start of a process to the end of its first training step, with programs compiled anew ("cold") and
  read from the cache of an earlier process ("warm").

PyTorch stands for itself twice. "As published" is the common example as people copy it: contiguous memory, eager.
"Tuned" is the fastest of all that it can do: channels-last memory, fused Adam, torch.compile, on a GPU CUDA graphs,
TF32 and, where ours computes in bfloat16, autocast. Ratios are our time over its time: below 1 we are faster.

The machine must have nothing else to do. Expected: half an hour on two CPU cores. Without `--data`, an archive of noise
is made.
"""

import dataclasses
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, Literal

import dcgan
import gatys
import machine
import numpy as np
import tyro
from PIL import Image

from ganstyle_jax.commands import flags
from ganstyle_jax.io.files import UserError

PACKAGES = ("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "torch")
PARTS = ("step", "evaluation", "pipeline", "checkpoint", "start")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared, and where the tables go."""

    parts: tuple[Literal["step", "evaluation", "pipeline", "checkpoint", "start"], ...] = PARTS
    device: Literal["cpu", "gpu"] = "cpu"  # where both sides run
    data: Path | None = None  # zip archive of JPEG files of 256 pixels, for the pipeline
    rounds: int = 5  # of each comparison
    compiled: bool = True  # torch.compile among the tuned; needs a C++ compiler
    quick: bool = False  # tiny sizes and one round, to see that it runs
    # files for the tables; bare names go into experiments/results/
    json: Path | None = Path("against_pytorch.json")
    markdown: Path | None = Path("against_pytorch.md")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. Times in seconds, unless `unit` is a rate."""

    what: str
    unit: Literal["ms", "s", "images/s"]
    ours: float
    published: float | None  # None: it has no such thing
    tuned: float
    tuned_by: str  # what the fastest of the tuned is

    def ratio(self, theirs: float | None) -> float | None:
        """Our time over theirs."""
        if theirs is None:
            return None
        return theirs / self.ours if self.unit == "images/s" else self.ours / theirs


def main(settings: Settings) -> dict[str, Any]:
    """Measures, prints and writes the tables; returns the record."""
    started = time.perf_counter()
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(PACKAGES),
        "settings": {
            name: value.name if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(settings).items()
        },
        "parts": {},
    }
    measures = {
        "step": step, "evaluation": evaluation, "pipeline": images_a_second, "checkpoint": saved, "start": first_step
    }  # fmt: skip
    rows: list[Row] = []
    for part in dict.fromkeys(settings.parts):
        machine.say(f"== {part}")
        found, record["parts"][part] = measures[part](settings)
        rows += found
    record["rows"] = [
        dataclasses.asdict(row)
        | {"ratio_to_published": row.ratio(row.published), "ratio_to_tuned": row.ratio(row.tuned)}
        for row in rows
    ]
    record["minutes"] = round((time.perf_counter() - started) / 60, 1)
    text = markdown(rows, record)
    print(text)
    if settings.json is not None:
        machine.say(f"record: {machine.write_record(settings.json, record)}")
    if settings.markdown is not None:
        machine.say(f"table: {machine.write_text(settings.markdown, text)}")
    return record


def step(settings: Settings) -> tuple[list[Row], Any]:
    """A training step of DCGAN."""
    bench = dcgan.Bench(device=settings.device, rounds=settings.rounds, compiled=settings.compiled, published=True)
    if settings.quick:
        benches = [dataclasses.replace(bench, image_size=16, width=4, batch_size=4, rounds=1, steps=2)]
    elif settings.device == "cpu":
        benches = [bench]
    else:
        benches = [dataclasses.replace(bench, batch_size=b, dtype=d) for b, d in ((128, "float32"), (1024, "bfloat16"))]
    rows, results = [], []
    for one in benches:
        result = dcgan.measure(one)
        medians = {name: of["median"] for name, of in result["contestants"].items() if "median" in of}
        what = f"DCGAN training step, {one.image_size} px, batch {one.batch_size}, {one.dtype}"
        rows.append(row(what, "ms", medians, "published"))
        results.append(result)
    return rows, results


def evaluation(settings: Settings) -> tuple[list[Row], Any]:
    """Loss and gradient of style transfer."""
    if settings.quick:
        work = "--features compact --sizes 48 --rounds 1 --round-seconds 0.01"
    elif settings.device == "cpu":
        work = f"--features {gatys.RANDOM} compact --sizes 256 512 --rounds {settings.rounds}"
    else:
        compiled = "--compiled" if settings.compiled else "--no-compiled"
        work = f"--features {gatys.RANDOM} --sizes 512 1024 --dtype bfloat16 {compiled} --rounds {settings.rounds}"
    results = record_of("gatys.py", "--device", settings.device, *work.split())["results"]
    rows = []
    for of in results:
        medians = {name: x["median"] for name, x in of["contestants"].items() if "median" in x}
        what = f"style transfer, loss and gradient, {of['features']}, {of['size']} px, {of['dtype']}"
        rows.append(row(what, "ms", medians, "eager, contiguous"))
    return rows, results


def images_a_second(settings: Settings) -> tuple[list[Row], Any]:
    """JPEG files to batches."""
    small = "--sizes 64 --workers 1 --batch-size 16 --rounds 1" if settings.quick else f"--rounds {settings.rounds}"
    with tempfile.TemporaryDirectory() as folder:
        data = settings.data or noise(Path(folder) / "noise.zip", 128 if settings.quick else 1024)
        results = record_of("pipeline.py", "--data", str(data), *small.split())["results"]
    rows = []
    for of in results:
        what = f"data pipeline, JPEG to {of['pixels']} px, workers: {of['workers']}"
        theirs = of["medians"]["DataLoader"]
        rows.append(Row(what, "images/s", of["medians"][machine.OURS], None, theirs, "DataLoader"))
    return rows, results


def record_of(script: str, *arguments: str) -> dict[str, Any]:
    """What another of these scripts records, in a process of its own: threads of one must not disturb the next."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "record.json")
        command = [sys.executable, str(Path(__file__).with_name(script)), *arguments, "--json", str(path)]
        status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        if status:
            raise UserError(f"{script} ended with status {status}: see its output above")
        return json.loads(path.read_text())


def noise(path: Path, count: int) -> Path:
    """A zip archive of JPEG files of 256 pixels."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            file = io.BytesIO()
            coarse.resize((256, 256), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            archive.writestr(f"{i:05d}.jpg", file.getvalue())
    return path


def saved(settings: Settings) -> tuple[list[Row], Any]:
    """Checkpoints."""
    small = "--image-size 16 --width 4 --rounds 1" if settings.quick else f"--rounds {settings.rounds}"
    result = record_of("checkpoint.py", *small.split())
    result = {name: result[name] for name in ("bytes", "medians", "seconds")}
    times, size = result["medians"], f"{result['bytes'] / 1e6:.3g} MB"
    save, load = times["PyTorch, save"], times["PyTorch, restore"]
    return [
        Row(f"checkpoint of {size}, on disk", "ms", times["ours, save on disk"], save, save, "torch.save, fsync"),
        Row("checkpoint, blocks training", "ms", times["ours, save blocks training"], save, save, "torch.save, fsync"),
        Row("checkpoint, restored", "ms", times["ours, restore"], load, load, "torch.load"),
    ], result


def first_step(settings: Settings) -> tuple[list[Row], Any]:
    """From the start of a process to the end of its first training step."""
    bench = dcgan.Bench(device=settings.device, rounds=min(3, settings.rounds))
    if settings.quick:
        bench = dataclasses.replace(bench, image_size=16, width=4, batch_size=4, rounds=1)
    torch_modes = ["published", "eager", *(["default"] if settings.compiled else [])]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def start(mode: str, cache: Path) -> float:
            environment = {
                "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # as `ganstyle` has it
                "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
                "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "0",
            }
            begun = time.perf_counter()
            with dcgan.Worker(mode, bench, environment) as worker:
                worker("run", steps=1)
                return time.perf_counter() - begun

        for i in range(bench.rounds):
            for mode in (machine.OURS, *torch_modes):
                for state in ("cold", "warm"):
                    taken = start(mode, Path(folder, f"{mode}{i}"))
                    seconds.setdefault(f"{mode}, {state}", []).append(taken)
                    machine.say(f"round {i + 1} of {bench.rounds}: {mode}, {state}: {taken:.3g} s")
    rows = []
    for state in ("cold", "warm"):
        medians = {mode: statistics.median(seconds[f"{mode}, {state}"]) for mode in (machine.OURS, *torch_modes)}
        rows.append(row(f"first DCGAN training step of a process, {state}", "s", medians, "published"))
    return rows, seconds


def row(what: str, unit: Literal["ms", "s"], medians: dict[str, float], published: str) -> Row:
    """Of seconds by contestant: ours, the published one, and the best of PyTorch's."""
    best = machine.compare(medians)["best_torch"]
    return Row(what, unit, medians[machine.OURS], medians.get(published), medians[best], best)


def markdown(rows: list[Row], record: dict[str, Any]) -> str:
    """The table, under a line about the machine."""
    hardware, versions = record["machine"], record["versions"]
    place = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['cores']} cores"
    lines = [
        f"{place}; JAX {versions['jax']}, PyTorch {versions['torch']}; {record['date'][:10]}, "
        f"commit {record['commit']}; load before the start {hardware['load_average']}.",
        "",
        "| | unit | ours | PyTorch as published | PyTorch tuned | ours / published | ours / tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    for of in rows:

        def cell(value: float | None, of: Row = of) -> str:
            return "" if value is None else f"{value * (1e3 if of.unit == 'ms' else 1):.4g}"

        ratios = ["" if x is None else f"{x:.2f}" for x in (of.ratio(of.published), of.ratio(of.tuned))]
        tuned = f"{cell(of.tuned)} ({of.tuned_by})"
        lines.append("| " + " | ".join([of.what, of.unit, cell(of.ours), cell(of.published), tuned, *ratios]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with flags.errors_for_people():
        main(tyro.cli(Settings, description=__doc__))
