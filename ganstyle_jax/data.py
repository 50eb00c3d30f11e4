"""Images from folders, archives, arrays, TFDS and the built-in glyphs, as square pictures in seeded batches.

    source = open_source("photos.zip", image_size=64)
    batches = Batches(source, batch_size=32, seed=0)
    for batch in batches.stream(0, 1000):      # batch["image"] (32, 64, 64, 3) uint8
        images = to_float(batch["image"])      # float32 in [-1, 1], on the host or on the device

Every picture is turned as its EXIF orientation says, laid over white where it is transparent, cropped to its central
square and resized to `image_size` with Lanczos, which smooths away what the small picture cannot hold (the filter with
which the published StyleGAN sets, FFHQ and CelebA-HQ among them, were made). That is "short side to `image_size`, then
the centre" without rounding the long side first. Small pictures are enlarged.
"""

import dataclasses
import difflib
import functools
import gzip
import io
import itertools
import json
import logging
import math
import os
import posixpath
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganstyle_jax.files import UserError
from ganstyle_jax.images import LUMA, resize

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

KINDS = (
    "a folder of images, a .zip or .tar of images (or archive.zip/folder for one of its folders), an .npz file (or "
    "file.npz/key), an IDX file such as train-images-idx3-ubyte, tfds:NAME, or glyphs"
)
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "eval", "test", "testing")
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
PREPARE = "pip install -e '.[tfds-prepare]' && ganstyle data prepare {name}"
PEEK = 16  # files looked at on opening, to choose channels and dtype


class CorruptImage(Exception):  # noqa: N818  (an event that training survives, as StopIteration is)
    """One file or record that cannot be decoded: its `name`, and the `reason` in words."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A set of square images with random access, safe to read from several threads."""

    name: str
    image_shape: tuple[int, int, int]  # (h, w, c); (0, 0, c) where every image keeps its own size
    dtype: np.dtype  # of the images `read` gives: uint8, or float32 where the data hold more than 8 bits
    size: int | None  # number of images, None for an unlimited source
    label_names: tuple[str, ...] | None  # name of each class, None without classes
    read: Callable[[int], dict[str, np.ndarray]]
    """Image i: {"image": (h, w, c) uint8, or float32 in [-1, 1]}, and "label" () int32 where there are classes.

    Glyphs have their factors too. The same keys, shapes and dtypes for every i; the arrays own their memory. Raises
    CorruptImage.
    """

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """`read(i)` with the image as float32 in [-1, 1]."""
        example = self.read(i)
        return {**example, "image": to_float(example["image"])}


