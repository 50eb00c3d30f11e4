"""What is meant by the data that somebody names: a folder, an archive, arrays, a prepared set or glyphs."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.data.source import Source, log
from ganstyle_jax.io.files import UserError, first_line

KINDS = (
    "a folder of images, a .zip or .tar of images (or archive.zip/folder for one of its folders), an .npz file (or "
    "file.npz/key), an .npy file, an IDX file such as train-images-idx3-ubyte, tfds:NAME, or glyphs"
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def open_source(
    spec: str | Path | np.ndarray | Any,
    image_size: int | tuple[int, int] | None,
    channels: int | None = None,
    seed: int = 0,
) -> Source:
    """The images that `spec` names, cut and resized to `image_size`: pixels of a square's side, (h, w), or None.

    With None each image is whole and at its own size.

    A folder, .zip or .tar: all images below it, sorted by path. Folders that all images share are passed over; of the
      rest the first level gives the classes (the rule of torchvision's ImageFolder), if every image lies in one. Where
      that level consists of splits (train, test, val ...), train is taken. An archive is read in place; a compressed
      tar, which has no random access, is unpacked into memory. `archive.zip/train` reads one folder of an archive.
    `.npz`: x_train with y_train, images with labels and so on, or the only array that holds images; `file.npz/x_test`
      reads another. (n, h, w) or (n, h, w, 1 | 3 | 4); floats in [0, 1], [-1, 1] or [0, 255]. `.npy`: one such array,
      which stays on disk; x_train.npy has its labels in y_train.npy. An array itself, NumPy's or JAX's: the same.
    IDX: train-images-idx3-ubyte, also .gz, or the folder around it; labels are found beside it.
    `tfds:NAME[/CONFIG][:SPLIT]`: a set that TFDS has prepared in TFDS_DATA_DIR or ~/tensorflow_datasets as ArrayRecord.
    `glyphs[:digits][:grey]`: see ganstyle_jax/data/glyphs.py; `seed` matters here alone.

    channels: 1 turns colour into luma, 3 repeats grey, None follows the data: one channel if all files are grey by
    their headers, of which up to 20,000 are looked at, evenly spaced. Likewise uint8 becomes float32 if one of 16 files
    holds more than 8 bits (16-bit grey; Pillow gives 16-bit colour as 8 bits).

    What was taken and what was passed over stands in the source's `opened`, and is logged. Raises UserError.
    """
    size = _checked_size(image_size)
    if channels not in (None, 1, 3):
        raise UserError(f"channels must be 1 (grey), 3 (colour) or left out to follow the data, got {channels!r}.")
    try:
        source = _open(spec, size, channels, seed)
    except MemoryError as error:
        raise UserError(
            f"{_named(spec)} does not fit into memory: take fewer or smaller images, or give them as a folder, a zip "
            "or an .npy file, which are read piece by piece."
        ) from error
    if source.opened:
        log.info("%s", source.opened)
    return source


def _open(spec: Any, size: int | tuple[int, int] | None, channels: int | None, seed: int) -> Source:
    if not isinstance(spec, (str, Path)):
        return _open_array(spec, size, channels)
    text = str(spec)
    if isinstance(spec, str):
        if text == "glyphs" or text.startswith("glyphs:"):
            from ganstyle_jax.data import glyphs

            return glyphs.source(text, size, channels, seed)
        if text.startswith("tfds:"):
            from ganstyle_jax.data import tfds

            return tfds.source(text, size, channels)

    try:
        path, inner = located(text)
        if text and path.is_dir():
            from ganstyle_jax.data import files

            return files.folder(path, size, channels)
        if path.is_file():
            return _open_file(path, inner, text, size, channels)
    except PermissionError as error:
        raise UserError(f"No permission to read {error.filename or text}: check the rights of the file.") from error
    except OSError as error:
        raise UserError(f"Cannot open {text[:200]!r}: {first_line(error)}.") from error
    raise UserError(_not_there(text))


def located(text: str) -> tuple[Path, str]:
    """A path, and for a place inside an archive, photos.zip/train, the archive's and what follows it."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # the home of an unknown user
        raise UserError(f"Cannot open {text!r}: {first_line(error)}.") from error
    if not path.exists():
        for parent in path.parents:
            if parent.is_file():
                return parent, path.relative_to(parent).as_posix()
    return path, ""


def _open_file(path: Path, inner: str, text: str, size: int | tuple[int, int] | None, channels: int | None) -> Source:
    from ganstyle_jax.data import arrays, files

    kind = path.name.lower()
    if kind.endswith(".zip"):
        return files.zipped(path, inner, size, channels)
    if kind.endswith(TAR_SUFFIXES):
        return files.tar(path, inner, size, channels)
    if kind.endswith(".npz"):
        return arrays.npz(path, inner, size, channels)
    if kind.endswith(".npy") and not inner:
        return arrays.npy(path, size, channels)
    if re.search(r"idx\d-ubyte(\.gz)?$", kind) and not inner:
        return arrays.idx(path, size, channels)
    raise UserError(f"Cannot read images from {text!r}: accepted are {KINDS}.")


def _open_array(spec: Any, size: int | tuple[int, int] | None, channels: int | None) -> Source:
    from ganstyle_jax.data import arrays

    images = np.asarray(spec) if hasattr(spec, "__array__") else None
    if images is None or images.dtype == object:
        raise UserError(f"Cannot read images from {_named(spec)}: accepted are {KINDS}, or an array (n, h, w, c).")
    return arrays.array(images, size, channels)


def _named(spec: Any) -> str:
    if isinstance(spec, (str, Path)):
        return str(spec)
    shape = getattr(spec, "shape", None)
    return f"a {type(spec).__name__}" if shape is None else f"an array of shape {shape}"


def _not_there(spec: str) -> str:
    """Why there is nothing of that name, for what people try."""
    if spec == "-":
        return f"Images are not read from standard input: write them to a file first; accepted are {KINDS}."
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", spec):
        return f"{spec} is an address, and images are read from this machine alone: download it and give the file."
    if any(letter in spec for letter in "*?["):
        return f"{spec} has wildcards, which are not followed: give the folder of the images; accepted are {KINDS}."
    return f"No file or folder {spec!r}: accepted are {KINDS}."


def _checked_size(image_size: Any) -> int | tuple[int, int] | None:
    sides = image_size if isinstance(image_size, (tuple, list)) else (image_size,)
    whole = all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side >= 1 for side in sides)
    if image_size is not None and not (whole and len(sides) in (1, 2)):
        raise UserError(f"image_size must be a whole number of pixels from 1 up, or two, (h, w), got {image_size!r}.")
    if image_size is None:
        return None
    return int(sides[0]) if len(sides) == 1 or sides[0] == sides[1] else (int(sides[0]), int(sides[1]))
