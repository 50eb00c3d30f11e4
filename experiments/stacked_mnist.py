"""Stacked MNIST: how many of a thousand modes a GAN finds, and how evenly.

Paper: Unrolled GAN (Metz et al. 2017, arXiv:1611.02163, section 3.3.1) has the data, VEEGAN (Srivastava et al. 2017,
    arXiv:1705.07761) the two figures, PacGAN (Lin et al. 2018, arXiv:1712.04086, section 4.3) the protocol that is
    followed here: 128,000 pictures to learn from, 26,000 samples, KL against equal shares. R3GAN (Huang et al. 2024,
    arXiv:2501.05441) is judged in the same way.
Data: three digits of MNIST as the three channels of a picture, at random: made of mnist.npz (see experiments/mnist.py),
    always the same ones; 28 pixels fitted to 32. The folder --reference has datasets/mnist.npz and
    weights/mnist_lenet.pth (see experiments/lenet_fd.py).
Hardware and time: --minutes of one core for each run, here 3, and a quarter of one for each measurement.
Expected: docs/measured.md, "Stacked MNIST".
Command: python experiments/stacked_mnist.py

Each method is trained at a small width for so many minutes of processor time, which is far less than in the papers
(100,000 steps of 64 in Lin et al.): the published figures stand beside for orientation, and not for a comparison.
Each sample counts as the three digits that the LeNet finds likeliest. What that makes of 26,000 stacks of test digits
is measured in the same way. A run that is in the record is not repeated; one that was interrupted goes on.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lenet_fd
import numpy as np
import tyro
from budget import train_for
from jax import lax

from ganstyle_jax import contract, data
from ganstyle_jax.commands import flags
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.judge.metrics import modes
from ganstyle_jax.loop import runs, train
from ganstyle_jax.nn import layers

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

RATES = {"generator_learning_rate": 4e-4, "discriminator_learning_rate": 4e-4}
WGAN_GP = {"loss": "wasserstein", "gradient_penalty": 10.0, "discriminator_steps": 2, "beta1": 0.0, "beta2": 0.9}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dcgan": ("dcgan", RATES),
    "dcgan, R1": ("dcgan", RATES | {"r1": 1.0}),
    "wgan-gp": (
        "dcgan",
        RATES | WGAN_GP,
    ),  # with BatchNorm in its critic and two updates of it, the paper five and none
    "dcgan, conditional": ("dcgan", RATES | {"conditional": True}),
    "r3gan": ("r3gan", {}),
    # Digits on black are far apart, and generators of a few minutes old: a stronger penalty, and longer steps.
    "r3gan, gamma 10": ("r3gan", {"gamma": (10.0, 1.0), "learning_rate": (6e-4, 1.5e-4)}),
    # For an hour of batches of 32: rates that a narrow network can take, falling until the end, and an average from the
    # beginning, since Adam without momentum shakes the weights.
    "r3gan, an hour": (
        "r3gan",
        {
            "gamma": (20.0, 2.0),
            "learning_rate": (1.5e-3, 1.5e-4),
            "ema_halflife_images": (2_000.0, 10_000.0),
            "schedule_images": 300_000,
        },
    ),
}
# Modes, KL, and where from. Those that are not marked are from Lin et al. 2018, table 2, as its authors' repository
# shows it; of the others the tables themselves were not at hand.
PUBLISHED: dict[str, tuple[float, float, str]] = {
    "ALI": (16.0, 5.40, ""),
    "Unrolled GAN": (48.7, 4.32, ""),
    "DCGAN": (99.0, 3.40, "as Srivastava et al. 2017 have it"),
    "DCGAN, by Lin et al.": (78.9, 4.50, ""),
    "VEEGAN": (150.0, 2.95, ""),
    "PacDCGAN2": (1000.0, 0.06, ""),
    "StyleGAN2": (940.0, 0.42, "not checked"),
    "WGAN-GP": (959.0, 0.73, "not checked"),
    "R3GAN": (1000.0, 0.029, "not checked"),
}
DIGITS, MODES, SIZE = 10, 1000, 32
CHUNK = 500  # pictures of which the digits are read at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained and measured."""

    folder: Path = Path("runs/stacked_mnist")  # for the data and all runs, METHOD/seedN
    reference: Path = lenet_fd.DATA  # folder with datasets/mnist.npz and weights/mnist_lenet.pth
    methods: tuple[str, ...] = ("dcgan", "dcgan, R1", "wgan-gp", "r3gan")
    seeds: tuple[int, ...] = (0, 1, 2)
    pictures: int = 128_000  # to learn from
    samples: int = 26_000  # of each generator
    width: int = 16  # channels of the finest hidden layer
    batch_size: int = 64
    steps: int = 100_000  # at most
    minutes: float = 3.0  # of processor time for each run after its first step, at most
    measure_every: int = 2_000  # steps; and at the end
    json: Path = Path("stacked_mnist.json")  # file for the record; a bare name goes into experiments/results/

    def __post_init__(self):
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"methods must be of {', '.join(METHODS)}, got {unknown[0]!r}")


