"""`ganstyle texture SAMPLE ...`: the flags are the fields of a dataclass."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ganstyle_jax.commands import flags

DESCRIPTION = """Make a texture in the manner of SAMPLE: a picture of nothing but its colours, strokes and shapes.

  ganstyle texture bricks.jpg -o wall.png --tileable         repeats without a seam, for a game or a wallpaper
  ganstyle texture painting.jpg -o more.png --count 4        four, each from other noise
  ganstyle texture painting.jpg -o banner.png --shape 256 1024
  ganstyle texture bricks.jpg -o wall.png --sample-size 256  bricks of half the size, in a texture of 512

It takes over what is alike all over the sample: paint, stone, leaves, cloth. A face or a regular grid comes out as its
parts, in other places; --features vgg19-8bit (`ganstyle weights fetch vgg19-8bit`) keeps larger shapes together.
"""


@dataclasses.dataclass(frozen=True)
class Texture:
    """Make a texture in the manner of pictures, which can repeat without a seam. `ganstyle texture --help` lists the settings."""  # noqa: E501

    samples: tyro.conf.Positional[tuple[Path, ...]]  # pictures of what it is to be like


def run(args: list[str]) -> None:
    from ganstyle_jax.stylize import texture

    samples = tyro.conf.arg(
        metavar="SAMPLE [SAMPLE ...]", help="picture of what it is to be like, several to be blended"
    )
    chosen = flags.parse(
        "ganstyle texture",
        DESCRIPTION,
        args,
        samples=Annotated[tyro.conf.Positional[tuple[Path, ...]], samples],
        settings=texture.Texture(),
    )
    flags.use_cache()
    texture.run(chosen.samples, chosen.settings)
