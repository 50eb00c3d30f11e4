"""Sets of images as the metrics see them: their features, and what else a metric wants of them."""

import dataclasses
import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganstyle_jax import data
from ganstyle_jax.features import glyph_reader
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError, atomic_path, cache_dir
from ganstyle_jax.judge import features, statistics
from ganstyle_jax.judge.metrics import distances
from ganstyle_jax.judge.networks import COLOURS, FeatureNetwork
from ganstyle_jax.judge.sets import Images, Size, fingerprint, images_of
from ganstyle_jax.judge.settings import OF_EACH_IMAGE, OF_PIXELS, Settings

log = logging.getLogger(__name__)
KEPT = 4096  # images that are kept for metrics of the images themselves


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """A set of images as the metrics see it."""

    gaussian: distances.Gaussian
    features: np.ndarray | None  # (n, d) float32; None where a file has their mean and covariance alone
    logits: np.ndarray | None  # (n, classes) float32, of a network that names classes
    images: np.ndarray | None  # (at most KEPT, h, w, c) uint8, if a metric wants them
    readings: list[np.ndarray]  # probabilities of characters, (b, k) each, if a metric wants them
    size: tuple[int, int] | None  # (h, w) of the images, where they are known and all have the same
    about: dict[str, Any]


def look(
    shown: Images,
    about: dict[str, Any],
    network: FeatureNetwork,
    settings: Settings,
    heed: Callable[[], None] = lambda: None,
) -> Seen:
    """Goes through the images once. Raises UserError for features that are not finite.

    heed: called at each batch, to end the work by raising.
    """
    keep = OF_PIXELS & set(settings.metrics)
    characters = about.get("characters")  # to be read, if any
    kept: list[np.ndarray] = []
    readings: list[np.ndarray] = []
    sizes: set[tuple[int, int]] = set()

    def passing() -> Iterator[np.ndarray]:
        for batch in shown:
            heed()
            sizes.add(batch.shape[1:3])
            if keep and sum(map(len, kept)) < KEPT:
                kept.append(images.to_uint8(data.to_float(batch)))
            if characters:
                readings.append(glyph_reader.read(batch, characters).probabilities)
            yield batch

    progress = jax.process_index() == 0
    if needs_features(settings):
        found, logits = features.extract(network, passing(), total=len(shown), progress=progress)
        gaussian = distances.gaussian(found)
    else:
        gaussian, found, logits = features.moments(network, passing(), len(shown), progress=progress), None, None
    if len({batch.shape[1:] for batch in kept}) > 1:
        raise UserError(f"{', '.join(sorted(keep))} need images of one size, and those of {shown.name} differ")
    pictures = np.concatenate(kept)[:KEPT] if kept else None
    size = sizes.pop() if len(sizes) == 1 else None
    return Seen(gaussian, found, logits, pictures, readings, size, about)


def needs_features(settings: Settings) -> bool:
    """Whether a metric wants every image's features, and not their mean and covariance alone."""
    return bool(OF_EACH_IMAGE & set(settings.metrics))


def look_at_source(
    spec: str,
    network: FeatureNetwork,
    settings: Settings,
    image_size: Size | None,
    channels: int | None,
    heed: Callable[[], None] = lambda: None,
) -> Seen:
    """`look` at real images, with the features kept from last time where these very images were seen before."""
    shown, about = images_of(spec, network, settings.real_count, settings.seed, image_size, channels)
    if OF_PIXELS & set(settings.metrics):  # they want the images themselves
        return look(shown, about, network, settings, heed)
    way = network.protocol | {"colours": COLOURS}
    identity = [way, about, settings.seed, channels, fingerprint(spec), needs_features(settings)]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = cache_dir() / "features" / f"{name[:32]}.npz"
    kept = _read_kept(path, about)
    if kept is None:
        kept = look(shown, about, network, settings, heed)
        _keep(path, kept)
    return kept


# What was seen is kept as an .npz with mu and sigma, as pytorch-fid reads them, and features and logits beside them.


def _read_kept(path: Path, about: dict[str, Any]) -> Seen | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            gaussian = distances.Gaussian(file["mu"], file["sigma"], int(file["count"]))
            size = tuple(file["size"].tolist()) if "size" in file else None
            return Seen(gaussian, file.get("features"), file.get("logits"), None, [], size, about)
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile, UserError):  # absent, or damaged
        return None


def _keep(path: Path, seen: Seen) -> None:
    """A convenience: where it fails, the images are looked at again next time."""
    arrays: dict[str, Any] = {
        "mu": seen.gaussian.mean,
        "sigma": seen.gaussian.covariance,
        "count": np.array(seen.gaussian.count),
    }
    arrays |= {} if seen.features is None else {"features": seen.features}
    arrays |= {} if seen.logits is None else {"logits": seen.logits}
    arrays |= {} if seen.size is None else {"size": np.array(seen.size)}
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)
    except OSError as error:
        log.warning(
            "the features of %s are not kept for next time: %s cannot be written (%s)",
            *(seen.about["source"], path.parent, error.strerror or error),
        )


def look_at_statistics(path: Path, network: FeatureNetwork) -> Seen:
    """A file of mean and covariance in pytorch-fid's format, ours or anybody's."""
    gaussian, about = statistics.load_statistics(path, network)
    about = {"source": path.name if about["source"] == "unknown" else about["source"], "count": about["count"]}
    return Seen(gaussian, None, None, None, [], None, about)
