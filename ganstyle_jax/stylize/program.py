"""`ganstyle stylize`: pictures in, pictures out.

orders.py   the settings, and which pictures are to be made of which files
reading.py  the files are read, and all that is wrong with them is found before anything is made
resume.py   where unfinished work is kept, and gone on with from
journal.py  what is seen and written meanwhile and at the end: film.py, trace.py, run_folder.py
"""

import concurrent.futures
import copy
import dataclasses
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from ganstyle_jax.control import Advanced, Control, Done, Event, heeding_signals
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.features.image_layers import Padding
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import processes, runs
from ganstyle_jax.loop.checkpoints import digest
from ganstyle_jax.style import colours, gatys, memory
from ganstyle_jax.stylize import resume, run_folder
from ganstyle_jax.stylize.journal import Journal
from ganstyle_jax.stylize.orders import Order, Settings, files_in, plan
from ganstyle_jax.stylize.reading import READING, Kind, Piece, prepare, read_mask, read_picture, survey

__all__ = ["READING", "Journal", "Order", "Piece", "Settings", "files_in", "read_mask", "read_picture", "run"]


def run(
    content: Path | str,
    styles: Sequence[Path | str] | Path | str,
    cfg: gatys.Config,
    settings: Settings,
    control: Control | None = None,
) -> list[Path]:
    """Makes one picture, or one of each picture in a folder, and returns the files written. Raises UserError.

    All that can be known to be wrong is found before the first picture is begun. control: pauses and stops it, and
    hears of it all. Stopped, what is under way is written as it is by then, beside the name that was asked for
    (`Order.stopped`), and the rest is not begun. A signal stops it too, and then this ends in SystemExit with 128 and
    the signal's number, as shells have it; after a `control.stop()` without one it returns.
    """
    control = Control() if control is None else control
    styles = (styles,) if isinstance(styles, (str, Path)) else styles
    orders = plan(Path(content), tuple(map(Path, styles)), cfg, settings)
    network, params = load_network(cfg, settings)
    if settings.parallel == "rows":
        teams = teams_of(jax.devices(), settings.rows)
    else:  # every process makes its own pictures
        orders = orders[jax.process_index() :: jax.process_count()]
        teams = [jax.local_devices() if settings.parallel == "pictures" else jax.local_devices()[:1]]
    cfg = in_grey(cfg, settings)
    read = functools.cache(read_picture)  # what pictures that are made together share is read once for them
    groups = survey(orders, cfg, network, settings, read if len(orders) == 1 else read_picture)
    if settings.resume and processes.several():
        raise UserError("--resume is for one process, not for several that share the work")
    features = digest((repr(network), params)) if settings.resume else ""
    ways = {kind: fit(network, cfg, kind, len(group), settings, teams) for kind, group in groups.items()}
    batches: list[tuple[gatys.Config, list[Order]]] = []
    for kind, group in groups.items():
        fitted, count = ways[kind]
        batches += [(fitted, group[i : i + count]) for i in range(0, len(group), count)]
    whole = Whole(control, len(orders), cfg.evaluations)

    def work(number: int, failed: threading.Event) -> None:
        for fitted, batch in batches[number :: len(teams)]:
            pieces = [prepare(order, settings, read) for order in batch]
            read.cache_clear()
            part = whole.part(len(batch), failed)
            whole.written += make(pieces, network, params, fitted, settings, teams[number], number, part, features)
            if whole.stopped:
                return

    mine = [i for i, team in enumerate(teams) if any(x.process_index == jax.process_index() for x in team)]
    with heeding_signals(control, "keeping what there is of the picture"):
        side_by_side([functools.partial(work, number) for number in mine])
    if settings.resume and not whole.stopped:
        for order in orders:
            resume.path_of(order).unlink(missing_ok=True)
    control.tell(Done(whole.steps, whole.stopped))
    if whole.stopped and control.signal:
        raise SystemExit(128 + control.signal)
    return whole.written if whole.stopped else [order.out for order in orders]


class Whole:
    """All pictures of a command, for whoever waits for them: pictures that are made together are a part of it."""

    def __init__(self, control: Control, pictures: int, each: int):
        self.control, self.total, self.each = control, pictures * each, each  # evaluations of a picture
        self.steps, self.stopped = 0, False  # of the parts that have ended
        self.written: list[Path] = []
        self._done: list[int] = []  # evaluations of each part
        self._lock = threading.Lock()  # teams of devices work side by side

    def part(self, pictures: int, failed: threading.Event) -> Control:
        """A control with the same wishes, whose events are told as those of a part of so many pictures.

        failed: set where nobody wants the pictures any more.
        """
        with self._lock:
            number = len(self._done)
            self._done.append(0)

        def hear(event: Event) -> None:
            if failed.is_set():
                raise RuntimeError("another picture has failed")
            with self._lock:
                if isinstance(event, Done):
                    self.steps += event.step
                    self.stopped |= event.stopped
                elif isinstance(event, Advanced):
                    self._done[number] = pictures * self.each * event.done // event.total
                    self.control.tell(Advanced(sum(self._done), self.total))
                else:
                    self.control.tell(event)

        part = copy.copy(self.control)  # shares what carries the wishes
        part.listeners = [hear]
        return part


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
# Making


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
    if settings.padding is not None:
        network = padded(network, settings.padding)
    if settings.parallel == "rows":  # what the compiler can cut into rows by itself
        network = dataclasses.replace(network, platform="xla")
    return network, params