def to_float(images: Any) -> Any:
    """uint8 -> float32 in [-1, 1]; float32 unchanged. Any shape, NumPy or JAX, also inside jit."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1
    if images.dtype == np.float32:
        return images
    raise TypeError(f"images must be uint8 or float32, got {images.dtype}")


def open_source(spec: str, image_size: int | None, channels: int | None = None, seed: int = 0) -> Source:
    """The images that `spec` names, as squares of `image_size` pixels, or with None whole and each at its own size.

    A folder, .zip or .tar: all images below it, sorted by path. Folders that all images share are passed over; of the
      rest the first level gives the classes (the rule of torchvision's ImageFolder), if every image lies in one. Where
      that level consists of splits (train, test, val ...), train is taken. An archive is read in place; a compressed
      tar, which has no random access, is unpacked into memory. `archive.zip/train` reads one folder of an archive.
    `.npz`: x_train with y_train, images with labels and so on, or the only array that holds images; `file.npz/x_test`
      reads another. (n, h, w) or (n, h, w, 1 | 3 | 4); floats in [0, 1], [-1, 1] or [0, 255].
    IDX: train-images-idx3-ubyte, also .gz, or the folder around it; labels are found beside it.
    `tfds:NAME[/CONFIG][:SPLIT]`: a set that TFDS has prepared in TFDS_DATA_DIR or ~/tensorflow_datasets as ArrayRecord.
    `glyphs[:digits][:grey]`: see ganstyle_jax/glyphs.py; `seed` matters here alone.

    channels: 1 turns colour into luma, 3 repeats grey, None follows the data. What follows the data, of files, is
    decided from at most 16 of them, evenly spaced: one channel if all 16 are grey, float32 if one holds more than
    8 bits (16-bit grey; Pillow gives 16-bit colour as 8 bits). Raises UserError.
    """
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise UserError(f"image_size must be a whole number of pixels from 1 up, got {image_size!r}.")
    if channels not in (None, 1, 3):
        raise UserError(f"channels must be 1 (grey), 3 (colour) or left out to follow the data, got {channels!r}.")
    if spec == "glyphs" or spec.startswith("glyphs:"):
        if image_size is None:
            raise UserError("Glyphs are drawn at any size: give one.")
        return _glyphs(spec, image_size, channels, seed)
    if spec.startswith("tfds:"):
        return _tfds(spec, image_size, channels)

    path = Path(spec).expanduser()
    inner = ""
    if not path.exists():  # perhaps a place inside an archive: photos.zip/train
        for parent in path.parents:
            if parent.is_file():
                path, inner = parent, path.relative_to(parent).as_posix()
                break
    kind = path.name.lower()
    try:
        if spec and path.is_dir():
            return _folder(path, image_size, channels)
        if path.is_file():
            if kind.endswith(".zip"):
                return _zip(path, inner, image_size, channels)
            if kind.endswith(TAR_SUFFIXES):
                return _tar(path, inner, image_size, channels)
            if kind.endswith(".npz"):
                return _npz(path, inner, image_size, channels)
            if re.search(r"idx\d-ubyte(\.gz)?$", kind) and not inner:
                return _idx(path, image_size, channels)
            raise UserError(f"Cannot read images from {spec!r}: accepted are {KINDS}.")
    except PermissionError as error:
        raise UserError(f"No permission to read {error.filename or spec}: check the rights of the file.") from error
    raise UserError(f"No file or folder {spec!r}: accepted are {KINDS}.")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def fit(image: "Image.Image", image_size: int | None, channels: int, dtype: np.dtype) -> np.ndarray:
    """The upright central square of a Pillow image of any mode, (image_size, image_size, channels) of uint8 or float32.

    With None it is the whole, (h, w, channels).
    Raises what Pillow raises for damaged files, and ValueError for pixels whose range is unknown.
    """
    from PIL import Image, ImageOps

    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        log.debug("unreadable EXIF data, taken as upright", exc_info=True)
    if image_size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2  # whole pixels: equal sizes stay as they are
        image = image.crop((left, top, left + side, top + side))

    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range in an image file; use an .npz file")
    if image.mode.startswith("I"):  # 16 bits; older releases of Pillow give them as 32
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels of more than 16 bits")
        return _convert(fit_float(values[..., None] / 32767.5 - 1, image_size, channels), dtype)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return _convert(np.array(np.asarray(image).reshape(image.height, image.width, channels)), dtype)


def fit_float(pixels: np.ndarray, image_size: int | None, channels: int) -> np.ndarray:
    """`fit` for (h, w, 1 | 3 | 4) float32 in [-1, 1], at full precision; the fourth channel is opacity, -1 for none."""
    if image_size is not None:
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if pixels.shape[-1] == 4:
        opacity = (pixels[..., 3:] + 1) / 2
        pixels = 1 + opacity * (pixels[..., :3] - 1)
    if pixels.shape[-1] == 3 and channels == 1:
        pixels = (pixels @ LUMA.astype(np.float32))[..., None]
    if image_size is not None:
        pixels = resize(pixels, (image_size, image_size))
    pixels = np.clip(pixels, -1, 1)  # Lanczos overshoots at edges
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], channels)), np.float32)


def _convert(images: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float32:
        return to_float(images)
    return images if images.dtype == np.uint8 else np.round((images + 1) * 127.5).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Image files: folders, archives, records


def _encoded(
    name: str,
    size: int,
    describe: Callable[[int], str],
    load: Callable[[int], tuple[bytes, int | None]],
    label_names: tuple[str, ...] | None,
    image_size: int | None,
    channels: int | None,
) -> Source:
    """A source of encoded images; load(i) gives the file's bytes and its class."""
    from PIL import Image

    modes, first_error = [], ""
    for i in sorted({round(k) for k in np.linspace(0, size - 1, min(size, PEEK))}):
        try:
            with Image.open(io.BytesIO(load(i)[0])) as image:
                modes.append(image.mode)
        except Exception as error:
            first_error = first_error or f"{describe(i)}: {_reason(error)}"
    if not modes:
        raise UserError(
            f"None of the images looked at in {name} can be read ({first_error}): check that the files are images."
        )
    if channels is None:
        channels = 1 if all(mode in ("1", "L", "LA", "La", "F") or mode.startswith("I") for mode in modes) else 3
    dtype = np.dtype(np.float32 if any(mode.startswith("I") for mode in modes) else np.uint8)

    def read(i: int) -> dict[str, np.ndarray]:
        i = range(size)[i]  # IndexError past the end
        try:
            data, label = load(i)
            with Image.open(io.BytesIO(data)) as image:
                example = {"image": fit(image, image_size, channels, dtype)}
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise nearly everything when a file is damaged
            raise CorruptImage(describe(i), _reason(error)) from error
        return example if label is None else {**example, "label": np.array(label, np.int32)}

    side = image_size or 0
    return Source(name, (side, side, channels), dtype, size, label_names, read)


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"
    return str(error) or type(error).__name__


def _files(
    path: Path,
    members: dict[str, Any],
    inner: str,
    load: Callable[[Any], bytes],
    image_size: int | None,
    channels: int | None,
) -> Source:
    """A source of named files, {path below the root: what `load` wants}, whatever holds them."""
    names = sorted(name for name in members if _is_image(name))
    place = str(path)
    if inner:
        names = [name for name in names if name.startswith(inner.rstrip("/") + "/")]
        place = f"{path}/{inner}"
    if not names:
        folders = sorted({name.split("/")[0] for name in members if "/" in name and _is_image(name)})
        here = f" It has the folders {_list(folders)}." if inner and folders else ""
        raise UserError(
            f"No images in {place}: accepted are files at any depth that end in {' '.join(IMAGE_SUFFIXES)}.{here}"
        )
    names, labels, label_names = _classes(names)
    locations = [members[name] for name in names]

    def load_with_label(i: int) -> tuple[bytes, int | None]:
        return load(locations[i]), None if labels is None else int(labels[i])

    name = Path(place).name.split(".")[0] if not inner else f"{path.stem}/{inner}"
    return _encoded(
        name or str(path), len(names), names.__getitem__, load_with_label, label_names, image_size, channels
    )


def _is_image(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and posixpath.splitext(parts[-1])[1].lower() in IMAGE_SUFFIXES


def _classes(names: list[str]) -> tuple[list[str], np.ndarray | None, tuple[str, ...] | None]:
    """The names to use, the class of each, and the names of the classes, by the rule of `open_source`."""
    parents = [name.split("/")[:-1] for name in names]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(parents), max(parents), strict=False))
    depth = len(list(shared))  # what the first and the last in order share, all share
    if any(len(parent) == depth for parent in parents):
        return names, None, None
    first = [parent[depth] for parent in parents]
    folders = sorted(set(first))
    if {folder.lower() for folder in folders} <= set(SPLIT_FOLDERS):
        train = [folder for folder in folders if folder.lower() in ("train", "training")]
        if len(train) == 1:
            log.info("taking the images of %s; the other folders are %s", train[0], _list(folders))
            return _classes([name for name, folder in zip(names, first, strict=True) if folder == train[0]])
    number = {folder: k for k, folder in enumerate(folders)}
    return names, np.array([number[folder] for folder in first], np.int32), tuple(folders)


