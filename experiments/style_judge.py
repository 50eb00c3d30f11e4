"""Stylised pictures judged by networks: the real VGG-19, and SqueezeNet, which took no part in making or teaching.

Paper: Gatys, Ecker & Bethge 2016 (CVPR; arXiv:1508.06576). SqueezeNet: Iandola et al. 2016 (arXiv:1602.07360).
Data: pictures and weights in the folder --data: VGG-19 (CC BY 4.0) in 8 bits, SqueezeNet 1.1 as Keras has it (MIT).
Hardware and time: two CPU cores (Xeon) that other work shared, 6 to 16 minutes a picture made, 30 s a picture judged.
    On a machine that is shared set OPENBLAS_NUM_THREADS=1: its threads spin while they wait for each other.
Expected: experiments/results/style_judge_before.json, the first two pairs, by the compact network as it was at 69ce35f,
    with times of that busy machine.
Command: python experiments/style_judge.py --against experiments/results/style_judge_before.json

What is measured is in style_measures.py. A maker is what follows `ganstyle stylize CONTENT STYLE --features`, such as
"compact --style-loss wasserstein --content-weight 0.02"; it makes each pair with all else at its default. The content
picture itself stands in each table as "the photograph", and pictures that others published as "published". Pictures
are judged as they come from their files and at their own size: the content is resized to the result's shape, the style
to its longer side. Means over the pairs are geometric, of the photograph's too.
"""

import dataclasses
import functools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ganstyle_jax import stylize
from ganstyle_jax.commands import flags
from ganstyle_jax.control import Control, Done
from ganstyle_jax.features import download, weights
from ganstyle_jax.io import images, pictures, sheet
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style.config import Config, fitted_shape

