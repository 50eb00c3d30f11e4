"""Shrinking by a whole factor with Lanczos' kernel of two lobes, as Deep Image Prior measures what it enlarges.

As its authors' code with phase 1/2: 4 * factor taps to either axis that are symmetric to the small pixel's centre and
add to 1, and beyond the border the outermost pixel again.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

LOBES = 2


def kernel(factor: int) -> np.ndarray:
    """(4 factor,) float64, which adds to 1: the two-dimensional kernel is its product with itself."""
    x = (np.arange(2 * LOBES * factor) + 0.5) / factor - LOBES  # in small pixels, never 0
    weights = np.sinc(x) * np.sinc(x / LOBES)
    return weights / weights.sum()


def shrink(image: jax.Array, factor: int) -> jax.Array:
    """(h, w, c) -> (h / factor, w / factor, c), of sides that are multiples of an even factor."""
    height, width, _ = image.shape
    if factor % 2 or height % factor or width % factor:
        raise ValueError(f"sides must be multiples of an even factor, got {height} x {width} and {factor}")
    rows, columns = (jnp.asarray(_matrix(side, factor), image.dtype) for side in (height, width))
    image = jnp.einsum("ph,hwc->pwc", rows, image, precision="highest")
    return jnp.einsum("qw,pwc->pqc", columns, image, precision="highest")


@functools.lru_cache(maxsize=64)
def _matrix(size: int, factor: int) -> np.ndarray:
    """(size / factor, size): rows add to 1."""
    taps = kernel(factor)
    first = np.arange(size // factor)[:, None] * factor - (len(taps) - factor) // 2
    places = (first + np.arange(len(taps))).clip(0, size - 1)
    matrix = np.zeros((size // factor, size))
    np.add.at(matrix, (np.broadcast_to(np.arange(len(places))[:, None], places.shape), places), taps)
    return matrix