def _folder(path: Path, image_size: int | None, channels: int | None) -> Source:
    members, seen, idx = {}, set(), []
    for folder, subfolders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            subfolders.clear()
            continue
        seen.add(real)
        relative = Path(folder).relative_to(path)
        for file in files:
            members[(relative / file).as_posix()] = os.path.join(folder, file)
            if re.fullmatch(r"train-images[-.]idx3-ubyte(\.gz)?", file):
                idx.append(Path(folder, file))
    if idx and not any(map(_is_image, members)):
        return _idx(min(idx), image_size, channels)
    return _files(path.absolute(), members, "", _read_file, image_size, channels)


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _zip(path: Path, inner: str, image_size: int | None, channels: int | None) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{path} is not a readable zip archive ({error}): download or pack it again.") from error
    infos = [info for info in infos if _is_image(_member_name(info.filename))]
    for info in infos:
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = "encrypted" if info.flag_bits & 1 else f"compressed with method {info.compress_type}"
            raise UserError(
                f"{info.filename} in {path} is {how}: pack the images again, stored or deflated, without a password."
            )
    members = {
        _member_name(info.filename): (info.header_offset, info.compress_size, info.compress_type, info.CRC)
        for info in infos
    }
    return _files(path, members, inner, functools.partial(_read_zip_member, path), image_size, channels)


