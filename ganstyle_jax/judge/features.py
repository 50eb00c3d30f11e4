"""Features of images for the metrics, computed in streams over all devices.

network = networks.feature_network("inception")
images = sets.images_from("photos.zip", network)
features, logits = extract(network, images)                     # (n, 2048) and (n, 1008) float32
statistics = moments(network, images)                           # a Gaussian, in memory that does not grow with n
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics.distances import Gaussian, Moments
from ganstyle_jax.judge.networks import FeatureNetwork
from ganstyle_jax.judge.sets import Images

BATCH_SIZE = 64  # images for each device
MOMENTS_ROWS = 1024  # images whose features are added at once: fewer spend their time on passing over the (d, d) sums


def stream(
    network: FeatureNetwork,
    batches: Iterable[np.ndarray],
    total: int | None = None,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Features (b, d) and logits (b, k) or None, float32, of images (b, h, w, 1 | 3) in order; b is not kept.

    batches: uint8, or float32 in [-1, 1], of any lengths; while one is computed, the next is read and sent.
    total: images to come, for the progress bar; by default len(batches) where that is an `Images`.
    batch_size: images computed at once by all devices, raised to a multiple of their number; by default 64 for each.
    devices: by default all of this process's. Raises UserError for features that are not finite.
    """
    devices = list(devices or jax.local_devices())
    batch_size = -(-(batch_size or BATCH_SIZE * len(devices)) // len(devices)) * len(devices)
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    params = jax.device_put(network.params, NamedSharding(mesh, PartitionSpec()))
    shared = NamedSharding(mesh, PartitionSpec("data"))
    if total is None and isinstance(batches, Images):
        total = len(batches)

    from tqdm import tqdm

    done, waiting = 0, collections.deque()
    with tqdm(total=total, desc="features", unit="image", disable=not progress, delay=2, leave=False) as bar:

        def fetch() -> tuple[np.ndarray, np.ndarray | None]:
            nonlocal done
            n, (features, logits) = waiting.popleft()
            features = np.asarray(features)[:n]
            if not (finite := np.isfinite(features).all(axis=1)).all():
                raise UserError(
                    f"{network.name} gives features that are not finite for {n - finite.sum()} of the images "
                    f"{done} to {done + n - 1}, the first of them {done + int(finite.argmin())}: are the images "
                    "themselves finite?"
                )
            done += n
            bar.update(n)
            return features, None if logits is None else np.asarray(logits)[:n]

        for images in _regroup(batches, batch_size):
            n = len(images)
            if not done and not waiting:  # there may be no more than these
                batch_size = min(batch_size, -(-n // len(devices)) * len(devices))
            if n < batch_size:  # the same program for all; repeated images are as harmless as the image is
                images = np.concatenate([images, np.repeat(images[-1:], batch_size - n, axis=0)])
            waiting.append((n, network.compute(params, jax.device_put(images, shared))))
            if len(waiting) > 1:
                yield fetch()
        while waiting:
            yield fetch()


def _regroup(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Batches of `size` images or rows, and of fewer at the end and before what has another shape."""
    kept: list[np.ndarray] = []
    for batch in batches:
        if kept and (batch.shape[1:], batch.dtype) != (kept[0].shape[1:], kept[0].dtype):
            yield np.concatenate(kept)
            kept = []
        while len(batch):
            part = batch[: size - sum(map(len, kept))]
            kept.append(part)
            batch = batch[len(part) :]
            if sum(map(len, kept)) == size:
                yield np.concatenate(kept)
                kept = []
    if kept:
        yield np.concatenate(kept)


def extract(
    network: FeatureNetwork,
    batches: Iterable[np.ndarray],
    total: int | None = None,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """All that `stream` gives, whose arguments these are: features (n, d) and logits (n, k) or None, float32.

    UserError for no image at all.
    """
    parts = list(stream(network, batches, total, batch_size, devices, progress))
    if not parts:
        raise UserError("there is no image to take features of")
    logits = [part[1] for part in parts if part[1] is not None]
    return np.concatenate([part[0] for part in parts]), np.concatenate(logits) if logits else None


def moments(
    network: FeatureNetwork,
    batches: Iterable[np.ndarray],
    total: int | None = None,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> Gaussian:
    """Mean and covariance of the features, float64, in memory that does not grow with the images; as `stream`."""
    found: Moments | None = None
    features = (part for part, _ in stream(network, batches, total, batch_size, devices, progress))
    for part in _regroup(features, MOMENTS_ROWS):
        found = found or Moments(part.shape[1])
        found.update(part)
    if found is None:
        raise UserError("there is no image to take features of")
    return found.gaussian()
