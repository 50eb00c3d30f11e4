"""Faces at 64 pixels: Labeled Faces in the Wild.

Paper: DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434), whose faces (section 4.2) were collected from the web
    and are not public. DiffAugment (Zhao et al. 2020, arXiv:2006.10738) because the set is small.
Data: LFW (Huang et al. 2007), 13,233 photographs of faces, for research: lfw.tgz from
    http://vis-www.cs.umass.edu/lfw/, which can be read as it is, or `--data tfds:lfw`. The central square of a picture
    is used; in LFW that is all of it, with the face in the middle.
Hardware and time: 2 CPU cores (AMD EPYC), 10 minutes for the second command; the first is meant for a GPU and has not
    been run.
Expected: no number; 64 pictures are in samples/ of the run folder, one grid every 500 steps. docs/faces.png has the
    first half of those of the second command, from a copy of LFW with 7,701 of the photographs.
Command: python experiments/lfw.py --data lfw.tgz
    python experiments/lfw.py --data lfw.tgz --width 32 --batch-size 32 --steps 3500
        --generator-learning-rate 4e-4 --discriminator-learning-rate 4e-4
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.gan import dcgan
from ganstyle_jax.loop.train import Loop

DATA = "lfw.tgz"
CONFIG = dcgan.Config(image_size=64, augment="color,translation")
LOOP = Loop(run_dir=Path("runs/lfw"), steps=20_000, resume="auto")

if __name__ == "__main__":
    command.experiment("dcgan", __doc__, DATA, LOOP, CONFIG)
