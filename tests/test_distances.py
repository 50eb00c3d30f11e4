"""Distances of feature sets: known answers, scipy and plain loops as references, invariances, refusals.

The Fréchet distance of sets with fewer images than features is compared with the sum of the singular values of the
product of the two centred sets, which needs no covariance: the square root of the product of the covariances, as
scipy takes it, is wrong there by the root of a rounding error.
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, ndimage, stats

from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import distances
from ganstyle_jax.judge.metrics.distances import Gaussian, Moments, frechet_distance, gaussian

SEEDS = st.integers(0, 10_000)


def draw(seed, n=60, d=5):
    """Features with a covariance that is not diagonal."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def rotation(seed, d=5):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


# ---------------------------------------------------------------------------------------------------------------------
# Moments


@given(SEEDS, st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_moments_do_not_depend_on_the_batches(seed, sizes):
    x = draw(seed, max(sum(sizes), 2))
    parts = np.split(x, np.cumsum(sizes)[:-1]) if sum(sizes) > 1 else [x]
    moments, merged = Moments(5), Moments(5)
    for part in parts:
        moments.update(part)
        other = Moments(5)
        other.update(part)
        merged.merge(other)
    for found in (moments.gaussian(), merged.gaussian(), gaussian(x)):
        assert found.count == len(x)
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)


def test_moments_of_fifty_thousand_images_with_a_large_mean():
    """Sums of squares would lose all digits: the mean is 1e8 deviations away."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50_000, 3)) + 1e8
    moments = Moments(3)
    for i in range(0, len(x), 100):
        moments.update(x[i : i + 100])
    found = moments.gaussian()
    exact = x - 1e8  # no rounding: x is within a factor of 2 of it
    np.testing.assert_allclose(found.mean - 1e8, exact.mean(0), atol=1e-6)  # a step of float64 there is 1.5e-8
    np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_moments_of_narrow_floats_are_summed_in_float64(dtype):
    x = (draw(0, 5000) + 3).astype(dtype)
    found = gaussian(x)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Fréchet distance


def by_sqrtm(a, b):
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    return ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)


def by_singular_values(x, y):
    """From the features alone."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    nuclear = linalg.svdvals(a @ b.T).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * nuclear


@settings(max_examples=30)
@given(SEEDS, SEEDS, st.integers(1, 12))
def test_frechet_distance_equals_the_formula_with_sqrtm(seed1, seed2, d):
    x, y = draw(seed1, 200, d), draw(seed2 + 20_000, 300, d)
    a, b = gaussian(x), gaussian(y)
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(by_singular_values(x, y), rel=1e-9)


@pytest.mark.parametrize("n, m", [(2, 2), (2, 300), (20, 20), (20, 300), (300, 40)])
def test_frechet_distance_of_fewer_images_than_features(n, m):
    d = 64
    x, y = draw(0, n, d), draw(1, m, d)
    a, b = gaussian(x), gaussian(y)
    trace = np.trace(a.covariance + b.covariance)
    assert frechet_distance(a, b) == pytest.approx(by_singular_values(x, y), rel=1e-6, abs=1e-8 * trace)
    assert a.factor.shape[1] == min(n - 1, d) and isinstance(frechet_distance(a, b), float)


@pytest.mark.parametrize("n", [2, 20, 300])
def test_frechet_distance_of_equal_covariances_is_the_squared_distance_of_the_means(n):
    x, shift = draw(0, n, 64), np.linspace(-1, 1, 64)
    trace = np.trace(gaussian(x).covariance)
    assert frechet_distance(gaussian(x), gaussian(x)) == pytest.approx(0, abs=1e-12 * trace)
    assert frechet_distance(gaussian(x), gaussian(x[::-1])) == pytest.approx(0, abs=1e-8 * trace)
    small = 1e-5 * shift  # so small that the trace would drown it with half of the digits
    for by in (shift, small):
        assert frechet_distance(gaussian(x), gaussian(x + by)) == pytest.approx(by @ by, rel=1e-6, abs=1e-12 * trace)


