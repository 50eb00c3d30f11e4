"""Picture files: many kinds in, a few out that look the same everywhere.

    picture = read_picture("photo.jpg")
    write_picture("photo.tif", picture)
    for path in pictures_in("photos"): ...

Pictures are (h, w, 3) float32 in [-1, 1], upright and in sRGB. What is wrong with a file is a UserError, what is wrong
with an array a ValueError. `opened` is what every reader of pictures goes through, that of training sets too. Videos
are `video`'s.
"""

import contextlib
import functools
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ganstyle_jax.io import deep, images, profiles
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.io.folders import SUFFIXES, pictures_in, suffixes

__all__ = ["MAX_PIXELS", "PICTURE_SUFFIXES", "SUFFIXES", "check_destination", "opened", "pictures_in", "read_alpha",
           "read_picture", "read_with_alpha", "suffixes", "write_picture"]  # fmt: skip

MAX_PIXELS = 400_000_000  # 4.8 GB as float32
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")  # that are written
# Pillow's names of what is read, by how often it occurs; TGA, which any bytes may be, is last. Not among them are
# those that run programs (EPS) or hold pictures of sizes that no header tells.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000", "PPM"),
    *("MPO", "DIB", "ICO", "PSD", "PCX", "SGI", "TGA"),
)
DENSEST = 10_000  # pixels in a byte: a white page of 1 bit a pixel has 8,256 as PNG


# ---------------------------------------------------------------------------------------------------------------------
# Opening


class TooLarge(ValueError):  # noqa: N818
    """A picture of too many pixels."""


class opened:  # noqa: N801  (used as a function; a generator would cost a tenth of a small picture's decoding)
    """Pillow's picture of a file, whose header alone has been read, to be used in a `with`. Safe in several threads.

    Raises TooLarge for more than `max_pixels`, ValueError for more than the file can hold, and what Pillow raises.
    Pillow's own limit, which is global to all threads and a warning at first, gives way to this one meanwhile.
    """

    _guard = threading.Lock()
    _readers, _usual = 0, Image.MAX_IMAGE_PIXELS

    def __init__(self, file: Path | io.BytesIO, max_pixels: int = MAX_PIXELS):
        self.file, self.max_pixels = file, max_pixels

    def __enter__(self) -> Image.Image:
        with opened._guard:
            if not opened._readers:
                opened._usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
            opened._readers += 1
        try:
            self.image = Image.open(self.file, formats=_formats())
            try:
                self._check()
            except BaseException:
                self.image.close()
                raise
            return self.image
        except BaseException as error:
            self._leave()
            if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
                count = next(word for word in str(error).replace("(", " ").split() if word.isdigit())
                raise self._too_many(int(count)) from error
            raise

    def __exit__(self, *error: object) -> None:
        self.image.__exit__(*error)  # closes the file; what has been decoded stays
        self._leave()

    def _check(self) -> None:
        width, height = self.image.size
        count = width * height
        if self.image.format == "ICO":  # a picture inside, of a size of its own
            inner = self.image.ico.getimage(self.image.size)  # pyright: ignore[reportAttributeAccessIssue]
            count = max(count, inner.width * inner.height)
        if count > self.max_pixels:
            raise self._too_many(count)
        if count > 1 << 26:
            stored = self.file.stat().st_size if isinstance(self.file, Path) else self.file.getbuffer().nbytes
            if count > DENSEST * stored:
                raise ValueError(f"it says that it has {count} pixels, which its {stored} bytes cannot hold")

    def _too_many(self, count: int) -> TooLarge:
        return TooLarge(f"has {count} pixels; at most {self.max_pixels} are read")

    @staticmethod
    def _leave() -> None:
        with opened._guard:
            opened._readers -= 1
            if not opened._readers:
                Image.MAX_IMAGE_PIXELS = opened._usual


@functools.cache
def _formats() -> tuple[str, ...]:
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_picture(path: Path | str, max_pixels: int = MAX_PIXELS, because: str = "") -> np.ndarray:
    """A picture file as (h, w, 3) float32 in [-1, 1]: upright, over white where it is transparent, in sRGB.

    16 bits a channel of PNG and TIFF files are kept, except where an embedded colour profile is not sRGB: Pillow's
    colour management has 8 bits. A profile that is damaged or of another mode is passed over. Of several pictures in
    one file the first is read.

    Raises UserError for a file that is missing, damaged or no picture and, before decoding, for a picture of more than
    `max_pixels` or of one pixel's width or height. because: added to the message that there are too many.
    """
    return _read(Path(path), max_pixels, because, over_white=True)[0]


