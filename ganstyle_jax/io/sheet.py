"""A sheet of pictures: a grid of images, or of several columns side by side under their titles."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ganstyle_jax.io import images

HEADING = 14  # pixels of the titles' letters
LEGIBLE = 64  # pixels of a column's width in which a title can be read
PADDING = 2


def of(pictures: Any, columns: int | None = None) -> np.ndarray:
    """(h, w, 1 | 3) uint8 of images (n, h, w, c), or of {title: images (n, h, w, c)}, whose row i shows request i.

    Of several titles, the pictures of a request lie side by side, and as many requests in a row as make the sheet
    roughly square; each title stands above its columns. Grey pictures beside coloured ones become colour.
    """
    if not isinstance(pictures, Mapping):
        return images.to_uint8(images.grid(pictures, columns))
    parts = [np.asarray(part) for part in pictures.values()]
    channels = max(part.shape[-1] for part in parts)
    height, width = max(part.shape[1] for part in parts), max(part.shape[2] for part in parts)
    parts = [np.stack([_fitted(x, height, width, channels) for x in part]) for part in parts]
    larger = max(1, -(-LEGIBLE // width))  # times, pixel by pixel
    parts = [part.repeat(larger, 1).repeat(larger, 2) for part in parts]
    height, width = larger * height, larger * width
    across = columns or max(1, round((len(parts[0]) / len(parts)) ** 0.5))
    together = np.stack(parts, axis=1).reshape(-1, height, width, channels)  # request by request
    grid = images.to_uint8(images.grid(together, columns=len(parts) * across, padding=PADDING))
    return np.concatenate([_heading(list(pictures) * across, width, grid.shape), grid])


def _fitted(image: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    if image.shape[:2] != (height, width):
        image = images.resize(image, (height, width))
    return np.broadcast_to(image, (height, width, channels))


def _heading(titles: list[str], width: int, shape: tuple[int, ...]) -> np.ndarray:
    """A strip as wide as the grid with a title above each column, shortened where there is no room."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=HEADING)
    strip = Image.new("L", (shape[1], HEADING + 6), "white")
    draw = ImageDraw.Draw(strip)
    for i, title in enumerate(titles):
        room = width - 2
        while len(title) > 1 and draw.textlength(title, font=font) > room:
            title = title[:-1]
        draw.text((PADDING + i * (width + PADDING), 2), title, fill="black", font=font)
    return np.broadcast_to(np.asarray(strip)[..., None], (*strip.size[::-1], shape[2]))