sys.path.insert(1, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine
import style_measures as measures
from style_judge_tables import geometric_mean, markdown, summary

Look = Callable[[measures.Judge, int, tuple[int, int]], measures.Seen]
PHOTOGRAPH, PUBLISHED = "the photograph", "published"
PUBLISHED_FILES = {  # by content and style, in images/published_outputs
    ("tubingen", "starry_night"): "tubingen_starry.png",
    ("tubingen", "the_scream"): "tubingen_scream.png",
    ("golden_gate", "starry_night"): "golden_gate_starry.png",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is made, and by what it is judged."""

    data: Path = machine.ROOT / ".." / "shared" / "data"  # folder with weights/ and images/
    # content and style, by turns: files, or names in images/inputs
    pairs: tuple[str, ...] = (
        *("tubingen", "starry_night"),  # swirls
        *("tubingen", "the_scream"),  # streaks of few colours
        *("tubingen", "shipwreck"),  # dark, clouds and spray
        *("golden_gate", "starry_night"),  # on a picture of large even areas
        *("golden_gate", "woman-with-hat-matisse"),  # bright blotches
        *("golden_gate", "escher_sphere"),  # line art without colours
        *("hoovertowernight", "seated-nude"),  # facets, low contrast, on a night
        *("hoovertowernight", "the_scream"),
        *("brad_pitt", "picasso_selfport1907"),  # portrait on portrait: flat colours and outlines
        *("brad_pitt", "frida_kahlo"),  # and smooth shades
    )
    size: int = 512  # pixels, the longer side of what is made
    # networks to make the pairs with, each with flags of `ganstyle stylize` if need be
    makers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--features"])] = ("compact",)
    pictures: tuple[Path, ...] = ()  # ready ones to judge as well: content, style and result, by turns
    published: bool = True  # judge what others published of these pairs
    network: str | None = None  # VGG-19 to judge by, a name or file; by default vgg19_8bit.npz in --data
    second: str | None = None  # SqueezeNet to judge by; by default the file in --data
    against: Path | None = None  # an earlier record, whose first maker's errors are what others are divided by
    out: Path = Path("runs/style_judge")  # folder for the pictures and sheets
    # take pictures that --out holds of the same files, weights and settings, such as an interrupted run leaves
    keep: bool = False
    # record, with tables beside it; a bare name goes into experiments/results/. By default style_judge.json there, or
    # in --out where nothing is made
    json: Path | None = None

    def __post_init__(self):
        if len(self.pairs) % 2 or len(self.pictures) % 3:
            raise UserError(
                "--pairs takes a content and a style by turns, --pictures content, style and result; got "
                f"{len(self.pairs)} and {len(self.pictures)} of them"
            )
        if not (self.pairs or self.pictures):
            raise UserError("there is nothing to judge: name --pairs or --pictures")


@dataclasses.dataclass(frozen=True)
class Maker:
    """A network and settings that pictures are made with."""

    title: str
    config: Config
    settings: stylize.Settings


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A picture to judge, and what is known of its making."""

    maker: str
    picture: np.ndarray  # (h, w, 3) float32 in [-1, 1]
    known: dict[str, Any] = dataclasses.field(default_factory=dict)


Row = tuple[np.ndarray, np.ndarray, list[Entry]]  # content, style and what was made of them


def main(settings: Settings) -> None:
    flags.use_cache()
    then = None if settings.against is None else json.loads(settings.against.read_text())
    makers = [maker(text, settings.size) for text in settings.makers] if settings.pairs else []
    judges = load_judges(settings)
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "optax", "numpy", "pillow")),
        "judges": {judge.name: describe(of) for judge, of in judges},
        "makers": {one.title: weights_of(one) for one in makers},
        "size": settings.size,
        "pictures": [],
    }
    rows: list[Row] = []
    table = ""
    for content_path, style_path, wanted, ready in pairs_of(settings):
        content, style = (pictures.read_picture(path) for path in (content_path, style_path))
        entries = list(entries_of(settings, makers if wanted else (), content_path, style_path, ready))
        shape = fitted_shape(content.shape, settings.size if wanted else max(entries[0].picture.shape))
        entries.insert(0, Entry(PHOTOGRAPH, fitted(content, shape)))
        pair = {"content": content_path.stem, "style": style_path.stem}
        look = functools.cache(lambda judge, of, shape, both=(content, style): judge.look(fitted(both[of], shape)))
        for entry in entries:
            found = judged(entry.picture, content, style, look, [judge for judge, _ in judges])
            record["pictures"].append({"maker": entry.maker} | pair | entry.known | found)
            say(record["pictures"][-1])
        rows.append((content, style, entries[1:]))
        table = write(record, then, rows, settings)  # by now, lest an interruption takes all of it
    print(table)


def write(record: dict[str, Any], then: dict[str, Any] | None, rows: Sequence[Row], settings: Settings) -> str:
    """Record, tables and sheets; returns the tables."""
    record["summary"] = summary(record)
    table = markdown(record, then)
    for name, crops in (("whole", False), ("crops", True)):
        images.save_png(settings.out / f"{name}.png", contact_sheet(rows, settings, crops))
    file = Path("style_judge.json")
    path = machine.write_record(settings.json or (file if settings.pairs else settings.out / file), record)
    machine.write_text(path.with_suffix(".md"), table)
    return table


# ---------------------------------------------------------------------------------------------------------------------
# Who judges, and who makes