def _read_zip_member(path: Path, location: tuple[int, int, int, int]) -> bytes:
    """One member, through a file opened for it.

    A ZipFile has one position and one lock for all threads, and one for each thread would read the directory again.
    """
    offset, length, method, checksum = location
    with open(path, "rb") as file:
        file.seek(offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04" or len(header) < 30:
            raise ValueError("the zip directory points to no file")
        file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)  # name and extra field
        data = file.read(length)
    if method == zipfile.ZIP_DEFLATED:
        data = zlib.decompress(data, -zlib.MAX_WBITS)
    if zlib.crc32(data) != checksum:
        raise ValueError("wrong checksum in the zip archive")
    return data


def _tar(path: Path, inner: str, image_size: int | None, channels: int | None) -> Source:
    members: dict[str, Any] = {}
    plain = path.suffix.lower() == ".tar"
    try:
        with tarfile.open(path, "r:" if plain else "r|*") as archive:
            for member in archive:
                name = _member_name(member.name)
                if member.isreg() and not member.issparse() and _is_image(name):
                    if plain:
                        members[name] = (member.offset_data, member.size)
                    else:
                        file = archive.extractfile(member)
                        members[name] = b"" if file is None else file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{path} is not a readable tar archive ({error}): download or pack it again.") from error
    if not plain:
        log.info("unpacked %d images of %s into memory", len(members), path)
        return _files(path, members, inner, bytes, image_size, channels)
    return _files(path, members, inner, functools.partial(_read_slice, path), image_size, channels)


