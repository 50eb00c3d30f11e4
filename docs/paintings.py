"""docs/paintings.jpg: pictures as `experiments/style_judge.py` and `ganstyle stylize` leave them, in rows of three.

python docs/paintings.py docs/paintings.jpg FILE ...
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ganstyle_jax import images

SIZE = (340, 255)  # pixels


def main(out: Path, files: list[Path]) -> None:
    pictures = [ImageOps.fit(Image.open(file).convert("RGB"), SIZE, Image.Resampling.LANCZOS) for file in files]
    sheet = images.grid(np.stack([np.asarray(picture) for picture in pictures]), columns=3, padding=6)
    Image.fromarray(sheet).save(out, quality=87, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
