"""Pictures as points, and maps of many points on a sheet of paper: components, t-SNE, discriminants, neighbours.

Points are (n, d), float64 within; maps are (n, 2). Nothing here draws, and everything gives the same for the same
points. scikit-learn is imported where it is used, because that takes a second.
"""

import functools
from typing import Any

import jax
import numpy as np

from ganstyle_jax import contract
from ganstyle_jax.features import weights
from ganstyle_jax.io import images

BATCH = 64  # pictures whose features are computed at once


def features_of(pictures: np.ndarray) -> np.ndarray:
    """(n, h, w, c) to (n, 4096): relu3_1 of the compact network, place by place, of pictures at 32 pixels."""
    apply = _network()
    small = np.stack([images.resize(picture, (32, 32)) for picture in pictures.astype(np.float32)])
    small = np.repeat(small, 3, -1) if small.shape[-1] == 1 else small
    return np.concatenate(list(contract.in_parts(apply, small, BATCH)))


@functools.cache  # so that it is compiled once
def _network() -> Any:
    network, params = weights.load_for_style("compact")
    return jax.jit(lambda x: network.apply(params, x, ("relu3_1",))["relu3_1"].reshape(len(x), -1))


def principal_components(points: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) -> coordinates (n, count) along the directions of most variance, and each one's share of all, (count,).

    The sign of a direction, which is arbitrary, is such that its largest coefficient is positive. Raises ValueError
    for fewer than two points and for more components than the points have.
    """
    from sklearn.decomposition import PCA

    points = np.asarray(points, np.float64)
    if len(points) < 2 or not 1 <= count <= min(points.shape):
        raise ValueError(f"{count} principal components need two points and {count} numbers, got shape {points.shape}")
    with np.errstate(invalid="ignore"):  # of points that are all the same no share is to be had
        fitted = PCA(count, svd_solver="full", random_state=0).fit(points)
    axes = fix_signs(np.asarray(fitted.components_))
    return (points - fitted.mean_) @ axes.T, np.nan_to_num(fitted.explained_variance_ratio_)


def tsne(points: np.ndarray, perplexity: float = 30.0, iterations: int = 750) -> tuple[np.ndarray, float]:
    """(n, d) -> a map (n, 2) in which near points stay near, and the divergence that is left; for up to 2,000 points.

    Exact t-SNE (van der Maaten & Hinton 2008), since Barnes and Hut's approximation adds up in the order in which
    threads come home. It begins with the principal components, of deviation 1e-4 (Kobak & Berens 2019). Raises
    ValueError for a perplexity that so many points cannot have.
    """
    from sklearn.manifold import TSNE

    n = len(points)
    if not 1 <= perplexity < n - 1:
        raise ValueError(f"perplexity must be at least 1 and below {n - 1}, one less than the others, got {perplexity}")
    begin, _ = principal_components(points)
    begin = (begin / max(begin[:, 0].std(), np.finfo(np.float32).tiny) * 1e-4).astype(np.float32)
    chosen = {"init": begin, "learning_rate": "auto", "random_state": 0, "method": "exact"}
    fitted = TSNE(perplexity=perplexity, max_iter=iterations, **chosen)
    sheet = fitted.fit_transform(np.asarray(points, np.float64))
    return np.asarray(sheet, np.float64), float(fitted.kl_divergence_)


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