def _read_slice(path: Path, location: tuple[int, int]) -> bytes:
    offset, length = location
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _member_name(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _list(names: Sequence[Any], most: int = 8) -> str:
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# ---------------------------------------------------------------------------------------------------------------------
# Arrays: npz, IDX


def _npz(path: Path, key: str, image_size: int | None, channels: int | None) -> Source:
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
                found = _list([f"{name} {shape or ''}".strip() for name, shape in shapes.items()])
                wanted = f"no array {key!r}" if key else "no array that is clearly the images"
                raise UserError(
                    f"{path} has {wanted}; it has {found}. Accepted are {', '.join(NPZ_KEYS)}, or name one: "
                    f"{path.name}/KEY."
                )
            images = archive[key]
            partner = NPZ_KEYS.get(key) or _partner(key)
            labels = archive[partner] if partner in shapes and partner != key else None
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(
            f"{path} is not a readable .npz file of plain arrays ({error}): save it again with numpy.savez."
        ) from error
    return _arrays(path.stem, f"{key} in {path}", images, labels, image_size, channels)


def _npy_shape(archive: Any, name: str) -> tuple[int, ...] | None:
    """Shape of one array of an .npz file, from its header alone; None for what is not an array."""
    try:
        with archive.zip.open(name + ".npy") as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                return np.lib.format.read_array_header_1_0(file)[0]
            return np.lib.format.read_array_header_2_0(file)[0]
    except (KeyError, ValueError):
        return None


def _partner(key: str) -> str:
    """x_test -> y_test, val_images -> val_labels."""
    return re.sub("images?", lambda m: m[0].replace("image", "label"), re.sub(r"^[xX](?=_|$)", "y", key))


def _idx(path: Path, image_size: int | None, channels: int | None) -> Source:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    other = beside.with_suffix("") if beside.suffix == ".gz" else beside.with_name(beside.name + ".gz")
    labels = None
    for candidate in (beside, other):
        if candidate != path and candidate.is_file():
            labels = _read_idx(candidate)
            break
    return _arrays(path.name.split(".")[0], str(path), _read_idx(path), labels, image_size, channels)


def _read_idx(path: Path) -> np.ndarray:
    """Unsigned bytes in the format of MNIST: 0, 0, type 8, number of dimensions, big-endian dimensions, values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read()
        zero, kind, dims = struct.unpack_from(">HBB", data)
        if zero != 0 or kind != 8:
            raise ValueError(f"it starts with {data[:4].hex()} and not with 000008")
        shape = struct.unpack_from(f">{dims}I", data, 4)
        if len(data) != 4 + 4 * dims + math.prod(shape):
            raise ValueError(f"it has {len(data)} bytes, its header {shape} asks for {4 + 4 * dims + math.prod(shape)}")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{path} is not a readable IDX file of bytes ({error}): download it again.") from error
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _arrays(
    name: str, where: str, images: np.ndarray, labels: np.ndarray | None, image_size: int | None, channels: int | None
) -> Source:
    from PIL import Image

    images, scale, offset = _pixels(images, where)
    classes, label_names = _labels(labels, len(images), where)
    channels = channels or (1 if images.shape[-1] == 1 else 3)
    dtype = np.dtype(np.uint8 if images.dtype == np.uint8 else np.float32)
    height, width = (image_size, image_size) if image_size is not None else images.shape[1:3]

    def read(i: int) -> dict[str, np.ndarray]:
        pixels = images[range(len(images))[i]]
        if pixels.shape == (height, width, channels) and dtype == np.uint8:
            example = {"image": np.array(pixels)}
        elif dtype == np.uint8:
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            example = {"image": fit(picture, image_size, channels, dtype)}
        else:
            pixels = pixels.astype(np.float32) * scale + offset
            example = {"image": fit_float(pixels, image_size, channels)}
        return example if classes is None else {**example, "label": np.array(classes[i], np.int32)}

    return Source(name, (height, width, channels), dtype, len(images), label_names, read)


def _pixels(images: np.ndarray, where: str) -> tuple[np.ndarray, np.float32, np.float32]:
    """(n, h, w, c) as uint8, or anything else with the scale and offset that bring it to [-1, 1]."""
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
    if images.dtype == np.uint8:
        return images, np.float32(1), np.float32(0)
    if kind == "b":
        return images.astype(np.uint8) * np.uint8(255), np.float32(1), np.float32(0)
    if kind not in "iuf":
        raise UserError(f"{where} has the dtype {images.dtype}: accepted are uint8, uint16 and floats.")
    low, high = float(images.min()), float(images.max())  # NaN spreads
    if images.dtype == np.uint16 and high > 255:
        return images, np.float32(1 / 32767.5), np.float32(-1)
    if kind in "iu" and low >= 0 and high <= 255:
        return images.astype(np.uint8), np.float32(1), np.float32(0)
    if kind == "f":
        if low >= 0 and high <= 1:
            return images, np.float32(2), np.float32(-1)
        if low >= -1 and high <= 1:
            return images, np.float32(1), np.float32(0)
        if low >= 0 and high <= 255:
            return images, np.float32(1 / 127.5), np.float32(-1)
    raise UserError(
        f"{where} has {images.dtype} values from {low:g} to {high:g}: accepted are 0..255, uint16, and floats without "
        "NaN in [0, 1], [-1, 1] or [0, 255]."
    )


def _labels(labels: np.ndarray | None, count: int, where: str) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Classes (n,) int32 and their names. Numbers from 0 up stay what they are; others are numbered in sorted order."""
    if labels is None:
        return None, None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1 and len(labels) != count:
        raise UserError(f"{where} has {count} images but {len(labels)} labels: give one label per image.")
    whole = labels.dtype.kind in "iubUS" or (labels.dtype.kind == "f" and bool(np.all(labels == np.round(labels))))
    if labels.ndim != 1 or not whole:
        found = f"{labels.dtype} {labels.shape}"
        log.warning("the labels of %s are left out: they are %s and not one class for each image", where, found)
        return None, None
    if labels.dtype.kind in "iubf":
        labels = labels.astype(np.int64)
        if labels.min() >= 0 and labels.max() < count:  # more classes than images cannot be
            return labels.astype(np.int32), tuple(map(str, range(labels.max() + 1)))
    values, classes = np.unique(labels, return_inverse=True)
    names = tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)
    return classes.astype(np.int32), names


# ---------------------------------------------------------------------------------------------------------------------
# Glyphs


def _glyphs(spec: str, image_size: int, channels: int | None, seed: int) -> Source:
    from ganstyle_jax import glyphs

    options = spec.split(":")[1:]
    if unknown := sorted(set(options) - {"digits", "grey", "night"}):
        raise UserError(
            f"Unknown option {unknown[0]!r} in {spec!r}: accepted are glyphs and, in any combination, glyphs:digits, "
            "glyphs:grey and glyphs:night (black grounds)."
        )
    characters = glyphs.CHARACTERS[:10] if "digits" in options else glyphs.CHARACTERS
    grey, night = "grey" in options, "night" in options
    channels = channels or (1 if grey else 3)

    def read(i: int) -> dict[str, np.ndarray]:
        example = glyphs.draw(seed, i, image_size, characters, grey, night)
        image = example["image"]
        if image.shape[-1] != channels:
            from PIL import Image

            picture = Image.fromarray(image[..., 0] if grey else image)
            image = fit(picture, image_size, channels, np.dtype(np.uint8))
        return {**example, "image": image}

    shape = (image_size, image_size, channels)
    return Source(spec, shape, np.dtype(np.uint8), None, tuple(characters), read)


