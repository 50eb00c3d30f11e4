"""Does a generator copy? The training images nearest to its samples, beside those nearest to other real images.

A low distance alone says little, since some sets hold nearly the same image many times. What counts is the comparison:
samples of a generator that has learned lie as far from the nearest training image as real images do from one another,
copies lie nearer.

Distances are taken in the features of the compact network (`weights.load("compact")`): means and deviations over all
places at four of its layers. Small shifts, flips and changes of colour therefore hardly matter, where they would decide
a distance of pixels.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax import data
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.judge import features as streams
from ganstyle_jax.judge.networks import FeatureNetwork, digest_of

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
SMALLEST = 64  # pixels; smaller images are enlarged, or nothing would be left of them at the last layer
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """How near samples come to training images. Distances are in features, unless it says pixels."""

    sample_distances: np.ndarray  # (n,) from each sample to the nearest training image
    real_distances: np.ndarray  # (m,) from real images to the nearest other one
    samples: np.ndarray  # (s, h, w, c) float32 in [-1, 1]: those nearest to a training image, nearest first
    neighbours: np.ndarray  # (s, k, h, w, c) float32 in [-1, 1]: the training images nearest to each, nearest first
    distances: np.ndarray  # (s, k) to them
    pixel_distances: np.ndarray  # (s, k) to them, root mean square in grey levels of 255
    compared: int  # training images that were looked through
    total: int | None  # that there are, None for an unlimited source


def check(
    samples: np.ndarray, source: data.Source, compared: int, k: int = 4, shown: int = 16, seed: int = 0
) -> Memorisation:
    """Looks for samples (n, h, w, c) among `compared` images of the source, drawn without replacement by the seed.

    Pictures are kept of the `shown` samples that are nearest to a training image. Raises ValueError where the source
    has fewer than k + 1 images, and data.CorruptImage.
    """
    from tqdm import tqdm

    available = compared if source.size is None else min(compared, source.size)
    if available <= k:
        raise ValueError(f"{available} training images are too few to look for the {k} nearest")
    if source.size is None:
        chosen = np.arange(available)
    else:
        chosen = np.sort(np.random.default_rng(seed).permutation(source.size)[:available])
    found = []
    for start in tqdm(range(0, available, BATCH), desc="training images", unit="batch", disable=available < 8 * BATCH):
        found.append(features(np.stack([source[int(i)]["image"] for i in chosen[start : start + BATCH]])))
    real = np.concatenate(found)
    # Dimensions that hardly vary among real images would count for nothing beside those that do.
    spread = np.maximum(real.std(0), 1e-3 * real.std(0).max() + 1e-12)
    real, fake = real / spread, features(samples) / spread
    indices, distances = nearest(fake, real, k)
    probes = np.linspace(0, available - 1, min(available, 1000)).astype(int)
    # The nearest image of one that is itself among them is itself.
    real_distances = nearest(real[probes], real, 1, skip=probes)[1][:, 0]
    order = np.argsort(distances[:, 0], kind="stable")[:shown]
    # Read anew: thousands of large images need not be kept for the few that are shown.
    neighbours = np.stack([[source[int(chosen[j])]["image"] for j in indices[i]] for i in order])
    errors = neighbours - samples[order, None]
    return Memorisation(
        sample_distances=distances[:, 0],
        real_distances=real_distances,
        samples=samples[order],
        neighbours=neighbours,
        distances=distances[order],
        pixel_distances=np.sqrt(np.mean(errors**2, axis=(2, 3, 4))) * 127.5,
        compared=available,
        total=source.size,
    )


def features(images: np.ndarray) -> np.ndarray:
    """(n, h, w, 1 or 3) float in [-1, 1] to (n, d) float32: means and deviations by channel at each of LAYERS."""
    # On one device: the images of a check are few, and sums over another cut of them would differ in their last bits.
    first = jax.local_devices()[:1]
    batches = [np.asarray(images, np.float32)]
    return streams.extract(_network(), batches, batch_size=BATCH, devices=first, progress=False)[0]


@functools.cache
def _network() -> FeatureNetwork:
    """The compact network with another end than for the metrics of sets, whose features are means alone."""
    network, params = weights.load("compact")
    assert isinstance(network, vgg.VGG)

    def function(params: Any, images: jax.Array) -> tuple[jax.Array, None]:
        n, h, w, c = images.shape
        if min(h, w) < SMALLEST:
            scale = SMALLEST / min(h, w)
            images = jax.image.resize(images, (n, round(h * scale), round(w * scale), c), "bilinear")
        taps = network.apply(params, images, LAYERS)
        parts = [statistic(taps[layer], (1, 2)) for layer in LAYERS for statistic in (jnp.mean, jnp.std)]
        return jnp.concatenate(parts, axis=-1), None

    return FeatureNetwork("compact:means and deviations", digest_of(params), "none", None, None, params, function)


def nearest(
    queries: np.ndarray, among: np.ndarray, k: int, skip: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `among` (m, d) nearest to each of the queries (n, d): indices (n, k), and distances over sqrt(d).

    skip: (n,) for each query one index that does not count, or None. It needs k < m then, k <= m otherwise.
    """
    indices, distances = [], []
    queries, among = queries.astype(np.float64), among.astype(np.float64)
    lengths = (among**2).sum(1)
    for start in range(0, len(queries), 256):
        part = queries[start : start + 256]
        squares = lengths - 2 * part @ among.T  # less the query's own length, which does not change the order
        if skip is not None:
            squares[np.arange(len(part)), skip[start : start + 256]] = np.inf
        order = np.argsort(squares, axis=1, kind="stable")[:, :k]
        # Anew from the differences: of near copies the squares cancel to nothing but rounding.
        exact = np.linalg.norm(part[:, None] - among[order], axis=-1) / queries.shape[1] ** 0.5
        again = np.argsort(exact, axis=1, kind="stable")
        indices.append(np.take_along_axis(order, again, 1))
        distances.append(np.take_along_axis(exact, again, 1))
    return np.concatenate(indices), np.concatenate(distances)


def share_too_near(found: Memorisation) -> float:
    """The share of samples nearer to a training image than the nearest hundredth of real images is to another one.

    About 0.01 for new images of the same distribution, and more for copies.
    """
    return float(np.mean(found.sample_distances < np.quantile(found.real_distances, 0.01)))
