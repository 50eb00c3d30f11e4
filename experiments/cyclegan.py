"""Translation between two kinds of pictures of which none belong together.

Paper: Zhu, Park, Isola & Efros 2017 (arXiv:1703.10593): pictures of 286 pixels, of which a step sees 256, ResNets of 9
    blocks, 200 epochs of Adam at 2e-4, one picture of each side a step, the rate falling to 0 over the second half: of
    horse2zebra, 1,067 and 1,334 pictures, 266,800 steps. These are the settings of the first command; the loss is least
    squares, cycle weight 10, identity weight 0.5, a history of 50 pictures.
Data: a folder or an archive with trainA, trainB, testA and testB, as the sets of the paper have it, or
    a=SOURCE b=SOURCE. Scaled down for face2portrait, 777 photographs of faces and 777 portraits out of a game, and for
    photo to art_painting of PACS (Li et al. 2017), 1,670 photographs and 2,048 paintings, both for research;
    `python experiments/split_pair.py PACS.zip/photo PACS.zip/art_painting photo2art.zip` sets every tenth picture of
    PACS apart for tests. See docs/translate.md for pictures of other kinds: old photographs, microscopy, the retina.
Hardware and time: the first command is meant for a GPU and was not run. Of the others CycleGAN took 15 minutes on one
    core of an AMD EPYC, 0.2 s a step, and CUT 5.5, a hundredth of the paper's steps; the last of them an hour.
Expected: see "Translation" in docs/measured.md. The aim is a Frechet distance in VGG-19's features between translated
    and target test pictures at least a third below that of source and target, which experiments/translation_distance.py
    measures. 4,500 steps of CycleGAN reach it from portraits to photographs (59 % below); from photographs to portraits
    24,000 of CUT with a larger discriminator do (46 %), and to paintings 3,000 do not.
Command: python experiments/cyclegan.py --data horse2zebra
    python experiments/cyclegan.py --data face2portrait_128px.zip --image-size 72 --crop 64 --width 32 --blocks 6
        --discriminator-width 32 --discriminator-halvings 2 --upsampling nearest --ema-halflife-images 500
        --steps 4500 --total-steps 4500 --run-dir runs/face2portrait
    python experiments/cyclegan.py --data photo2art.zip --image-size 72 --crop 64 --width 32 --blocks 6
        --discriminator-width 32 --discriminator-halvings 2 --upsampling nearest --ema-halflife-images 500
        --mode contrastive --nce-patches 128 --nce-width 128 --steps 3000 --total-steps 3000 --run-dir runs/photo2art
    python experiments/cyclegan.py --data face2portrait_128px.zip --image-size 72 --crop 64 --width 32 --blocks 6
        --discriminator-width 64 --discriminator-halvings 3 --upsampling nearest --ema-halflife-images 2000
        --mode contrastive --nce-patches 128 --nce-width 128 --steps 24000 --total-steps 24000 --seed 1
        --run-dir runs/portraits
    python experiments/translation_distance.py runs/face2portrait runs/portraits --data face2portrait_128px.zip/test
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.gan import cyclegan
from ganstyle_jax.loop.train import Loop

DATA = "horse2zebra"
STEPS = 266_800  # 200 epochs of the larger side
CONFIG = cyclegan.Config(total_steps=STEPS)
LOOP = Loop(run_dir=Path("runs/cyclegan"), batch_size=1, steps=STEPS, sample_every=5_000, resume="auto")

if __name__ == "__main__":
    command.experiment("cyclegan", __doc__, DATA, LOOP, CONFIG)