def test_frechet_distance_of_diagonal_covariances():
    """The squared distances of means and of deviations; some deviations are 0 in one or both."""
    rng = np.random.default_rng(0)
    deviations = rng.uniform(0, 3, (2, 40))
    deviations[0, :10], deviations[1, 5:20] = 0, 0
    means = rng.normal(size=(2, 40))
    a, b = (Gaussian(mean, np.diag(s**2), None) for mean, s in zip(means, deviations, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_commuting_covariances():
    """As the diagonal ones, in other axes, and with eigenvalues over twelve orders of magnitude."""
    turn = rotation(0, 30)
    first, second = np.logspace(-12, 0, 30), np.logspace(0, -6, 30)
    a, b = (Gaussian(np.zeros(30), turn @ np.diag(values) @ turn.T, None) for values in (first, second))
    expected = ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_a_collapsed_generator():
    """All images the same: no covariance, and the distance is that of the means and the trace of the other."""
    x, y = draw(0, 100, 8), np.tile(draw(1, 1, 8), (50, 1))
    expected = ((x.mean(0) - y[0]) ** 2).sum() + x.var(axis=0, ddof=1).sum()
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(gaussian(y), gaussian(x)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(gaussian(y), gaussian(y + 1)) == pytest.approx(8, rel=1e-12)


@given(SEEDS)
def test_frechet_distance_is_symmetric_and_ignores_rotations_and_order(seed):
    x, y = draw(seed), draw(seed + 1, 40)
    distance, turn = frechet_distance(gaussian(x), gaussian(y)), rotation(seed)
    assert distance > 0
    assert frechet_distance(gaussian(y), gaussian(x)) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(gaussian(x @ turn), gaussian(y @ turn + 0)) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(gaussian(3 * x + 1), gaussian(3 * y + 1)) == pytest.approx(9 * distance, rel=1e-9)
    assert frechet_distance(gaussian(x[::-1]), gaussian(y)) == pytest.approx(distance, rel=1e-9)


def test_refusals_of_the_frechet_distance():
    for n in (0, 1):
        with pytest.raises(UserError, match=f"needs at least 2 images, and there are {n}"):
            gaussian(draw(0, 2)[:n])
        with pytest.raises(UserError, match=f"needs at least 2 images, and there are {n}"):
            moments = Moments(5)
            moments.update(draw(0, 2)[:n])
            moments.gaussian()
    for add in (lambda: Moments(5).update(draw(0, d=4)), lambda: Moments(5).merge(Moments(4))):
        with pytest.raises(UserError, match="moments of 5 features cannot take 4"):
            add()
    with pytest.raises(UserError, match="real images have 5 features and the generated 4: take both from the same"):
        frechet_distance(gaussian(draw(0)), gaussian(draw(0, d=4)))
    with pytest.raises(UserError, match=r"shape \(n, d\).* got \(60,\)"):
        gaussian(draw(0)[:, 0])
    bad = draw(0)
    bad[[7, 9], 2] = np.nan, np.inf
    with pytest.raises(UserError, match="not finite, of 2 of 60 images, the first at row 7"):
        gaussian(bad)
    with pytest.raises(UserError, match=r"mean of shape \(3,\) and a covariance of shape \(4, 4\)"):
        Gaussian(np.zeros(3), np.eye(4), 10)
    with pytest.raises(UserError, match="not finite"):
        Gaussian(np.zeros(2), np.full((2, 2), np.nan), 10)
    with pytest.raises(UserError, match="has the eigenvalue -1"):
        frechet_distance(Gaussian(np.zeros(2), np.diag([-1.0, 1]), 10), gaussian(draw(0, d=2)))


def test_fid_infinity_finds_the_distance_without_bias():
    """Real and generated of one distribution, whose true distance is 0, and of two, whose distance is known."""
    rng = np.random.default_rng(0)
    d = 20
    real = Gaussian(np.zeros(d), np.eye(d), None)
    for shift in (0, 0.1):
        fake = rng.normal(size=(20_000, d)) + shift
        value, error = distances.fid_infinity(real, fake)
        plain = frechet_distance(real, gaussian(fake[:5_000]))
        assert abs(value - d * shift**2) < abs(plain - d * shift**2) or abs(value - d * shift**2) < 3 * error
        assert 0 < error < 0.05 * plain + 1e-3
    assert distances.fid_infinity(real, fake) == (value, error)
    assert distances.fid_infinity(real, fake, seed=1) != (value, error)


def test_fid_infinity_is_the_intercept_of_a_line():
    real, fake = gaussian(draw(0, 500)), draw(1, 5_600)
    value, error = distances.fid_infinity(real, fake, seed=3, points=4)
    rng, sizes, values = np.random.default_rng(3), [5000, 5200, 5400, 5600], []
    for size in sizes:
        values.append(frechet_distance(real, gaussian(fake[rng.permutation(5_600)[:size]])))
    fit = stats.linregress(1 / np.array(sizes), values)
    assert value == pytest.approx(fit.intercept, rel=1e-6) and error == pytest.approx(fit.intercept_stderr, rel=1e-6)


@pytest.mark.parametrize("n", [800, 5_000])
def test_fid_infinity_is_refused_for_few_images(n):
    with pytest.raises(UserError, match=rf"subsets of 5,000 images and more, and there are {n:,}, .*the plain FID"):
        distances.fid_infinity(gaussian(draw(0)), draw(1, n))


# ---------------------------------------------------------------------------------------------------------------------
# KID


def mmd(x, y, degree=3, gamma=None, coef=1):
    """By the formula, pair by pair; for x and y of as many images."""
    gamma = 1 / x.shape[1] if gamma is None else gamma
    n = len(x)

    def kernel(a, b):
        return (gamma * float(a @ b) + coef) ** degree

    within = sum(kernel(z[i], z[j]) for z in (x, y) for i in range(n) for j in range(n) if i != j)
    return within / (n * (n - 1)) - 2 * sum(kernel(a, b) for a in x for b in y) / n**2


@pytest.mark.parametrize("settings", [{}, {"degree": 2, "gamma": 0.3, "coef": 0.5}, {"degree": 1}])
def test_kid_equals_the_formula(monkeypatch, settings):
    monkeypatch.setattr(distances, "_BLOCK_BYTES", 2000)  # several blocks a subset
    x, y = draw(0, 40), draw(1, 40)
    mean, spread = distances.kid(x, y, subsets=3, subset_size=40, **settings)
    assert mean == pytest.approx(mmd(x, y, **settings), rel=1e-9) and spread == pytest.approx(0, abs=1e-9 * abs(mean))
    mean, spread = distances.kid(x, y, subsets=5, subset_size=12, seed=2020, **settings)
    rng, values = np.random.RandomState(2020), []
    for _ in range(5):  # torch-fidelity, given the generated images as its first input
        fake, real = y[rng.choice(40, 12, replace=False)], x[rng.choice(40, 12, replace=False)]
        values.append(mmd(real, fake, **settings))
    assert mean == pytest.approx(np.mean(values), rel=1e-9) and spread == pytest.approx(np.std(values), rel=1e-9)


@settings(max_examples=20)
@given(SEEDS)
def test_kid_ignores_rotations_and_order(seed):
    x, y, turn = draw(seed, 30), draw(seed + 1, 30), rotation(seed)
    mean = distances.kid(x, y, 1, 30)[0]
    scale = np.abs(x).max() ** 6  # of the kernel's values
    for a, b in ((y, x), (x @ turn, y @ turn), (x[::-1], y)):
        assert distances.kid(a, b, 1, 30)[0] == pytest.approx(mean, rel=1e-6, abs=1e-10 * scale)


def test_kid_is_unbiased():
    """About 0 for one distribution, below 0 as often as above, where the biased estimator is always above."""
    rng = np.random.default_rng(0)
    values = [distances.kid(*rng.normal(size=(2, 50, 4)), 1, 50, seed=i)[0] for i in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5
    assert 0.3 < np.mean(np.array(values) < 0) < 0.8


def test_refusals_of_kid():
    x = draw(0)
    with pytest.raises(UserError, match="subsets of 1,000 images and needs as many, and there are 60 real ones"):
        distances.kid(x, draw(1, 1000))
    with pytest.raises(UserError, match="there are 60 generated ones"):
        distances.kid(draw(1, 1000), x)
    with pytest.raises(UserError, match="real images have 5 features and the generated 4"):
        distances.kid(x, draw(0, d=4), 1, 10)
    with pytest.raises(UserError, match="at least 1 subset of 2 images, not 0 of 1"):
        distances.kid(x, x, 0, 1)
    with pytest.raises(UserError, match="KID got features that are not finite, of 60 of 60"):
        distances.kid(x, np.full_like(x, np.nan), 1, 10)


# ---------------------------------------------------------------------------------------------------------------------
# Inception Score


def test_inception_score_equals_the_formula():
    logits = 3 * np.random.default_rng(0).normal(size=(103, 7))
    for seed, order in ((None, np.arange(103)), (2020, np.random.RandomState(2020).permutation(103))):
        scores = []
        for i in range(4):
            rows = [np.exp(row) / np.exp(row).sum() for row in logits[order[i * 103 // 4 : (i + 1) * 103 // 4]]]
            marginal = np.mean(rows, axis=0)
            scores.append(np.exp(np.mean([stats.entropy(row, marginal) for row in rows])))
        found = distances.inception_score(logits, 4, seed)
        assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert distances.inception_score(np.log(probabilities) + 5, 4, 2020) == pytest.approx(found, rel=1e-9)


def test_known_inception_scores():
    certain = np.where(np.eye(10, dtype=bool), 0, -np.inf)[np.arange(1000) % 10]
    assert distances.inception_score(certain, seed=None) == pytest.approx((10, 0), abs=1e-9)  # ten classes, alike often
    assert distances.inception_score(np.zeros((100, 10))) == pytest.approx((1, 0), abs=1e-12)  # nothing is told apart
    assert distances.inception_score(certain[::10]) == pytest.approx((1, 0), abs=1e-12)  # one class only


def test_refusals_of_the_inception_score():
    with pytest.raises(UserError, match=r"with 10 splits takes at least as many rows of logits, got \(9, 4\)"):
        distances.inception_score(np.zeros((9, 4)))
    with pytest.raises(UserError, match="give their logarithm"):
        distances.inception_score(np.full((20, 4), 0.25))
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="not finite"):
            distances.inception_score(np.full((20, 4), bad))
    with pytest.raises(UserError, match="not finite"):
        distances.inception_score(np.full((20, 4), -np.inf))


# ---------------------------------------------------------------------------------------------------------------------
# Nearest neighbours


def radii(x, k):
    found = []
    for i, a in enumerate(x):
        found.append(sorted(((a - b) ** 2).sum() for j, b in enumerate(x) if j != i)[k - 1])
    return found


def prdc(real, fake, k):
    """Precision, recall, density, coverage by the formulas, pair by pair."""
    between = [[((a - b) ** 2).sum() for b in fake] for a in real]
    of_real, of_fake = radii(real, k), radii(fake, k)
    n, m = len(real), len(fake)
    precision = np.mean([any(between[i][j] <= of_real[i] for i in range(n)) for j in range(m)])
    recall = np.mean([any(between[i][j] <= of_fake[j] for j in range(m)) for i in range(n)])
    density = sum(between[i][j] < of_real[i] for i in range(n) for j in range(m)) / (k * m)
    coverage = np.mean([any(between[i][j] < of_real[i] for j in range(m)) for i in range(n)])
    return precision, recall, density, coverage


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 6), st.integers(8, 50), st.integers(8, 50), st.booleans())
def test_neighbours_equal_the_formulas(seed, k, n, m, ties):
    """With ties: whole numbers, among them many equal distances and equal images."""
    real, fake = draw(seed, n, 3), draw(seed + 1, m, 3) * 0.8
    if ties:
        real, fake = np.round(real), np.round(fake)
    real, fake = real + 100, fake + 100  # beside which the differences are small
    expected = prdc(real, fake, k)
    assert distances.precision_recall(real, fake, k) == pytest.approx(expected[:2], rel=1e-12)
    assert distances.density_coverage(real, fake, k) == pytest.approx(expected[2:], rel=1e-12)


def test_neighbours_in_blocks(monkeypatch):
    real, fake = draw(0, 90, 16), 0.7 * draw(1, 70, 16)
    whole = distances.precision_recall(real, fake), distances.density_coverage(real, fake)
    monkeypatch.setattr(distances, "_BLOCK_BYTES", 7 * 90 * 8)  # seven rows
    assert (distances.precision_recall(real, fake), distances.density_coverage(real, fake)) == whole
    assert whole[0] + whole[1] == pytest.approx(prdc(real, fake, 3)[:2] + prdc(real, fake, 5)[2:])


def test_a_set_against_itself():
    """Every radius is a tie; k - 1 neighbours and the point itself are strictly within each ball."""
    x = draw(0, 300, 64).astype(np.float32)
    assert distances.precision_recall(x, x) == (1, 1)
    assert distances.density_coverage(x, x) == (1, 1)


def test_which_argument_is_real():
    """Generated images at one place of many: precise, without recall; the other way round, the reverse."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 2))
    fake = 0.05 * rng.normal(size=(400, 2))
    precision, recall = distances.precision_recall(real, fake)
    assert precision > 0.99 and recall < 0.05
    assert distances.precision_recall(fake, real) == (recall, precision)
    density, coverage = distances.density_coverage(real, fake)
    assert density > 0.5 and coverage < 0.1
    assert distances.density_coverage(fake, real)[0] < 0.1
    far = real + 100
    assert distances.precision_recall(real, far) == (0, 0) and distances.density_coverage(real, far) == (0, 0)


def test_one_outlier_makes_recall_but_not_coverage():
    """What density and coverage are for (Naeem et al. 2020, figure 1): a ball of a far generated image covers all."""
    real = np.random.default_rng(0).normal(size=(200, 2))
    fake = np.concatenate([30 + real / 100, [[0, -30]]])
    assert distances.precision_recall(real, fake) == (0, 1)
    assert distances.density_coverage(real, fake)[1] == 0


def test_refusals_of_neighbours():
    x = draw(0, 5)
    with pytest.raises(UserError, match="precision and recall with k = 5 needs at least 6 images, and there are 5"):
        distances.precision_recall(x, draw(1), 5)
    with pytest.raises(UserError, match="needs at least 6 images, and there are 5"):
        distances.precision_recall(draw(1), x, 5)
    with pytest.raises(UserError, match="density and coverage with k = 5 needs at least 6 images"):
        distances.density_coverage(x, draw(1))
    assert distances.density_coverage(draw(1), x)[0] >= 0  # any number of generated images
    with pytest.raises(UserError, match="k is 0"):
        distances.precision_recall(x, x, 0)
    with pytest.raises(UserError, match="real images have 5 features and the generated 4"):
        distances.precision_recall(draw(0), draw(0, d=4))
    with pytest.raises(UserError, match="not finite"):
        distances.density_coverage(draw(0), np.full((9, 5), np.nan))


# ---------------------------------------------------------------------------------------------------------------------
# Sliced Wasserstein distance


def test_neighbours_of_a_collapsed_generator():
    """Its balls have no width; a real image at the very place is recalled and the others are not."""
    real = draw(0, 50, 4)
    fake = np.tile(real[:1], (30, 1))
    assert distances.precision_recall(real, fake) == (1, 1 / 50)
    assert distances.precision_recall(real, fake + 100) == (0, 0)
    assert distances.density_coverage(fake, real) == (0, 0)  # strictly inside no ball without width


@pytest.mark.parametrize("n, m", [(30, 30), (30, 18), (7, 50), (1, 3)])
def test_sliced_wasserstein_equals_scipy(n, m):
    x, y = draw(0, n), draw(1, m)
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(5, 40))
    directions /= np.linalg.norm(directions, axis=0)
    expected = np.mean([stats.wasserstein_distance(x @ a, y @ a) for a in directions.T])
    assert distances.sliced_wasserstein(x, y, 40, 5) == pytest.approx(expected, rel=1e-9)
    assert distances.sliced_wasserstein(y, x, 40, 5) == pytest.approx(expected, rel=1e-9)


def test_sliced_wasserstein_of_a_shift():
    """In d dimensions a shift s has the mean projection |s| E|a_1|, a uniform on the sphere: half of |s| for d = 3."""
    x, shift = draw(0, 40, 3), np.array([1.0, 2, 2])
    assert distances.sliced_wasserstein(x, x + shift, 20_000) == pytest.approx(1.5, rel=0.02)
    assert distances.sliced_wasserstein(x, x[::-1]) == 0


def test_refusals_of_sliced_wasserstein():
    with pytest.raises(UserError, match="at least 1 projection"):
        distances.sliced_wasserstein(draw(0), draw(1), 0)
    with pytest.raises(UserError, match="real images have 5 features and the generated 4"):
        distances.sliced_wasserstein(draw(0), draw(0, d=4))


def noise(seed, n=8, size=32, channels=3):
    return np.random.default_rng(seed).normal(size=(n, size, size, channels)).astype(np.float32)


def test_pyramid_adds_up_to_the_image():
    """Each level is what the next, doubled, lacks; their sum in that sense is the image, and filters are scipy's."""
    x = noise(0)
    half = distances._halve(x)
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    expected = ndimage.convolve(x, kernel[None, :, :, None], mode="mirror")[:, ::2, ::2]
    np.testing.assert_allclose(half, expected, atol=1e-6)
    spread = np.zeros_like(x)
    spread[:, ::2, ::2] = half
    expected = ndimage.convolve(spread, 4 * kernel[None, :, :, None], mode="mirror")
    np.testing.assert_allclose(distances._double(half), expected, atol=1e-6)
    flat = np.full((1, 32, 32, 1), 0.7, np.float32)
    np.testing.assert_allclose(distances._double(distances._halve(flat)), flat, atol=1e-6)


def test_patches_are_of_the_image_and_normalised():
    x = np.arange(2 * 16 * 16, dtype=np.float32).reshape(2, 16, 16, 1)
    found = distances._patches(x, 0, 1, 50, np.random.default_rng(0)).reshape(100, 7, 7)
    assert found.mean() == pytest.approx(0, abs=1e-5) and found.std() == pytest.approx(1, rel=1e-5)
    step = found[:, 0, 1] - found[:, 0, 0]
    np.testing.assert_allclose(found[:, 1, 0] - found[:, 0, 0], 16 * step, rtol=1e-3)
    corners = found[:, 0, 0] / step[0]
    corners = np.round(corners - corners.min()).astype(int)  # less a constant, the pixel's number
    assert corners.max() > 300 and (corners % 16).max() <= 9 + 9  # both images, and no patch over the edge


def test_pyramid_wasserstein():
    x, y = noise(0, 64), noise(1, 64)
    alike = distances.pyramid_wasserstein(x, y, 32, 64)
    assert list(alike) == [32, 16]
    assert distances.pyramid_wasserstein(x, y, 32, 64) == alike
    # Every image alike in another colour and contrast: the same patches once they are normalised.
    recoloured = distances.pyramid_wasserstein(x, y * [2, 3, 0.5] + 1, 32, 64)
    assert recoloured == pytest.approx(alike, rel=1e-3)
    blurred = distances.pyramid_wasserstein(x, ndimage.gaussian_filter(y, (0, 1, 1, 0)), 32, 64)
    assert blurred[32] > 1.5 * alike[32]
    assert list(distances.pyramid_wasserstein(noise(0, 2, 64), noise(1, 3, 64), 4, 4)) == [64, 32, 16]
    assert list(distances.pyramid_wasserstein(noise(0, 2, 36), noise(1, 3, 36), 4, 4)) == [36, 18]


def test_refusals_of_pyramid_wasserstein():
    with pytest.raises(UserError, match="16 pixels and more, and these are"):
        distances.pyramid_wasserstein(noise(0, size=8), noise(0, size=8))
    with pytest.raises(UserError, match=r"real images of shape \(32, 32, 3\) and generated of \(16, 16, 3\)"):
        distances.pyramid_wasserstein(noise(0), noise(0, size=16))