# ---------------------------------------------------------------------------------------------------------------------
# TFDS: prepared sets are read without TensorFlow, preparing them needs it


def _tfds(spec: str, image_size: int | None, channels: int | None) -> Source:
    name, _, split = spec.removeprefix("tfds:").partition(":")
    split = split or "train"
    folder = _tfds_folder(name)
    info = json.loads((folder / "dataset_info.json").read_text())
    if not _has_array_records(folder):
        raise UserError(
            f"{folder} is prepared as {info.get('fileFormat', 'an old format')}, which has no random access, and not "
            f"as array_record: move that folder away and run {PREPARE.format(name=name)}"
        )
    tfds = _import_tfds(name)
    try:
        builder = tfds.builder_from_directory(folder)
        features: Any = builder.info.features
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        if not images:
            raise UserError(f"{spec} has no image feature: it has {_list(list(features))}. Choose a set of images.")
        key = "image" if "image" in images else images[0]
        if features[key].np_dtype == np.float32:
            raise UserError(f"{spec} keeps floats in its feature {key!r}, which is not an image file: accepted are "
                            "8 and 16 bits.")  # fmt: skip
        classes = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        label_key = "label" if "label" in classes else classes[0] if classes else None
        skip = {k: tfds.decode.SkipDecoding() for k in images}  # Pillow decodes, as for files, and only what is used
        records = builder.as_data_source(split, decoders=skip)
        size = len(records)
    except UserError:
        raise
    except Exception as error:
        splits = _list([s.get("name") for s in info.get("splits", [])])
        raise UserError(f"Cannot open the split {split!r} of {folder} ({error}): it has {splits}.") from error
    if not size:
        raise UserError(f"The split {split!r} of {folder} is empty: choose another one.")

    def load(i: int) -> tuple[bytes, int | None]:
        record = records[i]
        label = None if label_key is None else int(record[label_key])
        return record[key], label

    label_names = None if label_key is None else tuple(features[label_key].names)
    return _encoded(spec, size, lambda i: f"{spec} record {i}", load, label_names, image_size, channels)


def _tfds_folder(name: str) -> Path:
    """The newest prepared version of NAME or NAME/CONFIG; UserError with what to do where there is none."""
    root = _tfds_root()
    if re.fullmatch(r"\w+(/[\w.+-]+)?", name):
        if found := _tfds_versions(root / name):
            return found[-1]
        configs = sorted(p for p in (root / name).glob("*") if _tfds_versions(p))
        if len(configs) == 1:
            return _tfds_versions(configs[0])[-1]
        if configs:
            choices = _list([f"tfds:{name}/{p.name}" for p in configs])
            raise UserError(f"tfds:{name} is prepared in several configurations, choose one: {choices}.")
    _check_tfds_name(name)
    raise UserError(
        f"The TFDS set {name!r} is not prepared in {root}: run {PREPARE.format(name=name)} once, where there is a "
        f"network, or set TFDS_DATA_DIR to where it lies. Without TFDS: {KINDS.replace(' tfds:NAME,', '')}."
    )


