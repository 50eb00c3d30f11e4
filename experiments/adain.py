"""AdaIN: a decoder for any style.

Paper: Huang & Belongie 2017 (arXiv:1703.06868): VGG-19, MS-COCO as contents, WikiArt as styles, 8 pairs of 256-pixel
    crops a step, Adam at 1e-4. The common PyTorch version trains 160,000 such steps at a style weight of 10, which are
    the settings of the third command. The second is scaled down: the encoder that ships with the package, a decoder of
    half a million weights (1 MB in float16), crops of 128 pixels.
Data: folders or archives of pictures, contents and styles. The paper's are MS-COCO,
    http://images.cocodataset.org/zips/train2014.zip, and WikiArt, https://www.kaggle.com/c/painter-by-numbers; any
    photographs and paintings do. Scaled down it ran on 1,000 photographs of ImageNet (one a class) and 2,019 paintings
    of PACS' domain art_painting (Li et al. 2017; each 73rd is left out, to be judged by), both for research.
Hardware and time: the first and the third command are meant for a GPU and have not been run. The second made the model
    `adain` that ships: 2,957 steps, an hour on one CPU core (6 pictures a second).
Expected: experiments/results/forward_judge.md for the model that ships; the content loss fell to 0.42, the style loss
    to 0.13.
Command: python experiments/adain.py --data content=PHOTOS style=PAINTINGS
    python experiments/adain.py --data content=PHOTOS style=PAINTINGS --image-size 160 --crop 128 --width 1.2
        --style-weight 4 --batch-size 4 --steps 3000 --learning-rate 1e-3 --decay 3e-4 --ema-halflife-images 2000
    python experiments/adain.py --data content=PHOTOS style=PAINTINGS --encoder vgg19
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.loop.train import Loop
from ganstyle_jax.style import adain

DATA = ("content=train2014.zip", "style=wikiart")
CONFIG = adain.Config()
LOOP = Loop(run_dir=Path("runs/adain"), batch_size=8, steps=160_000, sample_every=5_000, resume="auto")

if __name__ == "__main__":
    command.experiment("adain", __doc__, DATA, LOOP, CONFIG)
