"""AdaIN: a decoder for any style.

Paper: Huang & Belongie 2017 (arXiv:1703.06868): VGG-19, MS-COCO as contents, WikiArt as styles, 8 pairs of 256-pixel
    crops a step, Adam at 1e-4. The common PyTorch version trains 160,000 such steps at a style weight of 10, which are
    the settings of the third command. The second is scaled down: the encoder that ships with the package, a decoder of
    half a million weights (1 MB in float16), crops of 96 pixels.
Data: folders or archives of pictures, contents and styles. The paper's are MS-COCO,
    http://images.cocodataset.org/zips/train2014.zip, and WikiArt, https://www.kaggle.com/c/painter-by-numbers; any
    photographs and paintings do. Scaled down it was begun with 980 photographs of ImageNet (one a class) and 2,028
    paintings of PACS' domain art_painting (Li et al. 2017), both for research.
Hardware and time: the first and the third command are meant for a GPU and have not been run. Of the second only the
    first 200 steps were, on a CPU shared with much else, where a step took about a second at best.
Expected: no number yet. The second command's loss fell from 8.2 (mean of steps 26 to 50) to 4.3 (176 to 200). On 25
    pairs of photographs and paintings that training had not seen the style loss was then 0.36, and 0.86 for the
    photographs as they are: colours followed the styles, and contents could hardly be made out, whose loss had fallen
    from 0.95 to 0.67 only.
Command: python experiments/adain.py --data content=PHOTOS style=PAINTINGS
    python experiments/adain.py --data content=PHOTOS style=PAINTINGS --image-size 128 --crop 96 --width 1.5
        --batch-size 4 --steps 20000 --learning-rate 1e-3 --decay 5e-4 --ema-halflife-images 2000
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
