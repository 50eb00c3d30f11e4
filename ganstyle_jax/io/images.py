"""Grids of samples, and PNG and GIF files of them, in NumPy; jax arrays are accepted.

Float images are in [-1, 1], the range of the generators; uint8 images are taken as they are. Errors about an array's
shape or values are ValueError and name what was received. `pictures` reads and writes other files.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ganstyle_jax.io.files import atomic_path

LUMA = np.array([0.299, 0.587, 0.114])  # of R, G and B: ITU-R BT.601, the weights of Pillow's conversion to grey
GIF_PALETTE_PIXELS = 1 << 16  # how many pixels of all frames the palette is chosen from; more take long, not better


def to_uint8(images: Any) -> np.ndarray:
    """Float images (..., h, w, c) in [-1, 1] -> uint8, rounded to the nearest; what lies outside is clipped.

    The exact inverse of `x / 127.5 - 1` for all 256 values, in float32 and float64. Raises ValueError for NaN and for
    integers, whose range is unknown.
    """
    return _to_integers(images, np.uint8)


def to_uint16(images: Any) -> np.ndarray:
    """As `to_uint8`, with 16 bits: the exact inverse of `x / 32767.5 - 1` for all 65,536 values."""
    return _to_integers(images, np.uint16)


def _to_integers(images: Any, dtype: type[np.unsignedinteger]) -> np.ndarray:
    images = np.asarray(images)
    _check_images(images)
    if images.dtype == np.uint8:
        raise ValueError(f"images are uint8 already, of shape {images.shape}; floats in [-1, 1] are accepted")
    # Not in float16 or bfloat16, which cannot tell neighbouring values apart near 255.
    values = images.astype(np.float64 if images.dtype == np.float64 else np.float32)
    largest = np.iinfo(dtype).max
    return np.rint(np.clip((values + 1) * (largest / 2), 0, largest)).astype(dtype)


def grid(images: Any, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """Images (n, h, w, c), float in [-1, 1] or uint8 -> one image (H, W, c) of the same dtype, row by row.

    `padding` white pixels lie between the images, none around them; empty cells at the end are white. Without `columns`
    the grid is as near to a square as whole rows allow, rather wide than tall.
    """
    images = np.asarray(images)
    _check_images(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"a grid is made of images of shape (n, h, w, c), none of them 0, got shape {images.shape}")
    if padding < 0 or (columns is not None and columns < 1):
        raise ValueError(f"columns must be >= 1 and padding >= 0, got columns={columns} and padding={padding}")
    n, h, w, c = images.shape
    if columns is None:
        columns = _square_columns(n, h + padding, w + padding)
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    white = 255 if images.dtype == np.uint8 else 1
    cells = np.full((rows * columns, h + padding, w + padding, c), white, images.dtype)
    cells[:n, :h, :w] = images
    cells = cells.reshape(rows, columns, h + padding, w + padding, c).swapaxes(1, 2)
    whole = cells.reshape(rows * (h + padding), columns * (w + padding), c)
    return whole[: rows * (h + padding) - padding, : columns * (w + padding) - padding]


def _square_columns(n: int, height: int, width: int) -> int:
    def badness(columns: int) -> tuple[float, int, int]:
        rows = math.ceil(n / columns)
        ratio = columns * width / (rows * height)
        return round(max(ratio, 1 / ratio), 9), rows * columns - n, rows

    return min(range(1, n + 1), key=badness)


def resize(
    image: Any, shape: tuple[int, int], wrap: bool = False, by: Literal["lanczos", "bilinear"] = "lanczos"
) -> np.ndarray:
    """(h, w, c) float -> (*shape, c) float32, smoothing away what a smaller picture cannot hold.

    wrap: of an image that goes on at its other end. by: Lanczos is sharper, "bilinear" does not overshoot.
    """
    from PIL import Image

    image = np.asarray(image, np.float32)
    if image.shape[:2] == shape:
        return image
    height, width = image.shape[:2]
    box = (0, 0, width, height)
    if wrap:  # as much of the other end as Lanczos sees, which looks beyond the box
        rows, columns = (math.ceil(3 * max(1, old / new)) + 1 for old, new in zip(image.shape, shape, strict=False))
        image = np.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="wrap")
        box = (columns, rows, columns + width, rows + height)
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image, -1, 0)]
    bands = [np.asarray(band.resize((shape[1], shape[0]), Image.Resampling[by.upper()], box)) for band in bands]
    return np.stack(bands, axis=-1)


def save_png(path: Path | str, image: Any) -> None:
    """Writes one image, (h, w, 1) or (h, w, 3), float in [-1, 1] or uint8, as a PNG file."""
    picture = _pillow(image)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def save_grid(path: Path | str, images: Any, columns: int | None = None, padding: int = 2) -> None:
    """Writes images (n, h, w, c) as one PNG file: `grid`, then `save_png`."""
    save_png(path, grid(images, columns, padding))


def save_gif(path: Path | str, frames: Any, fps: float = 20) -> None:
    """Writes frames (n, h, w, 1) or (n, h, w, 3), float in [-1, 1] or uint8, as a GIF file that loops for ever.

    All frames share one palette, and there is no dithering, since either would flicker: up to 256 colours (grey levels
    included) are kept exactly, more are reduced to 256 chosen from all frames together. A frame lasts a whole number of
    1/100 s, so the speed is the nearest possible to `fps`, which is at most 50: viewers slow down what is faster. Equal
    frames in a row are stored as one that lasts longer.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or not len(frames):
        raise ValueError(f"a GIF is made of frames of shape (n, h, w, c) with n >= 1, got shape {frames.shape}")
    if not 1 <= fps <= 50:
        raise ValueError(f"fps must be between 1 and 50, got {fps}")
    if frames.dtype != np.uint8:
        frames = to_uint8(frames)
    pictures = [_pillow(frame) for frame in frames]
    if frames.shape[-1] == 3:
        pictures = _shared_palette(frames, pictures)
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=round(100 / fps) * 10,  # Pillow counts in ms
            loop=0,
            optimize=False,
        )


