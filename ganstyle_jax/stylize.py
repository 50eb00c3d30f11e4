"""`ganstyle stylize`: pictures in, pictures out, with a progress bar, a trace and intermediate pictures."""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ganstyle_jax import images, pictures, weights
from ganstyle_jax.files import UserError, atomic_path
from ganstyle_jax.style import colours, gatys, memory


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which pictures, which features, and what to leave."""

    # .png, .jpg, .webp, or .tif with 16 bits; a folder if CONTENT or STYLE is one
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("stylized.png")
    features: str = "compact"  # network to compare by: one of `ganstyle weights list`, or a file
    pooling: Literal["max", "average"] | None = None  # of the network, if not its own; average is smoother
    precision: Literal["float32", "bfloat16"] = "float32"  # of the features; bfloat16 for TPUs and new GPUs
    remat: bool = False  # compute features again rather than keep them: less memory, a third slower
    style_weights: tuple[float, ...] = ()  # one for each style; by default all the same
    content_mask: tuple[Path, ...] = ()  # white where a style is to go: a picture as large as CONTENT for each style
    style_mask: tuple[Path, ...] = ()  # white what counts of a style: a picture as large as it for each style
    preserve_colors: colours.How = "none"  # keep the content's colours, in one of the ways of colours.py
    init_image: Path | None = None  # picture to begin with, in the place of --init
    parallel: Literal["pictures", "rows", "none"] = "pictures"  # what devices share: a folder, or rows of each picture
    batch: int = 4  # pictures of a folder that a device makes at once, or fewer where memory is short
    seed: int = 0  # of the noise that --init noise begins with
    save_every: int | None = None  # evaluations between intermediate pictures, in the folder OUT.steps
    animation: Path | None = None  # .gif or .mp4 of the optimisation
    trace: bool = False  # write OUT.json: settings, and loss, time and memory after each step


@dataclasses.dataclass(frozen=True)
class Order:
    """The files of one picture to make."""

    content: Path
    styles: tuple[Path, ...]
    out: Path


def run(content: Path, styles: tuple[Path, ...], cfg: gatys.Config, settings: Settings) -> list[Path]:
    """Makes one picture, or one of each picture in a folder, and returns the files written. Raises UserError."""
    orders = plan(content, styles, settings)
    network, params = load_network(settings)
    try:
        network.check(cfg.layers)
    except ValueError as error:
        raise UserError(str(error)) from error
    devices = jax.devices() if settings.parallel != "none" else jax.devices()[:1]
    at_once = 1 if settings.parallel == "rows" else settings.batch * len(devices)
    waiting: dict[tuple[int, int], list[tuple[Order, gatys.Job]]] = {}
    for order in orders:
        job = read(order, settings)
        together = waiting.setdefault(gatys.fitted_shape(job.content.shape, cfg.size), [])
        together.append((order, job))
        if len(together) == at_once:
            make(together, network, params, cfg, settings, devices)
            together.clear()
    for together in waiting.values():
        if together:
            make(together, network, params, cfg, settings, devices)
    return [order.out for order in orders]


def plan(content: Path, styles: tuple[Path, ...], settings: Settings) -> list[Order]:
    """What is to be made of which files. UserError for what cannot be, before anything is read."""
    if not styles:
        raise UserError(f"no style is given: name at least one picture after {content}")
    many_styles = any(style.is_dir() for style in styles)
    if many_styles and len(styles) > 1:
        raise UserError("a folder of styles must be the only STYLE: each picture in it is a style by itself")
    blends = [(file,) for file in files_in(styles[0])] if many_styles else [styles]
    contents = files_in(content) if content.is_dir() else [content]
    for name in ("style_weights", "content_mask", "style_mask"):
        if (given := getattr(settings, name)) and len(given) != len(blends[0]):
            raise UserError(f"{_flag(name)} has {len(given)} values for {len(blends[0])} styles: give one for each")
    for name, least in (("batch", 1), ("save_every", 1), ("seed", 0)):
        if (value := getattr(settings, name)) is not None and value < least:
            raise UserError(f"{_flag(name)} must be at least {least}, got {value}")
    if not content.is_dir() and not many_styles:
        pictures.check_destination(settings.out, pictures.PICTURE_SUFFIXES)
        if settings.animation is not None:
            pictures.check_destination(settings.animation, pictures.VIDEO_SUFFIXES)
        return [Order(content, styles, settings.out)]
    for name in ("animation", "content_mask", "style_mask"):
        if getattr(settings, name):
            raise UserError(f"{_flag(name)} is for a single picture, not for a folder of them")
    orders = []
    for file in contents:
        for blend in blends:
            name = f"{file.stem}-{blend[0].stem}" if many_styles else file.stem
            orders.append(Order(file, blend, settings.out / f"{name}.png"))
    names = [order.out.name for order in orders]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two pictures would be written to {settings.out / twice[0]}: rename one of their files")
    if settings.out.exists() and not settings.out.is_dir():
        raise UserError(f"{settings.out} is a file: for a folder of pictures -o must name a folder")
    settings.out.mkdir(parents=True, exist_ok=True)
    pictures.check_destination(orders[0].out, pictures.PICTURE_SUFFIXES)
    return orders


def load_network(settings: Settings) -> tuple[weights.Network, weights.Params]:
    network, params = weights.load(settings.features)
    network = dataclasses.replace(network, dtype=settings.precision, remat=settings.remat)
    if settings.pooling is not None:
        network = dataclasses.replace(network, pooling=settings.pooling)
    if settings.parallel == "rows":  # what the compiler can cut into rows by itself
        network = dataclasses.replace(network, platform="xla")
    return network, params


def read(order: Order, settings: Settings) -> gatys.Job:
    """The pictures of an order, their colours prepared. Raises UserError."""
    content = pictures.read_picture(order.content)
    try:
        return gatys.Job(
            colours.prepare_content(content, settings.preserve_colors),
            [
                colours.prepare_style(pictures.read_picture(style), content, settings.preserve_colors)
                for style in order.styles
            ],
            settings.style_weights or None,
            [read_mask(mask) for mask in settings.content_mask] or None,
            [read_mask(mask) for mask in settings.style_mask] or None,
            None if settings.init_image is None else pictures.read_picture(settings.init_image),
        )
    except ValueError as error:  # masks that do not fit
        raise UserError(str(error)) from error


def read_mask(path: Path) -> np.ndarray:
    """A picture's brightness, (h, w) from 0 for black to 1 for white."""
    return (pictures.read_picture(path) @ images.LUMA + 1) / 2


