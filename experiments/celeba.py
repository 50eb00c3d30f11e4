"""CelebA at 64 pixels.

Paper: DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434); CelebA at 64 pixels is what later papers and the common
    PyTorch example train it on.
Data: CelebA (Liu et al. 2015), 202,599 aligned photographs of faces, for research that is not commercial:
    img_align_celeba.zip from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, read in place, or
    `--data tfds:celeb_a`. Of each picture of 178 x 218 pixels the central square of 178 is used.
Hardware and time: meant for a GPU; not run in full yet.
Expected: no number yet; 64 pictures are in samples/ of the run folder, one grid every 500 steps.
Command: python experiments/celeba.py --data img_align_celeba.zip
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.gan import dcgan
from ganstyle_jax.loop.train import Loop

DATA = "tfds:celeb_a"
CONFIG = dcgan.Config(image_size=64)
LOOP = Loop(run_dir=Path("runs/celeba"), steps=50_000, batch_size=128, resume="auto")

if __name__ == "__main__":
    command.experiment("dcgan", __doc__, DATA, LOOP, CONFIG)
