"""Optical flow between the frames of a film: what of a frame is found again in the next, and where.

    backward, forward = flow(later, earlier), flow(earlier, later)
    carried = warp(result_of_earlier, backward)          # as it would look in `later`
    believed = trusted(backward, forward)                # where that is so

A flow is (h, w, 2) float32, in pixels: what the first picture shows at (x, y), the second shows at (x, y) + flow[y, x].
Pictures are (h, w, 3) or (h, w, 1) float32 in [-1, 1]. The flow is OpenCV's DIS (Kroeger et al. 2016,
arXiv:1603.03590), which comes with the extra `video`; all else is NumPy.
"""

import numpy as np

from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError

SMALLEST = 16  # pixels a side: DIS has patches of 8, and looks at pictures half as large
# How far a colour may lie from where the flow took it from, of a range of 2, to count as the same thing seen again.
SAME = 0.25
CUT = 0.15  # a frame of which less is seen again begins a new scene


def check_available() -> None:
    """UserError where OpenCV is missing, with what to do about it."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise UserError(
            "a film needs OpenCV, which finds what moves: pip install opencv-python-headless, or pip install "
            "-e '.[video]' where ganstyle_jax is"
        ) from error


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where `second` shows what `first` shows, (h, w, 2) float32. ValueError for pictures of two shapes.

    By brightness. DIS with the settings of its preset "medium", and down to single pixels, where the preset stops at
    half the size: that halves the error. The same bits every time, on however many cores.
    """
    import cv2

    if first.shape != second.shape:
        raise ValueError(f"flow is between pictures of one shape, got {first.shape} and {second.shape}")
    h, w = first.shape[:2]
    edges = (0, max(0, SMALLEST - h)), (0, max(0, SMALLEST - w))
    grey = [np.pad(_grey(picture), edges, mode="edge") for picture in (first, second)]
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setFinestScale(0)
    start = np.zeros((*grey[0].shape, 2), np.float32)  # without one OpenCV makes an array of its own
    found = np.asarray(method.calc(grey[0], grey[1], start), np.float32)
    return np.ascontiguousarray(found[:h, :w])


def _grey(picture: np.ndarray) -> np.ndarray:
    """(h, w) uint8."""
    luma = picture @ images.LUMA if picture.shape[-1] == 3 else picture[..., 0]
    return np.ascontiguousarray(images.to_uint8(luma[..., None])[..., 0])


def warp(picture: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """(h, w, c) as the flow from the new picture back to this one says it looks there, float32.

    Linear between pixels, as flow puts them; where that is outside the picture, its nearest edge.
    """
    x, y, left, top, right, bottom = _corners(backward)
    picture = np.asarray(picture, np.float32)
    above = picture[top, left] * (1 - x) + picture[top, right] * x
    below = picture[bottom, left] * (1 - x) + picture[bottom, right] * x
    return above * (1 - y) + below * y


def _corners(backward: np.ndarray) -> tuple[np.ndarray, ...]:
    """The four pixels around each place that the flow comes from, and how far between them it lies."""
    h, w = backward.shape[:2]
    rows, columns = np.indices((h, w), np.float32)
    x = np.clip(columns + backward[..., 0], 0, w - 1)
    y = np.clip(rows + backward[..., 1], 0, h - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, w - 1), np.minimum(top + 1, h - 1)
    x, y = (x - left).astype(np.float32), (y - top).astype(np.float32)
    return x[..., None], y[..., None], left, top, right, bottom


def trusted(backward: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Where the later frame shows what the earlier one showed, (h, w) float32 of 0 and 1.

    backward: the flow from the later frame to the earlier one, forward: the other way. By Ruder et al. 2016
    (arXiv:1604.08610), section 4.2: not where something comes into sight, so that the flow back and the flow forward
    from there do not cancel (eq. 6: |w + w'|^2 > 0.01 (|w|^2 + |w'|^2) + 0.5), nor at the edges of what moves
    (eq. 7: |grad u|^2 + |grad v|^2 > 0.01 |w|^2 + 0.002). Besides, not where it comes from outside the picture.
    """
    h, w = backward.shape[:2]
    there = warp(forward, backward)
    squares = (backward**2).sum(-1)
    appears = ((backward + there) ** 2).sum(-1) > 0.01 * (squares + (there**2).sum(-1)) + 0.5
    slopes = [np.gradient(backward, axis=axis) if backward.shape[axis] > 1 else np.zeros(1) for axis in (0, 1)]
    edge = sum((slope**2).sum(-1) for slope in slopes) > 0.01 * squares + 0.002
    rows, columns = np.mgrid[:h, :w]
    x, y = columns + backward[..., 0], rows + backward[..., 1]
    outside = (x < -0.5) | (x > w - 0.5) | (y < -0.5) | (y > h - 0.5)
    return (~(appears | edge | outside)).astype(np.float32)


def seen_again(later: np.ndarray, earlier: np.ndarray, backward: np.ndarray, believed: np.ndarray) -> float:
    """The share of a frame that shows what the one before showed: where the flow is trusted and the colour is the same.

    Below `CUT` it is another scene. Flat areas have no flow to be caught by, so that colours have their say too.
    """
    same = np.abs(later - warp(earlier, backward)).max(-1) < SAME
    return float((believed * same).mean())
