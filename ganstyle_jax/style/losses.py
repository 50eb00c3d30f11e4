"""What style is taken to be, and how far two of it are apart: of one image's features (h, w, c), each a scalar.

Gram matrices, and means with spreads or covariances, are sums over places. What needs the places themselves is in
histogram.py (distributions of channels) and similarity.py (nearest patches, likeness of a picture to itself).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


def gram_matrix(features: jax.Array) -> jax.Array:
    """Correlations of channels, (..., h, w, c) -> (..., c, c), in at least float32 (Gatys et al. 2016, eq. 3).

    Differs: divided by h * w, so that it does not change with the size of the image.
    """
    h, w = features.shape[-3:-1]
    precision = jnp.promote_types(features.dtype, jnp.float32)
    return jnp.einsum("...hwc,...hwd->...cd", features, features, preferred_element_type=precision) / (h * w)


def relative_error(found: jax.Array, target: jax.Array) -> jax.Array:
    """Squared difference over the squares of the target, both summed: 0 if equal, 1 for nothing at all.

    Finite for a target of zeros too, such as the features of a black picture may be.
    """
    found, target = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (found, target))
    return jnp.sum((found - target) ** 2) / jnp.maximum(jnp.sum(target**2), 1e-12)


def wasserstein(mean: jax.Array, covariance: jax.Array, target_mean: jax.Array, target_factor: jax.Array) -> jax.Array:
    """Squared 2-Wasserstein distance of two Gaussians, of means (c,) and covariances (c, c), a scalar.

    |m - m'|^2 + tr C + tr C' - 2 tr (C'^1/2 C C'^1/2)^1/2 (Dowson & Landau 1982). The second covariance is given by a
    factor F with F F^T = C', see `factor`: F^T C F has the eigenvalues of the matrix in the brackets.
    """
    cross = trace_sqrt(target_factor.T @ covariance @ target_factor)
    return jnp.sum((mean - target_mean) ** 2) + jnp.trace(covariance) + jnp.sum(target_factor**2) - 2 * cross


def factor(covariance: jax.Array) -> jax.Array:
    """F with F F^T = C, (c, c) -> (c, c), for a covariance that need not be regular."""
    values, axes = jnp.linalg.eigh(covariance)
    return axes * jnp.sqrt(jnp.maximum(values, 0))


@jax.custom_jvp
def trace_sqrt(matrix: jax.Array) -> jax.Array:
    """tr M^1/2 of a symmetric matrix without negative eigenvalues, (c, c) -> ()."""
    return jnp.sum(jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(matrix), 0)))


@trace_sqrt.defjvp
def _trace_sqrt_jvp(primals, tangents):
    # d tr f(M) = tr f'(M) dM: unlike the derivative of the eigenvalues one by one it does not mind equal ones. That of
    # the square root is infinite at 0, so eigenvalues below rounding count as rounding.
    (matrix,), (tangent,) = primals, tangents
    values, axes = jnp.linalg.eigh(matrix)
    values = jnp.maximum(values, 0)
    floor = jnp.finfo(matrix.dtype).eps * jnp.maximum(values[-1], 1e-30)
    slope = axes * (0.5 / jnp.sqrt(jnp.maximum(values, floor))) @ axes.T
    return jnp.sum(jnp.sqrt(values)), jnp.sum(slope * tangent)


FLAT = 1e-3  # mean square of a Laplacian, of colours in [-1, 1], below which a picture counts as flat


def total_variation(image: jax.Array, extent: tuple[int, int] | None = None, circular: bool = False) -> jax.Array:
    """Mean squared difference of neighbouring pixels, down and across, (h, w, c) -> ().

    extent: (rows, columns) that count, by default all. circular: of an image that goes on at its other end.
    Mahendran & Vedaldi 2015 (arXiv:1412.0035), section 3.2 with beta = 2, as a mean instead of a sum.
    """
    total = jnp.zeros((), image.dtype)
    if circular:
        return sum((jnp.mean((jnp.roll(image, -1, axis) - image) ** 2) for axis in (0, 1)), total)
    height, width = extent or image.shape[:2]
    for axis, (rows, columns) in enumerate([(height - 1, width), (height, width - 1)]):
        # Shifted and masked rather than cut, so that rows which lie on different devices stay where they are.
        places = [(0, 0, 0)] * 3
        places[axis] = (-1, 1, 0)
        difference = jax.lax.pad(image, jnp.zeros((), image.dtype), places) - image
        row, column = (jax.lax.broadcasted_iota(jnp.int32, image.shape, i) for i in (0, 1))
        difference = jnp.where((row < rows) & (column < columns), difference, 0)
        total += jnp.sum(difference**2) / max(rows * columns * image.shape[2], 1)
    return total


def laplacian(image: jax.Array, pool: int = 1, extent: tuple[int, int] | None = None) -> jax.Array:
    """4 x - (the 4 neighbours) of each colour of an image that is pooled by means, (..., h, w, c) -> (..., h', w', c).

    pool: side of the squares that are pooled, of which only whole ones count: h' = h // pool, with zeros at the border,
    where neighbours are missing. extent: (rows, columns) of the image, where the array is larger.
    """
    height, width = extent or image.shape[-3:-1]
    # Pooled, shifted and masked rather than cut, so that rows which lie on different devices stay where they are.
    window = (*[1] * (image.ndim - 3), pool, pool, 1)
    zero = np.zeros((), image.dtype)
    pooled = jax.lax.reduce_window(image, zero, jax.lax.add, window, window, "VALID") / pool**2
    found = 4 * pooled
    for axis in (-3, -2):
        for shift in (-1, 1):
            places = [(0, 0, 0)] * image.ndim
            places[axis] = (shift, -shift, 0)
            found -= jax.lax.pad(pooled, zero, places)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, found.shape, image.ndim + i) for i in (-3, -2))
    inner = (row > 0) & (row < height // pool - 1) & (column > 0) & (column < width // pool - 1)
    return jnp.where(inner, found, 0)


def laplacian_error(
    image: jax.Array, content: jax.Array, pool: int = 1, extent: tuple[int, int] | None = None
) -> jax.Array:
    """How differently two images' edges run: 0 if equal, about 1 for none at all, (..., h, w, c) both -> (...).

    Li, Xu, Nie & Liu 2017 (arXiv:1707.01253, Lapstyle), eq. 7. pool, extent: see `laplacian`.

    Differs: divided by the squares of the content's Laplacian, or by FLAT of each place and colour where it has next to
    none; and by colours, where the paper adds red, green and blue up.
    """
    target = laplacian(content, pool, extent)
    height, width = extent or image.shape[-3:-1]
    places = image.shape[-1] * jnp.maximum((height // pool - 2) * (width // pool - 2), 1)
    squares = jnp.maximum(jnp.sum(target**2, axis=(-3, -2, -1)), FLAT * places)
    return jnp.sum((laplacian(image, pool, extent) - target) ** 2, axis=(-3, -2, -1)) / squares


# ---------------------------------------------------------------------------------------------------------------------
# Styles of regions


@flax.struct.dataclass
class Moments:
    """What a style is: means and products of channels over the places of each region, or their sums."""

    mean: jax.Array  # (regions, c)
    gram: jax.Array  # (regions, c, c)


def moments(features: jax.Array, regions: jax.Array | None = None) -> Moments:
    """Sums over places: features (h, w, c), masks (r, h, w, 1) of regions or None for one region of all places."""
    flat = features.reshape(-1, features.shape[-1])
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.promote_types(features.dtype, jnp.float32))
    if regions is None:
        return Moments(dot("pc->c", flat)[None], dot("pc,pd->cd", flat, flat)[None])
    masks = regions.reshape(len(regions), -1).astype(features.dtype)
    return Moments(dot("rp,pc->rc", masks, flat), dot("rpc,pd->rcd", masks[..., None] * flat, flat))


def means(total: Moments, areas: jax.Array | np.ndarray) -> Moments:
    return Moments(total.mean / areas[:, None], total.gram / areas[:, None, None])


def covariance(of: Moments) -> jax.Array:
    return of.gram - of.mean[..., :, None] * of.mean[..., None, :]


def wasserstein_error(found: Moments, target: Moments, factor: jax.Array) -> jax.Array:
    """Squared distance of two Gaussians with these moments, over the distance from the target to features of zeros."""
    distance = wasserstein(found.mean, covariance(found), target.mean, factor)
    return distance / jnp.maximum(jnp.trace(target.gram), 1e-12)


def variance(of: Moments) -> jax.Array:
    """Of each channel, (..., c), not negative."""
    return jnp.maximum(jnp.diagonal(of.gram, axis1=-2, axis2=-1) - of.mean**2, 0)


def mean_std_error(found: Moments, target: Moments, eps: float = 1e-5) -> jax.Array:
    """Squared differences of the channels' means and standard deviations, over the squares of the target's features.

    Huang & Belongie 2017 (arXiv:1703.06868, AdaIN), eq. 13: |m - m'|^2 + |s - s'|^2, here divided by |m'|^2 + |s'|^2,
    so that it is 0 if equal and 1 for features of zeros. eps: what is added to each variance, as a share of the
    target's mean square, so that the gradient is finite where a channel is constant. (..., c), (..., c, c) -> (...).
    """
    squares = jnp.trace(target.gram, axis1=-2, axis2=-1)[..., None]
    floor = eps * jnp.maximum(squares / target.mean.shape[-1], 1e-12)
    spreads = jnp.sqrt(variance(found) + floor) - jnp.sqrt(variance(target) + floor)
    error = jnp.sum((found.mean - target.mean) ** 2 + spreads**2, axis=-1)
    return error / jnp.maximum(squares[..., 0], 1e-12)
