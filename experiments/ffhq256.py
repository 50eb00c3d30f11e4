"""FFHQ at 256 pixels, with the settings of StyleGAN2's authors.

Paper: StyleGAN2 with adaptive augmentation (Karras et al. 2020, arXiv:2006.06676), their configuration paper256,
    for 25 million pictures; FID of 50,000 pictures against the whole set.
Data: FFHQ (Karras et al. 2019), 70,000 photographs of faces, https://github.com/NVlabs/ffhq-dataset, as a set CC
    BY-NC-SA 4.0: a folder or zip of its pictures of any size, such as thumbnails256x256.
Hardware and time: not run yet; it is meant for GPUs. The authors' code takes 12.5 s for 1,000 pictures on an A100, 2.4
    s on eight. `ganstyle plan stylegan2 --preset paper256 --image-size 256 --batch-size 64` estimates it for others.
Expected: no number yet; the paper's, or a little more: pictures are not mirrored before augmentation, which mirrors
    some.
Command: python experiments/ffhq256.py --data ffhq.zip
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.gan import stylegan2
from ganstyle_jax.loop.train import Loop

DATA = "ffhq.zip"
CONFIG = stylegan2.Config(image_size=256, preset="paper256", dtype="bfloat16")
LOOP = Loop(
    run_dir=Path("runs/ffhq256"),
    steps=390_625,  # times 64 pictures: 25 million
    batch_size=64,
    sample_every=2_500,
    checkpoint_every=2_500,
    keep_every=25_000,
    resume="auto",
)

if __name__ == "__main__":
    command.experiment("stylegan2", __doc__, DATA, LOOP, CONFIG)
