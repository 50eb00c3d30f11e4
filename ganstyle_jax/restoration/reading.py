"""The pictures of `ganstyle restore`, read and looked at before anything is made of them.

What is grey is restored as one channel, and so stays grey. What is transparent stays so, and is filled with the colours
around it before it is restored; where a part is to be filled in and there is no mask, what is transparent is that part,
and the result is opaque.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.restoration.orders import Order, Settings
from ganstyle_jax.restore.deep_image_prior import MASKED, Config
from ganstyle_jax.stylize import opaque
from ganstyle_jax.stylize.reading import read_picture

GREY = 1.5 / 127.5  # the colours of a grey picture differ by less: by a level of 8 bits, if anything
LEAST = 16  # pixels of a side
OPAQUE = 1 - 1 / 510  # what is less so is to be filled in, without a mask
MUCH = 0.6  # a mask that hides more of the picture may be the wrong way round


@dataclasses.dataclass(frozen=True)
class Piece:
    """An order whose files have been read. Pictures are (h, w, 3) float32 in [-1, 1]."""

    order: Order
    measured: np.ndarray
    shape: tuple[int, int]  # of the result
    grey: bool
    mask: np.ndarray | None = None  # (h, w) float32, 1 where it is known and 0 elsewhere
    guide: np.ndarray | None = None
    truth: np.ndarray | None = None
    alpha: np.ndarray | None = None  # (h, w) of the result's shape, from 0 to 1

    @property
    def wanted(self) -> np.ndarray:
        """What the network is given: (h, w, 1) of a grey picture."""
        return self.measured.mean(-1, keepdims=True) if self.grey else self.measured

    def finished(self, picture: np.ndarray, keep_known: bool) -> np.ndarray:
        """What the network has made of it as it is to be seen, (h, w, 3): what is known as it was, if so wanted."""
        picture = np.broadcast_to(np.clip(picture, -1, 1), (*self.shape, 3))
        if self.mask is not None and keep_known:
            picture = np.where(self.mask[..., None] > 0, self.measured, picture)
        return picture

    def known(self) -> np.ndarray:
        """What was given, middle grey where the mask hides it."""
        return self.measured if self.mask is None else self.measured * self.mask[..., None]


def read(order: Order, cfg: Config, settings: Settings) -> Piece:
    """The pictures of an order. Raises UserError for what is wrong with one of them."""
    measured, alpha = read_picture(order.image), None
    if pictures.read_alpha(order.image) is not None:
        measured, alpha = pictures.read_with_alpha(order.image)
        measured = opaque.filled(measured, alpha, order.image)
    height, width = measured.shape[:2]
    if min(height, width) < LEAST:
        raise UserError(f"{order.image} has {width} x {height} pixels; at least {LEAST} x {LEAST} are needed")
    scale = cfg.scale if cfg.task == "super-resolve" else 1
    shape = (height * scale, width * scale)
    mask = None
    if cfg.task in MASKED:
        if order.mask is not None:
            mask = read_mask(order.mask, order.image, (height, width), settings.invert_mask)
        elif alpha is None:
            raise UserError(
                f"the task {cfg.task} needs --mask: a picture that is white where {order.image} is known and black "
                "where it is to be filled in; or erase that part, so that it is transparent"
            )
        else:
            mask, alpha = (alpha >= OPAQUE).astype(np.float32), None
            if not mask.any():
                raise UserError(f"{order.image} is opaque nowhere, so that nothing of it is known")
    beside = {name: of_shape(name, getattr(order, name), order.image, shape, scale) for name in ("guide", "truth")}
    if alpha is not None and scale > 1:
        alpha = np.clip(images.resize(alpha[..., None], shape)[..., 0], 0, 1)
    grey = bool(np.ptp(measured, axis=-1).max() <= GREY)
    return Piece(order, measured, shape, grey, mask, alpha=alpha, **beside)


def read_mask(path: Path, image: Path, shape: tuple[int, int], invert: bool) -> np.ndarray:
    """(h, w) float32, 1 where the picture is known and 0 where it is not."""
    found = read_picture(path)
    if found.shape[:2] != shape:
        raise UserError(
            f"{path} has {found.shape[1]} x {found.shape[0]} pixels: a mask must have as many as its picture {image}, "
            f"{shape[1]} x {shape[0]}"
        )
    mask = (found @ images.LUMA > 0).astype(np.float32)
    mask = 1 - mask if invert else mask
    known, hidden = ("black", "white") if invert else ("white", "black")
    if not mask.any():
        raise UserError(f"{path} is {hidden} all over, so that nothing is known: paint {known} what is to stay")
    if mask.all():
        raise UserError(
            f"{path} is {known} all over, so that there is nothing to do: paint {hidden} what is to be filled in"
        )
    return mask


def hint(piece: Piece, cfg: Config) -> None:
    """Says so where a mask hides most of the picture, which is hardly meant unless single pixels are left."""
    share = 0.0 if piece.mask is None else 1 - float(piece.mask.mean())
    if share > MUCH and cfg.task != "sparse":
        advice = "" if piece.order.mask is None else "; if the mask is the wrong way round, see --invert-mask"
        print(f"{piece.order.image}: {share:.0%} of it is to be filled in{advice}", file=sys.stderr)


def of_shape(name: str, path: Path | None, image: Path, shape: tuple[int, int], scale: int) -> np.ndarray | None:
    """A picture that goes with the result, which has that many pixels."""
    if path is None:
        return None
    found = read_picture(path)
    if found.shape[:2] != shape:
        words = f", {scale} times those of {image}" if scale > 1 else f", as {image} has"
        raise UserError(
            f"--{name} {path} has {found.shape[1]} x {found.shape[0]} pixels, and must have {shape[1]} x {shape[0]}"
            f"{words}"
        )
    return found
