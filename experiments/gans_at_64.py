"""Faces and flowers at 64 pixels: StyleGAN2 and R3GAN beside DCGAN, all small, for as long.

Paper: DCGAN (Radford et al. 2016, arXiv:1511.06434) with DiffAugment (Zhao et al. 2020, arXiv:2006.10738), StyleGAN2
    with adaptive augmentation (Karras et al. 2020, arXiv:2006.06676), R3GAN (Huang et al. 2024, arXiv:2501.05441). None
    has figures for these sets or at such a size.
Data: --data NAME=SOURCE..., of which the names are for the record: faces (lfw.tgz, see experiments/lfw.py) and flowers
    (102flowers.tgz, see experiments/flowers.py), or copies of them at 64 pixels.
Hardware and time: --minutes of one core for each run, here 8, and one for each measurement.
Expected: docs/measured.md, "Faces and flowers".
Command: python experiments/gans_at_64.py --data faces=lfw.tgz flowers=102flowers.tgz --features vgg19:relu4_4

All get the same processor time after their first step, since a step of one is not one of another. None of the networks
that judge took part in training: KID and FID are those of VGG-19's features. "floor" is what as many other real
pictures get in the place of samples, and "blurred" what real ones do that a Gaussian of one pixel has blurred, so that
the judge itself can be judged. A run that is in the record is not repeated; one that was interrupted goes on.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from budget import train_for
from PIL import Image, ImageFilter
from stacked_mnist import spread

from ganstyle_jax import contract, data
from ganstyle_jax.commands import flags
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import evaluate
from ganstyle_jax.loop import runs, train

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

SIZE = 64
METHODS: dict[str, dict[str, Any]] = {
    "dcgan": {
        "width": 16,
        "augment": "color,translation",
        "generator_learning_rate": 4e-4,
        "discriminator_learning_rate": 4e-4,
        "ema_halflife_images": 5_000.0,
    },
    # Too short for a discriminator to learn thousands of pictures by heart: what augmentation costs would be lost.
    "stylegan2": {"preset": "small", "capacity": 512, "r1": 0.3, "augment": "none"},
    # Minutes of a narrow network: rates and penalties far above the preset's, and an average from the beginning.
    "r3gan": {
        "width": 8,
        "schedule_images": 25_000,
        "learning_rate": (2e-3, 5e-4),
        "gamma": (20.0, 5.0),
        "ema_halflife_images": (1_000.0, 3_000.0),
    },
}
# What the table has, with its digits and unit: features of VGG-19 are in the hundreds, and KID has their sixth power.
COLUMNS = (("images", 0, 1.0), ("kid", 3, 1e12), ("fid", 2, 1e6), ("precision", 3, 1.0), ("recall", 3, 1.0))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained, and by what it is judged."""

    data: tuple[str, ...]  # NAME=SOURCE..., a source as `ganstyle train --data` takes it
    features: str = "vgg19:relu4_4"  # the network that judges, and its layer; see `ganstyle evaluate`
    folder: Path = Path("runs/gans_at_64")  # for all runs, NAME/METHOD/seedN
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 32
    minutes: float = 8.0  # of processor time for each run after its first step
    samples: int = 2_000  # of each generator
    real: int = 4_000  # pictures of the data that they are compared with
    json: Path = Path("gans_at_64.json")  # file for the record; a bare name goes into experiments/results/

    def __post_init__(self):
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"methods must be of {', '.join(METHODS)}, got {unknown[0]!r}")
        if wrong := [text for text in self.data if "=" not in text]:
            raise ValueError(f"data must be NAME=SOURCE..., got {wrong[0]!r}")

    @property
    def judged(self) -> evaluate.Settings:
        return evaluate.Settings(("kid", "fid", "precision_recall"), self.features, None, self.samples, self.real)


