"""Picture and video files: many kinds in, a few out that look the same everywhere.

    picture = read_picture("photo.jpg")
    write_picture("photo.tif", picture)
    video = read_video("clip.mp4")
    write_video("mirrored.mp4", (frame[:, ::-1] for frame in video), video.fps)

Pictures and frames are (h, w, 3) float32 in [-1, 1], upright and in sRGB. What is wrong with a file is a UserError,
what is wrong with an array a ValueError.
"""

import contextlib
import dataclasses
import functools
import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import tifffile
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from ganstyle_jax import images
from ganstyle_jax.files import UserError, atomic_path

MAX_PIXELS = 400_000_000  # 4.8 GB as float32
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".gif")


# ---------------------------------------------------------------------------------------------------------------------
# Reading pictures


def read_picture(path: Path | str, max_pixels: int = MAX_PIXELS, because: str = "") -> np.ndarray:
    """A picture file as (h, w, 3) float32 in [-1, 1]: upright, over white where it is transparent, in sRGB.

    16 bits a channel of PNG and TIFF files are kept, except where an embedded colour profile is not sRGB: Pillow's
    colour management has 8 bits. A profile that is damaged or of another mode is passed over. Of several pictures in
    one file the first is read.

    Raises UserError for a file that is missing, damaged or no picture and, before decoding, for a picture of more than
    `max_pixels` or of one pixel's width or height. because: added to the message that there are too many.
    """
    path = Path(path)
    try:
        with _pixel_limit(max_pixels), Image.open(path) as file:
            if min(file.size) < 2:
                raise UserError(f"{path} has {file.width} x {file.height} pixels; at least 2 x 2 are needed")
            orientation = _orientation(file)
            pixels = _deep_pixels(path, file)
            if pixels is None:
                file.load()
                orientation = _orientation(file)  # again: Pillow has turned a TIFF upright now
                picture = _over_white(file)
            else:
                picture = _pillow(images.to_uint8(pixels))
            converted = _to_srgb(picture, file.info.get("icc_profile"))
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.findall(r"\d+", str(error))[0]
        raise UserError(
            f"{path} has {count} pixels; at most {max_pixels} are read{because}, make the picture smaller first"
        ) from error
    except Exception as error:  # the readers raise nearly everything when a file is damaged
        raise _unreadable(path, "picture", error) from error
    if pixels is None or converted is not None:
        pixels = np.array((converted or picture).convert("RGB"), np.float32)
        pixels /= 127.5
        pixels -= 1
    pixels = _upright(pixels, orientation)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


_limit_lock = threading.Lock()


