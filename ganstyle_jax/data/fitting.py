"""From a picture of any size, mode and depth to the pixels that a method wants."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from ganstyle_jax.io.images import LUMA, resize

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger("ganstyle_jax.data")


def to_float(images: Any) -> Any:
    """uint8 -> float32 in [-1, 1]; float32 unchanged. Any shape, NumPy or JAX, also inside jit."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1
    if images.dtype == np.float32:
        return images
    raise TypeError(f"images must be uint8 or float32, got {images.dtype}")


def fit(image: "Image.Image", image_size: int | tuple[int, int] | None, channels: int, dtype: np.dtype) -> np.ndarray:
    """The upright centre of a Pillow image of any mode, (h, w, channels) of uint8 or float32, in sRGB.

    image_size: the side of a square, or (h, w): the largest centre of that shape is resized. With None it is the whole.
    Colours are converted where the image has a profile other than sRGB's, as `io.pictures.read_picture` does.
    Raises what Pillow raises for damaged files, and ValueError for pixels whose range is unknown.
    """
    from PIL import Image, ImageOps

    image.load()
    profile = image.info.get("icc_profile")
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        log.debug("unreadable EXIF data, taken as upright", exc_info=True)
    size = shape_of(image_size)
    if size is not None:
        top, left, height, width = centre(image.height, image.width, size)
        if (height, width) != (image.height, image.width):
            image = image.crop((left, top, left + width, top + height))

    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range in an image file; use an .npz file")
    if image.mode.startswith("I"):  # 16 bits; older releases of Pillow give them as 32
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels of more than 16 bits")
        eight = _in_srgb(Image.fromarray(np.round(values / 257).astype(np.uint8)), profile) if profile else None
        if eight is None:
            return _convert(fit_float(values[..., None] / 32767.5 - 1, size, channels), dtype)
        image = eight
    elif profile or image.mode == "LAB":
        image = _in_srgb(image, profile) or image
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    # Each of these would copy a picture that is as it should be already, a fifth of the time that decoding takes.
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and size != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return _convert(np.array(np.asarray(image).reshape(image.height, image.width, channels)), dtype)


def fit_float(pixels: np.ndarray, image_size: int | tuple[int, int] | None, channels: int) -> np.ndarray:
    """`fit` for (h, w, 1 | 3 | 4) float32 in [-1, 1], at full precision; the fourth channel is opacity, -1 for none."""
    size = shape_of(image_size)
    if size is not None:
        top, left, height, width = centre(pixels.shape[0], pixels.shape[1], size)
        pixels = pixels[top : top + height, left : left + width]
    if pixels.shape[-1] == 4:
        opacity = (pixels[..., 3:] + 1) / 2
        pixels = 1 + opacity * (pixels[..., :3] - 1)
    if pixels.shape[-1] == 3 and channels == 1:
        pixels = (pixels @ LUMA.astype(np.float32))[..., None]
    if size is not None:
        pixels = resize(pixels, size)
    pixels = np.clip(pixels, -1, 1)  # Lanczos overshoots at edges
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], channels)), np.float32)


def shape_of(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(h, w) of a size that may be the side of a square."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def centre(height: int, width: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest centre that has the proportions of `shape`.

    Whole pixels, so that pictures of these proportions stay as they are.
    """
    h, w = shape
    if height * w > width * h:
        inner_height, inner_width = max(1, round(width * h / w)), width
    else:
        inner_height, inner_width = height, max(1, round(height * w / h))
    return (height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width


def _in_srgb(image: "Image.Image", profile: bytes | None) -> "Image.Image | None":
    from ganstyle_jax.io import profiles

    return profiles.to_srgb(profiles.over_white(image), profile)


def _convert(images: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float32:
        return to_float(images)
    return images if images.dtype == np.uint8 else np.round((images + 1) * 127.5).astype(np.uint8)