def make(
    together: Sequence[tuple[Order, gatys.Job]],
    network: weights.Network,
    params: weights.Params,
    cfg: gatys.Config,
    settings: Settings,
    devices: Sequence[jax.Device],
) -> None:
    """Pictures that come to the same shape, in one program, or in as many as memory asks for. Raises UserError."""
    shape = gatys.fitted_shape(together[0][1].content.shape, cfg.size)
    rows = len(devices) if settings.parallel == "rows" else 1
    try:
        cfg, count = memory.fit(network, cfg, shape, memory.available(devices[0]), rows)
    except memory.DoesNotFitError as error:
        raise UserError(str(error)) from error
    count = min(count * (1 if rows > 1 else len(devices)), len(together))
    if cfg.tile:
        print(f"{shape[1]} x {shape[0]} pixels are made in tiles of {cfg.tile}", file=sys.stderr)
    for i in range(0, len(together), count):
        orders, jobs = zip(*together[i : i + count], strict=True)
        with Journal(cfg, settings, orders) as journal:
            try:
                if count == 1:
                    job = jobs[0]
                    made = [
                        gatys.stylize(
                            jax.random.key(settings.seed),
                            *(job.content, job.styles, cfg, network, params, job.style_weights, job.init_image),
                            lambda progress, journal=journal: journal.record([progress]),
                            *(job.content_masks, job.style_masks),
                            devices if rows > 1 else None,
                        )
                    ]
                else:
                    key = jax.random.key(settings.seed)
                    made = gatys.stylize_many(key, jobs, cfg, network, params, journal.record, devices)
            except ValueError as error:  # pictures too small, a network that cannot be cut
                raise UserError(str(error)) from error
            for order, picture in zip(orders, made, strict=True):
                pictures.write_picture(order.out, journal.finish(order, picture))
        journal.report()


