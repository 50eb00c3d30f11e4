"""What the metrics say of two sets of images: the record, whose figures never go without their protocol."""

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np

from ganstyle_jax import __version__, data
from ganstyle_jax.features import glyph_reader
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import distances, modes, similarity
from ganstyle_jax.judge.networks import COLOURS, FeatureNetwork
from ganstyle_jax.judge.seen import Seen
from ganstyle_jax.judge.sets import OTHER_SEED, Size, open_source
from ganstyle_jax.judge.settings import Settings


def compare(
    real: Seen,
    fake: Seen,
    network: FeatureNetwork,
    settings: Settings,
    heed: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The record: {"metrics": {name: number}, "protocol": ..., "versions": ...}, and "warnings" where there are any.

    heed: called before each metric, to end the work by raising. Raises UserError for too few images, for features of
    another network, and where a metric needs more than is known of the real images.
    """
    if network.size is None and real.size and fake.size and real.size != fake.size:
        raise UserError(
            f"{network.name} takes images as they are, and the real ones have {real.size[1]} x {real.size[0]} pixels, "
            f"the others {fake.size[1]} x {fake.size[0]}: bring both to one size by @{min(fake.size)} behind --features"
        )
    dims = len(real.gaussian.mean), len(fake.gaussian.mean)
    if dims[0] != dims[1]:
        raise UserError(
            f"{real.about['source']} has statistics of {dims[0]:,} features, and {network.name} gives {dims[1]:,}: "
            "take the network that the file was made with, or give the reference's images"
        )
    metrics: dict[str, Any] = {}
    for metric in settings.metrics:
        heed()
        metrics |= MEASURES[metric](real, fake, settings)
    protocol = network.protocol | {"colours": COLOURS, "real": real.about, "fake": fake.about, "seed": settings.seed}
    if "kid" in settings.metrics:
        protocol["kid_subset"] = _kid_subset(real, fake)
    record = {"metrics": metrics, "protocol": protocol, "versions": versions()}
    remedy = "raise --count and --real-count, in training --evaluate-count"
    few = warning_of_few(real.gaussian, fake.gaussian.count, remedy) if "fid" in settings.metrics else None
    return record if few is None else record | {"warnings": [few]}


def warning_of_few(real: distances.Gaussian, generated: int | None, remedy: str) -> str | None:
    """What there is to say of a FID of no more images than features; None where there are enough, or none counted."""
    d = len(real.mean)
    counts = {"generated": generated, "real": real.count}
    few = [f"{count:,} {kind}" for kind, count in counts.items() if count is not None and count <= d]
    if not few:
        return None
    return (
        f"FID compares the covariances of {d:,} features, and {' and '.join(few)} images are too few for one of full "
        f"rank: it comes out too high, by more the fewer there are. Take more than {d:,} images ({remedy}), or measure "
        "kid, which has no such bias"
    )


def versions() -> dict[str, str]:
    packages = ("jax", "flax", "numpy")
    return {"ganstyle_jax": __version__} | {name: importlib.metadata.version(name) for name in packages}


def spelled(value: Any) -> str:
    """A figure, or a list of them."""
    if isinstance(value, list):
        return ", ".join(map(spelled, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _fid(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    return {"fid": distances.frechet_distance(real.gaussian, fake.gaussian)}


def _kid(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    size = _kid_subset(real, fake)
    mean, spread = distances.kid(*_features(real, fake, "kid"), subset_size=size, seed=settings.seed)
    return {"kid": mean, "kid_spread": spread}


def _kid_subset(real: Seen, fake: Seen) -> int:
    """Images of a subset: 1,000, as is usual, or half of them where there are fewer, so that subsets differ."""
    return min(1000, *(max(len(seen.features) // 2, 2) for seen in (real, fake) if seen.features is not None))


def _inception_score(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    if fake.logits is None:
        raise UserError("the Inception Score needs a network that names classes: use --features inception")
    mean, spread = distances.inception_score(fake.logits, seed=settings.seed)
    return {"inception_score": mean, "inception_score_spread": spread}


def _precision_recall(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    precision, recall = distances.precision_recall(*_features(real, fake, "precision_recall"))
    return {"precision": precision, "recall": recall}


def _density_coverage(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    density, coverage = distances.density_coverage(*_features(real, fake, "density_coverage"))
    return {"density": density, "coverage": coverage}


def _features(real: Seen, fake: Seen, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if real.features is None or fake.features is None:
        raise UserError(
            f"{metric} needs the images, and {(real if real.features is None else fake).about['source']} has the mean "
            "and covariance of their features alone: give images, or --metrics fid"
        )
    return real.features, fake.features


def _sliced_wasserstein(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    levels = distances.pyramid_wasserstein(*_images(real, fake, "sliced_wasserstein"), seed=settings.seed)
    by_level = {f"sliced_wasserstein_{side}": value for side, value in levels.items()}
    return {"sliced_wasserstein": float(np.mean(list(levels.values())))} | by_level


def _ms_ssim(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    (of_real, _), (of_fake, scales) = (
        similarity.ms_ssim_diversity(x, seed=settings.seed) for x in _images(real, fake, "ms_ssim")
    )
    return {"ms_ssim": of_fake, "ms_ssim_of_real": of_real, "ms_ssim_scales": scales}


def _images(real: Seen, fake: Seen, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if real.images is None or fake.images is None:
        raise UserError(f"{metric} needs the real images themselves, and not a file of statistics")
    return real.images, fake.images


def _glyphs(real: Seen, fake: Seen, settings: Settings) -> dict[str, Any]:
    known, shares, names = glyph_accuracy(real.about["source"], _size(fake))
    found = modes.modes(np.concatenate(fake.readings), shares, known, names)
    return {f"glyphs_{name}": value for name, value in found.as_dict().items()}


def _size(seen: Seen) -> Size:
    size = seen.about["image_size"] or 32
    return (size[0], size[1]) if isinstance(size, list) else size


def what_to_read(spec: str, settings: Settings) -> dict[str, str]:
    """For what is said of generated images: the characters that there are in a set of glyphs, if they are to be read.

    UserError where other images are.
    """
    if "glyphs" not in settings.metrics:
        return {}
    if spec.partition(":")[0] != "glyphs":
        raise UserError(f"the metric glyphs is for generators of glyphs, and the real images are {spec}")
    return {"characters": "".join(data.open_source(spec, 32).label_names or ())}


@functools.lru_cache(maxsize=4)
def glyph_accuracy(spec: str, image_size: Size, count: int = 4000) -> tuple[modes.Accuracy, np.ndarray, list[str]]:
    """How well the reader reads real glyphs of this kind; how often each class is among them; the classes' names."""
    source = open_source(spec, image_size, None, OTHER_SEED)
    assert source.label_names is not None
    characters = "".join(source.label_names)
    examples = [source.read(i) for i in range(count)]
    reading = glyph_reader.read(np.stack([example["image"] for example in examples]), characters)
    labels = glyph_reader.class_labels(np.array([example["label"] for example in examples]), characters)
    known = modes.accuracy(reading.probabilities, labels, reading.threshold)
    return known, glyph_reader.shares(characters), list(reading.characters)


MEASURES: dict[str, Callable[[Seen, Seen, Settings], dict[str, Any]]] = {
    "fid": _fid,
    "kid": _kid,
    "inception_score": _inception_score,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
    "sliced_wasserstein": _sliced_wasserstein,
    "ms_ssim": _ms_ssim,
    "glyphs": _glyphs,
}
