"""What those who wait for a picture are told of it."""

import dataclasses
import sys
from collections.abc import Callable, Sequence

import numpy as np

from ganstyle_jax.control import Advanced, Control, Metrics, Pictures
from ganstyle_jax.style.state import State


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback is told of a picture, about once a second."""

    shape: tuple[int, int]  # of the image at present
    evaluations: int  # of loss and gradient at this size
    done: float  # share of all work, from 0 to 1
    losses: list[tuple[int, float]]  # (evaluations, loss) after each step since the last call
    # the loss in its parts, at the beginning of this size and, in the last call, at its end; now, where `detailed`
    terms: dict[str, float]
    resets: int  # how often L-BFGS has forgotten its history at this size
    image: np.ndarray  # (h, w, 3) float32 in [-1, 1]
    terms_at: int = 0  # the evaluations at this size by which the loss had these terms, 1 at its beginning


@dataclasses.dataclass(frozen=True)
class Stepped(Metrics):
    """The `Metrics` that style transfer tells: means over the pictures that are made together, and all of each.

    step: evaluations at all sizes, of the picture that has the fewest. values: "loss", and its terms where they are
    known of this very moment.
    """

    progress: tuple[Progress, ...] = ()  # of each picture


@dataclasses.dataclass(frozen=True)
class Audience:
    """Who is told of the work and may steer it."""

    count: int  # of the pictures that somebody wants
    callback: Callable[[list[Progress]], None] | None
    control: Control
    detailed: bool = False
    every: tuple[int, ...] = ()
    keep: Callable[[State], None] | None = None
    turned: bool = False  # whether the state that is given has been reached with other numbers

    @property
    def anybody(self) -> bool:
        return self.callback is not None or self.keep is not None or bool(self.control.listeners)

    def due(self, step: int) -> int:
        """The evaluations at which they must be told next."""
        return min([(step // every + 1) * every for every in self.every], default=sys.maxsize)

    def tell(self, progress: list[Progress], step: int, total: int) -> None:
        """step: evaluations so far. total: those that are to be paid for, all as if at the same size."""
        progress = progress[: self.count]
        if self.callback is not None:
            self.callback(progress)
        if self.control.listeners:
            self.control.tell(Stepped(step, _values(progress), tuple(progress)))
            self.control.tell(Pictures(step, np.stack([one.image for one in progress])))
            self.control.tell(Advanced(round(progress[0].done * total), total))


def _values(progress: Sequence[Progress]) -> dict[str, float]:
    """Means over the pictures, of the loss and of the terms that are known of this moment."""
    values = {}
    if moved := [one.losses[-1][1] for one in progress if one.losses]:  # the others wait
        values["loss"] = float(np.mean(moved))
    if all(one.terms_at == one.evaluations for one in progress):
        values |= {name: float(np.mean([one.terms[name] for one in progress])) for name in progress[0].terms}
    return values


def progress_of(state: State, images: Sequence[np.ndarray], share: float) -> list[Progress]:
    """Of each picture; the arrays have no axis for pictures where there is one. share: of all the work."""
    assert state.log is not None
    at_evaluations, at_terms, resets = (
        np.atleast_1d(x) for x in (state.at.evaluations, state.terms_at, state.at.resets)
    )
    told = []
    logs = zip(*(np.atleast_2d(x) for x in state.log), strict=True)
    for j, ((log, log_values), image) in enumerate(zip(logs, images, strict=True)):
        losses = [(int(e), float(v)) for e, v in zip(log, log_values, strict=True) if e]
        parts = {name: float(np.atleast_1d(value)[j]) for name, value in state.terms.items()}
        rest = int(resets[j]), np.clip(image, -1, 1), int(at_terms[j])
        told.append(Progress(image.shape[:2], int(at_evaluations[j]), share, losses, parts, *rest))
    return told
