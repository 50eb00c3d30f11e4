"""What `ganstyle stylize` is asked for: its settings, and which pictures are to be made of which files."""

import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from ganstyle_jax.io import folders, pictures, video
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import colours
from ganstyle_jax.style.config import Config
from ganstyle_jax.style.places import check as check_patches
from ganstyle_jax.style.targets import counts_by_layer


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which pictures, which features, and what to leave."""

    # what to write: .png, .jpg, .webp, or .tif with 16 bits; a folder where CONTENT or STYLE is a folder
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("stylized.png")
    features: str = "compact"  # network to compare by: a name that `ganstyle weights list` shows, or a file of weights
    pooling: Literal["max", "average"] | None = None  # instead of the network's own; average is smoother
    # what the network sees beyond the borders, instead of its own; replicate and reflect are slower than zeros
    padding: Literal["zeros", "reflect", "replicate"] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"  # of the features; bfloat16 saves memory on GPUs and TPUs
    remat: bool = False  # compute features again rather than keep them: less memory on GPUs and TPUs, a third slower
    style_weights: tuple[float, ...] = ()  # how much each STYLE counts; by default all the same
    # for each STYLE the style layers that follow it: fine, coarse, all, or names joined by commas; by default all
    style_layers_of: tuple[str, ...] = ()
    # for each STYLE a picture of CONTENT's size: white where that style is to go
    content_mask: tuple[Path, ...] = ()
    # for each STYLE a picture of its size: white what counts of it
    style_mask: tuple[Path, ...] = ()
    # keep CONTENT's colours: luma paints brightness only, coral and histogram first recolour STYLE
    preserve_colors: colours.How = "none"
    init_image: Path | None = None  # picture to begin with, instead of --init
    # what several devices share: the pictures of a folder, or the rows of each picture
    parallel: Literal["pictures", "rows", "none"] = "pictures"
    # devices that share the rows of a picture, by default all; with fewer, each team of so many makes other pictures of
    # a folder
    rows: int | None = None
    batch: int = 4  # pictures of a folder that a device makes at once, fewer where memory is short
    # keep the work in OUT.state.safetensors, and go on from there if it is left from a command that was ended, bit for
    # bit; pictures of a folder are then made one after the other. A film goes on from its frames in OUT.frames
    resume: bool = False
    allow_changes: bool = False  # --resume may go on with other weights, rates and --steps
    seed: int = 0  # of the noise that --init noise and style begin with
    # keep the picture in the folder OUT.steps whenever the evaluations pass a multiple of this
    save_every: int | None = None
    animation: Path | None = None  # film of the optimisation to write, .gif or .mp4
    trace: bool = False  # write OUT.json: settings, and loss, time and memory after each step
    overwrite: bool = False  # --animation and --trace may replace files that are there already
    # of a film: evaluations of a frame that is begun with the one before it, instead of --steps at each size
    frame_steps: int = 20
    keep_frames: bool = False  # of a film: leave the folder OUT.frames of its frames when it is done
    # folder of all there is to know, which `ganstyle report` shows: pictures, settings, losses by term on the way
    run_dir: Path | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):  # from a notebook, paths may be text
            value = getattr(self, field.name)
            if field.name in ("out", "init_image", "animation", "run_dir") and isinstance(value, str):
                object.__setattr__(self, field.name, Path(value))
            elif field.name in ("content_mask", "style_mask"):
                several = (value,) if isinstance(value, (str, Path)) else value
                object.__setattr__(self, field.name, tuple(map(Path, several)))


@dataclasses.dataclass(frozen=True)
class Order:
    """The files of one picture to make."""

    content: Path
    styles: tuple[Path, ...]
    out: Path

    def __str__(self) -> str:
        return " with ".join(map(str, (self.content, *self.styles)))

    @property
    def trace(self) -> Path:
        return self.out.with_suffix(".json")

    @property
    def steps(self) -> Path:
        """The folder of pictures on the way."""
        return self.out.with_suffix(".steps")

    @property
    def stopped(self) -> Path:
        """Where the picture goes if it is stopped before it is done: never under the name that was asked for."""
        return self.out.with_name(f"{self.out.stem}.stopped.png")


def plan(content: Path, styles: tuple[Path, ...], cfg: Config, settings: Settings) -> list[Order]:
    """What is to be made of which files. UserError for what cannot be, before anything is read."""
    if not styles:
        raise UserError(f"no style is given: name at least one picture after {content}")
    others = [file for file in (*settings.content_mask, *settings.style_mask, settings.init_image) if file]
    if missing := [str(file) for file in (content, *styles, *others) if not file.exists()]:
        raise UserError(f"there is no picture {' and no '.join(missing)}")
    first, many_styles = styles[0], any(style.is_dir() for style in styles)
    if many_styles and styles[1:]:
        raise UserError("a folder of styles must be the only STYLE: each picture in it is a style by itself")
    blends = [(file,) for file in files_in(first)] if many_styles else [styles]
    check_numbers(settings, len(blends[0]), cfg)
    if content.is_dir() or many_styles:
        orders = orders_of_folders(content, blends, many_styles, settings)
    else:
        orders = [Order(content, styles, settings.out)]
        check_destination(settings.out, cfg)
        if settings.animation is not None:
            pictures.check_destination(settings.animation, video.VIDEO_SUFFIXES)
        if settings.run_dir is not None and (settings.run_dir / "run.json").exists():
            raise UserError(f"{settings.run_dir} already holds a run: choose another --run-dir")
    check_files(orders, {*(file for order in orders for file in (order.content, *order.styles)), *others}, settings)
    return orders


def orders_of_folders(
    content: Path, blends: Sequence[tuple[Path, ...]], many_styles: bool, settings: Settings
) -> list[Order]:
    """Each picture in each of the styles; those of sub-folders go into sub-folders."""
    for name in ("animation", "run_dir", "content_mask", "style_mask"):
        if getattr(settings, name):
            raise UserError(f"{_flag(name)} is for a single picture, not for a folder of them")
    orders = []
    for file in files_in(content, settings.out) if content.is_dir() else [content]:
        place = settings.out / (file.relative_to(content).parent if content.is_dir() else "")
        for blend in blends:
            name = f"{file.stem}-{blend[0].stem}" if many_styles else file.stem
            orders.append(Order(file, blend, place / f"{name}.png"))
    for folder in dict.fromkeys(order.out.parent for order in orders):
        check_folder(folder, [order.out.name for order in orders if order.out.parent == folder])
    return orders


def check_numbers(settings: Settings, styles: int, cfg: Config) -> None:
    """UserError for settings that are out of range or not as many as there are styles."""
    for name in ("style_weights", "style_layers_of", "content_mask", "style_mask"):
        if (given := getattr(settings, name)) and len(given) != styles:
            raise UserError(f"{_flag(name)} must be given once for each style: there are {styles}, got {len(given)}")
    if settings.style_weights:
        finite = all(0 <= weight < math.inf for weight in settings.style_weights)
        if not finite or not sum(settings.style_weights) > 0:
            listed = " ".join(f"{weight:g}" for weight in settings.style_weights)
            raise UserError(f"--style-weights must be 0 or more, one of them more, got {listed}")
    if settings.rows is not None and settings.parallel != "rows":
        raise UserError(f"--rows belongs to --parallel rows, got {settings.rows} with --parallel {settings.parallel}")
    if settings.allow_changes and not settings.resume:
        raise UserError("--allow-changes belongs to --resume, which is not given")
    for name in ("animation", "run_dir"):
        if settings.resume and getattr(settings, name):
            raise UserError(f"--resume cannot go on with {_flag(name)}, which holds all that was before: choose one")
    counts = [(name, 1, math.inf) for name in ("batch", "save_every", "frame_steps")]
    for name, least, most in (*counts, ("seed", 0, 2**32 - 1)):
        if (value := getattr(settings, name)) is not None and not least <= value <= most:
            accepted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"{_flag(name)} must be {accepted}, got {value}")
    if settings.style_layers_of:
        try:
            counts_by_layer(np.asarray(settings.style_weights or [1.0] * styles), settings.style_layers_of, cfg)
        except ValueError as error:
            raise UserError(f"--style-layers-of {' '.join(settings.style_layers_of)}: {error}") from None
    try:
        blended = settings.style_weights if settings.style_weights and not settings.content_mask else None
        check_patches(cfg, styles, blended, settings.style_layers_of)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_destination(out: Path, cfg: Config) -> None:
    """UserError for a file that could not be written after all the work."""
    pictures.check_destination(out, pictures.PICTURE_SUFFIXES)
    longest = pictures.LONGEST_SIDE.get(out.suffix.lower())
    if longest and cfg.size > longest:
        raise UserError(f"{out} cannot have {cfg.size} pixels a side, only {longest}: choose .png or .tif")


def check_folder(out: Path, names: Sequence[str]) -> None:
    """UserError for a folder that these pictures could not be written into. Does not make it yet."""
    if not out.is_dir() and out.suffix.lower() in pictures.PICTURE_SUFFIXES:
        raise UserError(f"for a folder of pictures -o must name a folder, got {out}: for example -o {out.stem}")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir():
        raise UserError(f"for a folder of pictures -o must name a folder, got {out}, where {above} is a file")
    for name in names:
        pictures.check_destination(above / name, pictures.PICTURE_SUFFIXES)


def check_files(orders: Sequence[Order], given: Collection[Path], settings: Settings) -> None:
    """UserError where a file that is to be written is one of those given, another's, or nobody said may be replaced."""
    given = {file.resolve() for file in given}
    makers: dict[Path, Order] = {}
    for order in orders:
        if order.out in makers:
            raise UserError(f"{makers[order.out]} and {order} would both become {order.out}: rename one of the files")
        makers[order.out] = order
        for file in (order.out, order.stopped):
            if file.resolve() in given:
                raise UserError(f"{file} would be written over one of the given pictures: choose another -o")
        if settings.save_every and order.steps.resolve() in {file.parent for file in given}:
            raise UserError(f"{order.steps} is to take pictures, and holds one of those given: choose another -o")
        if settings.trace and order.trace.exists() and not (settings.overwrite or is_trace(order.trace)):
            raise UserError(f"{order.trace} is there already and is no trace: choose another -o, or --overwrite")
    if (film := settings.animation) is not None:
        if film.resolve() in given:
            raise UserError(f"{film} would be written over one of the given pictures: choose another --animation")
        if film.exists() and not settings.overwrite:
            raise UserError(f"{film} is there already: choose another --animation, or --overwrite")
    if settings.run_dir is not None:
        names = ["content.png", "result.png", *(f"style-{i + 1}.png" for i in range(len(orders[0].styles)))]
        if there := [name for name in names if (settings.run_dir / name).exists()]:
            raise UserError(f"{settings.run_dir} holds {', '.join(there)} already: choose another --run-dir")


def is_trace(path: Path) -> bool:
    """Whether an earlier --trace has left this file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"content", "styles", "config", "settings", "steps"} <= found.keys()


def files_in(folder: Path, out: Path | None = None) -> list[Path]:
    """Picture files in a folder, at any depth, sorted; UserError if there are none.

    out: a folder in it that is to take the results, and so holds none of the pictures.
    """
    files = pictures.pictures_in(folder)
    if out is not None and out.resolve() != folder.resolve():
        files = [path for path in files if not path.resolve().is_relative_to(out.resolve())]
    if not files:
        raise UserError(f"no pictures in {folder}: accepted are {', '.join(folders.suffixes())}")
    return files


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
