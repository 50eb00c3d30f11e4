"""Walks through latent space, in NumPy; jax arrays are accepted. Errors about an array are ValueError."""

from typing import Any

import numpy as np


def slerp(a: Any, b: Any, t: Any) -> np.ndarray:
    """Spherical interpolation of latents (..., d), `a` at t = 0 and `b` at t = 1 (White 2016, arXiv:1609.04468).

    Gaussian latents lie near a sphere, and a straight line would lead through its inside, where no latents of the
    training lay. `t` in [0, 1] is a number or an array that broadcasts against the leading dimensions. The dtype is
    that of the latents (float64 for integers); the end points are exact.

    Differs: the direction turns at constant speed and the length goes linearly, where the paper weighs both latents by
    sines; for latents of one length this is the same. Opposite latents, where the paper's formula divides by zero, are
    joined by one of the half circles between them, always the same one.
    """
    a, b = np.asarray(a), np.asarray(b)
    t = np.asarray(t, np.float64)[..., None]
    if a.shape[-1:] != b.shape[-1:] or not a.ndim:
        raise ValueError(f"latents must have shapes (..., d) with the same d, got {a.shape} and {b.shape}")
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"t must lie in [0, 1], got values from {t.min()} to {t.max()}")
    dtype = np.result_type(a.dtype, b.dtype)
    if np.issubdtype(dtype, np.integer):
        dtype = np.dtype(np.float64)
    a, b = a.astype(np.float64), b.astype(np.float64)
    length_a, length_b = _norm(a), _norm(b)
    unit_a, unit_b = _normalise(a), _normalise(b)
    # The angle from the chords: arccos of the dot product loses half of the digits near 0 and pi.
    angle = 2 * np.arctan2(_norm(unit_a - unit_b), _norm(unit_a + unit_b))
    # Gram-Schmidt, a second time against what rounding left over of `unit_a`; a fixed axis where nothing is left.
    across = unit_b - (unit_a * unit_b).sum(-1, keepdims=True) * unit_a
    across = np.where(_norm(across) > 1e-12, across, _any_orthogonal(unit_a))
    across = _normalise(across)
    across = _normalise(across - (unit_a * across).sum(-1, keepdims=True) * unit_a)
    direction = np.cos(t * angle) * unit_a + np.sin(t * angle) * across
    on_sphere = ((1 - t) * length_a + t * length_b) * direction
    # A zero vector has no direction, and in one dimension there is none across: a straight line then.
    straight = (1 - t) * a + t * b
    result = np.where((length_a > 0) & (length_b > 0) & (a.shape[-1] > 1), on_sphere, straight)
    result = np.where(t == 0, a, np.where(t == 1, b, result))
    return result.astype(dtype)


def _norm(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1, keepdims=True)


def _normalise(x: np.ndarray) -> np.ndarray:
    norm = _norm(x)
    return x / np.where(norm > 0, norm, 1)


def _any_orthogonal(unit: np.ndarray) -> np.ndarray:
    """A vector across `unit`, from the axis along which `unit` is smallest."""
    axis = (np.arange(unit.shape[-1]) == np.abs(unit).argmin(-1)[..., None]).astype(np.float64)
    return axis - (unit * axis).sum(-1, keepdims=True) * unit


def blend(labels: Any, classes: int, frames_between: int) -> np.ndarray:
    """The classes of a closed walk: labels (n,) -> weights (n * (frames_between + 1), classes) float32.

    Each frame's weights sum to 1 and go in a straight line from the class of one stop to that of the next.
    """
    steps = frames_between + 1
    at = np.eye(classes, dtype=np.float32)[np.asarray(labels)]
    t = (np.arange(steps, dtype=np.float32) / steps)[:, None]
    path = (1 - t) * at[:, None] + t * np.roll(at, -1, axis=0)[:, None]
    return path.reshape(-1, classes)


def walk(latents: Any, frames_between: int) -> np.ndarray:
    """A closed walk by `slerp`: latents (n, ..., d) -> (n * (frames_between + 1), ..., d).

    Each latent is followed by `frames_between` new ones on the way to the next, the last one by those on the way back
    to the first, which is not repeated, so that an animation of the walk loops without a pause.
    """
    latents = np.asarray(latents)
    if latents.ndim < 2 or len(latents) < 2 or frames_between < 0:
        raise ValueError(
            "a walk needs latents of shape (n, ..., d) with n >= 2 and frames_between >= 0, got shape"
            f" {latents.shape} and frames_between={frames_between}"
        )
    steps = frames_between + 1
    t = np.arange(steps).reshape(1, steps, *[1] * (latents.ndim - 2)) / steps
    path = slerp(latents[:, None], np.roll(latents, -1, axis=0)[:, None], t)
    return path.reshape(-1, *latents.shape[1:])
