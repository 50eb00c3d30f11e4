"""What a set of pictures is: its shape, its size, and a function that reads image i."""

import dataclasses
import logging
from collections.abc import Callable, Mapping

import numpy as np

from ganstyle_jax.data.fitting import to_float

log = logging.getLogger("ganstyle_jax.data")  # of the whole package

Size = int | tuple[int, int] | None
"""Pixels of a square's side, or (h, w); None: each image at its own size."""


class CorruptImage(Exception):  # noqa: N818  (an event that training survives, as StopIteration is)
    """One file or record that cannot be decoded: its `name`, and the `reason` in words."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The pictures that a method wants of one of its sources."""

    size: int | tuple[int, int]  # pixels of a side, or (h, w)
    channels: int | None = 3  # 1 or 3; None: as the data has
    batches: int = 1  # batches of them that one training step takes

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A set of images of one shape with random access, safe to read from several threads."""

    name: str
    image_shape: tuple[int, int, int]  # (h, w, c); (0, 0, c) where every image keeps its own size
    dtype: np.dtype  # of the images `read` gives: uint8, or float32 where the data hold more than 8 bits
    size: int | None  # number of images, None for an unlimited source
    label_names: tuple[str, ...] | None  # name of each class, None without classes
    read: Callable[[int], dict[str, np.ndarray]]
    """Image i: {"image": (h, w, c) uint8, or float32 in [-1, 1]}, and "label" () int32 where there are classes.

    Glyphs have their factors too. The same keys, shapes and dtypes for every i; the arrays own their memory. Raises
    CorruptImage.
    """

    others: Mapping[str, tuple[tuple[int, ...], np.dtype]] = dataclasses.field(default_factory=dict)
    """Shape and dtype of further arrays that `read` gives and training is to see, such as tokens."""

    opened: str = ""
    """One line for people: what was taken, what was passed over and why."""

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """`read(i)` with the image as float32 in [-1, 1]."""
        example = self.read(i)
        return {**example, "image": to_float(example["image"])}
