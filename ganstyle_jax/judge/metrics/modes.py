"""Which classes a generator makes, how evenly, and how much of what it makes is nothing: by a classifier of its data.

    known = accuracy(real_probabilities, real_labels, threshold)       # how well the classifier reads real images
    found = modes(probabilities, shares, known)

    counted = coverage(joined(labels, 10), 1000)                       # modes with a sample at all: Stacked MNIST

Any classifier does: probabilities are (n, k), each row the classes' for one image, and sum to 1, or to less where the
classifier has an answer "none of them" (see glyph_reader). An image is readable if its likeliest class has at least
the probability `threshold`, and counts as that class. No figure goes without what the classifier makes of real images,
since a class that it misreads in the data is misread in samples too. Everything raises UserError for arrays that are no
probabilities, other numbers of classes, and labels that are none.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ganstyle_jax.io.files import UserError

CHANCE = 0.01  # of calling any class covered of which there is no sample


@dataclasses.dataclass(frozen=True, eq=False)
class Accuracy:
    """A classifier on labelled real images."""

    threshold: float
    accuracy: float  # share of images whose likeliest class is theirs, readable or not
    unreadable: float  # share below the threshold
    readings: np.ndarray  # (k, k) int64: images of one class (row) that are readable and read as another (column)
    counts: np.ndarray  # (k,) int64: images of each class, unreadable ones too

    @property
    def images(self) -> int:
        return int(self.counts.sum())


@dataclasses.dataclass(frozen=True)
class Modes:
    """What the classes of samples say, with the classifier's own figures on real images beside it."""

    images: int
    classes: int
    covered: int  # classes with more readable samples than misreadings explain
    missing: tuple[str, ...]  # the other classes
    class_shares: tuple[float, ...]  # of the readable samples; 0 where there are none
    kl: float  # sum of share log(share / expected share), nats; inf without a readable sample
    kl_by_chance: float  # what samples of the right shares would have, (k - 1) / 2n of n readable samples
    total_variation: float  # half the sum of |share - expected share|, in [0, 1]; 1 without a readable sample
    entropy: float  # of the shares, nats
    expected_entropy: float
    unreadable: float  # share of the samples
    real_images: int
    real_accuracy: float
    real_unreadable: float
    threshold: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers, strings and lists of them; what is not finite is None."""
        values = {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }
        return {name: None if isinstance(x, float) and not np.isfinite(x) else x for name, x in values.items()}


def accuracy(probabilities: Any, labels: Any, threshold: float) -> Accuracy:
    """How well a classifier reads n real images: probabilities (n, k) of images whose classes (n,) are known.

    Give images that it was not trained on, a hundred or more of each class.
    """
    probabilities, labels = _checked(probabilities, 1), np.asarray(labels)
    n, k = probabilities.shape
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= k:
        raise UserError(
            f"labels of {n:,} images in {k} classes are {n:,} whole numbers from 0 to {k - 1}, got an array of shape"
            f" {labels.shape} and dtype {labels.dtype}"
            + (f" with values from {labels.min()} to {labels.max()}" if labels.size else "")
        )
    found = probabilities.argmax(axis=1)
    readable = probabilities.max(axis=1) >= threshold
    readings = np.zeros((k, k), np.int64)
    np.add.at(readings, (labels[readable], found[readable]), 1)
    return Accuracy(
        threshold=float(threshold),
        accuracy=float((found == labels).mean()),
        unreadable=float(1 - readable.mean()),
        readings=readings,
        counts=np.bincount(labels, minlength=k),
    )


def modes(probabilities: Any, shares: Any, known: Accuracy, names: Sequence[str] | None = None) -> Modes:
    """Coverage and balance of the classes of n samples, and the share of unreadable ones.

    probabilities: (n, k). shares: (k,), of the classes in the data, all above 0. names: of the classes, for `missing`;
    by default their places.

    A class is covered if so many samples are read as it that, without a single sample of it, misreadings would give as
    many with a probability of at most CHANCE / k: so that all of them together are called covered wrongly in one of a
    hundred evaluations. Misreadings are taken to be as frequent as in real images: their rate from class i to this one
    has a gamma distribution of mean (readings of i as this + 1 / k) / (real images of i + 1), as these readings leave
    it, and their number is negative binomial, with the mean and variance of the sum over the samples read as other
    classes. Samples worse than real images are misread more often; the threshold is there to keep those out. One
    sample more or less decides about a class near the limit, so this tells lost classes, not rare ones: for these see
    class_shares.
    """
    probabilities, shares = _checked(probabilities, 1), np.asarray(shares, np.float64)
    n, k = probabilities.shape
    if shares.shape != (k,) or not (shares > 0).all() or not np.isclose(shares.sum(), 1):
        raise UserError(f"the shares of {k} classes are {k} numbers above 0 that sum to 1, got {shares}")
    if len(known.counts) != k:
        raise UserError(
            f"the samples are read in {k} classes and the real images in {len(known.counts)}: read both in the same"
        )
    names = [str(i) for i in range(k)] if names is None else list(names)
    if len(names) != k:
        raise UserError(f"there are {k} classes and {len(names)} names")

    readable = probabilities.max(axis=1) >= known.threshold
    counts = np.bincount(probabilities.argmax(axis=1)[readable], minlength=k)
    covered = counts >= least_counts(counts, known)
    total = int(counts.sum())
    found = counts / max(total, 1)
    return Modes(
        images=n,
        classes=k,
        covered=int(covered.sum()),
        missing=tuple(name for name, there in zip(names, covered, strict=True) if not there),
        class_shares=tuple(found.tolist()),
        kl=float((found[found > 0] * np.log(found[found > 0] / shares[found > 0])).sum()) if total else float("inf"),
        kl_by_chance=(k - 1) / (2 * total) if total else float("inf"),
        total_variation=float(np.abs(found - shares).sum() / 2) if total else 1.0,
        entropy=_entropy(found),
        expected_entropy=_entropy(shares),
        unreadable=float(1 - readable.mean()),
        real_images=known.images,
        real_accuracy=known.accuracy,
        real_unreadable=known.unreadable,
        threshold=known.threshold,
    )


def least_counts(counts: np.ndarray, known: Accuracy) -> np.ndarray:
    """(k,) int64: samples that each class needs to be covered, where `counts` (k,) are read as each; see `modes`."""
    from scipy.stats import nbinom

    k = len(counts)
    images = known.counts[:, None] + 1
    rates = (known.readings + 1 / k) / images  # 1 / k for a class without real images, of which nothing is known
    np.fill_diagonal(rates, 0)
    mean = counts @ rates
    variance = np.maximum(counts**2 @ (rates / images), 1e-12)  # of the mean, because the rates are not known exactly
    mean = np.maximum(mean, 1e-9)
    shape = mean**2 / variance
    # The smallest c with P(misread >= c) <= CHANCE / k; isf gives the smallest c with P(misread > c) <= that.
    return nbinom.isf(CHANCE / k, shape, shape / (shape + mean)).astype(np.int64) + 1


# ---------------------------------------------------------------------------------------------------------------------
# Many modes, of which each has a few samples


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How many modes there are samples of, and how evenly: the two figures of Stacked MNIST."""

    samples: int
    modes: int
    found: int  # modes of which there is a sample
    kl: float  # sum of share log(share / expected share), nats
    kl_by_chance: float  # about what samples of the right shares would have, (modes - 1) / 2n

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def coverage(labels: Any, modes: int, shares: Any = None) -> Coverage:
    """Modes found and KL(samples || expected) of n samples whose modes (n,) are known, whole numbers from 0.

    shares: (modes,), those expected, all above 0; by default all the same. So Metz et al. 2017 (arXiv:1611.02163,
    section 3.3.1) and Srivastava et al. 2017 judge 26,000 samples of 1,000 modes, and Lin et al. 2018
    (arXiv:1712.04086, section 4.3) with equal shares: each sample counts as its likeliest mode, however likely that is,
    and one sample is enough for a mode. For few modes and a classifier that errs, `modes` above asks more.
    """
    labels = np.asarray(labels)
    if modes < 1 or labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"modes of samples are whole numbers (n,) and one or more, got an array of shape {labels.shape} and dtype"
            f" {labels.dtype}, and {modes} modes"
        )
    if labels.min() < 0 or labels.max() >= modes:
        raise UserError(f"{modes} modes are 0 to {modes - 1}, got values from {labels.min()} to {labels.max()}")
    expected = np.full(modes, 1 / modes) if shares is None else np.asarray(shares, np.float64)
    if expected.shape != (modes,) or not (expected > 0).all() or not np.isclose(expected.sum(), 1):
        raise UserError(f"the shares of {modes} modes are {modes} numbers above 0 that sum to 1, got {expected}")
    counts = np.bincount(labels, minlength=modes)
    there = counts > 0
    found = counts[there] / len(labels)
    return Coverage(
        samples=len(labels),
        modes=modes,
        found=int(there.sum()),
        kl=max(float((found * np.log(found / expected[there])).sum()), 0.0),
        kl_by_chance=(modes - 1) / (2 * len(labels)),
    )


def joined(labels: Any, classes: int) -> np.ndarray:
    """Labels (n, parts) of the parts of each sample as one (n,): of three digits the number that they write."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size or labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"labels of parts are (n, parts) from 0 to {classes - 1}, got an array of shape {labels.shape}")
    return labels @ classes ** np.arange(labels.shape[1])[::-1]


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum()) + 0.0  # not -0


def _checked(probabilities: Any, least: int) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or len(probabilities) < least or not probabilities.shape[1]:
        raise UserError(
            f"class probabilities are (n, k), one row for each image and at least {least}, got {probabilities.shape}"
        )
    if not ((probabilities >= 0).all() and (probabilities.sum(axis=1) <= 1 + 1e-3).all()):  # NaN too
        raise UserError(
            "class probabilities must be at least 0 and sum to at most 1 in each row, and these do not: give the"
            " softmax of the logits"
        )
    return probabilities.astype(np.float64)