def _tfds_root() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _tfds_versions(folder: Path) -> list[Path]:
    """The prepared versions in a folder, oldest first."""
    found = [p for p in folder.glob("*.*.*") if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    found = [p for p in found if (p / "dataset_info.json").is_file()]
    return sorted(found, key=lambda p: tuple(map(int, p.name.split("."))))


def _has_array_records(folder: Path) -> bool:
    info = json.loads((folder / "dataset_info.json").read_text())
    return "array_record" in (info.get("fileFormat"), *info.get("alternativeFileFormats", []))


def _check_tfds_name(name: str) -> None:
    """UserError for a name that TFDS does not know, with those that are like it."""
    tfds = _import_tfds(name)
    known = tfds.list_builders(with_community_datasets=False)  # a list in the package, no network
    base = name.split("/")[0]
    if base not in known:
        close = difflib.get_close_matches(re.sub(r"\W+", "_", base.lower()), known, n=4, cutoff=0.5)
        advice = f"did you mean {' or '.join(close)}?" if close else "see tensorflow.org/datasets/catalog."
        raise UserError(f"TFDS knows no set {base!r}: {advice}")


def _import_tfds(name: str) -> Any:
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"tfds:{name} needs a package that cannot be imported ({error}): run "
            "pip install tensorflow-datasets array-record"
        ) from error
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS reports each folder it opens
    return tensorflow_datasets


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Downloads a TFDS set and writes it as ArrayRecord, for `tfds:NAME`; returns its folder.

    name: NAME or NAME/CONFIG. data_dir: TFDS_DATA_DIR, or else ~/tensorflow_datasets. Needs TensorFlow and a network.
    A set that is there already is left as it is. Raises UserError.
    """
    name = name.removeprefix("tfds:")
    root = Path(data_dir).expanduser() if data_dir else _tfds_root()
    if found := _tfds_versions(root / name):
        if _has_array_records(found[-1]):
            return found[-1]
        raise UserError(
            f"{found[-1]} is prepared in another format than array_record: move that folder away, or choose another "
            "data_dir, and run the command again."
        )
    _check_tfds_name(name)
    _require_network("https://storage.googleapis.com", name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow  # noqa: F401  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        import tensorflow_datasets as tfds
    except ImportError as error:
        command = PREPARE.format(name=name)
        raise UserError(
            f"Preparing {name!r} needs TensorFlow, which cannot be imported ({error}): run {command}"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # its downloads, its builders and what they import fail in many ways
        raise UserError(f"TFDS could not prepare {name!r} in {root}: {error}") from error
    return Path(builder.data_dir)


def _require_network(address: str, name: str, seconds: float = 5) -> None:
    """UserError unless a web server answers; TFDS would retry for minutes, and a name lookup has no time limit."""
    import urllib.error
    import urllib.request

    failure: list[str] = ["no answer"]

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
            failure.clear()
        except urllib.error.HTTPError:
            failure.clear()  # an answer
        except Exception as error:
            failure[0] = str(getattr(error, "reason", error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    if failure:
        raise UserError(
            f"Preparing {name!r} needs a network, and {address} cannot be reached ({failure[0]}): run the command "
            "where it can and copy the folder, or use a folder of images, a zip, an .npz file or glyphs."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Batches


class Batches:
    """Global batch t, a function of (seed, t) alone, whatever the number of processes, devices and workers.

    Position p = t * batch_size + j of the endless sequence shows image permutation[p % size] of epoch p // size: each
    image once per epoch, batches run on across the ends of epochs, nothing is dropped. Of n processes, k gets the
    contiguous part [k * batch_size / n, (k + 1) * batch_size / n) of each batch. An unlimited source shows image p.

    A corrupt image is replaced by the next good one in the epoch's order, so that nothing else moves; it is named once
    in a warning and kept in `skipped`, {name: reason}. More than one and more than 1 % of them raise UserError.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        workers: int | None = None,
    ):
        """workers: threads that read and decode; by default one for each core, at most 16."""
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"batch_size must be positive and a multiple of the {process_count} processes, got {batch_size}."
            )
        if not 0 <= process_index < process_count:
            raise UserError(f"process_index must be in 0..{process_count - 1}, got {process_index}.")
        if workers is not None and workers < 1:
            raise UserError(f"workers must be a number of threads from 1 up, got {workers}.")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.process_index, self.process_count = process_index, process_count
        self.workers = workers or min(16, _cores())
        self.skipped: dict[str, str] = {}
        self._corrupt: set[int] = set()
        self._lock = threading.Lock()
        # Two, because threads work on both sides of an epoch's end.
        self._order = functools.lru_cache(maxsize=2)(functools.partial(permutation, seed, source.size or 0))

    def indices(self, step: int) -> np.ndarray:
        """This process's share of global batch `step`, (batch_size / process_count,) int64.

        Images known to be corrupt, which are all of them after `load`, are replaced already.
        """
        positions = self._positions(step)
        size = self.source.size
        if size is None:
            return positions
        epochs, places = np.divmod(positions, size)
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            result[epochs == epoch] = self._order(int(epoch))[places[epochs == epoch]]
        if self._corrupt:
            for j in np.flatnonzero(np.isin(result, list(self._corrupt))):
                result[j] = next(self._candidates(int(positions[j])))
        return result

    def stream(self, start: int, stop: int) -> Generator[dict[str, np.ndarray], None, None]:
        """This process's shares of batches start..stop-1, read ahead by `workers` threads.

        {"image": (batch_size / process_count, h, w, c), "label": (batch_size / process_count,), ...} in the source's
        dtypes. At most `workers` batches wait in memory. Closing the iterator stops the threads.
        """
        return threaded(self._batch, start, stop, self.workers)

    def load(self, progress: bool = True) -> dict[str, np.ndarray]:
        """The whole source, {"image": (n, h, w, c), "label": (n,)}, for `indices` to choose from.

        For sets small enough for memory. Corrupt images stay zero; from then on `indices` avoids them, so that
        load()["image"][indices(t)] is what `stream` gives. progress: show a bar, if it takes over a second.
        """
        size = self.source.size
        if size is None:
            raise UserError(f"{self.source.name} is unlimited and cannot be loaded as a whole: stream it.")
        arrays: dict[str, np.ndarray] = {}
        chunk = 64

        def part(k: int) -> list[tuple[int, dict[str, np.ndarray]]]:
            examples = ((i, self._read(i)) for i in range(k * chunk, min((k + 1) * chunk, size)))
            return [(i, example) for i, example in examples if example is not None]

        from tqdm import tqdm

        with tqdm(total=size, desc="decoding", unit="image", disable=not progress, delay=1, leave=False) as bar:
            for examples in threaded(part, 0, -(-size // chunk), self.workers):
                for i, example in examples:
                    for key, value in example.items():
                        if key not in arrays:
                            arrays[key] = np.zeros((size, *value.shape), value.dtype)
                        arrays[key][i] = value
                bar.update(chunk)
        if not arrays:
            raise UserError(f"No image of {self.source.name} can be read ({self._examples()}): repair the files.")
        return arrays

    def report(self) -> str | None:
        """One sentence on the corrupt images met so far; None if there were none."""
        if not self._corrupt:
            return None
        count = len(self._corrupt)
        what = "1 corrupt image was" if count == 1 else f"{count} corrupt images were"
        return f"{what} replaced by others: {self._examples()}."

    def _positions(self, step: int) -> np.ndarray:
        share = self.batch_size // self.process_count
        return step * self.batch_size + self.process_index * share + np.arange(share, dtype=np.int64)

    def _candidates(self, position: int) -> Iterator[int]:
        """The image of a position and those to replace it with, in order, without known corrupt ones."""
        size = self.source.size
        if size is None:
            yield position
            return
        epoch, place = divmod(position, size)
        order = self._order(epoch)
        for k in range(size):
            index = int(order[(place + k) % size])
            if index not in self._corrupt:
                yield index

    def _batch(self, step: int) -> dict[str, np.ndarray]:
        examples = [self._example(int(position)) for position in self._positions(step)]
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}

    def _example(self, position: int) -> dict[str, np.ndarray]:
        for index in self._candidates(position):
            example = self._read(index)
            if example is not None:
                return example
        raise UserError(f"No image of {self.source.name} can be read ({self._examples()}): repair the files.")

    def _read(self, index: int) -> dict[str, np.ndarray] | None:
        """None for a corrupt image, which is noted."""
        try:
            return self.source.read(index)
        except CorruptImage as error:
            with self._lock:
                if index not in self._corrupt:
                    self._corrupt.add(index)
                    self.skipped[error.name] = error.reason
                    log.warning("%s is corrupt (%s) and is replaced by another image", error.name, error.reason)
                count, size = len(self._corrupt), self.source.size
            if size is None or count > max(1, 0.01 * size):
                raise UserError(
                    f"{count} of the {size or 'unlimited'} images of {self.source.name} are corrupt, more than the 1 % "
                    f"accepted ({self._examples()}): repair or delete them."
                ) from error
            return None

    def _examples(self) -> str:
        return _list([f"{name} ({reason})" for name, reason in list(self.skipped.items())], most=3)


def permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    """Order of `size` images in one epoch, (size,) int64, uniform over all orders.

    Sorts raw Philox output keyed by (seed, epoch): Generator.permutation may change between NumPy versions (NEP 19).
    """
    bits = np.random.Philox(key=((epoch % 2**64) << 64) | (seed % 2**64)).random_raw(size)
    return np.argsort(bits, kind="stable")


def threaded(function: Callable[[int], Any], start: int, stop: int, workers: int) -> Generator[Any, None, None]:
    """function(start), ..., function(stop - 1) in order, computed ahead by Grain's threads."""
    import grain

    if start >= stop:
        return
    dataset = grain.MapDataset.range(start, stop).map(function)
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers)))
    try:
        yield from iterator
    finally:
        iterator.close()  # drops what waits; threads end with the item in hand


def _cores() -> int:
    """Cores this process may use, which in a container or a job are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