def read_with_alpha(
    path: Path | str, max_pixels: int = MAX_PIXELS, because: str = ""
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `read_picture` and `read_alpha`, with the colours as they are where the picture is not opaque.

    These mean little where it is nearly transparent, and nothing where it is wholly so.
    """
    return _read(Path(path), max_pixels, because, over_white=False)


def _read(path: Path, max_pixels: int, because: str, over_white: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture, see `read_picture`, and unless it is over white how opaque it is, see `read_alpha`."""
    alpha = None
    with _reading(path, max_pixels, because) as file:
        if min(file.size) < 2:
            raise UserError(f"{path} has {file.width} x {file.height} pixels; at least 2 x 2 are needed")
        orientation = _orientation(file)
        found = deep.read(path, file)
        pixels = None
        if found is not None:
            alpha = found.alpha
            pixels = (
                deep.blend(found.pixels, found.premultiplied)
                if over_white
                else deep.straight(found.pixels, found.premultiplied)
            )
            picture = _pillow(images.to_uint8(pixels))
        else:
            file.load()
            orientation = _orientation(file)  # again: Pillow has turned a TIFF upright now
            alpha = None if over_white else _alpha(file)
            picture = profiles.over_white(file) if over_white else profiles.without_alpha(file)
        converted = profiles.to_srgb(picture, file.info.get("icc_profile"))
    if pixels is None or converted is not None:
        pixels = np.array((converted or picture).convert("RGB"), np.float32)
        pixels /= 127.5
        pixels -= 1
    pixels = _upright(pixels, orientation)
    pixels = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    if over_white or alpha is None or alpha.min() >= 1:
        return pixels, None
    return pixels, np.ascontiguousarray(_upright(alpha, orientation))


def read_alpha(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """How opaque a picture file is, (h, w) float32 from 0 to 1, upright as `read_picture`; None if it is throughout.

    Raises UserError as `read_picture` does.
    """
    path = Path(path)
    with _reading(path, max_pixels) as file:
        if file.format == "JPEG":  # which has none, and takes long to decode
            return None
        orientation = _orientation(file)
        found = deep.read(path, file)
        if found is not None:
            alpha = found.alpha
        else:
            file.load()
            orientation = _orientation(file)
            alpha = _alpha(file)
    if alpha is None or alpha.min() >= 1:
        return None
    return np.ascontiguousarray(_upright(alpha, orientation))


def _alpha(file: Image.Image) -> np.ndarray | None:
    """(h, w) float32 from 0 to 1, as it lies in the file; None where there is none."""
    if not file.has_transparency_data:
        return None
    return np.asarray(file.convert("RGBA").getchannel("A"), np.float32) / 255


_warnings_lock = threading.Lock()


@contextlib.contextmanager
def _reading(path: Path, max_pixels: int, because: str = "") -> Iterator[Image.Image]:
    """`opened`, with whatever goes wrong as a UserError; one at a time, since warnings are global to all threads."""
    try:
        with _warnings_lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of damage around the pixels
            with opened(path, max_pixels) as file:
                yield file
    except UserError:
        raise
    except TooLarge as error:
        raise UserError(f"{path} {error}{because}, make the picture smaller first") from error
    except Exception as error:  # the readers raise nearly everything when a file is damaged
        raise unreadable(path, "picture", error) from error


def unreadable(path: Path, kind: str, error: Exception) -> UserError:
    """What to say of a file that a reader failed at; kind: what it should be."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no {kind} {path}")
    if path.is_dir():
        return UserError(f"{path} is a folder, not a {kind}")
    if isinstance(error, UnidentifiedImageError):
        advice = ""
        if path.suffix.lower() in (".heic", ".heif", ".hif") and path.suffix.lower() not in suffixes():
            advice = ": pip install -e '.[heic]' reads those of telephones"
        return UserError(f"{path} is not a picture that can be read, such as a JPEG, PNG, WebP or TIFF file{advice}")
    if isinstance(error, MemoryError):
        return UserError(f"there is not enough memory to read {path}: make the {kind} smaller, or end other programs")
    return UserError(f"{path} cannot be read as a {kind}: {reason(error)}")


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, which is upright, where there is none or it makes no sense."""
    try:
        value = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damage here is none to the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation: 1 to 4 are all flips, 5 to 8 the same after transposing."""
    if orientation > 4:
        pixels, orientation = pixels.swapaxes(0, 1), orientation - 4
    if orientation in (3, 4):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3) else pixels


def _pillow(pixels: np.ndarray) -> Image.Image:
    """(h, w, 1) or (h, w, 3) uint8 as a picture of mode L or RGB."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


# ---------------------------------------------------------------------------------------------------------------------
# Writing pictures


JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}  # 0: colour at full resolution
SAVE_OPTIONS = {
    ".png": {"format": "PNG"},
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".webp": {"format": "WEBP", "quality": 95},
}
LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # pixels


def write_picture(path: Path | str, image: Any, alpha: np.ndarray | None = None) -> None:
    """Writes (h, w, 3) or (h, w, 1), float in [-1, 1] or uint8, in the format of the suffix, with a profile of sRGB.

    alpha: (h, w) float from 0, which lets all through, to 1; PNG, WebP and TIFF have it. TIFF gets 16 bits a channel,
    PNG, JPEG and WebP get 8. The file is whole or absent. Raises UserError as `check_destination` does, for a picture
    too large for its format and for alpha in a JPEG.
    """
    path = Path(path)
    check_destination(path, PICTURE_SUFFIXES)
    suffix = path.suffix.lower()
    image = rgb(image)
    if alpha is not None:
        alpha = _checked_alpha(path, alpha, image.shape[:2])
    longest = LONGEST_SIDE.get(suffix)
    if longest and max(image.shape) > longest:
        raise UserError(
            f"{path} would have {image.shape[1]} x {image.shape[0]} pixels, and {suffix} holds up to {longest} a side; "
            "choose .png or .tif"
        )
    with writing(path), atomic_path(path) as temporary:
        if suffix in SAVE_OPTIONS:
            pixels = uint8(image)
            if alpha is not None:
                pixels = np.dstack([pixels, np.rint(alpha * 255).astype(np.uint8)])
            Image.fromarray(pixels).save(temporary, icc_profile=profiles.srgb(), **SAVE_OPTIONS[suffix])
        else:
            import tifffile

            pixels = image * np.uint16(257) if image.dtype == np.uint8 else images.to_uint16(image)
            options: dict[str, Any] = {}
            if alpha is not None:
                pixels = np.dstack([pixels, np.rint(alpha * 65535).astype(np.uint16)])
                options["extrasamples"] = ["unassalpha"]
            tifffile.imwrite(
                temporary,
                pixels,
                photometric="rgb",
                iccprofile=profiles.srgb(),
                metadata=None,
                software=False,
                **options,
            )


def _checked_alpha(path: Path, alpha: Any, shape: tuple[int, ...]) -> np.ndarray:
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise UserError(f"{path} cannot be transparent, since JPEG has no alpha: choose .png, .webp or .tif")
    alpha = np.asarray(alpha)
    if alpha.shape != shape or not np.issubdtype(alpha.dtype, np.floating) or not ((alpha >= 0) & (alpha <= 1)).all():
        raise ValueError(
            f"alpha must be floats from 0 to 1 of shape {shape}, as the picture has, got {alpha.dtype} {alpha.shape}"
        )
    return alpha


def check_destination(path: Path | str, suffixes: tuple[str, ...]) -> None:
    """Raises UserError unless the suffix is one of these and the folder takes files; of use before long work."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if path.suffix.lower() not in suffixes:
        accepted = " or ".join([", ".join(suffixes[:-1]), suffixes[-1]])
        raise UserError(f"{path} ends in {path.suffix or 'no suffix'}, and its format follows from it: use {accepted}")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written, since there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written, since you have no right to write to the folder {path.parent}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk and the like as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)}") from error
    except MemoryError as error:
        raise UserError(f"{path} cannot be written: there is not enough memory for it; end other programs") from error


def rgb(image: Any) -> np.ndarray:
    """(h, w, 1 | 3) as (h, w, 3); ValueError for another shape."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"an image must have shape (h, w, 1) or (h, w, 3), got {image.shape}")
    return np.broadcast_to(image, (*image.shape[:2], 3))


def uint8(image: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] or uint8 as uint8, one row after the other in memory."""
    return np.ascontiguousarray(image if image.dtype == np.uint8 else images.to_uint8(image))
