"""The pictures of `ganstyle stylize`, read and looked at before anything is made of them."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ganstyle_jax.features import vgg
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError, gigabytes
from ganstyle_jax.style import colours, gatys, memory
from ganstyle_jax.stylize import opaque
from ganstyle_jax.stylize.orders import Order, Settings

LEAST = 1 / 510  # of a mask somewhere, half a level of 8 bits: black is not exactly 0 after rounding
READING = 40  # bytes of memory for each pixel of a picture that is read, for a moment
Read = Callable[[Path], np.ndarray]  # see `read_picture`


@dataclasses.dataclass(frozen=True)
class Piece:
    """An order whose files have been read."""

    order: Order
    content: np.ndarray  # in its own colours, and filled where it is transparent
    job: gatys.Job
    alpha: np.ndarray | None = None  # (h, w) from 0 to 1, where the content picture has transparency


@dataclasses.dataclass(frozen=True)
class Kind:
    """What pictures must have in common to be made together."""

    shape: tuple[int, int]  # of what is to be made
    transparent: bool  # whether there are places that do not count


def read_picture(path: Path) -> np.ndarray:
    """As `pictures.read_picture`, of no more pixels than there is memory for."""
    free = memory.free_on_host()
    room = free // READING
    if room >= pictures.MAX_PIXELS:
        return pictures.read_picture(path)
    return pictures.read_picture(path, room, f" with {gigabytes(free)} of free memory")


def survey(
    orders: Sequence[Order], cfg: gatys.Config, network: vgg.Network, settings: Settings, read: Read
) -> dict["Kind", list[Order]]:
    """Orders by what is to be made, which can be made together.

    Reads all pictures, so that a bad one is found before hours are spent on others. Raises UserError.
    """
    others = [*(style for order in orders for style in order.styles), settings.init_image]
    for path in dict.fromkeys(path for path in others if path is not None):
        read(path)
    shapes: dict[Path, tuple[int, int]] = {}
    transparent: dict[Path, bool] = {}
    for path in dict.fromkeys(order.content for order in orders):
        shape = read(path).shape
        transparent[path] = pictures.read_alpha(path) is not None
        try:
            shapes[path] = gatys.shapes_of(shape, cfg, network)[-1]
        except ValueError as error:
            raise UserError(f"{path} at --size {cfg.size}: {error}") from error
        if shapes[path] != (asked := gatys.fitted_shape(shape, cfg.size)):
            height, width = shapes[path]
            print(
                f"{path}: {width} x {height} pixels instead of {asked[1]} x {asked[0]}, since a picture that repeats "
                "without a seam has multiples of what the network's layers take together",
                file=sys.stderr,
            )
    groups: dict[Kind, list[Order]] = {}
    for order in orders:
        groups.setdefault(Kind(shapes[order.content], transparent[order.content]), []).append(order)
    return groups


def prepare(order: Order, settings: Settings, read: Read) -> Piece:
    """The pictures of an order, their colours prepared. Raises UserError."""
    how, (content, alpha) = settings.preserve_colors, read_opaque(order.content, read)
    seen = [read_opaque(style, read) for style in order.styles]
    masks = [read_mask(mask, style, read) for mask, style in zip(settings.style_mask, order.styles, strict=False)]
    content_masks = [read_mask(mask, order.content, read) for mask in settings.content_mask]
    covers = [*zip(masks, settings.style_mask, order.styles, [style_alpha for _, style_alpha in seen], strict=False)]
    covers += [
        (mask, path, order.content, alpha) for mask, path in zip(content_masks, settings.content_mask, strict=True)
    ]
    for mask, path, file, of in covers:
        if of is not None and (mask * of).max() < LEAST:
            raise UserError(f"{path} covers only what is transparent in {file}: paint white some of what is to be seen")
    job = gatys.Job(
        colours.prepare_content(content, how),
        [opaque.prepare_style(style, content, how, style_alpha, alpha) for style, style_alpha in seen],
        settings.style_weights or None,
        content_masks or None,
        opaque.masks_with_alpha([style for style, _ in seen], masks or None, [style_alpha for _, style_alpha in seen]),
        None if settings.init_image is None else read_opaque(settings.init_image, read)[0],
        style_layers=settings.style_layers_of or None,
        opaque=alpha,
    )
    return Piece(order, content, job, alpha)


def read_opaque(path: Path, read: Read) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture with the colours around it where it is transparent; (h, w) how opaque it is, None for throughout."""
    if pictures.read_alpha(path) is None:
        return read(path), None
    picture, alpha = pictures.read_with_alpha(path)
    return opaque.filled(picture, alpha, path), alpha


def read_mask(path: Path, of: Path, read: Read) -> np.ndarray:
    """The brightness of a mask, (h, w) from 0 for black to 1 for white. of: its picture. Raises UserError."""
    mask, (height, width) = read(path), read(of).shape[:2]
    if mask.shape[:2] != (height, width):
        raise UserError(
            f"{path} has {mask.shape[1]} x {mask.shape[0]} pixels: a mask must have as many as its picture {of}, "
            f"{width} x {height}"
        )
    mask = np.clip((mask @ images.LUMA + 1) / 2, 0, 1).astype(np.float32)
    if mask.max() < LEAST:
        raise UserError(f"{path} is black all over, so that this mask covers nothing: paint white what it is to cover")
    return mask
