"""A published generator's picture, by PyTorch and as it is imported: the largest difference between the two.

    python experiments/bench/published_generator.py vintagify/resources/G_A2B_epoch33.pth photo.jpg

The file is a ResNet's of pytorch-CycleGAN-and-pix2pix or of others who built the same, with instance normalisation.
That of the command is in the package vintagify 0.1.2 (MIT): photographs to old ones, width 64, 9 blocks, scales and
shifts. PyTorch reads it strictly into the reference of the tests. Both paint in float32 and in float64.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from ganstyle_jax.features import download, torch_files
from ganstyle_jax.gan import cyclegan_files
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn.translation import ResNetGenerator

sys.path.insert(1, str(Path(__file__).resolve().parent))
import machine


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is painted by which network."""

    file: tyro.conf.Positional[Path]  # a generator, .pth
    picture: tyro.conf.Positional[Path]  # what it is given
    size: int = 256  # pixels of the shorter side
    painted: Path | None = None  # file for the picture that comes out
    json: Path | None = Path("published_generator.json")  # record; a bare name goes into experiments/results/


def main(settings: Settings) -> dict[str, Any]:
    x = pictures.read_picture(settings.picture)
    scale = settings.size / min(x.shape[:2])
    height, width = (round(side * scale) // 4 * 4 for side in x.shape[:2])
    x = np.clip(images.resize(x, (height, width)), -1, 1).astype(np.float32)[None]
    generator, params = cyclegan_files.from_torch(torch_files.read_state_dict(settings.file))
    if not isinstance(generator, ResNetGenerator):
        raise UserError(f"{settings.file} holds a U-Net: give a ResNet")
    ours = np.asarray(jax.jit(generator.apply)(params, x))
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(generator.apply)(jax.tree.map(np.float64, params), x.astype(np.float64)))
    theirs = by_torch(settings.file, generator, x)
    record = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "torch", "numpy")),
        "file": settings.file.name,
        "sha256": download.digests(settings.file)["sha256"],
        "generator": dataclasses.asdict(generator),
        "picture": {"name": settings.picture.name, "shape": [height, width]},
        "largest_difference": {
            "ours and PyTorch, float32": largest(ours, theirs["float32"]),
            "ours and PyTorch, float64": largest(exact, theirs["float64"]),
            "PyTorch, float32 and float64": largest(theirs["float32"], theirs["float64"]),
        },
        "mean_change": float(np.abs(ours - x).mean()),
    }
    for name, value in record["largest_difference"].items():
        print(f"{name}: {value:.2e}")
    if settings.painted is not None:
        images.save_png(settings.painted, images.to_uint8(ours[0]))
    if settings.json is not None:
        print(f"The record is in {machine.write_record(settings.json, record)}")
    return record


def by_torch(file: Path, generator: ResNetGenerator, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the reference of the tests makes of it, in float32 and float64."""
    sys.path.insert(0, str(machine.ROOT / "tests"))
    import torch
    import torch_cyclegan_generator as reference

    state = torch.load(file, weights_only=True, map_location="cpu")
    state = {re.sub(r"^(model\.\d+)\.block\.", r"\1.conv_block.", name): value for name, value in state.items()}
    net = reference.ResNet(generator.width, generator.blocks, reference.instance(generator.affine), generator.padding)
    net.load_state_dict(state)
    return {name: reference.painted(net.to(getattr(torch, name)), x.astype(name)) for name in ("float32", "float64")}


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
