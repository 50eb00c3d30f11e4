"""`ganstyle stylize`: pictures in, pictures out, with a progress bar, a trace and intermediate pictures."""

import concurrent.futures
import dataclasses
import functools
import json
import math
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ganstyle_jax import images, pictures, processes, runs, vgg, weights
from ganstyle_jax.files import UserError, atomic_path
from ganstyle_jax.style import colours, gatys, memory

READING = 40  # bytes of memory for each pixel of a picture that is read, for a moment
STEPS_OF_RUN = 10  # evaluations from one picture in steps/ of a run folder to the next, without --save-every


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which pictures, which features, and what to leave."""

    # what to write: .png, .jpg, .webp, or .tif with 16 bits; a folder where CONTENT or STYLE is a folder
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("stylized.png")
    features: str = "compact"  # network to compare by: a name that `ganstyle weights list` shows, or a file of weights
    pooling: Literal["max", "average"] | None = None  # instead of the network's own; average is smoother
    precision: Literal["float32", "bfloat16"] = "float32"  # of the features; bfloat16 saves memory on GPUs and TPUs
    remat: bool = False  # compute features again rather than keep them: less memory on GPUs and TPUs, a third slower
    style_weights: tuple[float, ...] = ()  # how much each STYLE counts; by default all the same
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
    seed: int = 0  # of the noise that --init noise and style begin with
    # keep the picture in the folder OUT.steps whenever at least so many evaluations have passed
    save_every: int | None = None
    animation: Path | None = None  # film of the optimisation to write, .gif or .mp4
    trace: bool = False  # write OUT.json: settings, and loss, time and memory after each step
    # folder of all there is to know, which `ganstyle report` shows: pictures, settings, losses by term on the way
    run_dir: Path | None = None


@dataclasses.dataclass(frozen=True)
class Order:
    """The files of one picture to make."""

    content: Path
    styles: tuple[Path, ...]
    out: Path

    def __str__(self) -> str:
        return " with ".join(map(str, (self.content, *self.styles)))


@dataclasses.dataclass(frozen=True)
class Piece:
    """An order whose files have been read."""

    order: Order
    content: np.ndarray  # in its own colours
    job: gatys.Job


Read = Callable[[Path], np.ndarray]  # see `read_picture`


def run(content: Path, styles: tuple[Path, ...], cfg: gatys.Config, settings: Settings) -> list[Path]:
    """Makes one picture, or one of each picture in a folder, and returns the files written. Raises UserError.

    All that can be known to be wrong is found before the first picture is begun.
    """
    orders = plan(content, styles, cfg, settings)
    network, params = load_network(cfg, settings)
    if settings.parallel == "rows":
        teams = teams_of(jax.devices(), settings.rows)
    else:  # every process makes its own pictures
        orders = orders[jax.process_index() :: jax.process_count()]
        teams = [jax.local_devices() if settings.parallel == "pictures" else jax.local_devices()[:1]]
    read = functools.cache(read_picture)  # what pictures that are made together share is read once for them
    groups = survey(orders, cfg, network, settings, read if len(orders) == 1 else read_picture)
    ways = {shape: fit(network, cfg, shape, len(group), settings, teams) for shape, group in groups.items()}
    batches: list[tuple[gatys.Config, list[Order]]] = []
    for shape, group in groups.items():
        fitted, count = ways[shape]
        batches += [(fitted, group[i : i + count]) for i in range(0, len(group), count)]

    def work(number: int, stop: threading.Event) -> None:
        for fitted, batch in batches[number :: len(teams)]:
            pieces = [prepare(order, settings, read) for order in batch]
            read.cache_clear()
            make(pieces, network, params, fitted, settings, teams[number], number, stop)

    mine = [i for i, team in enumerate(teams) if any(x.process_index == jax.process_index() for x in team)]
    side_by_side([functools.partial(work, number) for number in mine])
    return [order.out for order in orders]


def teams_of(devices: Sequence[Any], rows: int | None) -> list[Sequence[Any]]:
    """The devices in teams of `rows` neighbours, or in one; UserError where they cannot be cut so."""
    if rows is None:
        return [devices]
    of_process = len(devices) // jax.process_count()
    if rows < 2 or len(devices) % rows or (rows % of_process and of_process % rows):
        each = f", {of_process} of each process" if processes.several() else ""
        raise UserError(f"--rows must be at least 2 and divide the {len(devices)} devices{each}, got {rows}")
    return [devices[i : i + rows] for i in range(0, len(devices), rows)]


def side_by_side(works: Sequence[Callable[[threading.Event], None]]) -> None:
    """Does all of it, each in a thread. What one raises, or Ctrl-C, sets the event, upon which the others must end."""
    stop = threading.Event()
    if len(works) == 1:
        works[0](stop)
        return
    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work, stop) for work in works]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            raise


# ---------------------------------------------------------------------------------------------------------------------
# What is to be made


def plan(content: Path, styles: tuple[Path, ...], cfg: gatys.Config, settings: Settings) -> list[Order]:
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
    check_numbers(settings, len(blends[0]))
    if not content.is_dir() and not many_styles:
        orders = [Order(content, styles, settings.out)]
        check_destination(settings.out, cfg)
        if settings.animation is not None:
            pictures.check_destination(settings.animation, pictures.VIDEO_SUFFIXES)
        if settings.run_dir is not None and (settings.run_dir / "run.json").exists():
            raise UserError(f"{settings.run_dir} already holds a run: choose another --run-dir")
    else:
        for name in ("animation", "run_dir", "content_mask", "style_mask"):
            if getattr(settings, name):
                raise UserError(f"{_flag(name)} is for a single picture, not for a folder of them")
        orders = []
        for file in files_in(content) if content.is_dir() else [content]:
            for blend in blends:
                name = f"{file.stem}-{blend[0].stem}" if many_styles else file.stem
                orders.append(Order(file, blend, settings.out / f"{name}.png"))
        check_folder(settings.out, [order.out.name for order in orders])
    given = {file.resolve() for order in orders for file in (order.content, *order.styles)}
    given |= {file.resolve() for file in others}
    makers: dict[Path, Order] = {}
    for order in orders:
        if order.out in makers:
            raise UserError(f"{makers[order.out]} and {order} would both become {order.out}: rename one of the files")
        if order.out.resolve() in given:
            raise UserError(f"{order.out} would be written over one of the given pictures: choose another -o")
        makers[order.out] = order
    return orders


def check_numbers(settings: Settings, styles: int) -> None:
    """UserError for settings that are out of range or not as many as there are styles."""
    for name in ("style_weights", "content_mask", "style_mask"):
        if (given := getattr(settings, name)) and len(given) != styles:
            raise UserError(f"{_flag(name)} must be given once for each style: there are {styles}, got {len(given)}")
    if settings.style_weights:
        finite = all(0 <= weight < math.inf for weight in settings.style_weights)
        if not finite or not sum(settings.style_weights) > 0:
            listed = " ".join(f"{weight:g}" for weight in settings.style_weights)
            raise UserError(f"--style-weights must be 0 or more, one of them more, got {listed}")
    if settings.rows is not None and settings.parallel != "rows":
        raise UserError(f"--rows belongs to --parallel rows, got {settings.rows} with --parallel {settings.parallel}")
    for name, least, most in (("batch", 1, math.inf), ("save_every", 1, math.inf), ("seed", 0, 2**32 - 1)):
        if (value := getattr(settings, name)) is not None and not least <= value <= most:
            accepted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"{_flag(name)} must be {accepted}, got {value}")


def check_destination(out: Path, cfg: gatys.Config) -> None:
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


def files_in(folder: Path) -> list[Path]:
    """Picture files directly in a folder, sorted; UserError if there are none."""
    accepted = pictures.PICTURE_SUFFIXES
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in accepted and path.name[0] != ".")
    if not (found := [path for path in files if path.is_file()]):
        raise UserError(f"no pictures in {folder}: accepted are {', '.join(accepted)}")
    return found


def load_network(cfg: gatys.Config, settings: Settings) -> tuple[vgg.Network, weights.Params]:
    """The features to compare by, computed as the settings ask. UserError where they are not to be had."""
    network, params = weights.load_for_style(settings.features)
    try:
        network.check(cfg.layers)
    except ValueError as error:
        raise UserError(
            f"{settings.features} does not fit --content-layers {' '.join(cfg.content_layers)} and --style-layers "
            f"{' '.join(cfg.style_layers)}: {error}"
        ) from error
    network = dataclasses.replace(network, dtype=settings.precision, remat=settings.remat)
    if settings.pooling is not None:
        network = dataclasses.replace(network, pooling=settings.pooling)
    if settings.parallel == "rows":  # what the compiler can cut into rows by itself
        network = dataclasses.replace(network, platform="xla")
    return network, params


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_picture(path: Path) -> np.ndarray:
    """As `pictures.read_picture`, of no more pixels than there is memory for."""
    free = memory.free_on_host()
    room = free // READING
    if room >= pictures.MAX_PIXELS:
        return pictures.read_picture(path)
    return pictures.read_picture(path, room, f" with {memory.gigabytes(free)} of free memory")


def survey(
    orders: Sequence[Order], cfg: gatys.Config, network: vgg.Network, settings: Settings, read: Read
) -> dict[tuple[int, int], list[Order]]:
    """Orders by the shape of what is to be made, which can be made together.

    Reads all pictures, so that a bad one is found before hours are spent on others. Raises UserError.
    """
    others = [*(style for order in orders for style in order.styles), settings.init_image]
    for path in dict.fromkeys(path for path in others if path is not None):
        read(path)
    shapes: dict[Path, tuple[int, int]] = {}
    for path in dict.fromkeys(order.content for order in orders):
        shapes[path] = gatys.fitted_shape(read(path).shape, cfg.size)
        try:
            gatys.shapes_of(shapes[path], cfg, network)
        except ValueError as error:
            raise UserError(f"{path} at --size {cfg.size}: {error}") from error
    groups: dict[tuple[int, int], list[Order]] = {}
    for order in orders:
        groups.setdefault(shapes[order.content], []).append(order)
    return groups


def prepare(order: Order, settings: Settings, read: Read) -> Piece:
    """The pictures of an order, their colours prepared. Raises UserError."""
    content, how = read(order.content), settings.preserve_colors
    styles = [colours.prepare_style(read(style), content, how) for style in order.styles]
    job = gatys.Job(
        colours.prepare_content(content, how),
        styles,
        settings.style_weights or None,
        [read_mask(mask, order.content, read) for mask in settings.content_mask] or None,
        [read_mask(mask, style, read) for mask, style in zip(settings.style_mask, order.styles, strict=False)] or None,
        None if settings.init_image is None else read(settings.init_image),
    )
    return Piece(order, content, job)


def read_mask(path: Path, of: Path, read: Read) -> np.ndarray:
    """The brightness of a mask, (h, w) from 0 for black to 1 for white. of: its picture. Raises UserError."""
    mask, (height, width) = read(path), read(of).shape[:2]
    if mask.shape[:2] != (height, width):
        raise UserError(
            f"{path} has {mask.shape[1]} x {mask.shape[0]} pixels: a mask must have as many as its picture {of}, "
            f"{width} x {height}"
        )
    mask = np.clip((mask @ images.LUMA + 1) / 2, 0, 1).astype(np.float32)
    if mask.max() < 1 / 510:  # half a level of 8 bits: black is not exactly 0 after rounding
        raise UserError(f"{path} is black all over, so that this mask covers nothing: paint white what it is to cover")
    return mask


# ---------------------------------------------------------------------------------------------------------------------
# Making


def fit(
    network: vgg.Network,
    cfg: gatys.Config,
    shape: tuple[int, int],
    count: int,
    settings: Settings,
    teams: Sequence[Sequence[Any]],
) -> tuple[gatys.Config, int]:
    """The configuration for `count` images of (h, w), in tiles if need be, and how many a team makes at once."""
    rows = len(teams[0]) if settings.parallel == "rows" else 1
    used = [device for team in teams for device in team] if rows > 1 else teams[0][:count]
    try:
        here = [device for device in used if device.process_index == jax.process_index()]
        free = memory.available(here)
        if rows > 1:  # all processes must come to the same conclusion
            free = processes.decided_by_first(lambda: free >> 20) << 20
        fitted, each = memory.fit(network, cfg, shape, free, rows, regions=len(settings.content_mask))
    except (memory.DoesNotFitError, ValueError) as error:
        raise UserError(str(error)) from error
    if fitted.tile != cfg.tile:
        print(
            f"{shape[1]} x {shape[0]} pixels do not fit into memory in one piece: made in tiles of {fitted.tile}",
            file=sys.stderr,
        )
    return fitted, 1 if rows > 1 else min(each, settings.batch) * len(used)


def make(
    pieces: Sequence[Piece],
    network: vgg.Network,
    params: weights.Params,
    cfg: gatys.Config,
    settings: Settings,
    devices: Sequence[Any],
    team: int,
    stop: threading.Event,
) -> None:
    """Pictures that come to the same shape, in one program, and the files of each.

    team: the number of these devices, for the place of the progress bar. stop: set where nobody wants them any more.
    """
    key = jax.random.key(settings.seed)
    # Of a picture that processes share, one writes.
    writes = devices[0].process_index == jax.process_index()

    def record(progress: list[gatys.Progress]) -> None:
        if stop.is_set():
            raise RuntimeError("another picture has failed")
        journal.record(progress)

    with Journal(cfg, settings, pieces, writes, team) as journal:
        if len(pieces) == 1:
            job = pieces[0].job
            made = [
                gatys.stylize(
                    key,
                    *(job.content, job.styles, cfg, network, params, job.style_weights, job.init_image),
                    lambda progress: record([progress]),
                    *(job.content_masks, job.style_masks),
                    devices if settings.parallel == "rows" else None,
                    settings.run_dir is not None,
                )
            ]
        else:
            jobs = [piece.job for piece in pieces]
            made = gatys.stylize_many(key, jobs, cfg, network, params, record, devices[: len(jobs)])
    journal.write(made)


class Journal:
    """The progress bar while pictures are made together, and all files that are written of them."""

    def __init__(
        self, cfg: gatys.Config, settings: Settings, pieces: Sequence[Piece], writes: bool = True, place: int = 0
    ):
        self.cfg, self.settings, self.pieces, self.writes, self.place = cfg, settings, pieces, writes, place
        self.started = time.perf_counter()
        self.steps: list[list[dict[str, Any]]] = [[] for _ in pieces]
        self.resets: list[dict[tuple[int, int], int]] = [{} for _ in pieces]  # failed line searches by size
        self.before = [0 for _ in pieces]  # evaluations at earlier sizes
        self.own = [piece.content for piece in pieces]  # the contents, at the present size where that was asked for
        self.frames: list[np.ndarray] = []
        self.saved = self.kept = 0  # evaluations at the last picture in OUT.steps and in the run folder

    def __enter__(self) -> "Journal":
        from tqdm import tqdm

        shown = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=100, unit="%", bar_format=shown, position=self.place, disable=not self.writes)
        if self.settings.run_dir is not None and self.writes:
            begin_run(self.settings.run_dir, self.pieces[0], self.cfg, self.settings)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def record(self, progress: list[gatys.Progress]) -> None:
        """The callback of `gatys.stylize_many`."""
        if not self.writes:
            return
        for i, told in enumerate(progress):
            self._log(i, told)
        (height, width), done = progress[0].shape, min(steps[-1]["evaluations"] for steps in self.steps)
        loss = np.mean([steps[-1]["loss"] for steps in self.steps])
        many = f"{len(progress)} pictures " if len(progress) > 1 else ""
        self.bar.n = 100 * progress[0].done
        self.bar.set_postfix_str(f"{many}{width}x{height} loss {loss:.4f}")
        if (every := self.settings.save_every) and done >= self.saved + every:
            self.saved = done
            for i, (piece, told) in enumerate(zip(self.pieces, progress, strict=True)):
                folder = piece.order.out.with_suffix(".steps")
                folder.mkdir(parents=True, exist_ok=True)
                pictures.write_picture(folder / f"{done:06d}.png", self._coloured(i, told.image))
        if self.settings.animation is not None:
            self._film(progress[0].image)
        if self.settings.run_dir is not None:
            self._continue_run(self.settings.run_dir, progress[0])

    def _continue_run(self, folder: Path, told: gatys.Progress) -> None:
        """A line of metrics.jsonl for each step since the last call, and now and then the picture as it is."""
        new = self.steps[0][-len(told.losses) :] if told.losses else []
        with open(folder / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(metrics_line(step)) + "\n" for step in new)
        done = self.steps[0][-1]["evaluations"]
        if done >= self.kept + (self.settings.save_every or STEPS_OF_RUN) or told.done == 1:
            self.kept = done
            pictures.write_picture(folder / "steps" / f"{done:06d}.png", self._coloured(0, told.image))

    def _log(self, i: int, told: gatys.Progress) -> None:
        """Notes the steps of a picture since the last call; none where it waits for the others."""
        steps, (height, width) = self.steps[i], told.shape
        if steps and told.shape not in self.resets[i]:
            self.before[i] = steps[-1]["evaluations"]
        self.resets[i][told.shape] = told.resets
        for evaluations, loss in told.losses:
            steps.append({"evaluations": self.before[i] + evaluations, "size": [width, height], "loss": loss})
        steps[-1] |= {
            "resets": told.resets,
            "terms": told.terms,
            "seconds": round(time.perf_counter() - self.started, 3),
            "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }

    def _coloured(self, i: int, picture: np.ndarray) -> np.ndarray:
        """A picture as it is to be seen, with the content's colours where they are kept."""
        if self.settings.preserve_colors != "luma":
            return picture
        if self.own[i].shape != picture.shape:
            self.own[i] = images.resize(self.pieces[i].content, picture.shape[:2])
        return colours.finish(picture, self.own[i], "luma")

    def _film(self, picture: np.ndarray) -> None:
        shape = gatys.fitted_shape(self.pieces[0].content.shape, self.cfg.size)
        self.frames.append(images.to_uint8(images.resize(self._coloured(0, picture), shape)))

    def write(self, made: Sequence[np.ndarray]) -> None:
        """The pictures, then what was asked for beside them, and a line for the person at the terminal."""
        if not self.writes:
            return
        for i, (piece, picture) in enumerate(zip(self.pieces, made, strict=True)):
            piece.order.out.parent.mkdir(parents=True, exist_ok=True)
            pictures.write_picture(piece.order.out, self._coloured(i, picture))
        if self.settings.animation is not None:
            if not self.frames:
                self._film(made[0])
            pictures.write_video(self.settings.animation, self.frames, fps=12)
        if self.settings.run_dir is not None:
            pictures.write_picture(self.settings.run_dir / "result.png", self._coloured(0, made[0]))
        seconds = time.perf_counter() - self.started
        for i, piece in enumerate(self.pieces):
            if self.settings.trace:
                self._write_trace(i, piece.order)
            print(f"{piece.order.out}: {self._summary(i)} in {seconds:.0f} s", file=sys.stderr)

    def _write_trace(self, i: int, order: Order) -> None:
        trace = {
            "content": str(order.content),
            "styles": [str(style) for style in order.styles],
            "config": dataclasses.asdict(self.cfg),
            "settings": _plain(dataclasses.asdict(self.settings)),
            "steps": self.steps[i],
        }
        with atomic_path(order.out.with_suffix(".json")) as path:
            path.write_text(json.dumps(trace, indent=1) + "\n")

    def _summary(self, i: int) -> str:
        if not self.steps[i]:  # --steps 1: the one evaluation tells where to go, and there it ends
            return "no step"
        last, failed = self.steps[i][-1], sum(self.resets[i].values())
        totals: dict[str, float] = {}
        for name, value in last["terms"].items():
            kind = name.split("/")[0]
            totals[kind] = totals.get(kind, 0.0) + value
        parts = ", ".join(f"{kind} {total:.4f}" for kind, total in totals.items())
        failures = f", line search failed {failed} times" if failed else ""
        return f"{parts} after {last['evaluations']} evaluations{failures}"


