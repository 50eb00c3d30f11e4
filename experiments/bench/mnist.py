"""MNIST: the LeNet-FD of our DCGAN against that of the same network trained in PyTorch, seed by seed.

    python experiments/mnist.py                        # trains ours:     runs/mnist/seed0, seed1, seed2
    python experiments/bench/train_torch.py            # trains PyTorch's: runs/mnist_torch/netG_0_2500.pth, ...
    python experiments/bench/mnist.py --ours runs/mnist/seed0 runs/mnist/seed1 runs/mnist/seed2 --torch runs/mnist_torch

Both sides go through the same code: PyTorch's weights are read by `ganstyle_jax.gan.convert` into our generator, 10,000
pictures are drawn from the same latents, and `experiments/lenet_fd.py` measures them against the test set.

Four generators are made of each of our checkpoints and two of each of PyTorch's, which keeps no average: the last
weights or their average, and BatchNorm's statistics as they ran along in training or estimated anew ("standing"). The
`ratio` compares like with like: last weights, standing statistics, on both sides; `default_ratio` has the average of
ours in their place, which is what `ganstyle sample` draws from. Below 1 ours are closer to the data.
"""

import dataclasses
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import machine
import tyro

from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import runs

sys.path.insert(1, str(machine.ROOT / "experiments"))
import lenet_fd

OURS, TORCH = "ours", "torch"
VARIANTS = [(weights, statistics) for weights in ("last", "average") for statistics in ("standing", "running")]
DEFAULT = ("average", "standing")
LIKE = ("last", "standing")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared."""

    ours: tuple[Path, ...]  # run folders, one for each seed
    torch: Path  # folder of netG_SEED_STEP.pth
    steps: tuple[int, ...] = (2_500, 9_000)  # training steps to compare at
    samples: int = 10_000  # pictures of each generator; the distance falls with their number
    reference: Path = lenet_fd.DATA  # folder with datasets/mnist.npz and weights/mnist_lenet.pth
    json: Path | None = Path("mnist.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> dict[str, Any]:
    """Measures, prints a Markdown table and writes the record, which is returned."""
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")),
        "samples": settings.samples,
    }
    # Before the first minutes are spent: is everything there?
    seeds = [runs.read(run_dir)["loop"]["seed"] for run_dir in settings.ours]
    theirs = {step: torch_files(settings.torch, step) for step in settings.steps}
    rows = []
    for step in settings.steps:
        for seed, run_dir in zip(seeds, settings.ours, strict=True):
            rows += measure(OURS, run_dir, step, seed, settings)
        for seed, path in theirs[step]:
            rows += measure(TORCH, path, step, seed, settings)
    record["seeds"] = {side: sorted({row["seed"] for row in rows if row["side"] == side}) for side in (OURS, TORCH)}
    # For orientation: 10,000 training images against the test set, the same for all rows.
    reals = [row.pop("real") for row in rows]
    record["real"] = reals[0]
    record["summary"] = [summary(rows, step) for step in settings.steps]
    record["rows"] = rows
    print(table(record))
    if settings.json is not None:
        print(f"\nThe record is in {machine.write_record(settings.json, record)}")
    return record


def torch_files(folder: Path, step: int) -> list[tuple[int, Path]]:
    """(seed, file) of the generators saved at a step; UserError without any."""
    matches = [(re.fullmatch(r".*G_(\d+)_(\d+)\.pth", path.name), path) for path in sorted(folder.glob("*.pth"))]
    found = [(int(match[1]), path) for match, path in matches if match and int(match[2]) == step]
    if not found:
        raise UserError(f"{folder} holds no netG_SEED_{step}.pth: train with experiments/bench/train_torch.py first")
    return found


def measure(side: str, path: Path, step: int, seed: int, settings: Settings) -> list[dict[str, Any]]:
    """The numbers of `lenet_fd.evaluate` for each generator that can be made of a checkpoint."""
    import jax

    from ganstyle_jax.gan import convert

    run = convert.load([path]) if side == TORCH else runs.load(path, step)
    rows = []
    for weights, statistics in VARIANTS if side == OURS else [v for v in VARIANTS if v[0] == "last"]:
        cfg = dataclasses.replace(run.cfg, weights=weights, batch_norm=statistics)
        pictures = dataclasses.replace(run, cfg=cfg).sample(jax.random.key(seed), settings.samples)
        numbers = lenet_fd.evaluate(pictures, settings.reference)
        rows.append({"side": side, "seed": seed, "step": step, "weights": weights, "statistics": statistics} | numbers)
        what = f"{side}, seed {seed}, step {step}, {weights} weights, {statistics} statistics"
        print(f"{what}: LeNet-FD {numbers['lenet_fd']:.2f}", flush=True)
    return rows


def summary(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Means over the seeds at one step, of each side and variant, and the two ratios."""

    def over_seeds(side: str, variant: tuple[str, str]) -> dict[str, Any]:
        chosen = [r for r in rows if (r["side"], r["step"], r["weights"], r["statistics"]) == (side, step, *variant)]
        names = ("lenet_fd", "mean_top_probability", "rarest_digit_share")
        return {name: mean(row[name] for row in chosen) for name in names} | {
            "lenet_fd_of_seeds": [row["lenet_fd"] for row in chosen]
        }

    means = {
        f"{side}, {weights}, {statistics}": over_seeds(side, (weights, statistics))
        for side in (OURS, TORCH)
        for weights, statistics in VARIANTS
        if side == OURS or weights == "last"
    }
    baseline = means[f"{TORCH}, {', '.join(LIKE)}"]["lenet_fd"]
    return {
        "step": step,
        "ratio": means[f"{OURS}, {', '.join(LIKE)}"]["lenet_fd"] / baseline,
        "default_ratio": means[f"{OURS}, {', '.join(DEFAULT)}"]["lenet_fd"] / baseline,
        "means": means,
    }


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    real = record["real"]
    lines = [
        "| step | side | weights | BatchNorm | LeNet-FD | of each seed | top probability | rarest digit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for at in record["summary"]:
        for name, values in at["means"].items():
            side, weights, statistics = name.split(", ")
            seeds = ", ".join(f"{value:.1f}" for value in values["lenet_fd_of_seeds"])
            lines.append(
                f"| {at['step']:,} | {side} | {weights} | {statistics} | {values['lenet_fd']:.2f} | {seeds} "
                f"| {values['mean_top_probability']:.3f} | {values['rarest_digit_share']:.1%} |"
            )
    lines.append(
        f"| | training images | | | {real['lenet_fd']:.2f} | | {real['mean_top_probability']:.3f} "
        f"| {real['rarest_digit_share']:.1%} |\n"
    )
    lines += [
        f"At {at['step']:,} steps ours / PyTorch = {at['ratio']:.3f} (last weights, standing statistics); "
        f"{at['default_ratio']:.3f} with the average of ours."
        for at in record["summary"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
