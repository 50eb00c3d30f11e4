"""`ganstyle stylize FILM.mp4 PAINTING -o out.mp4`: a film, frame by frame, each painted over the one before.

The first frame of a scene is painted as a picture is. Each further one begins with the result of the frame before,
moved along the optical flow, is held to it where the flow can be trusted, and so takes fewer evaluations (Ruder,
Dosovitskiy & Brox 2016, arXiv:1604.08610). Where the flow cannot be trusted it begins with the frame itself.

flow.py      in style/: what moves where, and where that is certain
frames.py    painted frames are kept in a folder, from which a film that was killed goes on
io/films.py  frames and sound, in and out

Differs from the paper: only the frame before counts, not those two or four back, and there are no passes backwards.
"""

import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganstyle_jax.control import Advanced, Control, Done, Event, Pictures, heeding_signals
from ganstyle_jax.data.fitting import to_float
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import films, images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import processes
from ganstyle_jax.loop.checkpoints import digest
from ganstyle_jax.style import colours, flow, gatys
from ganstyle_jax.stylize import frames as folder_of
from ganstyle_jax.stylize.orders import Settings, check_numbers
from ganstyle_jax.stylize.program import fit, in_grey, load_network
from ganstyle_jax.stylize.reading import Kind, read_mask, read_picture

FILM_OR_PICTURE = (".gif", ".apng")  # a film if one is to be written
FOR_PICTURES = ("content_mask", "init_image", "animation", "save_every", "trace", "run_dir", "rows", "allow_changes")


@dataclasses.dataclass(frozen=True)
class Carried:
    """What a frame takes over from the one before."""

    previous: np.ndarray  # (h, w, 3) the result of that one, as it would look in this
    trusted: np.ndarray  # (h, w) from 0 to 1, where this is so


Paint = Callable[[np.ndarray, Carried | None], np.ndarray | None]  # a frame to its result; None where it was stopped


def is_film(content: Path, out: Path) -> bool:
    """Whether these files make it a film; of pictures that move it is one if a film is to be written."""
    kind, wanted = content.suffix.lower(), out.suffix.lower()
    return not content.is_dir() and (
        kind in films.FILM_SUFFIXES or (kind in FILM_OR_PICTURE and wanted in films.FILM_SUFFIXES)
    )


def run(
    content: Path | str,
    styles: Sequence[Path | str] | Path | str,
    cfg: gatys.Config,
    settings: Settings,
    control: Control | None = None,
) -> list[Path]:
    """Makes the film, and returns its file, or nothing where it was stopped before its end. Raises UserError.

    Killed or stopped at any moment, it goes on with `settings.resume`, and the film is the same. Signals, pauses and
    stops are heeded as by `program.run`; control hears of `Advanced` in frames, and of each frame.
    """
    control = Control() if control is None else control
    content = Path(content)
    files = tuple(map(Path, (styles,) if isinstance(styles, (str, Path)) else styles))
    check(content, files, cfg, settings)
    film = films.read_film(content)
    network, params = load_network(cfg, settings)
    cfg = in_grey(cfg, settings)
    shape = gatys.fitted_shape(film.shape, cfg.size)
    try:
        gatys.shapes_of(shape, cfg, network)
    except ValueError as error:
        raise UserError(f"{content} at --size {cfg.size}: {error}") from error
    pictures = [read_picture(file) for file in files]
    masks = [read_mask(mask, file, read_picture) for mask, file in zip(settings.style_mask, files, strict=False)]
    cfg, _ = fit(network, cfg, Kind(shape, transparent=False), 1, settings, [jax.local_devices()[:1]])
    first = next(film.frames()).pixels  # what is to have a frame's colours is to have the same ones all along
    pictures = [colours.prepare_style(picture, first, settings.preserve_colors) for picture in pictures]
    painter = Painter(cfg, network, params, settings, pictures, masks or None, control)
    description = described(film, files, params, cfg, settings)
    place = settings.out.with_suffix(".frames")
    started, replaced, damage = time.perf_counter(), settings.out.exists(), []
    heeding = heeding_signals(control, "leaving the frame under way, keeping those before it")
    with folder_of.opened(place, description, settings.resume, control.stop) as frames, heeding:
        spans = paint_all(film, shape, painter, frames, control, damage)
        if spans is not None:
            pixels = (frames.read(number) for number in range(1, frames.painted + 1))
            films.write_film(settings.out, film, zip(pixels, spans, strict=True))
            if not settings.keep_frames:
                frames.remove()
    for what in damage:
        print(f"{content} is damaged: {what}", file=sys.stderr)
    control.tell(Done(frames.painted, spans is None))
    if spans is None:
        said = f"{settings.out}: stopped after {frames.painted} frames, kept in {place}: --resume goes on with them"
        print(said if frames.painted else f"{settings.out}: stopped before its first frame", file=sys.stderr)
        if control.signal:
            raise SystemExit(128 + control.signal)
        return []
    old = "; the old file is replaced" if replaced else ""
    seconds = time.perf_counter() - started
    print(f"{settings.out}: {len(spans)} frames, {painter.said()} in {seconds:.0f} s{old}", file=sys.stderr)
    return [settings.out]


