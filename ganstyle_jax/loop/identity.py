"""What tells one set of pictures from another, without reading all of it and wherever it lies."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.data import Source

LOOKS = 16  # places of a file or a set that are looked at
BLOCK = 4096  # bytes at each
SIZES = 1000  # files of a folder whose sizes are looked at; names are looked at in all


def identity_of(text: str, source: Source) -> dict[str, Any]:
    """What run.json keeps of a source beside its `text`; the same for the same set, wherever it has been moved.

    "images": how many; "sample": a digest of the names and sizes in a folder (no times, which a copy changes), of some
    blocks of a file (an archive's last ones list all that is in it), or of some pictures of an array. "inner": the
    place in an archive. Sets with a name of their own (tfds:, glyphs) have no sample: the name says it all.
    """
    found: dict[str, Any] = {"images": source.size}
    if text.startswith("tfds:") or text == "glyphs" or text.startswith("glyphs:"):
        return found
    path, inner = _place(text)
    try:
        if path is not None and path.is_dir():
            return found | {"sample": _folder(path)}
        if path is not None:
            return found | {"inner": inner, "sample": _file(path)}
        return found | {"sample": _pictures(source)}
    except OSError:  # training says what is wrong with it
        return found


def same_data(old: Mapping[str, Any], new: Mapping[str, Any], old_text: str, new_text: str) -> bool:
    """Whether two sources are the same set; by the last part of their names where an earlier version kept no more."""
    if "sample" in old and "sample" in new:
        return all(old.get(name) == new.get(name) for name in ("images", "inner", "sample"))
    counted = old.get("images", new.get("images")) == new.get("images", old.get("images"))
    return counted and Path(old_text).name == Path(new_text).name


def _place(text: str) -> tuple[Path | None, str]:
    """The file or folder of `archive.zip/train`, and the place inside; None where there is none."""
    try:
        path = Path(text).expanduser()
        if text and path.exists():
            return path, ""
        for parent in path.parents:
            if parent.is_file():
                return parent, path.relative_to(parent).as_posix()
    except (OSError, ValueError, RuntimeError):  # a name too long, with a null byte, of an unknown user
        pass
    return None, ""


def _folder(folder: Path) -> str:
    """A digest of the names of all pictures below it and the sizes of up to `SIZES`; of all files without pictures."""
    from PIL import Image

    pictures = {suffix.lower() for suffix in Image.registered_extensions()} | {".heic", ".heif", ".avif"}
    names, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (here := os.path.realpath(place)) in seen:  # by a link that leads back up
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "@", "$")))
        names += [os.path.relpath(os.path.join(place, name), folder) for name in files if not name.startswith(".")]
    names = sorted(name for name in names if os.path.splitext(name)[1].lower() in pictures) or sorted(names)
    total = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))
    for i in _spread(len(names), SIZES):
        total.update(f"{os.path.getsize(folder / names[i])}\n".encode())
    return total.hexdigest()


def _file(path: Path) -> str:
    size = path.stat().st_size
    total = hashlib.sha256(f"{size}\n".encode())
    with open(path, "rb") as file:
        for i in _spread(-(-size // BLOCK), LOOKS):
            file.seek(i * BLOCK)
            total.update(file.read(BLOCK))
    return total.hexdigest()


def _pictures(source: Source) -> str | None:
    if source.size is None:
        return None
    total = hashlib.sha256(f"{source.image_shape}\n".encode())
    for i in _spread(source.size, LOOKS):
        try:
            example = source.read(i)
        except Exception as error:  # a picture that cannot be read is told by what training says of it
            total.update(type(error).__name__.encode())
            continue
        for name in sorted(example):
            total.update(name.encode() + np.asarray(example[name]).tobytes())
    return total.hexdigest()


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of 0..count-1, evenly spaced, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []
