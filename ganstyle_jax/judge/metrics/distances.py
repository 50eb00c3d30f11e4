"""Distances between sets of images by their features: Fréchet distance, KID, precision and recall, and others.

    real, fake = gaussian(real_features), gaussian(fake_features)      # or Moments, batch by batch
    fid = frechet_distance(real, fake)
    mean, spread = kid(real_features, fake_features)

Features are arrays (n, d) of any float type, one row for each image, from whatever network; sums are taken in float64
on the host, so that results depend neither on the device nor on the size of batches. Wherever the order of arguments
matters, the real images come first. Everything raises UserError for features that are not (n, d), not finite or of
different networks (another d), and for fewer images than the statistic is defined for.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ganstyle_jax.io.files import UserError

FID_INFINITY_IMAGES = 5_000  # the smallest subset that Chong & Forsyth fit the line to
_BLOCK_BYTES = 32 * 2**20  # of a block of distances or kernel values


def _checked(features: Any, least: int, statistic: str) -> np.ndarray:
    """(n, d) with n >= least, finite, in whatever float type."""
    features = np.asarray(features)
    if features.ndim != 2 or not features.shape[1]:
        raise UserError(f"{statistic} takes features of shape (n, d), one row for each image, and got {features.shape}")
    if len(features) < least:
        raise UserError(f"{statistic} needs at least {least:,} images, and there are {len(features):,}")
    _check_finite(features, statistic)
    return features


def _check_finite(features: np.ndarray, statistic: str) -> None:
    bad = np.logical_not(np.all(np.isfinite(features), axis=1))
    if bad.any():
        raise UserError(
            f"{statistic} got features that are not finite, of {bad.sum():,} of {len(features):,} images, the first at"
            f" row {bad.argmax()}: look at the images and at the network's weights"
        )


def _check_dimensions(real: int, fake: int) -> None:
    if real != fake:
        raise UserError(
            f"the real images have {real} features and the generated {fake}: take both from the same network and layer"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Fréchet distance


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and covariance of the features of a set of images; raises UserError where they are none."""

    mean: np.ndarray  # (d,) float64
    covariance: np.ndarray  # (d, d) float64, unbiased
    count: int | None  # of images; None where a file does not say

    def __post_init__(self):
        d = len(self.mean) if np.ndim(self.mean) == 1 else None
        if np.shape(self.covariance) != (d, d):
            raise UserError(
                f"a mean of shape {np.shape(self.mean)} and a covariance of shape {np.shape(self.covariance)} do not"
                " belong together: (d,) and (d, d) are needed"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise UserError("the mean or covariance of the features is not finite: compute the statistics again")

    @functools.cached_property
    def factor(self) -> np.ndarray:
        """(d, r) float64, r the covariance's rank; factor @ factor.T is the covariance.

        Eigenvalues that are rounding errors, below d times the smallest step beneath the largest, count as 0: their
        square roots would not be small. Raises UserError for a matrix that is no covariance.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        if -values[0] > 1e-4 * max(values[-1], 0):  # beyond what a covariance in float16 would have
            raise UserError(
                f"the covariance of the features has the eigenvalue {values[0]:.3g}, where all must be at least 0:"
                " compute the statistics again"
            )
        kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept])


class Moments:
    """Mean and covariance of features that come in batches, float64, the same for any batches up to rounding.

    Sums are of differences from the mean so far (Chan, Golub & LeVeque 1983, eq. 1.5), so that a mean that is large
    beside the spread costs no digits. Memory: a few (d, d), whatever the number of images.
    """

    def __init__(self, dimensions: int):
        self.count = 0
        self.mean = np.zeros(dimensions)
        self.scatter = np.zeros((dimensions, dimensions))  # sum of (x - mean)(x - mean)^T

    def update(self, features: Any) -> None:
        """Adds a batch, (b, d) of any float type; b may be 0. Raises UserError."""
        features = _checked(features, 0, "a mean of features")
        self._check(features.shape[1])
        if len(features):
            rows = features.astype(np.float64)
            mean = rows.mean(axis=0)
            rows -= mean
            self._add(len(rows), mean, rows)

    def merge(self, other: "Moments") -> None:
        """Adds all that `other` has seen, which is left as it is. Raises UserError."""
        self._check(len(other.mean))
        if other.count:
            self._add(other.count, other.mean, np.empty((0, len(self.mean))))
            self.scatter += other.scatter

    def _check(self, dimensions: int) -> None:
        if dimensions != len(self.mean):
            raise UserError(
                f"moments of {len(self.mean)} features cannot take {dimensions}: take all from one network and layer"
            )

    def _add(self, count: int, mean: np.ndarray, rows: np.ndarray) -> None:
        """rows: differences of the new images from their own mean."""
        total, shift = self.count + count, mean - self.mean
        between = np.sqrt(self.count / total * count) * shift
        rows = np.concatenate([rows, between[None]])  # one product for the spread within and between
        self.scatter += rows.T @ rows
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """What has been seen. Raises UserError for fewer than two images, which have no covariance."""
        if self.count < 2:
            raise UserError(f"a covariance of features needs at least 2 images, and there are {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def gaussian(features: Any) -> Gaussian:
    """Mean and unbiased covariance of features (n, d), n >= 2. Raises UserError."""
    features = _checked(features, 2, "a covariance of features")
    moments = Moments(features.shape[1])
    for i in range(0, len(features), 4096):
        moments.update(features[i : i + 4096])
    return moments.gaussian()


def frechet_distance(real: Gaussian, fake: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), at least 0, float64 (Dowson & Landau 1982, Heusel et al. 2017, eq. 6).

    Symmetric in its arguments. With S1 = A A^T and S2 = B B^T the trace of the root is the sum of the singular values
    of A^T B: no complex number can appear, covariances without full rank are as good as any, and errors are about d
    roundings of the trace. Differs from the usual square root of the product S1 S2, which loses half of the digits
    where an eigenvalue is near 0. Cost: an eigenvalue problem for each argument, kept with it, and one singular value
    problem. Raises UserError for statistics of another dimension.
    """
    _check_dimensions(len(real.mean), len(fake.mean))
    difference = np.asarray(real.mean, np.float64) - fake.mean
    root = np.linalg.svd(real.factor.T @ fake.factor, compute_uv=False).sum()
    traces = np.trace(real.covariance) + np.trace(fake.covariance)
    return max(float(difference @ difference + traces - 2 * root), 0.0)


def fid_infinity(real: Gaussian, fake: Any, seed: int = 0, points: int = 15) -> tuple[float, float]:
    """The Fréchet distance without its bias from the number of generated images (Chong & Forsyth 2020, section 4).

    fake: features (n, d), n > 5,000. The distance of random subsets of N images, N in equal steps from 5,000 to n, is
    nearly linear in 1 / N; returned are the line's value at 1 / N = 0 and that value's standard error in the fit. The
    subsets overlap, so the error says how well a line fits, not what other images would give; it is large where n is
    near 5,000. `real` is held fixed. Raises UserError, among others for too few images.

    Differs from the common script for ArtFID, which does the same for 800 images: numpy gives it 800 from each of its
    fifteen subsets, all images, and what it calls FID-infinity is the plain distance at 800.
    """
    least = FID_INFINITY_IMAGES
    fake = _checked(fake, 2, "FID-infinity")
    if len(fake) <= least:
        raise UserError(
            f"FID-infinity fits a line to the distances of subsets of {least:,} images and more, and there are"
            f" {len(fake):,}, of which all subsets would be the same and their distance the plain FID, as in the common"
            f" script for ArtFID, which takes 800 and says FID-infinity: generate more than {least:,} images, better"
            " 50,000, or report the FID with the number of images"
        )
    if points < 3:
        raise UserError(f"FID-infinity fits a line to at least 3 points, and {points} are asked for")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(least, len(fake), points).astype(int)
    values = [
        frechet_distance(real, gaussian(fake[np.sort(rng.permutation(len(fake))[:size])]))
        for size in _progress(sizes, "FID-infinity")
    ]
    x, y = 1 / sizes, np.array(values)
    away = x - x.mean()
    slope = away @ y / (away @ away)
    intercept = y.mean() - slope * x.mean()
    variance = ((y - intercept - slope * x) ** 2).sum() / (points - 2)
    return float(intercept), float(np.sqrt(variance * (1 / points + x.mean() ** 2 / (away @ away))))


# ---------------------------------------------------------------------------------------------------------------------
# Kernel distance


def kid(
    real: Any,
    fake: Any,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
) -> tuple[float, float]:
    """Squared MMD of polynomial kernels, mean and standard deviation over subsets (Binkowski et al. 2018, section 4).

    real, fake: (n, d) and (m, d), n and m at least `subset_size`. The kernel is (gamma x.y + coef)^degree with gamma
    1 / d by default; the estimator of each subset is unbiased, so the mean may be below 0. Subsets are drawn without
    replacement; the standard deviation is theirs (divided by `subsets`), not that of the mean. Seed 2020 draws what
    torch-fidelity draws with its defaults. The cost does not depend on n and m. Raises UserError.
    """
    real, fake = (_checked(x, 2, "KID") for x in (real, fake))
    _check_dimensions(real.shape[1], fake.shape[1])
    if subsets < 1 or subset_size < 2:
        raise UserError(f"KID needs at least 1 subset of 2 images, not {subsets} of {subset_size}")
    for name, x in (("real", real), ("generated", fake)):
        if len(x) < subset_size:
            raise UserError(
                f"KID draws subsets of {subset_size:,} images and needs as many, and there are {len(x):,} {name} ones:"
                " give more images, or smaller subsets and say so beside the result"
            )
    kernel = functools.partial(
        _kernel_sum, degree=degree, gamma=1 / real.shape[1] if gamma is None else gamma, coef=coef
    )
    rng, size = np.random.RandomState(seed), subset_size  # numpy keeps its draws the same for ever
    values = np.empty(subsets)
    for i in _progress(range(subsets), "KID"):
        y = fake[rng.choice(len(fake), size, replace=False)].astype(np.float64)
        x = real[rng.choice(len(real), size, replace=False)].astype(np.float64)
        within = sum(kernel(a, a) - kernel(a, None) for a in (x, y))
        values[i] = within / (size * (size - 1)) - 2 * kernel(x, y) / size**2
    return float(values.mean()), float(values.std())


def _kernel_sum(x: np.ndarray, y: np.ndarray | None, degree: int, gamma: float, coef: float) -> float:
    """Of all pairs of x and y, or of each x with itself where y is None."""
    if y is None:
        return float((((x**2).sum(axis=1) * gamma + coef) ** degree).sum())
    total = 0.0
    for rows in _row_blocks(len(x), len(y)):
        values = x[rows] @ y.T
        values *= gamma
        values += coef
        power = values.copy()
        for _ in range(degree - 1):  # numpy's power takes ten times as long
            power *= values
        total += float(power.sum())
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Inception Score


def inception_score(logits: Any, splits: int = 10, seed: int | None = 0) -> tuple[float, float]:
    """exp of the mean KL divergence between p(y|x) and p(y), mean and standard deviation over splits (Salimans et al.
    2016, section 4).

    logits: (n, classes); for probabilities give their logarithm, -inf included. The images are shuffled and cut into
    `splits` equal parts, with the standard deviation divided by `splits`, as in torch-fidelity; seed 2020 is its
    default shuffle, and None leaves the order, which is wrong where images are sorted by class. Raises UserError.
    """
    logits = np.asarray(logits).astype(np.float64)
    if logits.ndim != 2 or splits < 1 or len(logits) < splits:
        raise UserError(
            f"the Inception Score with {splits} splits takes at least as many rows of logits, got {logits.shape}"
        )
    if not (logits < np.inf).all() or np.isneginf(logits).all(axis=1).any():  # comparisons with NaN are false
        raise UserError(
            "the Inception Score got logits that are not finite: look at the images and the network's weights"
        )
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
        raise UserError("the Inception Score takes logits, and these are probabilities: give their logarithm")
    if seed is not None:
        logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    scores = []
    for i in range(splits):
        part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        p = np.exp(part)
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 log 0 is 0
            divergence = np.where(p > 0, p * (part - np.log(p.mean(axis=0))), 0).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))


# ---------------------------------------------------------------------------------------------------------------------
# Nearest neighbours
#
# Balls around features, each as wide as the distance to the k-th nearest other feature of the same set. Squared
# distances are |x|^2 + |y|^2 - 2 x.y in float64 of features less their mean; where such a value is within rounding
# errors of a radius, and for the radii themselves, the difference is taken first, so that ties are ties and identical
# images have the distance 0. Memory is n d and blocks of rows; the cost is n m d.


def precision_recall(real: Any, fake: Any, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2), both in [0, 1].

    real, fake: (n, d) and (m, d), more than k images each; real comes first, for exchanging them exchanges the two.
    Precision: the share of generated images within a ball of the real ones; recall: that of real images within one of
    the generated. A point at a ball's radius is inside, as in the paper; not so in the package prdc. Raises UserError.
    """
    real, fake = _clouds(real, fake, k, "precision and recall")
    precise = np.zeros(len(fake), bool)
    for inside in _insides(real, fake, k, True, "precision"):
        precise |= inside.any(axis=0)
    recalled = np.zeros(len(real), bool)
    for inside in _insides(fake, real, k, True, "recall"):
        recalled |= inside.any(axis=0)
    return float(precise.mean()), float(recalled.mean())


def density_coverage(real: Any, fake: Any, k: int = 5) -> tuple[float, float]:
    """Density, at least 0 and 1 where the two are alike, and coverage in [0, 1] (Naeem et al. 2020, eq. 4 and 5).

    real, fake: (n, d) and (m, d), more than k real images; real comes first, the two are not symmetric. Density: in how
    many balls of the real images a generated one is, over k; coverage: the share of balls of the real images that hold
    a generated one. A point at a ball's radius is outside, as in the package prdc. Raises UserError.
    """
    real, fake = _clouds(real, fake, k, "density and coverage", least_fake=1)
    hits, covered = 0, 0
    for inside in _insides(real, fake, k, False, "density"):
        hits += int(inside.sum())
        covered += int(inside.any(axis=1).sum())
    return hits / (k * len(fake)), covered / len(real)


def _clouds(
    real: Any, fake: Any, k: int, statistic: str, least_fake: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, less the mean of the real."""
    if k < 1:
        raise UserError(f"{statistic} look at the k-th nearest neighbour, k at least 1, and k is {k}")
    statistic = f"{statistic} with k = {k}"
    real = _checked(real, k + 1, statistic).astype(np.float64)
    fake = _checked(fake, k + 1 if least_fake is None else least_fake, statistic).astype(np.float64)
    _check_dimensions(real.shape[1], fake.shape[1])
    mean = real.mean(axis=0)
    return real - mean, fake - mean


def _insides(centres: np.ndarray, points: np.ndarray, k: int, closed: bool, name: str) -> Iterator[np.ndarray]:
    """For blocks of centres, in order, which points are within their balls: (b, len(points)) bool."""
    of_centres, of_points = (centres**2).sum(axis=1), (points**2).sum(axis=1)
    rounding = (centres.shape[1] + 8) * np.finfo(np.float64).eps
    for rows in _progress(list(_row_blocks(len(centres), max(len(points), len(centres)))), name):
        x = centres[rows]
        gaps = _squares(x, of_centres[rows], centres, of_centres)
        gaps[np.arange(len(x)), np.arange(rows.start, rows.stop)] = np.inf  # its own distance
        near = np.argpartition(gaps, k - 1, axis=1)[:, :k]
        radii = np.stack([_exact_squares(x, centres[near[:, i]]) for i in range(k)]).max(axis=0)
        gaps = _squares(x, of_centres[rows], points, of_points)
        gaps -= radii[:, None]
        inside = gaps < 0
        margin = rounding * (of_centres[rows].max() + of_points)
        i, j = np.nonzero(np.abs(gaps, out=gaps) <= margin)
        for part in _row_blocks(len(i), centres.shape[1]):
            exact, radius = _exact_squares(x[i[part]], points[j[part]]), radii[i[part]]
            inside[i[part], j[part]] = exact <= radius if closed else exact < radius
        yield inside


def _squares(x: np.ndarray, of_x: np.ndarray, y: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    """Squared distances (b, m), up to rounding errors of the squared norms `of_x` and `of_y`."""
    squares = x @ y.T
    squares *= -2
    squares += of_x[:, None]
    squares += of_y
    return squares


def _exact_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances row by row, (p, d) and (p, d) -> (p,); the same bits for a pair in whatever order and place."""
    return ((x - y) ** 2).sum(axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Sliced Wasserstein distance


def sliced_wasserstein(real: Any, fake: Any, projections: int = 512, seed: int = 0) -> float:
    """Mean over random directions of the Wasserstein-1 distance of the features' projections (Rabin et al. 2011).

    real, fake: (n, d) and (m, d). That of two sets of numbers is exact, also for n other than m. Raises UserError.
    """
    real, fake = (_checked(x, 1, "the sliced Wasserstein distance") for x in (real, fake))
    _check_dimensions(real.shape[1], fake.shape[1])
    if projections < 1:
        raise UserError(f"the sliced Wasserstein distance needs at least 1 projection, not {projections}")
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(real.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    n, m = len(real), len(fake)
    # Where one of the two quantile functions steps, in units of 1 / (n m), which are whole numbers.
    steps = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    widths, of_real, of_fake = np.diff(steps) / (n * m), steps[:-1] // m, steps[:-1] // n
    total = 0.0
    for i in _progress(range(0, projections, 16), "sliced Wasserstein"):
        a, b = (np.sort(x @ directions[:, i : i + 16], axis=0) for x in (real, fake))
        if n != m:
            a, b = a[of_real], b[of_fake]
        total += float((widths @ np.abs(a - b)).sum())
    return total / projections


def pyramid_wasserstein(
    real: Any, fake: Any, patches: int = 128, projections: int = 512, seed: int = 0
) -> dict[int, float]:
    """Sliced Wasserstein distance of 7x7 patches, times 1,000, by level (Karras et al. 2018, section 5).

    real, fake: images (n, h, w, c) and (m, h, w, c) of any range. Levels are those of a Laplacian pyramid, named by the
    pixels of their shorter side, from full size by halves down to 16 or the last that can be halved no more. From each
    level `patches` are taken of each image at random, and each set's patches are brought to mean 0 and deviation 1 in
    each channel, as the authors do: a change of colour or contrast of all images alike is not seen. The paper has
    16,384 images a side; equal sets do not give 0, since patches are drawn for each. Raises UserError.
    """
    real, fake = np.asarray(real), np.asarray(fake)
    for images in (real, fake):
        if images.ndim != 4 or min(images.shape[1:3]) < 16 or not len(images):
            raise UserError(
                f"patches are taken of images (n, h, w, c) of 16 pixels and more, and these are {images.shape}"
            )
    if real.shape[1:] != fake.shape[1:]:
        raise UserError(
            f"real images of shape {real.shape[1:]} and generated of {fake.shape[1:]}: they must be the same"
        )
    height, width = real.shape[1:3]
    levels = 1
    while min(height, width) >= 32 and height % 2 == width % 2 == 0:
        height, width, levels = height // 2, width // 2, levels + 1
    rng, found = np.random.default_rng(seed), {}
    for level in range(levels):
        of_real, of_fake = (_patches(images, level, levels, patches, rng) for images in (real, fake))
        side = min(real.shape[1:3]) >> level
        found[side] = 1000 * sliced_wasserstein(of_real, of_fake, projections, int(rng.integers(2**32)))
    return found


def _patches(images: np.ndarray, level: int, levels: int, patches: int, rng: np.random.Generator) -> np.ndarray:
    """(n * patches, 49 c) float32, of mean 0 and deviation 1 in each channel."""
    found = []
    for i in range(0, len(images), 64):
        x = images[i : i + 64].astype(np.float32)
        for _ in range(level):
            x = _halve(x)
        if level < levels - 1:
            x = x - _double(_halve(x))
        n, h, w = x.shape[:3]
        of = np.repeat(np.arange(n), patches)[:, None, None]
        top, left = (rng.integers(0, side - 6, (n * patches, 1, 1)) for side in (h, w))
        found.append(x[of, top + np.arange(7)[:, None], left + np.arange(7)])
    all_patches = np.concatenate(found)
    all_patches -= all_patches.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    deviation = all_patches.std(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    all_patches /= np.where(deviation > 0, deviation, 1)
    return all_patches.reshape(len(all_patches), -1)


def _halve(x: np.ndarray) -> np.ndarray:
    return _blur(x, 1.0)[:, ::2, ::2]


def _double(x: np.ndarray) -> np.ndarray:
    n, h, w, c = x.shape
    spread = np.zeros((n, 2 * h, 2 * w, c), x.dtype)
    spread[:, ::2, ::2] = x
    return _blur(spread, 2.0)


def _blur(x: np.ndarray, gain: float) -> np.ndarray:
    """By the binomial filter of Burt & Adelson 1983, its sum `gain` along each axis; borders are mirrored."""
    from scipy import ndimage

    kernel = np.array([1, 4, 6, 4, 1]) / 16 * gain
    return ndimage.correlate1d(ndimage.correlate1d(x, kernel, axis=1, mode="mirror"), kernel, axis=2, mode="mirror")


# ---------------------------------------------------------------------------------------------------------------------


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows with about `_BLOCK_BYTES` of float64."""
    step = max(_BLOCK_BYTES // (8 * columns), 1)
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def _progress(items: Iterable, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(items, desc=name, delay=2, leave=False, disable=None)
