"""CIFAR-10 at 32 pixels, by its ten classes, with the settings of R3GAN's authors.

Paper: R3GAN (Huang, Gokaslan, Kuleshov & Tompkin 2024, arXiv:2501.05441), configuration E: FID 1.96 of 50,000 pictures
    against the training set, after 250 million pictures.
Data: CIFAR-10 (Krizhevsky 2009), 50,000 photographs of 10 classes, https://www.cs.toronto.edu/~kriz/cifar.html, which
    states no licence: `ganstyle data prepare cifar10` downloads and stores it; or give a folder or zip of its images,
    one folder a class.
Hardware and time: not run yet; it is meant for GPUs. The authors' code takes 4 days on eight L40s for all of it, 267
    GFLOP for each picture. `ganstyle plan r3gan --preset cifar10 --conditional --classes 10 --batch-size 512` estimates
    it for others.
Expected: no number yet; the paper's, or a little more: how strong each part of the authors' augmentation is was not
    looked up, and here all have the strength of Karras et al. 2020.
Command: python experiments/cifar10_r3gan.py
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.gan import r3gan
from ganstyle_jax.loop.train import Loop

DATA = "tfds:cifar10"
CONFIG = r3gan.Config(preset="cifar10", conditional=True, mirror=True, augment_policy="blit,geometry,color,cutout")
LOOP = Loop(
    run_dir=Path("runs/cifar10_r3gan"),
    steps=488_281,  # times 512 pictures: 250 million
    batch_size=512,
    sample_every=5_000,
    checkpoint_every=5_000,
    keep_every=50_000,
    resume="auto",
)

if __name__ == "__main__":
    command.experiment("r3gan", __doc__, DATA, LOOP, CONFIG)
