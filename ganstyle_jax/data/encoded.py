"""Sources of image files, whatever holds them: folders, archives, records."""

import contextlib
import io
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ganstyle_jax.data.fitting import fit, shape_of
from ganstyle_jax.data.source import CorruptImage, Size, Source
from ganstyle_jax.io.files import UserError, listed

if TYPE_CHECKING:
    from PIL import Image

PEEK = 16  # files looked at as a whole on opening, to choose the dtype
LOOKS = 20_000  # files of whose beginning is seen whether they are in colour, unless those few are in colour already
HEAD = 1 << 16  # bytes of that beginning; a JPEG of a camera has its thumbnail before its size
FURTHER = 1 << 28  # bytes read of all the files whose beginning does not tell
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "eval", "test", "testing")


class Load(Protocol):
    def __call__(self, i: int, most: int | None = None, /) -> tuple[bytes, int | None]:
        """File i, or its first `most` bytes, and its class."""
        ...


def source(
    name: str,
    size: int,
    describe: Callable[[int], str],
    load: Load,
    label_names: tuple[str, ...] | None,
    image_size: Size,
    channels: int | None,
    notes: Sequence[str] = (),
) -> Source:
    """A source of encoded images. notes: what else is to be said of the set in `opened`."""
    from ganstyle_jax.io import pictures

    modes, first_error = [], ""
    colours: dict[int, bool] = {}
    looked_at = _spread(size, PEEK)
    for i in looked_at:
        try:
            with pictures.opened(io.BytesIO(load(i)[0])) as image:
                modes.append(image.mode)
                colours[i] = _in_colour(image)
        except Exception as error:
            first_error = first_error or f"{describe(i)}: {_reason(error)}"
    if not modes:
        raise UserError(
            f"None of the images looked at in {name} can be read ({first_error}): check that the files are images."
        )
    said = [*notes]
    failed = len(looked_at) - len(modes)
    if channels is None:
        if failed or not all(colours.values()):
            looked_at = sorted({*_spread(size, LOOKS), *looked_at})
            colours, failed, first_error = _look(looked_at, colours, load, describe)
        channels = 3 if any(colours.values()) else 1
        said.append(_colour_words(list(colours.values()), size))
    if failed:
        of = f" of {len(looked_at):,} looked at" if len(looked_at) < size else ""
        said.append(f"{failed:,}{of} cannot be read ({first_error})")
    dtype = np.dtype(np.float32 if any(mode.startswith("I") for mode in modes) else np.uint8)

    def read(i: int) -> dict[str, np.ndarray]:
        i = range(size)[i]  # IndexError past the end
        try:
            data, label = load(i)
            with pictures.opened(io.BytesIO(data)) as image:
                example = {"image": fit(image, image_size, channels, dtype)}
        except MemoryError as error:
            raise UserError(
                f"There is not enough memory to read {describe(i)}: make the images smaller, or use fewer workers."
            ) from error
        except Exception as error:  # Pillow's readers raise nearly everything when a file is damaged
            raise CorruptImage(describe(i), _reason(error)) from error
        return example if label is None else {**example, "label": np.array(label, np.int32)}

    height, width = shape_of(image_size) or (0, 0)
    classes = f" in {len(label_names)} classes ({listed(label_names, 4)})" if label_names else ""
    line = "; ".join([f"{name}: {size:,} image{'s' * (size != 1)}{classes}", *filter(None, said)])
    return Source(name, (height, width, channels), dtype, size, label_names, read, opened=line)


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    from ganstyle_jax.io.pictures import TooLarge

    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"
    if isinstance(error, TooLarge):
        return f"it {error}, make it smaller first"
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------------------------------------------------------------
# Grey or in colour


def _spread(size: int, most: int) -> list[int]:
    return sorted({round(k) for k in np.linspace(0, size - 1, min(size, most))})


