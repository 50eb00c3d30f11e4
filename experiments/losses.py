"""Five adversarial losses on glyphs and on MNIST, three seeds each, at the same number of images.

Paper: DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434) with the losses of ganstyle_jax/losses.py; a large study
    of this kind is Lucic et al. 2018 (arXiv:1711.10337), which finds differences between seeds as large as those
    between losses.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import tyro

from ganstyle_jax import data, train
from ganstyle_jax.files import UserError, atomic_path
from ganstyle_jax.gan import dcgan

LOSSES = {
    "non_saturating": {},
    "minimax": {},
    "least_squares": {},
    "hinge": {},
    "wasserstein": {"gradient_penalty": 10.0},  # without any it is not bounded
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained."""

    mnist: str = "mnist.npz"  # MNIST, as `ganstyle train --data` takes it
    folder: Path = Path("runs/losses")  # for all runs, DATA/LOSS/seedN
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1_500
    batch_size: int = 64
    width: int = 16


def main(settings: Settings) -> None:
    for name, source in {"glyphs": glyphs(settings.folder / "glyphs.npz"), "mnist": settings.mnist}.items():
        for seed in settings.seeds:
            for loss, others in LOSSES.items():
                cfg = dcgan.Config(image_size=32, width=settings.width, loss=loss, **others)
                loop = train.Loop(
                    settings.folder / name / loss / f"seed{seed}",
                    steps=settings.steps,
                    batch_size=settings.batch_size,
                    seed=seed,
                    resume="auto",
                    sample_every=settings.steps // 3,
                    checkpoint_every=settings.steps // 3,
                )
                train.run(dcgan, cfg, source, loop)


def glyphs(path: Path, count: int = 20_000) -> str:
    """A file of so many glyphs of 32 pixels, drawn once."""
    if not path.exists():
        source = data.open_source("glyphs", 32)
        images = np.stack([source.read(i)["image"] for i in range(count)])
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, images=images)
    return str(path)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
