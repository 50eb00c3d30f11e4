"""What is compared by the angle between features: patches of the style nearest to the picture's, and a picture's
likeness to itself from place to place, which is what of the content outlives a change of all its colours.

Angles do not know how strong a feature is, so that faint texture counts as bold texture does.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CHUNK = 1024  # places whose nearest are looked for at once: of 16,384 style features they take 64 MB


def normalised(features: jax.Array) -> jax.Array:
    """(..., c) of length 1, in at least float32; zeros stay zeros, and have no gradient."""
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    squares = jnp.sum(features**2, axis=-1, keepdims=True)
    some = squares > 1e-24  # below it float32 cannot tell a square from 0
    return jnp.where(some, features * lax.rsqrt(jnp.where(some, squares, 1)), 0)


def cosine_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """1 - cos of the angle between vectors (..., c), from 0 to 2: (...). 1/2 where one is zero, 0 where both are."""
    # Half the squared difference is the same for vectors of length 1, and exactly 0 for equal ones.
    return 0.5 * jnp.sum((normalised(x) - normalised(y)) ** 2, axis=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Patches


def nearest(features: jax.Array, style: jax.Array, allowed: jax.Array | None = None, chunk: int = CHUNK) -> jax.Array:
    """The style's features of the smallest angle to each: (..., n, c), (..., m, c) -> indices (..., n), int32.

    allowed: (..., m), which of the style's may be taken, by default all; the first of equals is. chunk: how many of the
    n are compared with all m at once, so that memory is chunk x m and not n x m. Has no gradient.
    """
    if allowed is None:
        allowed = jnp.ones(style.shape[-2], bool)
    search = jnp.vectorize(functools.partial(_nearest, chunk=chunk), signature="(n,c),(m,c),(m)->(n)")
    return search(lax.stop_gradient(features), lax.stop_gradient(style), allowed > 0)


def _nearest(features: jax.Array, style: jax.Array, allowed: jax.Array, chunk: int) -> jax.Array:
    directions = normalised(style).T
    features = features.astype(directions.dtype)
    # How long a feature is does not change which of the style's is nearest to it.
    count = max(1, math.ceil(len(features) / chunk))
    size = max(1, math.ceil(len(features) / count))
    parts = jnp.pad(features, ((0, count * size - len(features)), (0, 0))).reshape(count, size, -1)

    def of_part(part):
        return jnp.argmax(jnp.where(allowed, part @ directions, -jnp.inf), axis=-1).astype(jnp.int32)

    return lax.map(of_part, parts).reshape(-1)[: len(features)]


def patches_error(
    features: jax.Array,
    style: jax.Array,
    weights: jax.Array | None = None,
    allowed: jax.Array | None = None,
    chunk: int = CHUNK,
) -> jax.Array:
    """Mean cosine distance to the style's nearest: (..., n, c), (..., m, c) of places -> (...), from 0 to 2.

    Kolkin, Kucera, Paris, Sykora, Shechtman & Shakhnarovich 2022 (arXiv:2203.13215), eq. 1 and 5, of features that are
    centred, see `hypercolumns`. weights: (..., n) of the places, by default all equal. allowed, chunk: see `nearest`.
    The gradient leaves the choice of the nearest as it is, as that of a minimum does.

    Differs: the nearest are looked for again at each evaluation, in the picture and not in the content, so that the
    loss is one function of the picture that a line search can follow.
    """
    distance = cosine_distance(features, chosen(style, nearest(features, style, allowed, chunk)))
    return mean_over(distance, weights)


def chosen(style: jax.Array, index: jax.Array) -> jax.Array:
    """Features (..., m, c) of these indices (..., n): (..., n, c), without a gradient."""
    return lax.stop_gradient(jnp.take_along_axis(style, index[..., None], axis=-2))


def mean_over(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Of places (..., n), weighted: (...); 0 where nothing weighs."""
    if weights is None:
        return jnp.mean(values, axis=-1)
    return jnp.sum(values * weights, axis=-1) / jnp.maximum(jnp.sum(weights, axis=-1), 1e-12)


def hypercolumns(taps: Sequence[jax.Array], shape: tuple[int, int]) -> jax.Array:
    """Features of several layers (..., h_l, w_l, c_l) one after the other, at one resolution: (..., *shape, sum c_l).

    In at least float32. By linear interpolation, of layers that are finer over all that a place stands for (Kolkin et
    al. 2022, section 3.1).
    """

    def resized(x):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jax.image.resize(x, (*x.shape[:-3], *shape, x.shape[-1]), "linear")

    return jnp.concatenate([resized(x) for x in taps], axis=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Likeness of a picture to itself


def self_similarity_error(features: jax.Array, content: jax.Array) -> jax.Array:
    """How differently the places of two pictures are alike among themselves: (..., n, c) both -> (...), from 0 to 2.

    Kolkin, Salavon & Shakhnarovich 2019 (arXiv:1904.12785, STROTSS), eq. 7: cosine distances of all pairs of places,
    each column divided by its sum, and the mean over columns of the sum of absolute differences. n is to be some
    hundreds or a thousand places, see `regular_places` and `random_places`.

    Differs: n times the paper's, which divides by n twice, so that it does not shrink the more places are taken.
    """
    return jnp.mean(jnp.sum(jnp.abs(likeness(features) - likeness(content)), axis=-2), axis=-1)


def likeness(features: jax.Array) -> jax.Array:
    """Cosine distances of all pairs, each column divided by its sum: (..., n, c) -> (..., n, n) in at least float32."""
    directions = normalised(features)
    distances = jnp.maximum(1 - directions @ jnp.swapaxes(directions, -1, -2), 0)
    return distances / jnp.maximum(jnp.sum(distances, axis=-2, keepdims=True), 1e-12)


def regular_places(shape: tuple[int, int], most: int) -> np.ndarray:
    """At most so many places of (h, w) in equal steps down and across, as many as fit: indices (n,) of h * w, int32."""
    height, width = shape
    step = max(1, math.isqrt(height * width // most))
    while math.ceil(height / step) * math.ceil(width / step) > most:
        step += 1
    # In the middle of what they stand for, as far as there is one.
    rows, columns = (np.arange((side - 1) % step // 2, side, step) for side in (height, width))
    return (rows[:, None] * width + columns).reshape(-1).astype(np.int32)


def random_places(key: jax.Array, shape: tuple[int, int], most: int) -> jax.Array:
    """At most so many different places of (h, w), drawn by the key: indices (n,) of h * w, int32."""
    count = shape[0] * shape[1]
    return jax.random.choice(key, count, (min(most, count),), replace=False).astype(jnp.int32)
