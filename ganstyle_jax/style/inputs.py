"""What enters style transfer as arrays, and the one check of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

SLACK = 0.1  # how far outside [-1, 1] a float may lie: what resizing overshoots by, but no 0..255


@dataclasses.dataclass(frozen=True)
class Job:
    """One picture to make.

    Pictures are (h, w, 3), float in [-1, 1], of any size; masks (h, w) of their pictures, float from 0 to 1. Without
    content masks the styles are blended; with them each style keeps to its mask. Raises ValueError for arrays that are
    neither, and for weights and masks that do not fit the styles.

    previous and trusted are for films: what the picture is held to by `Config.temporal_weight`, and where how much.
    """

    content: np.ndarray
    styles: Sequence[np.ndarray]
    style_weights: Sequence[float] | None = None  # one for each style, of which the ratio counts; by default all equal
    content_masks: Sequence[np.ndarray] | None = None  # where in the content each style is to go
    style_masks: Sequence[np.ndarray] | None = None  # which part of each style picture is its style
    init_image: np.ndarray | None = None  # to begin with, in the place of `Config.init`
    previous: np.ndarray | None = None  # the frame before, moved to where its parts are by now; of any size
    trusted: np.ndarray | None = None  # mask of `previous`, by default 1 everywhere; it may be 0 everywhere
    # for each style the layers in which it counts, see `config.layers_named`; by default all
    style_layers: Sequence[str | Sequence[str]] | None = None
    opaque: np.ndarray | None = None  # a mask of the content: what is to be seen, and alone counts; by default all

    def __post_init__(self):
        checked: dict[str, Any] = {
            "content": picture(self.content, "content"),
            "styles": pictures(self.styles, "style"),
        }
        if self.init_image is not None:
            checked["init_image"] = picture(self.init_image, "init_image")
        if self.previous is not None:
            checked["previous"] = picture(self.previous, "previous")
        if self.trusted is not None:
            if self.previous is None:
                raise ValueError("trusted says how much of previous is held to: give previous too")
            checked["trusted"] = mask(self.trusted, "trusted", checked["previous"].shape, may_be_black=True)
        styles = checked["styles"]
        weights = np.ones(len(styles)) if self.style_weights is None else np.asarray(self.style_weights, float)
        fit = weights.shape == (len(styles),) and (weights >= 0).all() and 0 < weights.sum() < np.inf
        if not styles or not fit:
            raise ValueError(
                f"there must be a weight, none below 0, for each of {len(styles)} styles, got {self.style_weights}"
            )
        if self.style_layers is not None and (
            isinstance(self.style_layers, str) or len(self.style_layers) != len(styles)
        ):
            raise ValueError(f"there must be style_layers for each of {len(styles)} styles, got {self.style_layers}")
        for name, covered in (("content", [checked["content"]] * len(styles)), ("style", styles)):
            masks = getattr(self, f"{name}_masks")
            if masks is None:
                continue
            if len(masks) != len(styles):
                raise ValueError(f"there must be a {name} mask for each of {len(styles)} styles, got {len(masks)}")
            pairs = zip(masks, covered, strict=True)
            checked[f"{name}_masks"] = [mask(one, f"a {name} mask", of.shape) for one, of in pairs]
        if self.opaque is not None:
            checked["opaque"] = mask(self.opaque, "opaque", checked["content"].shape)
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def picture(array: Any, name: str, slack: float = SLACK) -> np.ndarray:
    """A picture (h, w, 3), floats in [-1, 1], as float32.

    name: what it is, for messages. Raises ValueError for other shapes and dtypes, for numbers that are not finite, and
    for floats further than `slack` outside [-1, 1], of which the range is not known.
    """
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        grey, transparent = array.ndim == 2 or array.shape[2:] == (1,), array.shape[2:] == (4,)
        hint = ": repeat the grey in three channels" if grey else ": blend it over white" if transparent else ""
        raise ValueError(f"{name} must be a picture of shape (h, w, 3), got shape {array.shape}{hint}")
    values = _floats(array, name, "[-1, 1]", "x / 127.5 - 1").astype(np.float32, copy=False)
    low, high = values.min(), values.max()
    if low < -1 - slack or high > 1 + slack:
        raise ValueError(
            f"{name} must hold floats in [-1, 1], got floats from {low:.6g} to {high:.6g}: "
            "of 0..255 take x / 127.5 - 1, and clip what resizing has overshot"
        )
    return values


def pictures(arrays: Any, name: str) -> list[np.ndarray]:
    """A sequence of pictures. Raises ValueError as `picture` does, and for a single one instead of a sequence."""
    if getattr(arrays, "ndim", 4) == 3:
        raise ValueError(f"{name}s must be a sequence of pictures, got one of shape {arrays.shape}: write [{name}]")
    return [picture(array, name) for array in arrays]


def mask(array: Any, name: str, of: Sequence[int], may_be_black: bool = False) -> np.ndarray:
    """A mask (h, w) as floats from 0 to 1: floats and booleans.

    of: the shape of its picture. Raises ValueError for another shape, for floats outside [0, 1], and for a black one
    unless that may be.
    """
    array = np.asarray(array)
    if array.shape != tuple(of[:2]):
        got = " x ".join(map(str, array.shape[::-1]))
        raise ValueError(f"{name} must have the {of[1]} x {of[0]} pixels of its picture, got {got}")
    values = array.astype(np.float32) if array.dtype == bool else array
    values = _floats(values, name, "[0, 1]", "x / 255")
    if values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise ValueError(
            f"{name} must hold floats in [0, 1], got floats from {values.min():.6g} to {values.max():.6g}: "
            "of 0..255 take x / 255"
        )
    if not may_be_black and not values.max() > 0:
        raise ValueError(f"{name} is black all over, so that it covers nothing")
    return values


def _floats(array: np.ndarray, name: str, accepted: str, of_bytes: str) -> np.ndarray:
    """ValueError for numbers that are no floats, which bytes are taken for too easily, or not finite."""
    if not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
        hint = f": of 0..255 take {of_bytes}" if array.dtype == np.uint8 else ""
        raise ValueError(f"{name} must hold floats in {accepted}, got dtype {array.dtype}{hint}")
    if not (finite := np.isfinite(array)).all():
        raise ValueError(f"{name} must hold finite numbers, got {(~finite).sum()} that are not")
    return array
