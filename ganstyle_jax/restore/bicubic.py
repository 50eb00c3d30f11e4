"""Bicubic enlarging and shrinking by a whole factor, as MATLAB's imresize, by which published low-resolution sets and
figures are made.

Keys 1981 ("Cubic convolution interpolation for digital image processing"), eq. 15 with a = -1/2; shrinking, the kernel
is as many times wider, so that it smooths away what the small picture cannot hold. Beyond the border lies the outermost
pixel again, as where Set5's files were made; later versions of imresize mirror. Differs: nothing is rounded or clipped,
where imresize rounds bytes after the rows and again after the columns. Pillow and PyTorch (antialias=True) give the
same inside, and leave out what lies beyond the border.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def enlarge(images: jax.Array, factor: int) -> jax.Array:
    """(b, h, w, c) -> (b, factor h, factor w, c), of any size from 1 pixel up; may overshoot at edges."""
    taps = _phases(factor).astype(images.dtype)
    for axis in (1, 2):
        size = images.shape[axis]
        padded = jnp.take(images, np.arange(-2, size + 2).clip(0, size - 1), axis=axis)
        shifted = [jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(5)]
        phases = [sum(taps[p, k] * shifted[k] for k in range(5) if taps[p, k]) for p in range(factor)]
        stacked = jnp.stack(phases, axis + 1)
        images = stacked.reshape(*images.shape[:axis], factor * size, *images.shape[axis + 1 :])
    return images


def shrink(images: jax.Array, factor: int, blur: float = 0.0) -> jax.Array:
    """(b, h, w, c) -> (b, h / factor, w / factor, c), of sides that are multiples of the factor.

    blur: standard deviation in pixels of a Gaussian that the pictures are convolved with before.
    """
    height, width = images.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(f"sides must be multiples of {factor} to be shrunk by it, got {height} x {width}: crop first")
    rows, columns = (_shrinking(side, factor, blur).astype(images.dtype) for side in (height, width))
    images = jnp.einsum("ph,bhwc->bpwc", rows, images, precision="highest")
    return jnp.einsum("qw,bpwc->bpqc", columns, images, precision="highest")


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2: 1 at 0, and 0 from 2 on."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _phases(factor: int) -> np.ndarray:
    """What each of the pixels that one becomes takes of the five around it, (factor, 5)."""
    centres = (np.arange(factor) + 0.5) / factor - 0.5  # from the old pixel's centre, in old pixels
    taps = cubic(centres[:, None] - np.arange(-2, 3))
    return taps / taps.sum(1, keepdims=True)


@functools.lru_cache(maxsize=64)
def _shrinking(size: int, factor: int, blur: float) -> np.ndarray:
    """(size / factor, size): rows add to 1."""
    centres = (np.arange(size // factor) + 0.5) * factor - 0.5
    reach = 2 * factor
    places = np.floor(centres)[:, None].astype(int) + np.arange(-reach, reach + 1)
    matrix = _scattered(places, cubic((places - centres[:, None]) / factor), size)
    return matrix @ _blurring(size, blur) if blur else matrix


def _blurring(size: int, sigma: float) -> np.ndarray:
    """(size, size): a Gaussian as far as four deviations."""
    reach = max(1, int(np.ceil(4 * sigma)))
    places = np.arange(size)[:, None] + np.arange(-reach, reach + 1)
    weights = np.exp(-((places - np.arange(size)[:, None]) ** 2) / (2 * sigma**2))
    return _scattered(places, weights, size)


def _scattered(places: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Weights (n, k) of pixels at `places` (n, k), the outermost one's where those lie outside, as (n, size)."""
    matrix = np.zeros((len(places), size))
    rows = np.broadcast_to(np.arange(len(places))[:, None], places.shape)
    np.add.at(matrix, (rows, places.clip(0, size - 1)), weights / weights.sum(1, keepdims=True))
    return matrix