def _shared_palette(frames: np.ndarray, pictures: list) -> list:
    """Pillow's RGB `pictures` of `frames` (n, h, w, 3) uint8 as palette pictures, all with the same palette."""
    from PIL import Image

    index = np.zeros(1 << 24, np.uint8)  # by colour: first whether it occurs, then its place in the palette
    for frame in frames:
        index[_colour_codes(frame)] = 1
    codes = np.flatnonzero(index)
    if len(codes) > 256:
        pixels = frames.reshape(-1, 3)
        pixels = pixels[np.random.default_rng(0).integers(len(pixels), size=GIF_PALETTE_PIXELS)]
        palette = Image.fromarray(pixels[None]).quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
        return [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    index[codes] = np.arange(len(codes))  # here, because Pillow's search for the nearest colour confuses close ones
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
    exact = [Image.fromarray(index[_colour_codes(frame)]) for frame in frames]
    for picture in exact:
        picture.putpalette(colours.tobytes())
    return exact


def _colour_codes(frame: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(frame.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _pillow(image: Any) -> Any:
    from PIL import Image

    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"an image must have shape (h, w, 1) or (h, w, 3), got {image.shape}")
    if image.dtype != np.uint8:
        image = to_uint8(image)
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def _check_images(images: np.ndarray) -> None:
    if images.dtype == np.uint8:
        return
    if not (np.issubdtype(images.dtype, np.floating) or images.dtype.name == "bfloat16"):
        raise ValueError(
            f"images have dtype {images.dtype} and shape {images.shape}; floats in [-1, 1] and uint8 are accepted"
        )
    if np.isnan(images).any():
        count = int(np.isnan(images).sum())
        raise ValueError(f"images of shape {images.shape} hold {count} NaN; numbers in [-1, 1] are accepted")
