"""CIFAR-10 at 32 pixels.

Paper: DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434), which uses CIFAR-10 to test features (section 5.1), not
    pictures, so that there is no figure of the paper's to reach.
Data: CIFAR-10 (Krizhevsky 2009), 50,000 photographs of 10 classes, https://www.cs.toronto.edu/~kriz/cifar.html, which
    states no licence: `ganstyle data prepare cifar10` downloads and stores it; or give a folder or zip of its images.
Hardware and time: not run in full yet; about as long as MNIST for each step, at twice the width.
Expected: no number yet for this size; 64 pictures are in samples/ of the run folder, one grid every 500 steps.
Command: python experiments/cifar10.py
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.gan import dcgan
from ganstyle_jax.loop.train import Loop

DATA = "tfds:cifar10"
CONFIG = dcgan.Config(image_size=32, width=64)
LOOP = Loop(run_dir=Path("runs/cifar10"), steps=50_000, resume="auto")

if __name__ == "__main__":
    command.experiment("dcgan", __doc__, DATA, LOOP, CONFIG)
