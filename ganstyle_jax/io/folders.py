"""Which files are pictures: one rule for folders and archives, for training, stylising and judging.

photos.jpg, a/b.PNG                 by their suffix, at any depth
.hidden.png, @eaDir/a.jpg           not what begins with a dot, nor what systems leave in folders of their own
a.heic                              where pillow-heif is installed: pip install -e '.[heic]'
"""

import collections
import dataclasses
import functools
import importlib.util
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from ganstyle_jax.io.files import UserError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
)
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
# Of macOS's zip, Synology, QNAP, Windows and Linux's fsck; .Trashes and the like begin with a dot. In lower case.
SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot"),
    *("$recycle.bin", "recycler", "system volume information", "found.000", "lost+found"),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies below a folder. Names are paths from there, with / on every system."""

    pictures: dict[str, Path]  # by name, sorted
    others: dict[str, Path]  # files that are no pictures
    passed_over: collections.Counter[str]  # how many of each kind, as in {".heic": 50, "in @eaDir": 6}


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Of the files that can be read here, in lower case."""
    return SUFFIXES + (HEIC_SUFFIXES if importlib.util.find_spec("pillow_heif") else ())


def pictures_in(folder: Path | str) -> list[Path]:
    """The picture files at any depth of a folder, sorted by their paths from there; UserError if it is no folder."""
    return list(find(folder).pictures.values())


def find(folder: Path | str) -> Found:
    """Every file below a folder, links followed. Raises UserError if it is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one that holds pictures")
    files: dict[str, Path] = {}
    unreadable: list[str] = []
    seen = set()
    for place, below, names in os.walk(folder, followlinks=True, onerror=lambda e: unreadable.append(str(e.filename))):
        real = os.path.realpath(place)
        if real in seen:  # a link back up
            below.clear()
            continue
        seen.add(real)
        relative = Path(place).relative_to(folder)
        files |= {(relative / name).as_posix(): Path(place, name) for name in names}
    chosen, passed_over = choose(files)
    for name in unreadable:
        passed_over[f"folder that may not be read ({os.path.relpath(name, folder)})"] += 1
    pictures = {name: files[name] for name in sorted(chosen)}
    return Found(pictures, {name: path for name, path in files.items() if name not in pictures}, passed_over)


def choose(names: Iterable[str]) -> tuple[list[str], collections.Counter[str]]:
    """Those names that are pictures, in their order, and how many of each other kind there are."""
    chosen, passed_over = [], collections.Counter()
    readable = suffixes()
    for name in names:
        parts = name.split("/")
        suffix = posixpath.splitext(parts[-1])[1].lower()
        picture = suffix in readable or suffix in HEIC_SUFFIXES
        if system := [part for part in parts[:-1] if part.lower() in SYSTEM_FOLDERS]:
            passed_over[f"in {system[0]}"] += picture
        elif any(part.startswith(".") for part in parts):
            passed_over["hidden"] += picture
        elif suffix in readable:
            chosen.append(name)
        else:
            passed_over[suffix or "without a suffix"] += 1
    return chosen, +passed_over  # without zeros


def passed_over_words(passed_over: collections.Counter[str], most: int = 8) -> str:
    """As in "50 .heic (pip install -e '.[heic]' reads them), 3 .txt"; empty where nothing was passed over."""
    words = []
    kinds = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    for kind, count in kinds[:most]:
        heic = kind in HEIC_SUFFIXES and kind not in suffixes()
        words.append(f"{count:,} {kind}" + (" (pip install -e '.[heic]' reads them)" if heic else ""))
    if rest := sum(count for _, count in kinds[most:]):
        words.append(f"{rest:,} of other kinds")
    return ", ".join(words)
