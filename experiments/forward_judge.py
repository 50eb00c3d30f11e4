"""What paints in one pass, judged beside pictures that are optimised: how much of their style error's fall it reaches.

Papers: Johnson et al. 2016 (arXiv:1603.08155), Huang & Belongie 2017 (arXiv:1703.06868), Gatys et al. 2016 (CVPR).
Data: ten photographs that no model of this package was trained on: four of --data's images/inputs (MIT), three of
    scikit-image, three of Set5 (research); the paintings beside them, those of PACS that training left out, and the
    package's own. Judges as in style_judge.py: the real VGG-19 in 8 bits, and SqueezeNet, which took no part.
Hardware and time: two CPU cores, 5 s for each picture that is optimised, 2 s for each that is judged.
Expected: experiments/results/forward_judge.json and .md.
Command: python experiments/forward_judge.py

Photographs are squares of 256 pixels, styles are looked at 512 pixels wide, which is how the network of few styles was
trained; any-style pictures have styles of 256 pixels. The error of a style is the mean of the relative Gram errors at
five layers; a way of painting reaches the share (photograph - painted) / (photograph - optimised) of it, over means
of all photographs. The optimised picture is what `ganstyle stylize` makes, all else at its default.
"""

import dataclasses
import sys
import zipfile
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import skimage.data
import tyro

from ganstyle_jax import data
from ganstyle_jax.commands import flags
from ganstyle_jax.forward.painter import Painter
from ganstyle_jax.io import images, pictures, sheet
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import models
from ganstyle_jax.style import painting
from ganstyle_jax.style.config import fitted_shape

