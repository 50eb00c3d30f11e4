"""Five adversarial losses on glyphs and on MNIST, three seeds each, at the same number of images, and PyTorch's DCGAN.

Paper: DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434) with the losses of ganstyle_jax/losses.py; a large study
    of this kind is Lucic et al. 2018 (arXiv:1711.10337), which finds differences between seeds as large as those
    between losses.
Data: 20,000 glyphs of 32 pixels, digits on black, drawn once; mnist.npz as experiments/mnist.py has it. Real images to
    compare with: 5,000 other glyphs; 5,000 of MNIST's test set.
Hardware and time: 40 minutes on 2 cores of an Intel Xeon, a set on each, beside other work; a third of it for
    Wasserstein with its penalty.
Expected: FID of glyphs 20 (non-saturating, in PyTorch 19), 27 (least squares), 18 (hinge), 124 (Wasserstein), 165
    (minimax); LeNet-FD of MNIST 97 (in PyTorch 132), 104, 97, 149, 1190. Tables: docs/measured.md.
Commands, the last two after the others and side by side:
    python experiments/losses.py --draw                         # runs/losses/glyphs.npz, for PyTorch
    python experiments/bench/train_torch.py --data runs/losses/glyphs.npz --out runs/losses/glyphs/torch \
        --width 16 --batch-size 32 --learning-rate 4e-4 --save-at 2000 --threads 1
    python experiments/bench/train_torch.py --data mnist.npz --out runs/losses/mnist/torch \
        --width 16 --batch-size 32 --learning-rate 4e-4 --save-at 2000 --threads 1
    taskset -c 0 python experiments/losses.py --sets glyphs --json losses_glyphs.json
    taskset -c 1 python experiments/losses.py --sets mnist --json losses_mnist.json

The recipe is that of `ganstyle quickstart` at half the width: 64,000 images, which is a short training. Glyphs are
measured in the features of the reader of glyphs, with the characters that are there; MNIST in those of the LeNet of
experiments/lenet_fd.py (LeNet-FD) and in the compact network's. All draw from averaged weights but PyTorch's DCGAN,
which has none; so our non-saturating one is measured with its last weights too.
"""

import dataclasses
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lenet_fd
import numpy as np
import tyro

from ganstyle_jax import data
from ganstyle_jax.commands import flags
from ganstyle_jax.gan import convert, dcgan
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.judge import evaluate
from ganstyle_jax.loop import runs, train

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

