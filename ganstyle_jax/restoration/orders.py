"""What `ganstyle restore` is asked for: its settings, and which files become which."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ganstyle_jax.io import folders, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.restore.deep_image_prior import MASKED, Config

BESIDE = ("mask", "guide", "truth")  # pictures that go with the one that is to be restored
RUN_PICTURES = ("given.png", "known.png", "mask.png", "guide.png", "truth.png", "result.png")  # of a run folder


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which pictures, and what to leave."""

    # what to write: .png, .jpg, .webp, or .tif with 16 bits; a folder where there are several pictures
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("restored.png")
    # picture of IMAGE's size: white where IMAGE is known, black where it is to be filled in. Without one, what is
    # transparent in IMAGE is filled in. Of several pictures: one for all, or a folder with one of each name
    mask: Path | None = None
    invert_mask: bool = False  # the mask is black where IMAGE is known
    keep_known: bool = True  # what the mask says is known stays as it is; otherwise it is as the network makes it too
    guide: Path | None = None  # of the task flash: the same view with flash, of IMAGE's size; or a folder of such
    truth: Path | None = None  # undamaged picture of the result's size, for PSNR and SSIM only; or a folder of such
    # go on from OUT.state.safetensors, in which work that was ended is kept, bit for bit
    resume: bool = False
    seed: int = 0  # of the network's first weights and its noise
    # keep the picture as it is by then, in the folder OUT.steps, whenever the steps pass a multiple of this
    save_every: int | None = None
    trace: bool = False  # write OUT.jsonl: settings, then a line for each step
    overwrite: bool = False  # --trace may replace a file that is no trace
    # folder of all there is to know, which `ganstyle report` shows: pictures, settings, losses, variances; one in it
    # for each where there are several pictures
    run_dir: Path | None = None

    def __post_init__(self):
        for name in ("out", *BESIDE, "run_dir"):  # from a notebook, paths may be text
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))


@dataclasses.dataclass(frozen=True)
class Order:
    """The files of one picture to restore."""

    image: Path
    out: Path
    mask: Path | None = None
    guide: Path | None = None
    truth: Path | None = None
    run_dir: Path | None = None

    @property
    def given(self) -> list[Path]:
        return [path for path in (self.image, self.mask, self.guide, self.truth) if path is not None]

    @property
    def state(self) -> Path:
        """Where unfinished work is kept."""
        return self.out.with_name(f"{self.out.stem}.state.safetensors")

    @property
    def trace(self) -> Path:
        return self.out.with_suffix(".jsonl")

    @property
    def steps(self) -> Path:
        """The folder of pictures on the way."""
        return self.out.with_suffix(".steps")

    @property
    def stopped(self) -> Path:
        """Where the picture goes if it is stopped before it is done: never under the name that was asked for."""
        return self.out.with_name(f"{self.out.stem}.stopped.png")


def plan(images: Sequence[Path], cfg: Config, settings: Settings) -> list[Order]:
    """What is to be made of which files. UserError for what cannot be, before anything is read."""
    check_settings(cfg, settings)
    if not images:
        raise UserError("no picture is given: name at least one to be restored")
    beside = [path for name in BESIDE if (path := getattr(settings, name)) is not None]
    if missing := [str(path) for path in (*images, *beside) if not path.exists()]:
        raise UserError(f"there is no picture {' and no '.join(missing)}")
    files = [(file, image) for image in images for file in files_of(image, beside, settings.out)]
    if len(files) == 1 and images[0].is_file():
        order = Order(images[0], settings.out, run_dir=settings.run_dir)
        pictures.check_destination(settings.out, pictures.PICTURE_SUFFIXES)
    else:
        check_folder(settings.out)
        order = None
    orders = [matched(order or order_in_folder(file, image, settings), settings) for file, image in files]
    check_files(orders, settings)
    return orders


def check_settings(cfg: Config, settings: Settings) -> None:
    """UserError for settings that are out of range or do not belong together."""
    if settings.save_every is not None and settings.save_every < 1:
        raise UserError(f"--save-every must be at least 1, got {settings.save_every}")
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"--seed must be from 0 to {2**32 - 1}, got {settings.seed}")
    if settings.mask is not None and cfg.task not in MASKED:
        raise UserError(f"--mask is for the tasks {', '.join(MASKED)}, not for {cfg.task}")
    if settings.invert_mask and settings.mask is None:
        raise UserError("--invert-mask belongs to --mask, which is not given")
    if settings.guide is not None and cfg.task != "flash":
        raise UserError(f"--guide is for the task flash, not for {cfg.task}")
    if settings.guide is None and cfg.task == "flash":
        raise UserError("the task flash needs --guide: the same view with flash")


