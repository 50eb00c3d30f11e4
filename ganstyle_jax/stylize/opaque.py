"""Pictures that are not opaque everywhere: what counts of them, and what lies where nothing is seen.

Style is taken from and goes to opaque places alone. Features see beyond them, so what is transparent is filled with the
colours around it: black or white there would be an outline that is in no picture.
"""

from collections.abc import Sequence

import numpy as np

from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import colours

CLEAR = 1 / 16  # how opaque a place is at least whose colour means something; of less 8 bits keep too few levels
HALF = 0.5  # and whose colour counts in statistics of colours


def fill(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) with smooth colours where it is not known, from the nearest places where it is.

    known: (h, w) bool, True somewhere. By averages of ever larger squares, each of what is known in it, and back
    (Gortler et al. 1996, "The Lumigraph", section 3.5.1, pull and push).
    """
    weight = known[..., None].astype(np.float32)
    levels = [(np.where(known[..., None], picture, 0).astype(np.float32), weight)]
    while not levels[-1][1].all():
        colour, weight = levels[-1]
        padded = [np.pad(x, [(0, side % 2) for side in x.shape[:2]] + [(0, 0)]) for x in (colour * weight, weight)]
        total, share = (x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).sum((1, 3)) for x in padded)
        levels.append((total / np.maximum(share, 1e-6), np.minimum(share, 1)))
    found = levels.pop()[0]
    for colour, weight in reversed(levels):
        found = weight * colour + (1 - weight) * _enlarged(found, (colour.shape[0], colour.shape[1]))
    return np.where(known[..., None], picture, found).astype(np.float32)


def _enlarged(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """To twice the size, less what an odd side has too much."""
    double = (2 * picture.shape[0], 2 * picture.shape[1])
    return images.resize(picture, double, by="bilinear")[: shape[0], : shape[1]]


def filled(picture: np.ndarray, alpha: np.ndarray | None, name: object) -> np.ndarray:
    """A picture as features are to see it; as it is where it is opaque throughout (None).

    name: of the file. Raises UserError for a picture of which nothing is to be seen.
    """
    if alpha is None:
        return picture
    if alpha.max() < CLEAR:
        raise UserError(f"{name} is transparent all over, so that there is nothing to be seen of it")
    return fill(picture, alpha >= CLEAR)


def seen(picture: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """The pixels that count in statistics of colours, as a picture (1, n, 3); as it is where all do."""
    return picture if alpha is None else picture[alpha >= min(HALF, alpha.max())][None]


def prepare_style(
    style: np.ndarray,
    content: np.ndarray,
    how: colours.How,
    style_alpha: np.ndarray | None,
    content_alpha: np.ndarray | None,
) -> np.ndarray:
    """As `colours.prepare_style` of pictures that are `filled`, by the colours that are seen of both."""
    reference = seen(content, content_alpha)
    if style_alpha is None or how == "none":
        return colours.prepare_style(style, reference, how)
    counts = style_alpha >= min(HALF, style_alpha.max())
    prepared = style.copy()
    prepared[counts] = colours.prepare_style(style[counts][None], reference, how)[0]
    return fill(prepared, counts)


def masks_with_alpha(
    styles: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None, alphas: Sequence[np.ndarray | None]
) -> list[np.ndarray] | None:
    """What counts of each style: what its mask covers, if there are masks, and is opaque. None where all does."""
    if masks is None and all(alpha is None for alpha in alphas):
        return None
    covers = [np.ones(style.shape[:2], np.float32) for style in styles] if masks is None else masks
    return [cover if alpha is None else cover * alpha for cover, alpha in zip(covers, alphas, strict=True)]


def over_white(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) in [-1, 1] on white, for what knows no transparency."""
    return picture * alpha[..., None] + (1 - alpha[..., None])
