"""AFHQ's cats at 512 pixels: few pictures, which is what adaptive augmentation is for.

Paper: StyleGAN2 with adaptive augmentation (Karras et al. 2020, arXiv:2006.06676), table of AFHQ; FID of
    50,000 pictures against all of the set, after 25 million.
Data: AFHQ (Choi et al. 2020), photographs of cats, dogs and wild animals, https://github.com/clovaai/stargan-v2, CC
    BY-NC 4.0: the folder train/cat, or an archive of it.
Hardware and time: not run yet; it is meant for GPUs. The authors' code takes 41 s for 1,000 pictures on an A100, 5.2 s
    on eight. `ganstyle plan stylegan2 --preset paper512 --image-size 512 --batch-size 64` estimates it for others.
Expected: no number yet; the paper's, or a little more, as the pictures are not mirrored before augmentation.
Command: python experiments/afhq.py --data afhq/train/cat
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.gan import stylegan2
from ganstyle_jax.loop.train import Loop

DATA = "afhq/train/cat"
CONFIG = stylegan2.Config(image_size=512, preset="paper512", dtype="bfloat16")
LOOP = Loop(
    run_dir=Path("runs/afhq"),
    steps=390_625,  # times 64 pictures: 25 million
    batch_size=64,
    sample_every=2_500,
    checkpoint_every=2_500,
    keep_every=25_000,
    resume="auto",
)

if __name__ == "__main__":
    command.experiment("stylegan2", __doc__, DATA, LOOP, CONFIG)