# ---------------------------------------------------------------------------------------------------------------------
# The run folder: run.json as in runs.py; content.png, style-1.png ... as they are compared at the full size;
# metrics.jsonl, a line for each step; steps/NNNNNN.png by evaluations; result.png, written last


def begin_run(folder: Path, piece: Piece, cfg: gatys.Config, settings: Settings) -> None:
    """All of a run folder that is known before the first step."""
    order = piece.order
    described = {
        "method": "gatys",
        "config": _plain(dataclasses.asdict(cfg)),
        "data": str(order.content),
        "loop": {"styles": [str(style) for style in order.styles]} | _plain(dataclasses.asdict(settings)),
    }
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    runs.write(folder, gatys, described | runs.surroundings())
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    shown = {"content": piece.content} | {f"style-{i}": style for i, style in enumerate(piece.job.styles, start=1)}
    for name, picture in shown.items():
        longer = cfg.size * (1 if name == "content" else cfg.style_scale)
        small = images.resize(picture, gatys.fitted_shape(picture.shape, longer))
        pictures.write_picture(folder / f"{name}.png", np.clip(small, -1, 1))


def metrics_line(step: dict[str, Any]) -> dict[str, Any]:
    """A step of a trace as a line of metrics.jsonl, where every number has a name of its own."""
    kept = {name: value for name, value in step.items() if name not in ("evaluations", "terms")}
    return {"step": step["evaluations"]} | kept | step.get("terms", {})


def _plain(value: Any) -> Any:
    """For JSON."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
