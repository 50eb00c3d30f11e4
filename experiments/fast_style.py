"""A few styles in one network that paints in one pass.

Paper: Johnson, Alahi & Fei-Fei 2016 (arXiv:1603.08155): one style, VGG-16, MS-COCO at 256 pixels, 4 photographs a step,
    40,000 steps of Adam at 1e-3. These are the settings of the first command, but for the feature network, which is the
    one that ships with the package, and for losses, which are relative; several styles as in Dumoulin, Shlens & Kudlur
    2017 (arXiv:1610.07629). The second command is scaled down.
Data: a folder or an archive of photographs; the paper's are MS-COCO,
    http://images.cocodataset.org/zips/train2014.zip, any others do. The styles are pictures of your own. Scaled down it
    was begun with 1,000 photographs of ImageNet, one a class, for research.
Hardware and time: not measured; the first command is meant for a GPU and has not been run, and the second was begun on
    2 shared CPU cores.
Expected: no number; photographs and what is painted of them are in samples/ of the run folder, a grid every 500 steps.
    `ganstyle apply runs/fast-style PICTURE` paints one of any size.
Command: python experiments/fast_style.py --style STYLE.jpg OTHER.jpg --data PHOTOS
    python experiments/fast_style.py --style STYLE.jpg OTHER.jpg --data PHOTOS --image-size 128 --width 16 --steps 20000
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