sys.path.insert(1, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine
import style_judge
import style_measures as measures

PHOTOGRAPH, OPTIMISED = "the photograph", "optimised"
JUDGES = ("vgg19", "squeezenet")
DRAWN: dict[str, Literal["night", "meadow"]] = {"night": "night", "meadow": "meadow"}  # by the package, on the spot


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which models are judged, on what."""

    data: Path = machine.ROOT / ".." / "shared" / "data"  # folder with weights/, images/, datasets/ and restoration/
    models: tuple[str, ...] = ("paintings", "adain")  # names of models that ship, model files or run folders
    size: int = 256  # pixels of a photograph's sides
    style_size: int = 512  # longer side of the styles of a network that holds a few
    photographs: int = 10  # how many of the ten
    any_styles: int = 20  # how many styles those that take any are given, each with one photograph
    # an archive of paintings that training has not seen, for those that take any style; by default each 73rd of PACS'
    unseen: Path | None = None
    network: str | None = None  # VGG-19 to judge by, a name or file; by default vgg19_8bit.npz in --data
    second: str | None = None  # SqueezeNet to judge by; by default the file in --data
    out: Path = Path("runs/forward_judge")  # folder for the pictures and sheets
    keep: bool = True  # take optimised pictures that --out holds of the same files and settings
    json: Path | None = Path("forward_judge.json")  # record; a bare name goes into experiments/results/


Looks = dict[str, dict[str, Any]]  # by judge, what `Judge.measure` says


def main(settings: Settings) -> dict[str, Any]:
    flags.use_cache()
    for name in ("photographs", "styles", "optimised"):
        (settings.out / name).mkdir(parents=True, exist_ok=True)
    judges = [judge for judge, _ in style_judge.load_judges(settings)]  # type: ignore[arg-type]
    least = max(judge.smallest_side for judge in judges)
    if min(settings.size, settings.style_size) < least:
        raise UserError(f"--size and --style-size must be at least {least}, for those who judge")
    contents = photographs(settings)
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "numpy", "pillow")),
        "size": settings.size,
        "pictures": [],
    }
    tables = []
    for name in settings.models:
        model = models.load(name)
        few = bool(getattr(model.cfg, "style", ()))
        styles = learned(settings, model) if few else unseen(settings)
        side = settings.style_size if few else settings.size
        shown: list[dict[str, np.ndarray]] = []
        for i, (style_name, path) in enumerate(styles):
            chosen = list(contents) if few else [list(contents)[i % len(contents)]]
            options = {"style": (style_name,)} if few else {"style": (path,), "style_size": settings.size}
            painter = Painter(model, model.method.module.ApplySettings(**options))
            style = fitted(pictures.read_picture(path), side)
            targets = {judge.name: judge.look(style) for judge in judges}
            for title in chosen:
                ways = {
                    PHOTOGRAPH: contents[title],
                    OPTIMISED: optimised(settings, title, path, side),
                    model.title: painter(contents[title][None])[0],
                }
                for way, picture in ways.items():
                    found = judged(picture, contents[title], targets, judges)
                    record["pictures"].append(
                        {"model": name, "way": way, "content": title, "style": style_name} | found
                    )
                shown.append({"style": square(style, settings.size)} | ways)
                say(record["pictures"][-3:])
        images.save_png(settings.out / f"{Path(name).stem}.png", contact_sheet(shown, few, len(styles)))
        tables.append(table(record["pictures"], name, model.title))
    record["summary"] = [line for lines, _ in tables for line in lines]
    if settings.json is not None:
        path = machine.write_record(settings.json, record)
        machine.write_text(path.with_suffix(".md"), "\n".join(text for _, text in tables))
    print("\n".join(text for _, text in tables))
    return record


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def photographs(settings: Settings) -> dict[str, np.ndarray]:
    """{name: (size, size, 3) in [-1, 1]}, the middle of each; written to --out, for others to paint."""
    inputs, set5 = settings.data / "images" / "inputs", settings.data / "restoration" / "Set5" / "image_SRF_4"
    files = {name: inputs / f"{name}.jpg" for name in ("tubingen", "golden_gate", "hoovertowernight", "brad_pitt")}
    files |= {name: set5 / f"img_00{i}_SRF_4_HR.png" for name, i in (("baby", 1), ("bird", 2), ("woman", 5))}
    found = {name: pictures.read_picture(path) for name, path in files.items()}
    found |= {
        of.__name__: data.to_float(of()) for of in (skimage.data.astronaut, skimage.data.chelsea, skimage.data.coffee)
    }
    found = {name: square(picture, settings.size) for name, picture in list(found.items())[: settings.photographs]}
    for name, picture in found.items():
        pictures.write_picture(settings.out / "photographs" / f"{name}.png", picture)
    return found


def learned(settings: Settings, model: models.Model) -> list[tuple[str, Path]]:
    """The names of the styles that a network holds, and their pictures."""
    found = []
    for path in model.cfg.style:
        name = Path(path).stem
        found.append((name, drawn(settings, name) if name in DRAWN else style_judge.find(settings.data, str(path))))
    return found


def drawn(settings: Settings, name: str) -> Path:
    """The file of a painting of the package's own, which is drawn once."""
    path = settings.out / "styles" / f"{name}.png"
    if not path.exists():
        pictures.write_picture(path, painting.painting(1024, subject=DRAWN[name]))
    return path


def unseen(settings: Settings) -> list[tuple[str, Path]]:
    """Paintings: those of images/inputs, then of PACS those that are left out of training, written to --out."""
    names = ("starry_night", "the_scream", "shipwreck", "escher_sphere", "frida_kahlo", "picasso_selfport1907")
    names += ("seated-nude", "woman-with-hat-matisse")
    found = [(name, style_judge.find(settings.data, name)) for name in names]
    found += [(name, drawn(settings, name)) for name in DRAWN]
    with zipfile.ZipFile(settings.unseen or settings.data / "datasets" / "pacs_photo_art_160px.zip") as archive:
        there = [name for name in archive.namelist() if name.lower().endswith(".jpg")]
        if settings.unseen is None:
            there = [name for name in there if "art_painting" in name][::73]
        for name in there:
            path = settings.out / "styles" / Path(name).name
            path.write_bytes(archive.read(name))
            found.append((path.stem, path))
    return found[: settings.any_styles]


def fitted(picture: np.ndarray, side: int) -> np.ndarray:
    return np.clip(images.resize(picture, fitted_shape(picture.shape, side)), -1, 1)


def square(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle of a picture, as a square."""
    least = min(picture.shape[:2])
    top, left = ((extent - least) // 2 for extent in picture.shape[:2])
    return np.clip(images.resize(picture[top : top + least, left : left + least], (side, side)), -1, 1)


def optimised(settings: Settings, title: str, style: Path, side: int) -> np.ndarray:
    one = style_judge.maker(f"compact --style-scale {side / settings.size:g}", settings.size)
    content = settings.out / "photographs" / f"{title}.png"
    out = settings.out / "optimised" / f"{title}_{style.stem}_{side}.png"
    return style_judge.make(one, content, style, out, settings.keep).picture


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def judged(picture: np.ndarray, content: np.ndarray, targets: dict, judges: list[measures.Judge]) -> dict[str, Any]:
    found = {}
    for judge in judges:
        seen = judge.look(picture), judge.look(content), targets[judge.name]
        said = judge.measure(*seen)
        gram = measures.rounded(said["gram"]["whole"])
        found[judge.name] = {
            "style": float(f"{fmean(gram.values()):.5g}"),
            "content": measures.rounded(said["content"]["whole"]),
            "gram": gram,
        }
    return found


def say(entries: list[dict[str, Any]]) -> None:
    photograph, best, forward = (entry["vgg19"] for entry in entries)
    share = (photograph["style"] - forward["style"]) / (photograph["style"] - best["style"])
    machine.say(
        f"{entries[0]['content']} + {entries[0]['style']}: style {photograph['style']:.3f}, optimised "
        f"{best['style']:.3f}, in one pass {forward['style']:.3f} ({100 * share:.0f} %); content "
        f"{best['content']:.2f}, {forward['content']:.2f}"
    )


def table(entries: list[dict[str, Any]], model: str, title: str) -> tuple[list[dict[str, Any]], str]:
    """A line for each style and one for all, as records and as Markdown."""
    of_model = [entry for entry in entries if entry["model"] == model]
    styles = list(dict.fromkeys(entry["style"] for entry in of_model))
    lines = []
    for style in [*styles, "all"]:
        line: dict[str, Any] = {"model": Path(model).name, "style": style}
        for judge in JUDGES:
            mean = {
                (way, what): fmean(e[judge][what] for e in of_model if e["way"] == way and style in (e["style"], "all"))
                for way in (PHOTOGRAPH, OPTIMISED, title)
                for what in ("style", "content")
            }
            fall = mean[PHOTOGRAPH, "style"] - mean[OPTIMISED, "style"]
            line[judge] = {
                "photograph": round(mean[PHOTOGRAPH, "style"], 4),
                "optimised": round(mean[OPTIMISED, "style"], 4),
                "forward": round(mean[title, "style"], 4),
                "share": round((mean[PHOTOGRAPH, "style"] - mean[title, "style"]) / fall, 4),
                "content_optimised": round(mean[OPTIMISED, "content"], 4),
                "content_forward": round(mean[title, "content"], 4),
            }
        lines.append(line)
    heads = ["style", "photograph", "optimised", "in one pass", "share", "content: optimised", "in one pass"]
    heads += ["SqueezeNet: share", "content: optimised", "in one pass"]
    text = [f"### {Path(model).name}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in lines:
        first, second = (line[judge] for judge in JUDGES)
        cells = [f"{first[x]:.3f}" for x in ("photograph", "optimised", "forward")] + [f"{100 * first['share']:.0f} %"]
        cells += [f"{first[x]:.2f}" for x in ("content_optimised", "content_forward")]
        cells += [
            f"{100 * second['share']:.0f} %",
            *(f"{second[x]:.2f}" for x in ("content_optimised", "content_forward")),
        ]
        text.append("| " + " | ".join([line["style"], *cells]) + " |")
    return lines, "\n".join([*text, ""])


def contact_sheet(shown: list[dict[str, np.ndarray]], few: bool, styles: int) -> np.ndarray:
    """Style, photograph, optimised, in one pass; of a network of few styles three photographs for each."""
    if few:
        each = len(shown) // styles
        shown = [shown[i * each + j] for i in range(styles) for j in dict.fromkeys((i % each, (i + 3) % each))]
    return sheet.of({title: np.stack([of[title] for of in shown]) for title in shown[0]}, columns=1)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
