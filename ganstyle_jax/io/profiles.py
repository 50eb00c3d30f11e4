"""Colour profiles: from what a picture's file says about its colours to sRGB. Pillow's pictures, 8 bits a channel."""

import functools
import io
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def over_white(picture: Image.Image) -> Image.Image:
    """A picture of 8 bits a channel in mode L, RGB, CMYK or LAB, without transparency."""
    if picture.mode in ("CMYK", "LAB"):
        return picture
    mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert(mode)


def without_alpha(picture: Image.Image) -> Image.Image:
    """As `over_white`, but the colours as they are, whatever alpha says."""
    if picture.mode in ("1", "L", "LA", "La"):
        return picture.convert("LA").convert("L")
    if picture.mode in ("CMYK", "LAB"):
        return picture
    return picture.convert("RGBA").convert("RGB")


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image | None:
    """A picture of mode L, RGB, CMYK or LAB from its profile to sRGB, mode RGB; None where nothing is to convert.

    That is where there is no profile, where it is damaged or of another mode, and where it is sRGB's own.
    """
    if not profile and picture.mode != "LAB":
        return None
    found = _transform(profile or b"", picture.mode)
    if found is None:
        return None
    mode, transform = found
    return transform.apply(picture if picture.mode == mode else picture.convert(mode))


@functools.lru_cache(maxsize=32)  # the pictures of a set have few profiles, and making a transform takes milliseconds
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode that it takes, and the transform; it holds no state, so that threads may share it."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        if mode == "LAB":
            source: Any = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        taken = "RGB" if mode == "L" and source.profile.xcolor_space.strip() == "RGB" else mode
        transform = ImageCms.buildTransform(source, srgb, taken, "RGB")
    except (OSError, ImageCms.PyCMSError):  # damaged, or of another mode
        return None
    if taken in ("L", "RGB"):  # a profile of sRGB itself would add nothing but rounding errors
        levels = np.arange(0, 256, 15).astype(np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        picture = Image.fromarray(probe if taken == "RGB" else np.ascontiguousarray(probe[..., 0]))
        change = np.asarray(transform.apply(picture), int) - np.asarray(picture.convert("RGB"))
        if np.abs(change).max() <= 2:
            return None
    return taken, transform


@functools.cache
def srgb() -> bytes:
    """The profile that written pictures carry."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # not that of now: equal pictures are to be equal files
    return profile[:24] + date + profile[36:]