def files_of(image: Path, beside: Sequence[Path], out: Path) -> list[Path]:
    """The picture itself, or those of a folder but for the ones that go with them and the results."""
    if not image.is_dir():
        return [image]
    apart = [path.resolve() for path in (*beside, out) if path.resolve() != image.resolve()]
    files = pictures.pictures_in(image)
    files = [file for file in files if not any(file.resolve().is_relative_to(path) for path in apart)]
    if not files:
        raise UserError(f"no pictures in {image}: accepted are {', '.join(folders.suffixes())}")
    return files


def order_in_folder(file: Path, image: Path, settings: Settings) -> Order:
    """One of several; those of sub-folders go into sub-folders."""
    below = file.relative_to(image).parent if image.is_dir() else Path()
    run_dir = None if settings.run_dir is None else settings.run_dir / below / file.stem
    return Order(file, settings.out / below / f"{file.stem}.png", run_dir=run_dir)


def matched(order: Order, settings: Settings) -> Order:
    """With its mask, guide and truth: the files that were given, or those of the picture's name in given folders."""
    found = {}
    for name in BESIDE:
        path = getattr(settings, name)
        if path is not None and path.is_dir():
            same = [file for file in pictures.pictures_in(path) if file.stem == order.image.stem]
            if len(same) != 1:
                there = "none" if not same else ", ".join(file.name for file in same)
                raise UserError(f"--{name} {path} must hold one picture of the name {order.image.stem}, got {there}")
            (path,) = same
        found[name] = path
    return dataclasses.replace(order, **found)


def check_folder(out: Path) -> None:
    """UserError for what cannot be a folder of pictures. Does not make it yet."""
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if not above.is_dir() or (not out.is_dir() and out.suffix.lower() in pictures.PICTURE_SUFFIXES):
        raise UserError(f"for several pictures -o must name a folder, got {out}: for example -o {out.stem}")
    pictures.check_destination(above / "picture.png", pictures.PICTURE_SUFFIXES)


def check_files(orders: Sequence[Order], settings: Settings) -> None:
    """UserError where a file that is to be written is one of those given, another's, or nobody said may be replaced."""
    given = {path.resolve() for order in orders for path in order.given}
    makers: dict[Path, Order] = {}
    for order in orders:
        if order.out in makers:
            first, second = makers[order.out].image, order.image
            raise UserError(f"{first} and {second} would both become {order.out}: rename one of the files")
        makers[order.out] = order
        for file in (order.out, order.stopped):
            if file.resolve() in given:
                raise UserError(f"{file} would be written over one of the given pictures: choose another -o")
        if settings.save_every and order.steps.resolve() in {file.parent for file in given}:
            raise UserError(f"{order.steps} is to take pictures, and holds one of those given: choose another -o")
        if settings.trace and order.trace.exists() and not (settings.overwrite or is_trace(order.trace)):
            raise UserError(f"{order.trace} is there already and is no trace: choose another -o, or --overwrite")
        if order.state.exists() and not settings.resume:
            raise UserError(
                f"{order.state} holds unfinished work: --resume goes on with it, or remove it to begin anew"
            )
        if order.run_dir is not None:
            check_run_dir(order.run_dir, settings.resume and order.state.exists(), settings.resume)


def check_run_dir(folder: Path, unfinished: bool, resume: bool) -> None:
    """UserError for a folder with a run that is not gone on with, or with other pictures of the names of a run's."""
    if (folder / "run.json").exists():
        done = (folder / "result.png").exists()
        if not resume or (done and not unfinished):
            raise UserError(f"{folder} already holds a run: choose another --run-dir")
    elif there := [name for name in RUN_PICTURES if (folder / name).exists()]:
        raise UserError(f"{folder} holds {', '.join(there)} already: choose another --run-dir")


def is_trace(path: Path) -> bool:
    """Whether an earlier --trace has left this file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline(1000).startswith('{"image": ')
    except (OSError, UnicodeDecodeError):
        return False