def _look(
    looked_at: Sequence[int], known: dict[int, bool], load: Load, describe: Callable[[int], str]
) -> tuple[dict[int, bool], int, str]:
    """Whether each of these is in colour, {i: bool}, how many cannot be read, and why the first of them cannot.

    The same on every machine: what is looked at is bounded by numbers and not by time.
    """
    colours, failed, first_error, further = dict(known), 0, "", FURTHER
    for i in looked_at:
        if i in known:
            continue
        try:
            data = load(i, HEAD)[0]
            colour = colour_of(data)
            if colour is None and len(data) == HEAD:  # its beginning may be enough for Pillow too, or not
                with contextlib.suppress(Exception):
                    colour = _opened_colour(data)
                if colour is None:
                    if further <= 0:
                        continue
                    data = load(i)[0]
                    further -= len(data)
                    colour = colour_of(data)
            colours[i] = _opened_colour(data) if colour is None else colour
        except Exception as error:
            failed += 1
            first_error = first_error or f"{describe(i)}: {_reason(error)}"
    return colours, failed, first_error


def colour_of(data: bytes) -> bool | None:
    """Whether a PNG or JPEG file is in colour, by its beginning; None where that does not tell, and for other kinds."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25:
        return {0: False, 4: False, 2: True, 6: True}.get(data[25])  # 3 has a palette
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame, which says how many components
            return data[at + 9] != 1
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _opened_colour(data: bytes) -> bool:
    from ganstyle_jax.io import pictures

    with pictures.opened(io.BytesIO(data)) as image:
        return _in_colour(image)


def _in_colour(image: "Image.Image") -> bool:
    """By the mode of a picture whose header has been read, and by the palette where it has one."""
    if image.mode in ("P", "PA") and image.palette is not None:
        raw = image.palette.rawmode or image.palette.mode
        table = np.frombuffer(bytes(image.palette.palette), np.uint8)
        bands = len(raw.split(";")[0])
        table = table[: len(table) // bands * bands]
        table = table.reshape(bands, -1).T if raw.endswith(";L") else table.reshape(-1, bands)
        return bool((table[:, :1] != table[:, :3]).any())
    return not (image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"))


def _colour_words(colours: Sequence[bool], size: int) -> str:
    count = sum(colours)
    by = "" if len(colours) == size else f" by the {len(colours):,} looked at"
    if count in (0, len(colours)):
        return f"all {'in colour' if count else 'grey'}{by}"
    return f"{count:,} in colour and {len(colours) - count:,} grey{by}, all read as colour"


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def classes(names: list[str], place: str) -> tuple[list[str], np.ndarray | None, tuple[str, ...] | None, str]:
    """The names to use, the class of each, the names of the classes, and what is to be said of the choice.

    By the rule of `data.open_source`. names: sorted paths below `place`.
    """
    parents = [name.split("/")[:-1] for name in names]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(parents), max(parents), strict=False))
    prefix = [first for first, _ in shared]  # what the first and the last in order share, all share
    depth = len(prefix)
    first = [parent[depth] if len(parent) > depth else None for parent in parents]
    folders = sorted({folder for folder in first if folder is not None})
    lower = {folder.lower() for folder in folders}
    at = "/".join([place, *prefix])
    if None in first:
        stray = [name for name, folder in zip(names, first, strict=True) if folder is None]
        said = f"no classes, since {listed(stray, 2)} lies above the folders {listed(folders, 4)}" if folders else ""
        return names, None, None, said
    if {"traina", "trainb"} <= lower:
        a, b = (next(folder for folder in folders if folder.lower() == name) for name in ("traina", "trainb"))
        return names, None, None, f"laid out for two sources, {at}/{a} and {at}/{b}: here all are one set"
    if lower <= set(SPLIT_FOLDERS):
        train = [folder for folder in folders if folder.lower() in ("train", "training")]
        if len(train) == 1:
            others = listed([folder for folder in folders if folder != train[0]])
            kept = [name for name, folder in zip(names, first, strict=True) if folder == train[0]]
            kept, labels, label_names, said = classes(kept, place)
            taken = f"taking the images of {train[0]}; the other folders are {others}" if others else ""
            return kept, labels, label_names, "; ".join(filter(None, [taken, said]))
        if not train:
            said = f"no classes: {listed(folders)} are splits without a train among them; {at}/{folders[0]} reads one"
            return names, None, None, said
    number = {folder: k for k, folder in enumerate(folders)}
    labels = np.array([number[folder] for folder in first if folder is not None], np.int32)
    return names, labels, tuple(folders), ""
