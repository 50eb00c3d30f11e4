"""Sources of arrays: in memory, .npz and .npy files, IDX files as MNIST's."""

import gzip
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax.data.fitting import fit, fit_float, shape_of
from ganstyle_jax.data.source import Size, Source, log
from ganstyle_jax.io.files import UserError, first_line, largest, listed

# Where an .npz keeps its training images, and their labels.
NPZ_KEYS = {
    "x_train": "y_train",
    "train_images": "train_labels",
    "images": "labels",
    "image": "label",
    "x": "y",
    "X": "y",
    "data": "labels",
    "arr_0": "arr_1",
}
PACKED = 200  # times that arrays shrink at most; dSprites, of white shapes on black, does so 115 times
SLACK = 0.02  # of 1, by which floats may overshoot their range, as rounding and resizing make them: clipped
DARKEST = 32  # of 255: floats of 0..255 reach this at least; 0..16 or 0..1.1 are of another range


def array(images: np.ndarray, image_size: Size, channels: int | None) -> Source:
    """Images that are in memory."""
    return _source("array", "the array", images, None, image_size, channels)


# ---------------------------------------------------------------------------------------------------------------------
# Files of NumPy


def npz(path: Path, key: str, image_size: Size, channels: int | None) -> Source:
    """One array of an .npz file, by default the images to train on, with their labels."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            shapes = {name: _npy_shape(archive, name) for name in archive.files}
            if not key:
                known = [name for name in NPZ_KEYS if name in shapes]
                likely = [name for name, shape in shapes.items() if shape is not None and len(shape) in (3, 4)]
                choices = [name for name in known if name in likely] or (likely if len(likely) == 1 else known)
                key = choices[0] if choices else ""
            if key not in shapes:
                found = listed([f"{name} {shape or ''}".strip() for name, shape in shapes.items()])
                wanted = f"no array {key!r}" if key else "no array that is clearly the images"
                raise UserError(
                    f"{path} has {wanted}; it has {found}. Accepted are {', '.join(NPZ_KEYS)}, or name one: "
                    f"{path.name}/KEY."
                )
            images = _checked(archive, key)
            partner = NPZ_KEYS.get(key) or _partner(key)
            labels = _checked(archive, partner) if partner in shapes and partner != key else None
    except (PermissionError, MemoryError, UserError):
        raise
    except Exception as error:  # of damaged files NumPy and zipfile raise many kinds
        raise UserError(
            f"{path} is not a readable .npz file of plain arrays ({first_line(error)}): save it again with numpy.savez."
        ) from error
    others = [f"{name} {shape}" for name, shape in shapes.items() if name not in (key, partner)]
    said = f"passed over: {listed(others)}" if others else ""
    return _source(path.stem, f"{key} in {path}", images, labels, image_size, channels, said)


def _npy_shape(archive: Any, name: str) -> tuple[int, ...] | None:
    """Shape of one array of an .npz file, from its header alone; None for what is not an array."""
    header = _npy_header(archive, name)
    return header and header[0]


def _npy_header(archive: Any, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
    try:
        with archive.zip.open(name + ".npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            return shape, dtype
    except (KeyError, ValueError):
        return None


def _checked(archive: Any, name: str) -> np.ndarray:
    """One array, if what its header asks for is there and was not packed to fill the memory."""
    header = _npy_header(archive, name)
    try:
        info = archive.zip.getinfo(name + ".npy")
    except KeyError:
        header = None
    if header is None:
        raise ValueError(f"{name} is no array")
    shape, dtype = header
    size = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and size > info.file_size:
        raise ValueError(f"{name} of shape {shape} takes {size:,} bytes, and there are {info.file_size:,}")
    if info.file_size > largest(info.compress_size, PACKED):
        raise ValueError(f"the {info.compress_size:,} bytes of {name} unpack to {info.file_size:,}")
    return archive[name]


def npy(path: Path, image_size: Size, channels: int | None) -> Source:
    """The array of an .npy file, which stays on disk, and its labels: x_train.npy has them in y_train.npy."""
    partner = NPZ_KEYS.get(path.stem) or _partner(path.stem)
    beside = path.with_name(f"{partner}.npy")
    labels = _mapped(beside) if partner != path.stem and beside.is_file() else None
    return _source(path.stem, str(path), _mapped(path), labels, image_size, channels)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{path} is not a readable .npy file of plain numbers ({first_line(error)}): save it again with numpy.save."
        ) from error


def _partner(key: str) -> str:
    """x_test -> y_test, val_images -> val_labels."""
    return re.sub("images?", lambda m: m[0].replace("image", "label"), re.sub(r"^[xX](?=_|$)", "y", key))


# ---------------------------------------------------------------------------------------------------------------------
# IDX


def idx(path: Path, image_size: Size, channels: int | None) -> Source:
    """Images as MNIST has them, with the labels beside them."""
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    other = beside.with_suffix("") if beside.suffix == ".gz" else beside.with_name(beside.name + ".gz")
    labels = None
    for candidate in (beside, other):
        if candidate != path and candidate.is_file():
            labels = _read_idx(candidate)
            break
    return _source(path.name.split(".")[0], str(path), _read_idx(path), labels, image_size, channels)


def _read_idx(path: Path) -> np.ndarray:
    """Unsigned bytes in the format of MNIST: 0, 0, type 8, number of dimensions, big-endian dimensions, values."""
    stored = path.stat().st_size
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(4)
            zero, kind, dims = struct.unpack(">HBB", head)
            if zero != 0 or kind != 8:
                raise ValueError(f"it starts with {head.hex()} and not with 000008")
            shape = struct.unpack(f">{dims}I", file.read(4 * dims))
            size = math.prod(shape)
            there = largest(stored, PACKED) if path.suffix == ".gz" else stored - 4 - 4 * dims
            if size > there:
                least = "" if path.suffix == ".gz" else f"it has {stored} bytes, "
                raise ValueError(f"{least}its header {shape} asks for {4 + 4 * dims + size}")
            data = file.read(size + 1)
            if len(data) != size:
                many = "more" if len(data) > size else 4 + 4 * dims + len(data)
                raise ValueError(f"it has {many} bytes, its header {shape} asks for {4 + 4 * dims + size}")
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{path} is not a readable IDX file of bytes ({first_line(error)}): download it again."
        ) from error
    try:
        return np.frombuffer(data, np.uint8).reshape(shape)
    except ValueError as error:  # more dimensions than NumPy has
        raise UserError(f"{path} has {dims} dimensions: an IDX file of images has 3.") from error


# ---------------------------------------------------------------------------------------------------------------------
# What arrays mean


def _source(
    name: str,
    where: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    image_size: Size,
    channels: int | None,
    said: str = "",
) -> Source:
    from PIL import Image

    images, scale, offset, taken = _pixels(images, where)
    classes, label_names = _labels(labels, len(images), where)
    channels = channels or (1 if images.shape[-1] == 1 else 3)
    dtype = np.dtype(np.uint8 if images.dtype == np.uint8 else np.float32)
    height, width = shape_of(image_size) or images.shape[1:3]

    def read(i: int) -> dict[str, np.ndarray]:
        pixels = images[range(len(images))[i]]
        if pixels.shape == (height, width, channels) and dtype == np.uint8:
            example = {"image": np.array(pixels)}
        elif dtype == np.uint8:
            picture = Image.fromarray(np.asarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
            example = {"image": fit(picture, image_size, channels, dtype)}
        else:
            pixels = pixels.astype(np.float32) * scale + offset
            example = {"image": fit_float(pixels, image_size, channels)}
        return example if classes is None else {**example, "label": np.array(classes[i], np.int32)}

    count = f"{len(images):,} image{'s' * (len(images) != 1)} of {images.shape[1]} x {images.shape[2]} pixels"
    in_classes = f" in {len(label_names)} classes ({listed(label_names, 4)})" if label_names else ""
    line = "; ".join(filter(None, [f"{where}: {count}{in_classes}", taken, said]))
    return Source(name, (height, width, channels), dtype, len(images), label_names, read, opened=line)


def _pixels(images: np.ndarray, where: str) -> tuple[np.ndarray, np.float32, np.float32, str]:
    """(n, h, w, c) as uint8, or anything else with the scale and offset that bring it to [-1, 1]; and that in words."""
    accepted = "accepted are (n, h, w) and (n, h, w, 1 | 3 | 4)"
    shape = images.shape
    if images.ndim == 3 and not (shape[-1] in (3, 4) and min(shape[:2]) > 4):  # else one colour picture
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in shape:
        hint = ""
        if len(shape) == 4 and shape[1] in (1, 3, 4):
            hint = "; move the channels last with numpy.moveaxis(images, 1, -1)"
        raise UserError(f"{where} has the shape {shape}: {accepted}, with at least one image{hint}.")
    kind = images.dtype.kind
    one = np.float32(1), np.float32(0)
    if images.dtype == np.uint8:
        _check_not_black(images, where)
        return images, *one, ""
    if kind == "b":
        return images.astype(np.uint8) * np.uint8(255), *one, "bool, taken as black and white"
    if kind not in "iuf":
        raise UserError(f"{where} has the dtype {images.dtype}: accepted are uint8, uint16 and floats.")
    low, high = float(images.min()), float(images.max())  # NaN spreads
    found = f"{images.dtype} values from {low:g} to {high:g}"
    if images.dtype == np.uint16 and high > 255:
        return images, np.float32(1 / 32767.5), np.float32(-1), f"{found}, taken as 16 bits"
    if kind in "iu" and low >= 0 and high <= 255:
        images = images.astype(np.uint8)
        _check_not_black(images, where)
        return images, *one, f"{found}, taken as 8 bits"
    if kind == "f" and (fits := _range(low, high)):
        (least, most), scale, offset = fits
        clipped = ", clipped" if low < least or high > most else ""
        return images, np.float32(scale), np.float32(offset), f"{found}, taken as [{least}, {most}]{clipped}"
    hint = ""
    if kind == "f" and math.isfinite(low) and math.isfinite(high) and low >= -1 and high <= DARKEST:
        hint = " Clip what overshoots, as in images.clip(0, 1), or divide by the largest value that they may have."
    elif kind == "f" and not (math.isfinite(low) and math.isfinite(high)):
        hint = " Find what made them not finite, or leave those images out."
    raise UserError(
        f"{where} has {found}: accepted are 0..255, uint16, and floats without NaN in [0, 1], [-1, 1] or "
        f"[0, 255].{hint}"
    )


def _range(low: float, high: float) -> tuple[tuple[int, int], float, float] | None:
    """The range that floats fill, with what brings it to [-1, 1]; None where none is theirs beyond doubt."""
    if low >= -SLACK and high <= 1 + SLACK:
        return (0, 1), 2, -1
    if low >= -1 - SLACK and high <= 1 + SLACK:
        # [0, 1] resized by Lanczos looks like this, while pictures in [-1, 1] reach as far down as up.
        return None if low > -0.25 and high > 0.9 else ((-1, 1), 1, 0)
    if low >= -SLACK * 255 and DARKEST <= high <= 255 * (1 + SLACK):
        return (0, 255), 1 / 127.5, -1
    return None


def _check_not_black(images: np.ndarray, where: str) -> None:
    """UserError for masks of 0 and 1, which as bytes are all but black. The first of them tell, nearly always."""
    some = images[: max(1, (1 << 24) // max(1, images[0].size))]
    if some.max() == 1 and images.max() == 1:
        raise UserError(
            f"{where} has whole numbers from {images.min()} to 1, which are black as pictures: save them as bool, or "
            "multiply them by 255."
        )


def _labels(labels: np.ndarray | None, count: int, where: str) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Classes (n,) int32 and their names. Numbers from 0 up stay what they are; others are numbered in sorted order."""
    if labels is None:
        return None, None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1 and len(labels) != count:
        raise UserError(f"{where} has {count} images but {len(labels)} labels: give one label per image.")
    kind = labels.dtype.kind
    whole = kind in "iubUS" or (kind == "f" and bool(np.all(np.isfinite(labels) & (labels == np.round(labels)))))
    if labels.ndim != 1 or not whole:
        found = f"{labels.dtype} {labels.shape}"
        log.warning("the labels of %s are left out: they are %s and not one class for each image", where, found)
        return None, None
    if kind in "iubf":
        labels = labels.astype(np.int64)
        if labels.min() >= 0 and labels.max() < count:  # more classes than images cannot be
            return labels.astype(np.int32), tuple(map(str, range(labels.max() + 1)))
    values, classes = np.unique(labels, return_inverse=True)
    names = tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)
    return classes.astype(np.int32), names