def load_judges(settings: Settings) -> list[tuple[measures.Judge, str]]:
    """VGG-19 and SqueezeNet, each with its file or name. UserError for another network than that."""
    folder = settings.data / "weights"
    asked = {
        "vgg19": settings.network or str(folder / "vgg19_8bit.npz"),
        "squeezenet": settings.second or str(folder / "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    }
    judges = []
    for (name, of), kind in zip(asked.items(), ("VGG", "SqueezeNet"), strict=True):
        judge = measures.Judge(name, *weights.load_for_style(of))
        try:
            if type(judge.network).__name__ != kind:
                raise ValueError(f"it is a {type(judge.network).__name__}")
            judge.network.check((*judge.style_taps, judge.content_tap))
        except ValueError as error:
            raise UserError(f"{of} cannot judge in {name}'s place: {error}") from error
        judges.append((judge, of))
    return judges


def describe(of: str) -> dict[str, str]:
    """The name that weights are known by, or their file's, and its sum."""
    kept = weights.home() / f"{of}.safetensors"
    path = weights.COMPACT if of == "compact" else kept if kept.is_file() else Path(of)
    sums = {"sha256": download.digests(path)["sha256"]} if path.is_file() else {}
    return {"features": Path(of).name} | sums


def maker(text: str, size: int) -> Maker:
    """What `ganstyle stylize ... --features TEXT --size SIZE` would make with. UserError for flags that it lacks."""
    features, *args = shlex.split(text)
    chosen = flags.parse("style_judge", "A maker's flags.", args, settings=stylize.Settings(), config=Config(size=size))
    title = shlex.join([Path(features).name, *args])
    return Maker(title, chosen.config, dataclasses.replace(chosen.settings, features=features))


def weights_of(one: Maker) -> dict[str, Any]:
    """The record of a maker: its weights, and all that is not at its default."""
    changed = {}
    for given, default in ((one.config, Config()), (one.settings, stylize.Settings())):
        for field in dataclasses.fields(given):
            if (value := getattr(given, field.name)) != getattr(default, field.name) and field.name != "features":
                changed[field.name] = value if isinstance(value, (int, float, str, tuple)) else str(value)
    return describe(one.settings.features) | {"changed": changed}


def make(one: Maker, content: Path, style: Path, out: Path, keep: bool) -> Entry:
    """Makes a picture as `ganstyle stylize` does, and reads it again. A file beside it says of what it is.

    keep: it is not made where that file says the same already.
    """
    of = weights_of(one) | {name: download.digests(path)["sha256"] for name, path in (("of", content), ("in", style))}
    of.pop("features")  # the same weights may have another name by now
    of, beside = json.loads(json.dumps(of)), out.with_suffix(".json")
    if keep and out.is_file() and beside.is_file():
        known = json.loads(beside.read_text())
        if known.pop("made") == of:
            return Entry(one.title, pictures.read_picture(out), known)
    done: list[Done] = []

    def hear(event: Any) -> None:
        if isinstance(event, Done):
            done.append(event)

    out.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)  # it would not be this picture's
    begun = time.perf_counter()
    stylize.run(content, [style], one.config, dataclasses.replace(one.settings, out=out), Control([hear]))
    known = {"seconds": machine.seconds(time.perf_counter() - begun), "evaluations": done[-1].step}
    machine.write_record(beside, known | {"made": of})
    return Entry(one.title, pictures.read_picture(out), known)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def pairs_of(settings: Settings) -> list[tuple[Path, Path, bool, list[Path]]]:
    """Files of content and style, whether a picture is to be made of them, and ready ones; each pair once."""
    made, ready = iter(settings.pairs), iter(settings.pictures)
    wanted = [tuple(find(settings.data, name) for name in pair) for pair in zip(made, made, strict=True)]
    found: dict[Any, list[Path]] = {pair: [] for pair in wanted}
    for content, style, result in zip(ready, ready, ready, strict=True):
        pair = find(settings.data, str(content)), find(settings.data, str(style))
        found.setdefault(pair, []).append(result)
    return [(*pair, pair in wanted, results) for pair, results in found.items()]


def find(data: Path, name: str) -> Path:
    """A file, or the picture of that name in images/inputs."""
    if Path(name).is_file():
        return Path(name)
    folder = data / "images" / "inputs"
    for path in sorted(folder.glob("*")):
        if name in (path.name, path.stem):
            return path
    there = ", ".join(sorted(path.stem for path in folder.glob("*"))) or "nothing"
    raise UserError(f"there is no picture {name}: give a file, or one of those in {folder}, which holds {there}")


def entries_of(
    settings: Settings, makers: Sequence[Maker], content: Path, style: Path, ready: Sequence[Path]
) -> Iterator[Entry]:
    for i, one in enumerate(makers, start=1):
        out = settings.out / str(i) / f"{content.stem}_{style.stem}.png"
        yield make(one, content, style, out, settings.keep)
    for path in ready:
        yield Entry(path.stem, pictures.read_picture(path))
    name = PUBLISHED_FILES.get((content.stem, style.stem))
    path = settings.data / "images" / "published_outputs" / str(name)
    if settings.published and name and path.is_file():
        yield Entry(PUBLISHED, pictures.read_picture(path))


def judged(
    result: np.ndarray, content: np.ndarray, style: np.ndarray, look: Look, judges: Sequence[measures.Judge]
) -> dict[str, Any]:
    """All that is measured of a picture. UserError where it cannot be one of this content.

    look: at the content (0) or the style (1) in a shape, which is the same for many results.
    """
    height, width = result.shape[:2]
    if abs(np.log(height / width * content.shape[1] / content.shape[0])) > 0.05:
        raise UserError(
            f"a picture of {width} x {height} pixels is not of a content of {content.shape[1]} x {content.shape[0]}: "
            "its proportions are others"
        )
    shapes = (height, width), fitted_shape(style.shape, max(height, width))
    by, same = {}, fitted(content, shapes[0])
    for judge in judges:
        if min(*shapes[0], *shapes[1]) < judge.smallest_side:
            raise UserError(f"{judge.name} judges pictures of {judge.smallest_side} pixels a side and more")
        seen = [look(judge, of, shape) for of, shape in enumerate(shapes)]
        of_result = seen[0] if np.array_equal(result, same) else judge.look(result)
        by[judge.name] = measures.rounded(judge.measure(of_result, *seen))
    content, style = same, fitted(style, shapes[1])
    return {
        "width": width,
        "height": height,
        "judges": by,
        "colours": measures.rounded(measures.colours(result, style)),
        "finest": {
            of: measures.rounded(measures.finest(x))
            for of, x in (("result", result), ("content", content), ("style", style))
        },
    }


def fitted(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.clip(images.resize(picture, shape), -1, 1)


def say(entry: dict[str, Any]) -> None:
    """A line while it is under way."""
    found = entry["judges"]["vgg19"]
    numbers = " ".join(f"{value:.3f}" for value in found["gram"]["whole"].values())
    mean = geometric_mean(list(found["gram"]["whole"].values()))
    about = f"{entry['content']} + {entry['style']}, {entry['maker']}"
    machine.say(f"{about}: {numbers} (mean {mean:.3f}), content {found['content']['whole']:.3f}")


def contact_sheet(rows: Sequence[Row], settings: Settings, crops: bool) -> np.ndarray:
    """(h, w, 3) uint8: content, style, and what each maker makes of them, a pair a row, white where there is nothing.

    crops: a corner and the middle of each, pixel by pixel, two rows a pair.
    """
    side = settings.size // 2 if crops else min(settings.size, 384)
    titles = list(dict.fromkeys(entry.maker for _, _, entries in rows for entry in entries))
    columns: dict[str, list[np.ndarray]] = {title: [] for title in ("content", "style", *titles)}
    for content, style, entries in rows:
        size = max(entries[0].picture.shape) if entries else settings.size
        shown = {
            "content": fitted(content, fitted_shape(content.shape, size)),
            "style": fitted(style, fitted_shape(style.shape, size)),
            **{entry.maker: entry.picture for entry in entries},
        }
        for title, column in columns.items():
            picture = shown.get(title, np.ones((1, 1, 3), np.float32))
            if crops:
                column += [framed(picture[:side, :side], side), framed(middle(picture, side), side)]
            else:
                column.append(framed(fitted(picture, fitted_shape(picture.shape, side)), side))
    return sheet.of({title: np.stack(column) for title, column in columns.items()}, columns=1)


def middle(picture: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(0, (extent - side) // 2) for extent in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def framed(picture: np.ndarray, side: int) -> np.ndarray:
    """In the middle of a white square."""
    square = np.ones((side, side, 3), np.float32)
    height, width = picture.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
