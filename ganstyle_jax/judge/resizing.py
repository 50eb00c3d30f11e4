"""How images get the size that a network takes, as published numbers resized them (Parmar et al. 2022,
arXiv:2104.11222, section 3):

    clean          Pillow's bicubic, which smooths what a smaller image cannot hold, without rounding to bytes; where it
                   overshoots at edges it is clipped to the range of the image, as clean-fid does
    legacy-tf      TensorFlow 1's bilinear: no smoothing, pixels' corners as their centres; the first FIDs
    legacy-torch   PyTorch's bilinear: no smoothing; pytorch-fid
    none           images as they are

Each of the three is linear before it is clipped, and acts on rows and columns alike, so that a matrix for each says all
of it: the same on the host and on devices, and there at the speed of matrix products.
"""

import functools
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

Resize = Literal["clean", "legacy-tf", "legacy-torch", "none"]
RESIZES: tuple[Resize, ...] = get_args(Resize)


def resize(images: Any, size: tuple[int, int], mode: Resize) -> Any:
    """Images (..., h, w, c) to (..., *size, c) float32 of the same range, NumPy's or JAX's, also inside `jit`.

    images: uint8, or floats in [-1, 1]: to that range `clean` is clipped. mode "none": ValueError unless the size is
    right already.
    """
    height, width = images.shape[-3:-1]
    if (height, width) == tuple(size):
        return images.astype(np.float32)
    if mode == "none":
        raise ValueError(f"images of {height} x {width} pixels are not to be resized, and not {size[0]} x {size[1]}")
    rows, columns = resize_matrix(height, size[0], mode), resize_matrix(width, size[1], mode)
    lowest, highest = (0, 255) if images.dtype == np.uint8 else (-1, 1)
    images = images.astype(np.float32)
    if isinstance(images, np.ndarray):
        images = np.matmul(rows, images.reshape(*images.shape[:-2], -1)).reshape(*images.shape[:-3], size[0], width, -1)
        images = np.matmul(columns, images)
    else:
        images = jnp.einsum("ph,...hwc->...pwc", rows, images, precision="highest")
        images = jnp.einsum("qw,...pwc->...pqc", columns, images, precision="highest")
    return images.clip(lowest, highest) if mode == "clean" else images


@functools.lru_cache(maxsize=64)
def resize_matrix(before: int, after: int, mode: Resize) -> np.ndarray:
    """What a resized row of `after` pixels takes of each of `before` pixels, (after, before) float32; rows add to 1."""
    places = np.arange(after)
    matrix = np.zeros((after, before))
    if mode == "clean":
        # As Pillow's precompute_coeffs: Keys' cubic (1981) with a = -0.5, as wide as a new pixel is in old ones.
        scale = before / after
        wide = max(scale, 1.0)
        for i in places:
            centre = (i + 0.5) * scale
            first, end = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), before)
            taps = _cubic((np.arange(first, end) - centre + 0.5) / wide)
            matrix[i, first:end] = taps / taps.sum()
        return matrix.astype(np.float32)
    if mode not in ("legacy-tf", "legacy-torch"):
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {mode!r}")
    # In float32, as both compute it: where a pixel falls is a difference of large numbers.
    scale = np.float32(before) / np.float32(after)
    at = places.astype(np.float32)
    half = np.float32(0.5)
    at = np.maximum((at + half) * scale - half, 0) if mode == "legacy-torch" else at * scale
    lower = np.minimum(at.astype(np.int64), before - 1)
    share = at - lower.astype(np.float32)
    np.add.at(matrix, (places, lower), 1 - share)
    np.add.at(matrix, (places, np.minimum(lower + 1, before - 1)), share)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x < 2, -0.5 * (((x - 5) * x + 8) * x - 4), 0))