def check(content: Path, styles: Sequence[Path], cfg: gatys.Config, settings: Settings) -> None:
    """UserError for what cannot be, before anything is read."""
    if not styles:
        raise UserError(f"no style is given: name at least one picture after {content}")
    others = [*styles, *settings.style_mask]
    if missing := [str(file) for file in (content, *others) if not file.exists()]:
        raise UserError(f"there is no file {' and no '.join(missing)}")
    for style in styles:
        if style.is_dir():
            raise UserError(f"a film is painted in the manner of pictures, and {style} is a folder: name pictures")
        if style.suffix.lower() in films.FILM_SUFFIXES:
            raise UserError(f"{style} is a film: films are painted one by one, in the manner of pictures")
    for name in FOR_PICTURES:
        if getattr(settings, name):
            raise UserError(f"--{name.replace('_', '-')} is for a picture, and {content} is a film: leave it out")
    if settings.parallel == "rows" or processes.several():
        raise UserError(f"{content} is a film, whose frames are made one after the other, on one device of one process")
    check_numbers(settings, len(styles), cfg)
    films.check_film_destination(settings.out)
    if settings.out.resolve() in {file.resolve() for file in (content, *others)}:
        raise UserError(f"{settings.out} would be written over one of the given files: choose another -o")
    flow.check_available()


