"""A film by a trained model: frames streamed in and out, with the film's times and sound, and kept from flickering.

A network that is given each frame alone answers small changes of it with other strokes. By option the result of the
frame before is moved along the optical flow and mixed into the new one where flow forwards and backwards agree, as
Ruder, Dosovitskiy & Brox 2016 (arXiv:1604.08610) decide where to hold an optimised frame; a new scene begins anew.
Differs from them: results are mixed, nothing is optimised.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.control import Control
from ganstyle_jax.forward.painter import Painter, Unsuited
from ganstyle_jax.io import films
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import flow

FILM_OR_PICTURE = (".gif", ".apng")  # a film if one is to be written
TOGETHER = 8  # frames on a device at a time

Finish = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (result, content) to what is shown


def is_film(path: Path, out: Path) -> bool:
    """Whether an input is one; of pictures that move it is one if a film is to be written."""
    suffix, wanted = path.suffix.lower(), out.suffix.lower()
    film = suffix in films.FILM_SUFFIXES or (suffix in FILM_OR_PICTURE and wanted in films.FILM_SUFFIXES)
    return film and not path.is_dir()


class _StoppedError(UserError):
    """The work ends before the film does; a UserError, since else the film's reader would take it for its own."""


def paint(
    path: Path,
    out: Path,
    painter: Painter,
    finish: Finish,
    smooth: float,
    control: Control,
    bar: Callable[[int | None], Any],
) -> tuple[int, list[str]]:
    """Writes the film, whole or not at all: (frames, what is found to be wrong with the film).

    smooth: the share of what is carried over from the frame before, from 0, none, to below 1. bar: is told how many
    frames there are, or None, and gives a progress bar. Raises UserError; leaves nothing where control asks for an end.
    """
    films.check_film_destination(out)
    if smooth:
        flow.check_available()
    if not path.exists():
        raise UserError(f"there is no film {path}")
    film = films.read_film(path)
    damage: list[str] = []
    faults: list[Exception] = []
    count = 0
    size = min(painter.batch_size(film.shape), TOGETHER * len(painter.devices))
    with bar(film.count) as progress:

        def frames() -> Iterator[tuple[np.ndarray, films.Span]]:
            nonlocal count
            before: tuple[np.ndarray, np.ndarray] | None = None
            decoded = film.frames(damage)
            while group := list(itertools.islice(decoded, size)):
                if control.stopping:
                    raise _StoppedError
                contents = np.stack([frame.pixels for frame in group])
                try:
                    results = [finish(*pair) for pair in zip(painter(contents), contents, strict=True)]
                except Exception as error:
                    faults.append(error)
                    raise _StoppedError from error
                for frame, content, result in zip(group, contents, results, strict=True):
                    shown = np.clip(result, -1, 1)
                    if smooth:
                        shown = smoothed(shown, content, before, smooth)
                        before = content, shown
                    count += 1
                    progress.update()
                    yield shown, frame.span

        with contextlib.suppress(_StoppedError):
            films.write_film(out, film, frames())
    for fault in faults:
        if isinstance(fault, Unsuited):
            raise UserError(f"{path} of {film.shape[1]} x {film.shape[0]} pixels {fault}") from fault
        raise fault
    return count, damage


def smoothed(
    result: np.ndarray, content: np.ndarray, before: tuple[np.ndarray, np.ndarray] | None, share: float
) -> np.ndarray:
    """A frame's result (h', w', 3) with so much of the result of the frame before as is to be seen in it.

    content: the frame, (h, w, 3); before: the frame before, and its result. Where the results are larger than the
    frames, as those of a network that enlarges, the flow is found in frames made as large.
    """
    if before is None:
        return result
    from ganstyle_jax.io import images

    earlier, previous = before
    content, earlier = (np.clip(images.resize(x, result.shape[:2]), -1, 1) for x in (content, earlier))
    backward, forward = flow.flow(content, earlier), flow.flow(earlier, content)
    trusted = flow.trusted(backward, forward)
    if flow.seen_again(content, earlier, backward, trusted) < flow.CUT:
        return result
    held = share * trusted[..., None]
    return held * flow.warp(previous, backward) + (1 - held) * result
