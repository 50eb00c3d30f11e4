"""Pictures of 16 bits a channel, of which Pillow keeps 8 in colour: by FFmpeg from PNG, by tifffile from TIFF."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin


@dataclasses.dataclass(frozen=True)
class Deep:
    """Pixels as they lie in the file: not turned, in its own colours."""

    pixels: np.ndarray  # (h, w, 1 to 4) uint16: grey or RGB, and perhaps alpha
    premultiplied: bool = False  # whether the colours are multiplied by alpha

    @property
    def alpha(self) -> np.ndarray | None:
        """(h, w) float32 from 0 to 1, None where there is none."""
        return self.pixels[..., -1] / np.float32(65535) if self.pixels.shape[-1] in (2, 4) else None


def read(path: Path, file: Image.Image) -> Deep | None:
    """The pixels of a file that Pillow has opened; None for 8 bits a channel. ValueError for what has no range."""
    if file.format == "PNG":
        with open(path, "rb") as header:
            bits, colour_type = header.read(26)[24:]
        return Deep(_decode_rgba(path, file, "png_pipe", grey=colour_type in (0, 4))) if bits == 16 else None
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        bits_per_sample = file.tag_v2.get(258, (1,))
        return _tiff(path, file) if max(bits_per_sample) > 8 else None
    if file.mode.startswith(("I", "F")):
        pixels = np.asarray(file)[..., None]
        if file.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise no_range()
        return Deep(pixels.astype(np.uint16))
    return None


def no_range() -> ValueError:
    return ValueError("it holds numbers of no known range; save it with 8 or 16 bits a channel")


def _tiff(path: Path, file: Image.Image) -> Deep | None:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        if page.dtype != np.uint16 or page.bitspersample != 16:
            raise no_range()
        kind = page.photometric.name
        if kind not in ("RGB", "MINISBLACK", "MINISWHITE"):
            return None  # CMYK, of which Pillow reads 8 bits
        # Tags may ask for more than one flat picture of the size that was found small enough.
        room = file.width * file.height * 8 * 2
        if page.nbytes > room or (page.imagewidth, page.imagelength) not in (file.size, file.size[::-1]):
            raise ValueError(f"its tags ask for {page.nbytes} bytes, and {file.width} x {file.height} pixels take less")
        plain = page.axes in ("YX", "YXS") and not page.is_tiled and kind != "MINISWHITE"
        if page.compression.name == "LZW" and plain:  # tifffile lacks LZW, FFmpeg errs where it is not plain
            pixels = _decode_rgba(path, file, "tiff_pipe", grey=kind != "RGB")
        else:
            try:
                pixels = page.asarray()
            except ImportError as error:
                raise ValueError("it is compressed by an unusual method; save it as PNG") from error
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if kind == "MINISWHITE":
            pixels[..., 0] = 65535 - pixels[..., 0]
        alpha = page.extrasamples[0].name if page.extrasamples else "UNSPECIFIED"
        channels = (3 if kind == "RGB" else 1) + (alpha != "UNSPECIFIED")
        return Deep(pixels[..., :channels], premultiplied=alpha == "ASSOCALPHA")


def _decode_rgba(path: Path, file: Image.Image, demuxer: str, grey: bool) -> np.ndarray:
    """(h, w, 4) uint16, or (h, w, 2) for a grey one, by FFmpeg; opaque where the file has no alpha."""
    import av

    file.load()  # finds damage that FFmpeg passes over
    with av.open(f"file:{path}", format=demuxer) as container:
        pixels = next(container.decode(video=0)).to_ndarray(format="rgba64le")
    return pixels[..., [0, 3]] if grey else pixels


def blend(pixels: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Grey or RGB, alpha behind it or not, uint8 or uint16, to (h, w, 1) or (h, w, 3) float32 in [-1, 1] over white."""
    unit = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    if unit.shape[-1] in (2, 4):
        colour, alpha = unit[..., :-1], unit[..., -1:]
        unit = (np.minimum(colour, alpha) if premultiplied else colour * alpha) + (1 - alpha)
    return 2 * unit - 1


def straight(pixels: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """As `blend`, but the colours as they are, whatever alpha says: (h, w, 1) or (h, w, 3) float32 in [-1, 1]."""
    unit = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    if unit.shape[-1] in (2, 4):
        colour, alpha = unit[..., :-1], unit[..., -1:]
        unit = np.minimum(colour, alpha) / np.maximum(alpha, 1e-9) if premultiplied else colour
    return 2 * unit - 1
