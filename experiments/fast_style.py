"""A few styles in one network that paints in one pass.

Paper: Johnson, Alahi & Fei-Fei 2016 (arXiv:1603.08155): one style, VGG-16, MS-COCO at 256 pixels, 4 photographs a step,
    40,000 steps of Adam at 1e-3. These are the settings of the first command, but for the feature network, which is the
    one that ships with the package, and for losses, which are relative; several styles as in Dumoulin, Shlens & Kudlur
    2017 (arXiv:1610.07629). The second command is scaled down.
Data: a folder or an archive of photographs; the paper's are MS-COCO,
    http://images.cocodataset.org/zips/train2014.zip, any others do. The styles are pictures of your own. Scaled down it
    ran on 1,000 photographs of ImageNet, one a class, for research.
Hardware and time: the first command is meant for a GPU and has not been run. The second made the model `paintings`
    that ships, of five styles: 3,183 steps with tanh, 653 more at a learning rate of 4e-4 and, since dark places had
    become black holes, 2,159 without tanh at 7e-4, each begun with `--init-from` the one before; an hour and a half
    on one CPU core, most of which other work had (3 photographs a second by itself).
Expected: experiments/results/forward_judge.md for the model that ships. Photographs and what is painted of them are in
    samples/ of the run folder, a grid every 500 steps: manners are told apart after 1,500.
    `ganstyle apply runs/fast-style PICTURE` paints one of any size.
Command: python experiments/fast_style.py --style STYLE.jpg OTHER.jpg --data PHOTOS
    python experiments/fast_style.py --style STYLE.jpg OTHER.jpg --data PHOTOS --image-size 192 --style-size 512
        --width 16 --content-weight 2 --batch-size 2 --ema-halflife-images 600 --steps 6000
"""

from pathlib import Path

from ganstyle_jax.commands import train as command
from ganstyle_jax.loop.train import Loop
from ganstyle_jax.style import fast_style

DATA = "train2014.zip"
CONFIG = fast_style.Config()
LOOP = Loop(run_dir=Path("runs/fast-style"), batch_size=4, steps=40_000, resume="auto")

if __name__ == "__main__":
    command.experiment("fast-style", __doc__, DATA, LOOP, CONFIG)
