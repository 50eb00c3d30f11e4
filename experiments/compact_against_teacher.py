"""Pictures made with the compact network against pictures made with its teacher, both judged by the teacher.

Paper: Gatys, Ecker & Bethge 2016 (arXiv:1508.06576); the teacher is the encoder of Wang et al. 2020 (arXiv:2003.08436).
Data: the teacher, and pictures that the distillation (distill_vgg.py) did not see, in the folder --data.
Hardware and time: two CPU cores (AMD EPYC), about 5 minutes.
Expected: experiments/results/compact_against_teacher.json. The bar is a style loss of at most 5 % of the content
    picture's own, and a content loss of at most 1.5 times that of the teacher's picture.
Command: python experiments/compact_against_teacher.py

The losses are measured at full size in the teacher's features, with the default layers.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from ganstyle_jax import cli, images, pictures, weights
from ganstyle_jax.files import UserError
from ganstyle_jax.style import gatys

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared."""

    data: Path = machine.ROOT / ".." / "shared" / "data"  # folder with weights/ and images/
    features: str = "compact"  # network to judge: one of `ganstyle weights list`, or a file
    # content and style, by turns
    pairs: tuple[str, ...] = (
        *("tubingen", "starry_night"),
        *("golden_gate", "the_scream"),
        *("hoovertowernight", "woman-with-hat-matisse"),
        *("brad_pitt", "picasso_selfport1907"),
        *("tubingen", "shipwreck"),
    )
    sizes: tuple[int, ...] = (128, 256)  # pixels, the longer side
    grid: Path | None = Path("runs/compact_against_teacher.png")  # content, style, teacher's and compact's, row by row
    json: Path | None = Path("compact_against_teacher.json")  # the record; a bare name goes into experiments/results/


def main(settings: Settings) -> None:
    cli.use_cache()
    networks = {
        "teacher": weights.load_for_style(settings.data / "weights" / "vgg19_16x_distilled" / "5SE.pth"),
        "compact": weights.load_for_style(settings.features),
    }
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "numpy")),
        "features": Path(settings.features).name,
        "pairs": {},
    }
    shown = []
    for size in settings.sizes:
        names = iter(settings.pairs)
        for content_name, style_name in zip(names, names, strict=True):
            content, style = (read(settings.data, name, size) for name in (content_name, style_name))
            cfg = gatys.Config(size=size)
            made = {
                name: gatys.stylize(jax.random.key(0), content, [style], cfg, network[0], network[1])
                for name, network in networks.items()
            }
            targets = gatys.make_targets(*networks["teacher"], content, [style], cfg)
            found = {name: parts(networks["teacher"], picture, targets, cfg) for name, picture in made.items()}
            own = parts(networks["teacher"], content, targets, cfg)["style"]
            entry = {f"style_percent_{name}": round(100 * found[name]["style"] / own, 3) for name in made}
            entry["content_ratio"] = round(found["compact"]["content"] / found["teacher"]["content"], 4)
            record["pairs"][f"{content_name} {style_name} {size}"] = entry
            print(content_name, style_name, size, entry, flush=True)
            if size == settings.sizes[-1]:
                row = [content, style, made["teacher"], made["compact"]]
                shown += [np.clip(images.resize(picture, (size * 3 // 4, size)), -1, 1) for picture in row]
    if settings.grid is not None:
        images.save_png(settings.grid, images.grid(np.stack(shown), columns=4))
    if settings.json is not None:
        machine.write_record(settings.json, record)


def read(data: Path, name: str, size: int) -> np.ndarray:
    picture = pictures.read_picture(next((data / "images" / "inputs").glob(f"{name}.*")))
    return images.resize(picture, gatys.fitted_shape(picture.shape, size))


def parts(network: tuple[Any, Any], picture: np.ndarray, targets: gatys.Targets, cfg: gatys.Config) -> dict[str, float]:
    """The terms of the loss, added up by kind."""
    terms = gatys.loss_terms(network[0], network[1], jax.numpy.asarray(picture), targets, cfg)
    return {kind: sum(float(v) for k, v in terms.items() if k.startswith(kind)) for kind in ("content", "style")}


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
