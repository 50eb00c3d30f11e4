"""Maps of many points on a sheet of paper: principal components, t-SNE and Fisher's discriminant, and neighbours.

Points are (n, d), float64 within; maps are (n, 2). Nothing here draws.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def principal_components(points: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) -> coordinates (n, count) along the directions of most variance, and each one's share of all, (count,).

    The sign of a direction, which is arbitrary, is such that its largest coefficient is positive. Raises ValueError
    for fewer than two points and for more components than the points have.
    """
    points = np.asarray(points, np.float64)
    if len(points) < 2 or not 1 <= count <= min(points.shape):
        raise ValueError(f"{count} principal components need two points and {count} numbers, got shape {points.shape}")
    centred = points - points.mean(0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    axes = fix_signs(axes[:count])
    variances = lengths**2
    return centred @ axes.T, variances[:count] / max(variances.sum(), np.finfo(np.float64).tiny)


def fix_signs(rows: np.ndarray) -> np.ndarray:
    """Rows (k, d), each with the sign that makes its largest coefficient positive."""
    largest = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], axis=1)
    return rows * np.where(largest < 0, -1, 1)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, d) and (m, d) -> (n, m), none below 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    found = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.maximum(found, 0)


# ---------------------------------------------------------------------------------------------------------------------
# t-SNE (van der Maaten & Hinton 2008, JMLR 9), exact


def affinities(points: np.ndarray, perplexity: float) -> np.ndarray:
    """(n, d) -> symmetric (n, n) that sums to 1, the probabilities p_ij (section 2 and section 3.1).

    Each point's Gaussian is as wide as gives it that perplexity, 2 to the entropy of its neighbours: how many of them
    it has, in effect. Raises ValueError for a perplexity that so many points cannot have.
    """
    n = len(points)
    if not 1 <= perplexity < n - 1:
        raise ValueError(f"perplexity must be at least 1 and below {n - 1}, one less than the others, got {perplexity}")
    conditional = conditional_affinities(squared_distances(points, points), perplexity)
    return (conditional + conditional.T) / (2 * n)


def conditional_affinities(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Squared distances (n, n) -> p_j|i by rows, each of which sums to 1 and has that perplexity (equation 1).

    By bisection of the logarithm of each row's precision. Where a point has more doubles than the perplexity, no
    Gaussian is narrow enough: the narrowest one, which shares all among the doubles, is taken.
    """
    off = ~np.eye(len(distances), dtype=bool)
    nearest = np.where(off, distances, np.inf).min(1)
    excess = np.where(off, distances - nearest[:, None], np.inf)  # so that the nearest never underflows
    typical = np.mean(excess, 1, where=off)
    typical = np.where(typical > 0, typical, 1)
    low, high = np.full(len(distances), -60.0), np.full(len(distances), 60.0)  # log of the precision, of the typical

    def rows(logarithm: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            weights = np.exp(-np.where(off, excess * (np.exp(logarithm) / typical)[:, None], np.inf))
        return weights / weights.sum(1, keepdims=True)

    for _ in range(64):
        middle = (low + high) / 2
        too_wide = entropies(rows(middle)) > np.log(perplexity)
        low, high = np.where(too_wide, middle, low), np.where(too_wide, high, middle)
    return rows((low + high) / 2)


def entropies(rows: np.ndarray) -> np.ndarray:
    """Of each row of probabilities (n, m), in nats, (n,)."""
    return -np.sum(rows * np.log(np.where(rows > 0, rows, 1)), axis=1)


def divergence_gradient(p: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kullback-Leibler divergence of p and of the map's q, and its gradient by the map y (n, 2) (equation 5)."""
    heavy = 1 / (1 + sum((x[:, None] - x) ** 2 for x in y.T))  # Student's t with one degree of freedom, equation 4
    heavy = jnp.where(jnp.eye(len(y), dtype=bool), 0, heavy)
    q = jnp.maximum(heavy / heavy.sum(), 1e-30)
    pull = (p - q) * heavy
    gradient = 4 * (pull.sum(1)[:, None] * y - jnp.matmul(pull, y, precision="highest"))
    return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1) / q), 0)), gradient


def tsne(
    points: np.ndarray,
    perplexity: float = 30.0,
    iterations: int = 750,
    callback: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """(n, d) -> a map (n, 2) in which near points stay near, and the divergence that is left; for up to 2,000 points.

    No randomness: it begins with the principal components (Kobak & Berens 2019), scaled down to a deviation of 1e-4.
    The first third of the iterations is exaggerated by 12, the rate is n / 12 and at least 50 (Belkina et al. 2019);
    momentum and gains are those of the paper's own program. callback: told of the iterations done, ten times or more.
    """
    p = jnp.asarray(affinities(points, perplexity), jnp.float32)
    y, _ = principal_components(points)
    y = jnp.asarray(y / max(y[:, 0].std(), np.finfo(np.float64).tiny) * 1e-4, jnp.float32)
    rate, early = max(len(points) / 12, 50.0), iterations // 3

    @jax.jit
    def advance(state, p, start, stop):
        def step(i, state):
            y, velocity, gains = state
            _, gradient = divergence_gradient(jnp.where(i < early, 12.0, 1.0) * p, y)
            gains = jnp.maximum(jnp.where(gradient * velocity < 0, gains + 0.2, gains * 0.8), 0.01)
            velocity = jnp.where(i < early, 0.5, 0.8) * velocity - rate * gains * gradient
            y = y + velocity
            return y - y.mean(0), velocity, gains

        return jax.lax.fori_loop(start, stop, step, state)

    state = (y, jnp.zeros_like(y), jnp.ones_like(y))
    pace = max(iterations // 20, 1)
    for start in range(0, iterations, pace):
        stop = min(start + pace, iterations)
        state = advance(state, p, start, stop)
        if callback is not None:
            jax.block_until_ready(state)
            callback(stop)
    return np.asarray(state[0], np.float64), float(jax.jit(divergence_gradient)(p, state[0])[0])


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def nearest_classes(
    points: np.ndarray, labels: np.ndarray, of: np.ndarray | None = None, neighbours: int = 5
) -> np.ndarray:
    """The class that most of the nearest labelled points have, the lower on a tie, (m,) for `of` (m, d).

    Without `of`: for the labelled points themselves (n, d), none of which counts as its own neighbour.
    """
    distances = squared_distances(points if of is None else of, points)
    if of is None:
        np.fill_diagonal(distances, np.inf)
    nearest = labels[np.argsort(distances, axis=1, kind="stable")[:, :neighbours]]
    votes = (nearest[..., None] == np.arange(labels.max() + 1)).sum(1)
    return votes.argmax(1)


def discriminant_directions(points: np.ndarray, labels: np.ndarray, count: int = 2) -> np.ndarray:
    """Directions (count, d) that part the classes best for their width (Fisher 1936; Rao 1948), each with unit spread.

    The eigenvectors of largest ratio of the scatter between classes to that within them. A hundredth of the mean
    variance is added to the latter, so that few points of many numbers do too.
    """
    from scipy.linalg import eigh

    points = np.asarray(points, np.float64)
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([points[index == k].mean(0) for k in range(len(classes))])
    within = np.cov((points - means[index]).T, bias=True)
    between = np.cov(means[index].T, bias=True)
    within += 0.01 * np.trace(within) / len(within) * np.eye(len(within))
    _, axes = eigh(between, within)
    return fix_signs(axes.T[::-1][:count])