def main(settings: Settings) -> dict[str, Any]:
    flags.use_cache()
    place = machine.place(settings.json)
    record: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {"rows": []}
    source = str(stacked(settings.folder / "stacked.npz", settings.reference, "x_train", settings.pictures))
    record["real"] = of_real(settings)
    record["published"] = {name: {"modes": m, "kl": kl, "note": note} for name, (m, kl, note) in PUBLISHED.items()}
    print(f"real test digits: {record['real']}", flush=True)
    for seed in settings.seeds:
        for name in settings.methods:
            if any(
                (row["method"], row["seed"], row["settings"]) == (name, seed, told(settings)) for row in record["rows"]
            ):
                continue
            try:
                method = contract.find(METHODS[name][0])
            except UserError as error:
                print(f"{name} is left out: {error}", flush=True)
                continue
            record["rows"].append(row_of(name, method, seed, source, settings))
            print({k: record["rows"][-1][k] for k in ("method", "seed", "steps", "modes", "kl")}, flush=True)
            machine.write_record(settings.json, record)  # kept as it grows
    print(table(record))
    print(f"\nThe record is in {machine.write_record(settings.json, record)}")
    return record


def told(settings: Settings) -> dict[str, Any]:
    """What decides on a run, for its row."""
    names = ("pictures", "samples", "width", "batch_size", "steps", "minutes", "measure_every")
    return {name: getattr(settings, name) for name in names}


def row_of(name: str, method: contract.Method, seed: int, source: str, settings: Settings) -> dict[str, Any]:
    """Trains a run, or goes on with it, and measures it at every so many steps."""
    cfg = method.config(image_size=SIZE, width=settings.width, **METHODS[name][1])
    run_dir = settings.folder / name.replace(", ", "_").replace(" ", "_") / f"seed{seed}"
    every = settings.measure_every
    loop = train.Loop(
        run_dir,
        settings.steps,
        settings.batch_size,
        seed=seed,
        resume="auto",
        checkpoint_every=every,
        keep_every=every,
        sample_every=every,
        devices=1,
        progress="lines",
    )
    spent = train_for(settings.minutes, method, cfg, source, loop)
    last = min(runs.load(run_dir).step, settings.steps)
    curve = []
    for step in [*range(every, last, every), last]:
        run = runs.load(run_dir, step)
        pictures = run.sample(jax.random.key(seed), settings.samples)
        found = measured(pictures, settings.reference)
        curve.append({"step": step, "modes": found["found"], "kl": round(found["kl"], 4)})
        print(name, seed, curve[-1], flush=True)
    images.save_png(run_dir / "samples.png", images.grid(pictures[:100]))
    return machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "numpy")),
        "method": name,
        "config": {"image_size": SIZE, "width": settings.width} | METHODS[name][1],
        "seed": seed,
        "settings": told(settings),
        "steps": last,
        "processor_seconds": spent,  # of the whole run, or not known
        "modes": curve[-1]["modes"],
        "kl": curve[-1]["kl"],
        "curve": curve,
    }


def measured(pictures: np.ndarray, reference: Path) -> dict[str, Any]:
    """What there is to say of pictures (n, 32, 32, 3), uint8 or float in [-1, 1]."""
    return modes.coverage(modes.joined(digits(pictures, reference), DIGITS), MODES).as_dict()