def described(
    film: films.Film, styles: Sequence[Path], params: weights.Params, cfg: gatys.Config, settings: Settings
) -> dict[str, object]:
    """What decides how the frames look, which film.json keeps."""
    names = ("features", "pooling", "precision", "style_weights", "style_layers_of", "preserve_colors", "seed")
    return {
        "film": folder_of.sum_of_file(film.path),
        "styles": [folder_of.sum_of_file(style) for style in styles],
        "style_masks": [folder_of.sum_of_file(mask) for mask in settings.style_mask],
        "weights": digest(params),
        "config": cfg,
        "settings": {name: getattr(settings, name) for name in (*names, "frame_steps")},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Frame by frame


def paint_all(
    film: films.Film,
    shape: tuple[int, int],
    paint: Paint,
    frames: folder_of.Frames,
    control: Control,
    damage: list[str],
) -> list[films.Span] | None:
    """Paints the frames that are not in the folder yet; when each is shown, or None where it was stopped.

    shape: (h, w) of the results. damage: takes what is found to be wrong with the film.
    """
    from tqdm import tqdm

    spans: list[films.Span] = []
    before: tuple[np.ndarray, np.ndarray] | None = None  # the frame before, and its result
    done, total = frames.painted, film.count
    with tqdm(total=total, initial=done, unit="frame") as bar:
        for number, frame in enumerate(film.frames(damage), start=1):
            spans.append(frame.span)
            if number < done:
                continue
            content = np.clip(images.resize(frame.pixels, shape), -1, 1)
            if number > done:
                result = None if control.stopping else paint(content, carried(content, before))
                if result is None:
                    return None
                result = frames.add(result)
                bar.update()
                control.tell(Pictures(number, result[None]))
                control.tell(Advanced(number, max(number, total or 0)))
            else:
                result = to_float(frames.read(number))
            before = content, result
    if len(spans) < frames.painted:
        raise UserError(f"{frames.folder} holds {frames.painted} frames, and {film.path} has {len(spans)}: remove it")
    return spans


def carried(content: np.ndarray, before: tuple[np.ndarray, np.ndarray] | None) -> Carried | None:
    """What is taken over from the frame before, of which there are itself and its result; None for a new scene."""
    if before is None:
        return None
    earlier, result = before
    backward, forward = flow.flow(content, earlier), flow.flow(earlier, content)
    trusted = flow.trusted(backward, forward)
    if flow.seen_again(content, earlier, backward, trusted) < flow.CUT:
        return None
    return Carried(flow.warp(result, backward), trusted)


class Painter:
    """Paints a frame: as a picture by itself, or over what it takes over. All else is the same for all frames."""

    def __init__(
        self,
        cfg: gatys.Config,
        network: vgg.Network,
        params: weights.Params,
        settings: Settings,
        styles: Sequence[np.ndarray],
        style_masks: Sequence[np.ndarray] | None,
        control: Control,
    ):
        self.cfg, self.network, self.params, self.settings = cfg, network, params, settings
        self.styles, self.style_masks, self.control = styles, style_masks, control
        self.later = dataclasses.replace(cfg, smallest=cfg.size, steps=min(settings.frame_steps, cfg.steps))
        # What has come into sight is painted from coarse to fine too, or it would stay a photograph.
        self.uncovered = dataclasses.replace(
            self.later, size=max(1, cfg.size // 2), smallest=min(cfg.smallest, max(1, cfg.size // 2)), factor=2
        )
        self.scenes, self.frames = 0, 0

    def __call__(self, content: np.ndarray, start: Carried | None) -> np.ndarray | None:
        """(h, w, 3) float32 in [-1, 1] to its result, of the same shape; None where it was stopped meanwhile."""
        how = self.settings.preserve_colors
        seen = colours.prepare_content(content, how)
        if start is None:
            made = self._optimised(seen, self.cfg)
        else:
            previous = colours.prepare_content(start.previous, how)
            held, share = {"previous": previous, "trusted": start.trusted}, start.trusted[..., None]
            new = np.clip(colours.match_linear(seen, previous), -1, 1)  # in the colours of what is painted already
            if self._large_enough(content.shape):
                found = self._optimised(seen, self.uncovered, init_image=share * previous + (1 - share) * new, **held)
                if found is None:
                    return None
                new = np.clip(images.resize(found, content.shape[:2]), -1, 1)
            made = self._optimised(seen, self.later, init_image=share * previous + (1 - share) * new, **held)
        if made is None:
            return None
        self.scenes += start is None
        self.frames += 1
        return np.clip(colours.finish(made, content, how), -1, 1)

    def _large_enough(self, shape: Sequence[int]) -> bool:
        """Whether a picture of half the size says something of how one of that shape is to be painted."""
        try:
            gatys.shapes_of(shape, self.uncovered, self.network)
        except ValueError:
            return False
        return self.cfg.size // 2 >= self.cfg.smallest

    def _optimised(self, content: np.ndarray, cfg: gatys.Config, **more: Any) -> np.ndarray | None:
        """`gatys.stylize`; None where it was stopped."""
        stopped: list[bool] = []

        def hear(event: Event) -> None:
            if isinstance(event, Done):
                stopped.append(event.stopped)

        mine = copy.copy(self.control)  # shares what carries the wishes
        mine.listeners = [hear]
        key, networks = jax.random.key(self.settings.seed), (self.network, self.params)
        others: dict[str, Any] = {
            "style_weights": self.settings.style_weights or None,
            "style_masks": self.style_masks,
            "style_layers": self.settings.style_layers_of or None,
        }
        made = gatys.stylize(key, content, self.styles, cfg, *networks, control=mine, **others, **more)
        return None if any(stopped) else made

    def said(self) -> str:
        """For the person at the terminal."""
        return f"{self.frames} of them painted now, {self.scenes} of these from the beginning"