class Journal:
    """The progress bar, the traces, intermediate pictures and the animation of pictures that are made together."""

    def __init__(self, cfg: gatys.Config, settings: Settings, orders: Sequence[Order]):
        self.cfg, self.settings, self.orders = cfg, settings, orders
        self.started = time.perf_counter()
        self.steps: list[list[dict[str, Any]]] = [[] for _ in orders]
        self.resets: list[dict[tuple[int, int], int]] = [{} for _ in orders]  # failed line searches by size
        self.frames: list[np.ndarray] = []
        self.saved = 0
        self.before = [0 for _ in orders]  # evaluations at earlier sizes

    def __enter__(self) -> "Journal":
        from tqdm import tqdm

        self.bar = tqdm(total=100, unit="%", bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def finish(self, order: Order, picture: np.ndarray) -> np.ndarray:
        """A picture as it is to be seen, with the content's colours where they are kept."""
        if self.settings.preserve_colors != "luma":
            return picture
        return colours.finish(picture, pictures.read_picture(order.content), "luma")

    def record(self, progress: list[gatys.Progress]) -> None:
        """The callback of `gatys.stylize_many`."""
        for i, told in enumerate(progress):
            steps = self.steps[i]
            if steps and told.shape not in self.resets[i]:
                self.before[i] = steps[-1]["evaluations"]
            self.resets[i][told.shape] = told.resets
            height, width = told.shape
            for evaluations, loss in told.losses:
                steps.append({"evaluations": self.before[i] + evaluations, "size": [width, height], "loss": loss})
            steps[-1] |= {
                "resets": told.resets,
                "terms": told.terms,
                "seconds": round(time.perf_counter() - self.started, 3),
                "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            }
        (height, width), done = progress[0].shape, self.steps[0][-1]["evaluations"]
        self.bar.n = 100 * progress[0].done
        many = f"{len(progress)} pictures " if len(progress) > 1 else ""
        loss = np.mean([told.losses[-1][1] for told in progress])
        self.bar.set_postfix_str(f"{many}{width}x{height} loss {loss:.4f}")
        if (every := self.settings.save_every) and done >= self.saved + every:
            self.saved = done
            for order, told in zip(self.orders, progress, strict=True):
                folder = order.out.with_suffix(".steps")
                folder.mkdir(exist_ok=True)
                pictures.write_picture(folder / f"{done:06d}.png", self.finish(order, told.image))
        if self.settings.animation is not None:
            self.frames.append(self.finish(self.orders[0], progress[0].image))

    def report(self) -> None:
        """After the pictures: traces, the animation, and a line for the person at the terminal."""
        if self.settings.animation is not None:
            shape = self.frames[-1].shape[:2]
            pictures.write_video(self.settings.animation, [images.resize(f, shape) for f in self.frames], fps=12)
        seconds = time.perf_counter() - self.started
        for order, steps, resets in zip(self.orders, self.steps, self.resets, strict=True):
            if self.settings.trace:
                trace = {
                    "content": str(order.content),
                    "styles": [str(style) for style in order.styles],
                    "config": dataclasses.asdict(self.cfg),
                    "settings": _plain(dataclasses.asdict(self.settings)),
                    "steps": steps,
                }
                with atomic_path(order.out.with_suffix(".json")) as path:
                    path.write_text(json.dumps(trace, indent=1) + "\n")
            last = steps[-1]
            parts = ", ".join(f"{kind} {_total(last['terms'], kind):.4f}" for kind in ("content", "style", "tv"))
            failed = f", line search failed {sum(resets.values())} times" if sum(resets.values()) else ""
            print(
                f"{order.out}: {last['evaluations']} evaluations in {seconds:.0f} s, {parts}{failed}", file=sys.stderr
            )


def _total(terms: dict[str, float], kind: str) -> float:
    return sum(value for name, value in terms.items() if name.startswith(kind))


def _plain(value: Any) -> Any:
    """For JSON."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def files_in(folder: Path) -> list[Path]:
    """Picture files directly in a folder, sorted; UserError if there are none."""
    accepted = pictures.PICTURE_SUFFIXES
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in accepted and path.name[0] != ".")
    if not found:
        raise UserError(f"no pictures in {folder}: accepted are {', '.join(accepted)}")
    return found