LOSSES: dict[Any, dict[str, Any]] = {
    "non_saturating": {},
    "minimax": {},
    "least_squares": {},
    "hinge": {},
    "wasserstein": {"gradient_penalty": 10.0},  # without any it is not bounded
}
SHOWN = {
    "glyphs": ("fid", "kid", "precision", "recall", "coverage", "glyphs_covered", "glyphs_unreadable", "glyphs_kl"),
    "mnist": ("lenet_fd", "kid", "precision", "recall", "coverage", "digits_covered", "digits_unreadable"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained and measured."""

    mnist: str = str(lenet_fd.DATA / "datasets" / "mnist.npz")  # MNIST, as `ganstyle train --data` takes it
    mnist_test: str = str(lenet_fd.DATA / "datasets" / "mnist.npz" / "x_test")  # real digits to compare with
    kind: str = "glyphs:digits:night"  # of glyphs
    glyphs: int = 20_000  # of the training set
    sets: tuple[str, ...] = ("glyphs", "mnist")
    draw: bool = False  # draw the glyphs and end
    folder: Path = Path("runs/losses")  # for all runs, DATA/LOSS/seedN and DATA/torch/netG_N_STEPS.pth
    seeds: tuple[int, ...] = (0, 1, 2)
    losses: tuple[str, ...] = tuple(LOSSES)
    steps: int = 2_000
    batch_size: int = 32
    learning_rate: float = 4e-4  # of both networks
    ema_halflife_images: float = 1_000.0
    devices: int | None = None  # by default all
    width: int = 16  # channels of the finest hidden layer
    count: int = 5_000  # pictures of each generator, and real ones
    reference: Path = lenet_fd.DATA  # folder with datasets/mnist.npz and weights/mnist_lenet.pth
    json: Path | None = Path("losses.json")  # file for the record; a bare name goes into experiments/results/


def main(settings: Settings) -> dict[str, Any]:
    flags.use_cache()
    sources = {
        "glyphs": glyphs(settings.folder / "glyphs.npz", settings.kind, settings.glyphs),
        "mnist": settings.mnist,
    }
    if settings.draw:
        return {}
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")),
        "settings": {
            k: v
            for k, v in dataclasses.asdict(settings).items()
            if not isinstance(v, Path) and not k.startswith("mnist")  # places on this machine
        },
        "rows": [],
    }
    for name in settings.sets:
        source = sources[name]
        for seed in settings.seeds:
            for loss in settings.losses:
                train.run(dcgan, config(settings, loss), source, loop(settings, name, loss, seed))
        record["rows"] += measure(name, settings)
        print(table(record["rows"], name))
        if settings.json is not None:  # kept as it grows
            print(f"\nThe record is in {machine.write_record(settings.json, record)}\n")
    return record


def config(settings: Settings, loss: Any) -> dcgan.Config:
    return dcgan.Config(
        image_size=32,
        width=settings.width,
        loss=loss,
        generator_learning_rate=settings.learning_rate,
        discriminator_learning_rate=settings.learning_rate,
        ema_halflife_images=settings.ema_halflife_images,
        **LOSSES[loss],
    )


def loop(settings: Settings, name: str, loss: str, seed: int) -> train.Loop:
    return train.Loop(
        settings.folder / name / loss / f"seed{seed}",
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=seed,
        devices=settings.devices,
        resume="auto",
        sample_every=max(settings.steps // 3, 1),
        checkpoint_every=max(settings.steps // 3, 1),
    )


def glyphs(path: Path, kind: str, count: int) -> str:
    """A file of so many glyphs of 32 pixels, drawn once."""
    if not path.exists():
        source = data.open_source(kind, 32)
        images = np.stack([source.read(i)["image"] for i in range(count)])
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, images=images)
    return str(path)


def measure(name: str, settings: Settings) -> list[dict[str, Any]]:
    """A row for each generator."""
    metrics = ("fid", "kid", "precision_recall", "density_coverage")
    if name == "glyphs":
        chosen = evaluate.Settings((*metrics, "glyphs"), "glyphs", count=settings.count, real_count=settings.count)
        reference = settings.kind
    else:
        chosen = evaluate.Settings(metrics, "compact", count=settings.count, real_count=settings.count)
        reference = settings.mnist_test
    network = evaluate.network_of(chosen)
    real = evaluate.look_at_source(reference, network, chosen, 32, 3 if name == "glyphs" else 1)
    rows = []
    for side, loss, seed, run in generators(name, settings):
        shown, about = evaluate.drawn_by(run.method, run.cfg, run.state, settings.count)
        fake = evaluate.look(shown, about | evaluate.what_to_read(reference, chosen), network, chosen)
        record = evaluate.compare(real, fake, network, chosen)
        found = record["metrics"]
        if name == "mnist":
            numbers = lenet_fd.evaluate(np.concatenate(list(shown)), settings.reference)
            digits = numbers["modes"]
            found |= {"lenet_fd": numbers["lenet_fd"]} | {
                f"digits_{k}": digits[k] for k in ("covered", "unreadable", "kl")
            }
        rows.append(
            {"data": name, "side": side, "loss": loss, "seed": seed, "metrics": found, "protocol": record["protocol"]}
        )
        print(name, side, loss, seed, {k: found[k] for k in SHOWN[name]}, flush=True)
    return rows


def generators(name: str, settings: Settings):
    """(side, loss, seed, run) for each; "last" is ours with the weights of the last step."""
    for loss in settings.losses:
        for seed in settings.seeds:
            run_dir = settings.folder / name / loss / f"seed{seed}"
            yield "ours", loss, seed, runs.load(run_dir)
            if loss == "non_saturating":
                yield "ours, last weights", loss, seed, runs.load(run_dir, weights="last")
    for seed in settings.seeds:
        path = settings.folder / name / "torch" / f"netG_{seed}_{settings.steps}.pth"
        if path.exists():
            yield "PyTorch", "non_saturating", seed, convert.load([path], batch_norm="standing")


def table(rows: list[dict[str, Any]], name: str) -> str:
    """Means and spreads over the seeds, in Markdown."""
    lines = [["loss", *SHOWN[name]], ["---"] * (len(SHOWN[name]) + 1)]
    kinds = dict.fromkeys((row["side"], row["loss"]) for row in rows if row["data"] == name)
    for side, loss in kinds:
        of = [row["metrics"] for row in rows if (row["data"], row["side"], row["loss"]) == (name, side, loss)]
        cells = []
        for metric in SHOWN[name]:
            values = [metrics[metric] for metrics in of if metrics[metric] is not None]  # None: not finite
            spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.3g}{spread}" if values else "not finite")
        lines.append([f"{loss}, {side}", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