@contextlib.contextmanager
def _pixel_limit(max_pixels: int) -> Iterator[None]:
    """Makes Pillow refuse more pixels, those of pictures inside a file too; its limit is global to all threads."""
    with _limit_lock, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of damage around the pixels
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no {kind} {path}")
    if path.is_dir():
        return UserError(f"{path} is a folder, not a {kind}")
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path} is not a picture that can be read, such as a JPEG, PNG, WebP or TIFF file")
    return UserError(f"{path} cannot be read as a {kind}: {_reason(error)}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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


def _over_white(picture: Image.Image) -> Image.Image:
    """A picture of 8 bits a channel in mode L, RGB, CMYK or LAB, without transparency."""
    if picture.mode in ("CMYK", "LAB"):
        return picture
    mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert(mode)


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image | None:
    """A picture of mode L, RGB, CMYK or LAB from its profile to sRGB, or None where there is nothing to convert."""
    if not profile and picture.mode != "LAB":
        return None
    srgb = ImageCms.createProfile("sRGB")
    try:
        if picture.mode == "LAB":
            source: Any = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        if picture.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            picture = picture.convert("RGB")
        transform = ImageCms.buildTransform(source, srgb, picture.mode, "RGB")
    except (OSError, ImageCms.PyCMSError):  # damaged, or of another mode
        return None
    if picture.mode in ("L", "RGB"):  # a profile of sRGB itself would add nothing but rounding errors
        levels = np.arange(0, 256, 15).astype(np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        probe = _pillow(probe[..., : len(picture.getbands())])
        change = np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB"))
        if np.abs(change).max() <= 2:
            return None
    return transform.apply(picture)


def _pillow(pixels: np.ndarray) -> Image.Image:
    """(h, w, 1) or (h, w, 3) uint8 as a picture of mode L or RGB."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


# 16 bits a channel, of which Pillow keeps 8 in colour


def _deep_pixels(path: Path, file: Image.Image) -> np.ndarray | None:
    """(h, w, 1) or (h, w, 3) float32 in [-1, 1] over white, as they lie in the file; None for 8 bits a channel."""
    if file.format == "PNG":
        with open(path, "rb") as header:
            bits, colour_type = header.read(26)[24:]
        return _blend(_decode_rgba(path, file, "png_pipe", grey=colour_type in (0, 4))) if bits == 16 else None
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        bits_per_sample = file.tag_v2.get(258, (1,))
        return _deep_tiff(path, file) if max(bits_per_sample) > 8 else None
    if file.mode.startswith(("I", "F")):
        pixels = np.asarray(file)[..., None]
        if file.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise _no_range(path)
        return _blend(pixels.astype(np.uint16))
    return None


def _deep_tiff(path: Path, file: Image.Image) -> np.ndarray | None:
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        if page.dtype != np.uint16 or page.bitspersample != 16:
            raise _no_range(path)
        kind = page.photometric.name
        if kind not in ("RGB", "MINISBLACK", "MINISWHITE"):
            return None  # CMYK, of which Pillow reads 8 bits
        plain = page.axes in ("YX", "YXS") and not page.is_tiled and kind != "MINISWHITE"
        if page.compression.name == "LZW" and plain:  # tifffile lacks LZW, FFmpeg errs where it is not plain
            pixels = _decode_rgba(path, file, "tiff_pipe", grey=kind != "RGB")
        else:
            try:
                pixels = page.asarray()
            except ImportError as error:
                raise UserError(f"{path} is compressed by an unusual method; save it as PNG") from error
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if kind == "MINISWHITE":
            pixels[..., 0] = 65535 - pixels[..., 0]
        alpha = page.extrasamples[0].name if page.extrasamples else "UNSPECIFIED"
        channels = (3 if kind == "RGB" else 1) + (alpha != "UNSPECIFIED")
        return _blend(pixels[..., :channels], premultiplied=alpha == "ASSOCALPHA")


def _no_range(path: Path) -> UserError:
    return UserError(f"{path} holds numbers of no known range; save it with 8 or 16 bits a channel")


def _decode_rgba(path: Path, file: Image.Image, demuxer: str, grey: bool) -> np.ndarray:
    """(h, w, 4) uint16, or (h, w, 2) for a grey one, by FFmpeg; opaque where the file has no alpha."""
    file.load()  # finds damage that FFmpeg passes over
    with av.open(f"file:{path}", format=demuxer) as container:
        pixels = next(container.decode(video=0)).to_ndarray(format="rgba64le")
    return pixels[..., [0, 3]] if grey else pixels


def _blend(pixels: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Grey or RGB, alpha behind it or not, uint8 or uint16, to (h, w, 1) or (h, w, 3) float32 in [-1, 1] over white."""
    unit = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    if unit.shape[-1] in (2, 4):
        colour, alpha = unit[..., :-1], unit[..., -1:]
        unit = (np.minimum(colour, alpha) if premultiplied else colour * alpha) + (1 - alpha)
    return 2 * unit - 1


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


def write_picture(path: Path | str, image: Any) -> None:
    """Writes (h, w, 3) or (h, w, 1), float in [-1, 1] or uint8, in the format of the suffix, with a profile of sRGB.

    TIFF gets 16 bits a channel, PNG, JPEG and WebP get 8. The file is whole or absent. Raises UserError as
    `check_destination` does, and for a picture too large for its format.
    """
    path = Path(path)
    check_destination(path, PICTURE_SUFFIXES)
    suffix = path.suffix.lower()
    image = _rgb(image)
    longest = LONGEST_SIDE.get(suffix)
    if longest and max(image.shape) > longest:
        raise UserError(
            f"{path} would have {image.shape[1]} x {image.shape[0]} pixels, and {suffix} holds up to {longest} a side; "
            "choose .png or .tif"
        )
    with _writing(path), atomic_path(path) as temporary:
        if suffix in SAVE_OPTIONS:
            Image.fromarray(_uint8(image)).save(temporary, icc_profile=_srgb_profile(), **SAVE_OPTIONS[suffix])
        else:
            deep = image * np.uint16(257) if image.dtype == np.uint8 else images.to_uint16(image)
            tifffile.imwrite(
                temporary, deep, photometric="rgb", iccprofile=_srgb_profile(), metadata=None, software=False
            )


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
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"{path} cannot be written: {_reason(error)}") from error


def _rgb(image: Any) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"an image must have shape (h, w, 1) or (h, w, 3), got {image.shape}")
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _uint8(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image if image.dtype == np.uint8 else images.to_uint8(image))


@functools.cache
def _srgb_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # not that of now: equal pictures are to be equal files
    return profile[:24] + date + profile[36:]


# ---------------------------------------------------------------------------------------------------------------------
# Videos


