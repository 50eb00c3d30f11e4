"""CIFAR-10: the KID of our DCGAN against that of the same network trained in PyTorch, in pairs of equal seeds.

    ganstyle train dcgan --data CIFAR10 --image-size 32 --width 16 --steps 2000 --keep-every 100 \
        --checkpoint-every 100 --seed 0 --run-dir runs/cifar/ours/seed0                       # and the other seeds
    python experiments/bench/train_torch.py --data CIFAR10 --seeds 0 1 2 3 4 --width 16 --paired \
        --ema-halflife-images 10000 --save-at 1800 1900 2000 --out runs/cifar/torch
    python experiments/bench/cifar.py --data CIFAR10 --seeds 0 1 2 3 4

The two of a pair have the same weights to begin with, the same images in the same order and the same latents, so that
they compute the same until rounding has driven them apart, which takes some hundred steps. Pictures are drawn with
statistics estimated anew, from the same latents on both sides, and measured by the same code against the same real
images: those of the averaged weights, which samples are made from, at the last step; and those of the last weights,
whose KID swings from step to step, at several checkpoints, a run's figure being the mean over them.

What is claimed: ours is not worse than PyTorch's by more than 5 %. The upper end of a one-sided 95 % confidence
interval of the mean paired difference (Student's t) is divided by PyTorch's mean.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import machine
import tyro

from ganstyle_jax.commands import flags
from ganstyle_jax.gan import convert
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import evaluate
from ganstyle_jax.loop import runs


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared."""

    data: str = "cifar10.zip"  # the images of training, as `ganstyle train --data` takes them
    ours: Path = Path("runs/cifar/ours")  # folder of seed0, seed1, ...
    torch: Path = Path("runs/cifar/torch")  # folder of averageG_SEED_STEP.pth and netG_SEED_STEP.pth
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    average_at: tuple[int, ...] = (2_000,)  # steps whose averaged weights are measured
    last_at: tuple[int, ...] = (1_800, 1_900, 2_000)  # those whose last weights are
    count: int = 2_000  # pictures of each generator; KID is unbiased, so that few will do
    real_count: int = 5_000
    # the third block of VGG-19 with features of the order of 1, which KID's kernel is made for: a file, and the layer
    features: str = "vgg_r31.pth:relu3_1"
    json: Path | None = Path("cifar.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> dict[str, Any]:
    """Measures, prints a Markdown table and writes the record, which is returned."""
    flags.use_cache()
    chosen = evaluate.Settings(("kid", "fid"), settings.features, count=settings.count, real_count=settings.real_count)
    network = evaluate.network_of(chosen)
    real = evaluate.look_at_source(settings.data, network, chosen, 32, 3)
    rows = []
    for seed in settings.seeds:
        for weights, step, side, run in generators(settings, seed):
            drawn = evaluate.drawn_by(run.method, run.cfg, run.state, settings.count, seed)
            found = evaluate.compare(real, evaluate.look(*drawn, network, chosen), network, chosen)
            rows.append({"weights": weights, "side": side, "seed": seed, "step": step} | found["metrics"])
            print(rows[-1], flush=True)
    protocol = found["protocol"]
    del protocol["fake"]["weights"]  # they are in the rows
    record = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")),
        "protocol": protocol,
        "summary": {
            f"{metric} of {weights} weights": summary(rows, settings.seeds, weights, metric)
            for weights in dict.fromkeys(row["weights"] for row in rows)
            for metric in ("kid", "fid")
        },
        "rows": rows,
    }
    print(table(record))
    if settings.json is not None:
        print(f"\nThe record is in {machine.write_record(settings.json, record)}")
    return record


def generators(settings: Settings, seed: int) -> Iterator[tuple[str, int, str, runs.LoadedRun]]:
    """(weights, step, side, run) of a pair."""
    of = {"average": ("averageG", settings.average_at), "last": ("netG", settings.last_at)}
    for weights, (name, steps) in of.items():
        for step in steps:
            yield weights, step, "ours", runs.load(settings.ours / f"seed{seed}", step, weights=weights)
            path = settings.torch / f"{name}_{seed}_{step}.pth"
            yield weights, step, "torch", convert.load([path], batch_norm="standing")


def summary(rows: list[dict[str, Any]], seeds: tuple[int, ...], weights: str, metric: str) -> dict[str, Any]:
    """Means of each seed and side over the checkpoints, and the bound on the mean paired difference."""
    import scipy.stats

    def mean(side: str, seed: int) -> float:
        return fmean(r[metric] for r in rows if (r["weights"], r["side"], r["seed"]) == (weights, side, seed))

    means = {side: [mean(side, seed) for seed in seeds] for side in ("ours", "torch")}
    differences = [ours - torch for ours, torch in zip(means["ours"], means["torch"], strict=True)]
    reference = fmean(means["torch"])
    error = stdev(differences) / len(seeds) ** 0.5
    bound = fmean(differences) + scipy.stats.t.ppf(0.95, len(seeds) - 1) * error
    return {
        "ours": means["ours"],
        "torch": means["torch"],
        "mean_difference": fmean(differences),
        "standard_error": error,
        "upper_bound": float(bound),
        "ratio": fmean(means["ours"]) / reference,
        "upper_bound_of_reference": float(bound / reference),
    }


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    lines = [
        "| metric | ours | PyTorch | ours / PyTorch | upper bound of the difference / PyTorch |",
        "|---|---|---|---|---|",
    ]
    for metric, of in record["summary"].items():
        sides = [
            f"{fmean(of[side]):.4g} ({', '.join(f'{value:.4g}' for value in of[side])})" for side in ("ours", "torch")
        ]
        lines.append(f"| {metric} | {' | '.join(sides)} | {of['ratio']:.3f} | {of['upper_bound_of_reference']:+.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
