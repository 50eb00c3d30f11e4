"""Glyphs on demand: how many samples of a conditional DCGAN are read as the character that they were asked for.

Paper: conditional GAN (Mirza & Osindero 2014, arXiv:1411.1784) with a projection discriminator (Miyato & Koyama 2018,
    arXiv:1802.05637); neither has a figure for glyphs.
Data: glyphs of 32 pixels, digits on black, drawn once; the reader of glyphs that ships reads the samples.
Hardware and time: 84 s of one core of an AMD EPYC, measuring included.
Expected: 91.3, 99.1 and 99.5 % read as asked for after 1,000, 2,000 and 3,000 steps, of the worst class 98.2 % then.
Command: python experiments/conditional_glyphs.py

Every class is asked for as often. A sample counts as what it was asked for if that is the likeliest of the characters
that there are in the data; how many are readable at all is told beside it, and what the reader makes of real glyphs.
A generator that draws one picture for each class would be read best of all. So the variety within classes is told too:
the standard deviation of each value over the samples of a class, on average, as a share of that of real glyphs.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from ganstyle_jax import contract, data
from ganstyle_jax.commands import flags
from ganstyle_jax.features import glyph_reader
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.loop import runs, train

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

CONFIG = dcgan.Config(
    image_size=32,
    width=16,
    conditional=True,
    r1=1.0,
    generator_learning_rate=4e-4,
    discriminator_learning_rate=4e-4,
    ema_halflife_images=5_000.0,
)
LOOP = train.Loop(
    run_dir=Path("runs/conditional_glyphs"),
    steps=3_000,
    batch_size=32,
    checkpoint_every=1_000,
    keep_every=1_000,
    sample_every=1_000,
    resume="auto",
)


def main(
    kind: str = "glyphs:digits:night",
    glyphs: int = 50_000,
    seeds: tuple[int, ...] = (0,),
    measure_at: tuple[int, ...] = (1_000, 2_000, 3_000),
    of_each: int = 500,
    json: Path | None = Path("conditional_glyphs.json"),
    loop: train.Loop = LOOP,
    config: dcgan.Config = CONFIG,
) -> dict[str, Any]:
    """Trains one run for each seed, in the folders seed0, seed1, ... of --run-dir, and has its samples read.

    Args:
        kind: of glyphs.
        glyphs: of the training set.
        seeds: one run each, in the place of --seed.
        measure_at: steps whose checkpoints are measured; they must be kept, see --checkpoint-every and --keep-every.
        of_each: samples of each class.
        json: file for the record; a bare name goes into experiments/results/.
        loop: the settings of the loop.
        config: the settings of the network.
    """
    flags.use_cache()
    folder = loop.run_dir or Path("runs/conditional_glyphs")
    source, names = drawn(folder / "glyphs.npz", kind, glyphs, size := config.shape[0])
    about = {"kind": kind, "glyphs": glyphs, "batch_size": loop.batch_size, "of_each": of_each}
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "numpy")),
        "command": f"python experiments/conditional_glyphs.py {' '.join(sys.argv[1:])}".strip(),
        "settings": about | {"config": contract.to_json(config)},
        "real": real(kind, names, of_each * len(names), size),
        "rows": [],
    }
    for seed in seeds:
        run_dir, began = folder / f"seed{seed}", time.process_time()
        for step in measure_at:
            train.run(dcgan, config, source, dataclasses.replace(loop, run_dir=run_dir, seed=seed, steps=step))
            run = runs.load(run_dir, step)
            row: dict[str, Any] = {"seed": seed, "step": step} | read(run, names, of_each)
            row["variety"] /= record["real"]["variety"]
            record["rows"].append(row | {"processor_seconds": round(time.process_time() - began, 1)})
            fewest = min(row["by_class"].values())
            print(
                f"seed {seed}, step {step}: {row['as_asked']:.1%} read as asked for, of the worst class {fewest:.1%}; "
                f"variety within classes {row['variety']:.2f} of the data's; "
                f"{row['unreadable']:.1%} unreadable (real: {record['real']['as_asked']:.1%}, "
                f"{record['real']['unreadable']:.1%})",
                flush=True,
            )
            images.save_png(run_dir / f"classes_{step:06d}.png", by_class(run, len(names)))
            if json is not None:  # kept as it grows
                print(f"The record is in {machine.write_record(json, record)}", flush=True)
    return record


def drawn(path: Path, kind: str, count: int, size: int) -> tuple[str, str]:
    """A file of so many glyphs with their labels, drawn once, and the characters."""
    source = data.open_source(kind, size)
    if not path.exists():
        examples = [source.read(i) for i in range(count)]
        pictures, labels = (np.stack([example[key] for example in examples]) for key in ("image", "label"))
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, images=pictures, labels=labels)
    return str(path), "".join(source.label_names or ())


def read(run: runs.LoadedRun, names: str, of_each: int) -> dict[str, Any]:
    """What the reader says of so many samples of each class."""
    requests = run.requests(jax.random.key(1), of_each * len(names))
    return counted(run.draw(requests), requests["label"], names)


def real(kind: str, names: str, count: int, size: int) -> dict[str, Any]:
    """The same of real glyphs, which were not trained on."""
    source = data.open_source(kind, size, seed=2**32 - 1)
    examples = [source.read(i) for i in range(count)]
    pictures = data.to_float(np.stack([example["image"] for example in examples]))
    return counted(pictures, np.array([example["label"] for example in examples]), names)


def counted(pictures: np.ndarray, labels: np.ndarray, names: str) -> dict[str, Any]:
    """variety: the standard deviation of each value of a class' pictures (n, h, w, c), on average."""
    reading = glyph_reader.read(pictures, names)
    right = reading.labels == glyph_reader.class_labels(labels, names)
    return {
        "samples": len(labels),
        "as_asked": float(right.mean()),
        "by_class": {name: float(right[labels == i].mean()) for i, name in enumerate(names) if (labels == i).any()},
        "unreadable": float(1 - reading.readable.mean()),
        "variety": float(np.mean([pictures[labels == i].std(0).mean() for i in np.unique(labels)])),
    }


def by_class(run: runs.LoadedRun, classes: int, rows: int = 10) -> np.ndarray:
    """A grid with a column for each class."""
    return images.grid(run.draw(run.requests(jax.random.key(2), rows * classes)), columns=classes)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    except UserError as error:
        sys.exit(f"error: {error}")