def of_real(settings: Settings) -> dict[str, Any]:
    """The same of test digits in stacks, and how often all three digits of a stack are read rightly."""
    path = stacked(settings.folder / "stacked_test.npz", settings.reference, "x_test", settings.samples)
    source = data.open_source(str(path), SIZE, 3)
    examples = [source.read(i) for i in range(settings.samples)]
    found = modes.joined(digits(np.stack([x["image"] for x in examples]), settings.reference), DIGITS)
    known = np.array([int((source.label_names or ())[x["label"]]) for x in examples])
    right = float((found == known).mean())
    return modes.coverage(found, MODES).as_dict() | {
        "read_rightly": right,
        "kl_of_labels": modes.coverage(known, MODES).kl,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Data


def stacked(path: Path, reference: Path, split: str, count: int, seed: int = 0) -> Path:
    """An .npz of so many stacks of digits: "images" (n, 28, 28, 3) uint8, and "labels", the numbers that they write.

    In each channel every digit of the split comes once in a random order, and then in another one: so there are as
    many of each as can be.
    """
    if path.exists():
        return path
    with np.load(reference / "datasets" / "mnist.npz") as file:
        pixels, labels = file[split], file[split.replace("x_", "y_")].astype(np.int64)
    orders = [
        [data.permutation(seed, len(pixels), 3 * k + c) for k in range(-(-count // len(pixels)))] for c in range(3)
    ]
    chosen = np.stack([np.concatenate(order)[:count] for order in orders], 1)  # (n, 3)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, images=np.moveaxis(pixels[chosen], 1, -1), labels=modes.joined(labels[chosen], DIGITS))
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Reading digits: experiments/lenet_fd.py's network, compiled, since there are 78,000 digits to read each time


def digits(pictures: np.ndarray, reference: Path) -> np.ndarray:
    """Pictures (n, 32, 32, 3), uint8 or float in [-1, 1] -> (n, 3), the likeliest digit of each channel."""
    lenet = {name: jnp.asarray(x) for name, x in lenet_fd.load_lenet(reference / "weights/mnist_lenet.pth").items()}
    pixels = pictures if pictures.dtype == np.uint8 else images.to_uint8(pictures)
    found = []
    for start in range(0, len(pixels), CHUNK):
        part = pixels[start : start + CHUNK]
        padded = np.concatenate([part, np.zeros((CHUNK - len(part), *part.shape[1:]), np.uint8)])
        found.append(np.asarray(_digits(lenet, padded))[: len(part)])
    return np.concatenate(found)


@functools.partial(jax.jit)
def _digits(lenet: dict[str, jax.Array], pictures: jax.Array) -> jax.Array:
    n, h, w, c = pictures.shape
    x = jnp.moveaxis(pictures, -1, 1).reshape(n * c, h, w, 1).astype(jnp.float32) / 255
    for name, pool in (("c1", True), ("c3", True), ("c5", False)):
        kernel = lenet[f"convnet.{name}.weight"].transpose(2, 3, 1, 0)
        x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + lenet[f"convnet.{name}.bias"])
        x = layers.max_pool(x) if pool else x
    x = jax.nn.relu(x[:, 0, 0] @ lenet["fc.f6.weight"].T + lenet["fc.f6.bias"])
    return (x @ lenet["fc.f7.weight"].T + lenet["fc.f7.bias"]).argmax(1).reshape(n, c)


def table(record: dict[str, Any]) -> str:
    """Ours, mean and range over the seeds, beside what is published, in Markdown."""
    lines = ["| | steps | modes of 1,000 | KL |", "|---|---|---|---|"]
    for key in dict.fromkeys(_method_and_minutes(row) for row in record["rows"]):
        of = [row for row in record["rows"] if _method_and_minutes(row) == key]
        cells = [spread([row[name] for row in of], digits) for name, digits in (("steps", 0), ("modes", 0), ("kl", 3))]
        lines.append(f"| {key[0]}, {key[1]:g} minutes ({len(of)} seeds) | {' | '.join(cells)} |")
    real = record["real"]
    lines.append(f"| test digits | | {real['found']:,} | {real['kl']:.3f} |")
    for name, of in record["published"].items():
        note = f" ({of['note']})" if of["note"] else ""
        lines.append(f"| {name}, published{note} | | {of['modes']:,g} | {of['kl']:g} |")
    return "\n".join(lines)


def _method_and_minutes(row: dict[str, Any]) -> tuple[str, float]:
    return row["method"], row["settings"]["minutes"]


def spread(values: list[float], digits: int) -> str:
    low, mean, high = min(values), sum(values) / len(values), max(values)
    return f"{mean:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})" if low < high else f"{mean:,.{digits}f}"


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
