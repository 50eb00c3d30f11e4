"""Flowers at 64 pixels.

Paper: DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434), which did not use this set. DiffAugment (Zhao et al.
    2020, arXiv:2006.10738) keeps the discriminator from learning so few pictures by heart.
Data: 102 Category Flower Dataset (Nilsback & Zisserman 2008), 8,189 photographs, for research: 102flowers.tgz from
    https://www.robots.ox.ac.uk/~vgg/data/flowers/102/, which can be read as it is, or `--data tfds:oxford_flowers102`.
Hardware and time: 2 CPU cores (AMD EPYC), about 10 minutes for the second command, which leaves colourful blossoms
    without petals yet; the first is meant for a GPU and has not been run.
Expected: no number; 64 pictures are in samples/ of the run folder, one grid every 500 steps.
Command: python experiments/flowers.py --data 102flowers.tgz
    python experiments/flowers.py --data 102flowers.tgz --width 32 --batch-size 32 --steps 3500
        --generator-learning-rate 4e-4 --discriminator-learning-rate 4e-4
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.gan import dcgan
from ganstyle_jax.loop.train import Loop

DATA = "102flowers.tgz"
CONFIG = dcgan.Config(image_size=64, augment="color,translation")
LOOP = Loop(run_dir=Path("runs/flowers"), steps=20_000, resume="auto")

if __name__ == "__main__":
    command.experiment("dcgan", __doc__, DATA, LOOP, CONFIG)