H264_QUALITY = "17"  # the constant rate factor: at 23, the usual one, losses can be seen, at 17 hardly
UNSPECIFIED = 2  # of a frame's colorspace
# SWS_ACCURATE_RND and full chroma in and out: FFmpeg's usual conversion to RGB is fast, and 1/255 too dark.
EXACT = Interpolation.BICUBIC | 0x40000 | 0x4000 | 0x2000


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file. Iterating decodes it from its beginning, one frame (h, w, 3) float32 in [-1, 1] at a time."""

    path: Path
    fps: float  # frames a second, on average
    shape: tuple[int, int]  # (h, w) of the frames

    def __iter__(self) -> Iterator[np.ndarray]:
        with _open_video(self.path) as container:
            for frame in container.decode(video=0):
                yield _frame_pixels(frame)


def read_video(path: Path | str) -> Video:
    """The pictures, not the sound, of a video file of any kind that FFmpeg reads, GIF among them.

    Raises UserError, in the iteration also, for a file that is missing, damaged or has no pictures. One that was cut
    short may just end early.
    """
    path = Path(path)
    with _open_video(path) as container:
        rate = container.streams.video[0].average_rate
        first = next(container.decode(video=0), None)
        if first is None or not rate:
            raise UserError(f"{path} has no frames")
        return Video(path, float(rate), _frame_pixels(first).shape[:2])


@contextlib.contextmanager
def _open_video(path: Path) -> Iterator[Any]:
    try:
        with av.open(f"file:{path}") as container:
            if not container.streams.video:
                raise UserError(f"{path} has sound but no pictures; give a video")
            container.streams.video[0].thread_type = "AUTO"
            yield container
    except (OSError, av.FFmpegError) as error:
        raise _unreadable(path, "video", error) from error


def _frame_pixels(frame: av.VideoFrame) -> np.ndarray:
    # Where a file does not say by which matrix its colours were made, players go by the size.
    matrix = Colorspace.ITU709 if frame.colorspace == UNSPECIFIED and frame.height >= 720 else None
    transparent = any(component.is_alpha for component in frame.format.components)
    kind = "rgba" if transparent else "rgb24"
    pixels = frame.to_ndarray(format=kind, src_colorspace=matrix, interpolation=EXACT)
    upright = np.rot90(pixels, round(frame.rotation / 90))  # as the telephone was held
    return np.ascontiguousarray(_blend(upright))


def write_video(path: Path | str, frames: Iterable[Any], fps: float) -> None:
    """Writes frames (h, w, 3) or (h, w, 1) of one shape, float in [-1, 1] or uint8, as .mp4 (H.264) or .gif.

    An .mp4 file takes the frames one by one, so that those of an iterator are never all in memory; a .gif file takes
    them together (`images.save_gif`). H.264 as all players know it has colour at half resolution, and so even sizes: an
    odd one is made even by repeating the last row or column, since cropping would lose a part of the picture.

    The file is whole or absent. Raises UserError as `check_destination` does, and for an `fps` that the format lacks.
    """
    path = Path(path)
    check_destination(path, VIDEO_SUFFIXES)
    gif = path.suffix.lower() == ".gif"
    highest = 50 if gif else 240
    if not 1 <= fps <= highest:
        raise UserError(f"{path}: a {path.suffix} file has 1 to {highest} frames a second, got {fps}")
    with _writing(path):
        if gif:
            images.save_gif(path, np.stack(list(_equal_frames(frames))), fps)
        else:
            with atomic_path(path) as temporary:
                _write_mp4(temporary, _equal_frames(frames), Fraction(fps).limit_denominator(1001))


def _equal_frames(frames: Iterable[Any]) -> Iterator[np.ndarray]:
    """The frames as (h, w, 3) uint8; raises ValueError if there is none, or one of another shape than the first."""
    first = None
    for i, frame in enumerate(frames):
        frame = _uint8(_rgb(frame))
        first = first or frame.shape
        if frame.shape != first:
            raise ValueError(f"all frames must have one shape, got {first} first and {frame.shape} at index {i}")
        yield frame
    if first is None:
        raise ValueError("a video needs at least one frame, got none")


def _write_mp4(path: Path, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    # faststart: the index comes first in the file, so that a browser can play it while it loads.
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # FFmpeg puts the colour of 2 x 2 pixels in their centre, but H.264 has it at the left unless told.
        options = {"crf": H264_QUALITY, "chroma_sample_location": "center"}
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        colours = stream.codec_context
        colours.colorspace, colours.color_range = Colorspace.ITU709, ColorRange.MPEG
        colours.color_primaries, colours.color_trc = ColorPrimaries.BT709, ColorTrc.IEC61966_2_1  # those of sRGB
        for i, pixels in enumerate(frames):
            h, w = pixels.shape[:2]
            pixels = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
            if i == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=EXACT)
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