def main(settings: Settings) -> dict[str, Any]:
    flags.use_cache()
    place = machine.place(settings.json)
    record: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {"real": {}, "rows": []}
    sets = dict(text.split("=", 1) for text in settings.data)
    for name, source in sets.items():
        if name not in record["real"]:
            record["real"][name] = of_real(source, settings)
            print(f"{name}: {record['real'][name]}", flush=True)
    for seed in settings.seeds:
        for name, source in sets.items():
            for method in settings.methods:
                about = {"data": name, "method": method, "seed": seed, "settings": told(settings)}
                if any(row | about == row for row in record["rows"]):
                    continue
                record["rows"].append(about | row_of(method, name, seed, source, settings))
                print({key: record["rows"][-1][key] for key in ("data", "method", "seed", "kid")}, flush=True)
                machine.write_record(settings.json, record)  # kept as it grows
    print(table(record))
    print(f"\nThe record is in {machine.write_record(settings.json, record)}")
    return record


def told(settings: Settings) -> dict[str, Any]:
    """What decides on a run, for its row."""
    return {name: getattr(settings, name) for name in ("features", "batch_size", "minutes", "samples", "real")}


def row_of(name: str, of: str, seed: int, source: str, settings: Settings) -> dict[str, Any]:
    """Trains a run, or goes on with it, and measures it."""
    method = contract.find(name)
    cfg = method.config(image_size=SIZE, **METHODS[name])
    run_dir = settings.folder / of / name / f"seed{seed}"
    loop = train.Loop(
        run_dir,
        1_000_000,
        settings.batch_size,
        seed=seed,
        resume="auto",
        checkpoint_every=1_000,
        sample_every=500,
        devices=1,
        progress="lines",
    )
    spent = train_for(settings.minutes, method, cfg, source, loop)
    run = runs.load(run_dir)
    pictures = images.to_uint8(run.sample(jax.random.key(seed), settings.samples))
    images.save_png(run_dir / "samples.png", images.grid(pictures[:64]))
    return machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "numpy")),
        "config": METHODS[name],
        "steps": run.step,
        "images": run.step * settings.batch_size,
        "processor_seconds": spent,  # of the whole run, or not known
        **measured(pictures, source, settings),
    }


def measured(pictures: np.ndarray, source: str, settings: Settings) -> dict[str, float]:
    """KID, FID and the like of pictures (n, 64, 64, 3) uint8, against those of the source."""
    judged = settings.judged
    network = evaluate.network_of(judged)
    real = evaluate.look_at_source(source, network, judged, SIZE, 3)
    shown = evaluate.images_from(pictures, network)
    seen = evaluate.look(shown, {"source": "samples"}, network, judged)
    return evaluate.compare(real, seen, network, judged)["metrics"]


def of_real(source: str, settings: Settings) -> dict[str, dict[str, float]]:
    """What other real pictures get, as they are and blurred, whom nothing better can be expected of."""
    opened = data.open_source(source, SIZE, 3)
    assert opened.size is not None
    judged = settings.judged  # whose real pictures are the first ones of this order
    rest = data.permutation(judged.seed, opened.size, 0)[settings.real : settings.real + settings.samples]
    pictures = np.stack([opened.read(int(i))["image"] for i in rest])
    blurred = [np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(1.0))) for x in pictures]
    return {
        "floor": measured(pictures, source, settings),
        "blurred": measured(np.stack(blurred), source, settings),
    }


def table(record: dict[str, Any]) -> str:
    """Means and ranges over the seeds, in Markdown."""
    lines = ["| | | pictures seen | KID / 10^12 | FID / 10^6 | precision | recall |", "|---|---|---|---|---|---|---|"]
    for of, real in record["real"].items():
        for name in dict.fromkeys(row["method"] for row in record["rows"] if row["data"] == of):
            rows = [row for row in record["rows"] if (row["data"], row["method"]) == (of, name)]
            cells = [spread([row[key] / unit for row in rows], digits) for key, digits, unit in COLUMNS]
            lines.append(f"| {of} | {name} ({len(rows)} seeds) | {' | '.join(cells)} |")
        for name, values in real.items():
            cells = [f"{values[key] / unit:,.{digits}f}" for key, digits, unit in COLUMNS[1:]]
            lines.append(f"| {of} | real, {name} | | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
