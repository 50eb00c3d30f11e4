"""docs/stylized.jpg: what the quick start's style transfer is given and gives, side by side.

ganstyle quickstart --run-dir runs/quickstart && python docs/stylized.py runs/quickstart docs/stylized.jpg
"""

import sys
from pathlib import Path

from PIL import Image

HEIGHT, GAP = 320, 8  # pixels


def main(run_dir: Path, out: Path) -> None:
    pictures = [Image.open(run_dir / f"{name}.png").convert("RGB") for name in ("content", "style", "stylized")]
    scaled = [picture.resize((round(HEIGHT * picture.width / picture.height), HEIGHT)) for picture in pictures]
    sheet = Image.new("RGB", (sum(picture.width for picture in scaled) + GAP * (len(scaled) - 1), HEIGHT), "white")
    left = 0
    for picture in scaled:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    sheet.save(out, quality=88, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