def in_grey(cfg: gatys.Config, settings: Settings) -> gatys.Config:
    """With as much style as what has luma alone needs, where that is wanted."""
    if settings.preserve_colors != "luma":
        return cfg
    return dataclasses.replace(cfg, style_weight=cfg.style_weight * colours.LUMA_STYLE)


def padded(network: vgg.Network, padding: Padding) -> vgg.Network:
    """The same network with other borders of all convolutions that keep the size."""
    changed = {"padding": padding} | ({"first_padding": None} if isinstance(network, vgg.VGG) else {})
    return dataclasses.replace(network, **changed)


def fit(
    network: vgg.Network,
    cfg: gatys.Config,
    kind: Kind,
    count: int,
    settings: Settings,
    teams: Sequence[Sequence[Any]],
) -> tuple[gatys.Config, int]:
    """The configuration for `count` images of a kind, in tiles if need be, and how many a team makes at once."""
    rows = len(teams[0]) if settings.parallel == "rows" else 1
    used = [device for team in teams for device in team] if rows > 1 else teams[0][:count]
    try:
        here = [device for device in used if device.process_index == jax.process_index()]
        free = memory.available(here)
        if rows > 1:  # all processes must come to the same conclusion
            free = processes.decided_by_first(lambda: free >> 20) << 20
        regions = max(len(settings.content_mask), int(kind.transparent))
        fitted, each = memory.fit(network, cfg, kind.shape, free, rows, regions)
    except (memory.DoesNotFitError, ValueError) as error:
        raise UserError(str(error)) from error
    if fitted.tile != cfg.tile:
        height, width = kind.shape
        print(
            f"{width} x {height} pixels do not fit into memory in one piece: made in tiles of {fitted.tile}",
            file=sys.stderr,
        )
    return fitted, 1 if rows > 1 or settings.resume else min(each, settings.batch) * len(used)


def make(
    pieces: Sequence[Piece],
    network: vgg.Network,
    params: weights.Params,
    cfg: gatys.Config,
    settings: Settings,
    devices: Sequence[Any],
    team: int,
    control: Control,
    features: str = "",
) -> list[Path]:
    """Pictures that come to the same shape, in one program, and the files of each, of which the pictures are returned.

    team: the number of these devices, for the place of the progress bar. control: of this part of the work alone.
    features: a digest of them, for `--resume`.
    """
    keeper, found = None, None
    if settings.resume:
        (piece,) = pieces
        of = resume.identity(piece.job, features, settings.seed, cfg)
        keeper = resume.Keeper(resume.path_of(piece.order), of, control, cfg.tile)
        found = keeper.found(settings.allow_changes)
        if found is not None and found.done and piece.order.out.exists():
            print(f"{piece.order.out}: was done before", file=sys.stderr)
            return [piece.order.out]
        if found is not None and not found.done:  # memory may have been another when it was begun
            cfg, keeper.tile = dataclasses.replace(cfg, tile=found.tile), found.tile
    key = jax.random.key(settings.seed)
    # Of a picture that processes share, one writes.
    writes = devices[0].process_index == jax.process_index()
    if settings.run_dir is not None and writes:
        described = run_folder.described(pieces[0], cfg, settings) | runs.surroundings()
        run_folder.write_inputs(settings.run_dir, pieces[0], cfg)
        runs.write(settings.run_dir, gatys, described)
    with Journal(cfg, settings, pieces, writes, team) as journal, resume.in_words(keeper):
        control.listeners.insert(0, journal.hear)
        told: dict[str, Any] = {"control": control, "tell_every": journal.tell_every}
        if keeper is not None:
            keeper.notes, told["keep"] = journal.traces[0].notes, keeper.keep
            if found is not None and not found.done:
                journal.traces[0].restore(found.notes)
                told |= {"state": found.arrays, "turned": found.turned}
        if len(pieces) == 1:
            job = pieces[0].job
            made = [
                gatys.stylize(
                    *(key, job.content, job.styles, cfg, network, params, job.style_weights, job.init_image),
                    content_masks=job.content_masks,
                    style_masks=job.style_masks,
                    opaque=job.opaque,
                    style_layers=job.style_layers,
                    devices=devices if settings.parallel == "rows" else None,
                    detailed=settings.run_dir is not None,
                    **told,
                )
            ]
        else:
            jobs = [piece.job for piece in pieces]
            made = gatys.stylize_many(key, jobs, cfg, network, params, devices=devices[: len(jobs)], **told)
        written = journal.write(made)
        if keeper is not None and not journal.stopped:
            keeper.finish()
        return written
