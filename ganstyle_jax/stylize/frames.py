"""The folder OUT.frames, in which the painted frames of a film are kept until it is whole.

film.json    what they are frames of: sums of the files, settings
000001.png   and so on, each whole or absent

Whoever goes on reads the last frame back from here, and so does who never stopped: both see the same 8 bits.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ganstyle_jax.contract import to_json
from ganstyle_jax.data.fitting import to_float
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError, atomic_path, listed
from ganstyle_jax.loop import lock

NAME = "film.json"


class Frames:
    """The frames of a film by number, from 1 on."""

    def __init__(self, folder: Path, painted: int):
        self.folder, self.painted = folder, painted  # how many are here, without a gap from the first

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.png"

    def add(self, picture: np.ndarray) -> np.ndarray:
        """The next frame, (h, w, 3) float in [-1, 1]; returns it as it can be read back."""
        pixels = images.to_uint8(picture)
        images.save_png(self.path(self.painted + 1), pixels)
        self.painted += 1
        return to_float(pixels)

    def read(self, number: int) -> np.ndarray:
        """(h, w, 3) uint8. UserError for a file that is damaged."""
        try:
            with Image.open(self.path(number), formats=("PNG",)) as file:
                return np.asarray(file.convert("RGB"))
        except Exception as error:  # what Pillow raises for damaged files has no common kind
            raise UserError(
                f"{self.path(number)} cannot be read: remove it, and --resume paints it and what follows anew"
            ) from error

    def remove(self) -> None:
        """All that this has written; the last frame first, so that what is left can always be gone on with."""
        for number in range(self.painted, 0, -1):
            self.path(number).unlink(missing_ok=True)
        (self.folder / NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def opened(folder: Path, description: dict[str, Any], resume: bool, stop: Any) -> Iterator[Frames]:
    """The folder, which this process alone has within it. An empty one is removed at the end.

    UserError where it holds frames and `resume` is not asked for, or frames of another film or of other settings.
    """
    description = json.loads(json.dumps(to_json(description)))
    with lock.held(folder, stop=stop):
        here = sorted(path.name for path in folder.glob("[0-9]*.png"))
        before = _described(folder)
        if before is None and here:
            raise UserError(f"{folder} holds {listed(here, 3)}, but no {NAME}, which says of what film: move it away")
        if before is not None:
            if here and not resume:
                raise UserError(
                    f"{folder} holds {len(here)} frames of an earlier try: --resume goes on with them, or remove it to "
                    "begin anew"
                )
            if here and (changed := list(_differences(before, description))):
                raise UserError(
                    f"{folder} holds frames of something else ({listed(changed, 3)}): go on with what they were begun "
                    "with, or remove it to begin anew"
                )
        if before != description:
            with atomic_path(folder / NAME) as temporary:
                temporary.write_text(json.dumps(description, indent=1) + "\n")
        frames = Frames(folder, 0)
        while frames.path(frames.painted + 1).exists():
            frames.painted += 1
        try:
            yield frames
        finally:
            if not frames.painted:
                (folder / NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or gone
        folder.rmdir()


def _described(folder: Path) -> dict[str, Any] | None:
    """What film.json says; None where there is none."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: move {folder} away, and begin anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} does not describe a film: move {folder} away, and begin anew")
    return found


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """In words, part by part."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(key), now.get(key), key)
    elif before != now and json.dumps(before) != json.dumps(now):
        short = isinstance(before, (int, float, bool, type(None))) or len(str(before)) < 24
        yield f"{name} was {before} and is {now}" if short else f"another {name}"


# ---------------------------------------------------------------------------------------------------------------------
# What tells one thing from another


def sum_of_file(path: Path) -> str:
    """SHA-256 of all of it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
