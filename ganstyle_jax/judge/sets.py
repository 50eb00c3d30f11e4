"""Sets of images to measure: read in streams, as they are stored, as often as needed.

images = images_from("photos.zip", network)
for batch in images: ...                                        # (b, h, w, c) uint8, or float32 in [-1, 1]
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ganstyle_jax import data
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import resizing
from ganstyle_jax.judge.networks import FeatureNetwork

Size = int | tuple[int, int]  # pixels of a side, or (h, w)
OTHER_SEED = 2**32 - 1  # of real images that are drawn on the spot: not those of training


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images to measure, in batches of what they are stored in; to go through as often as needed."""

    name: str
    count: int
    batches: Callable[[], Iterator[np.ndarray]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        """(b, h, w, c) uint8, or float32 in [-1, 1]."""
        return self.batches()


def images_from(
    images: str | data.Source | np.ndarray,
    network: FeatureNetwork,
    image_size: Size | None = None,
    channels: int | None = None,
    count: int | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Images:
    """The images of whatever `data.open_source` opens, of an open source, or of an array (n, h, w, 1 | 3).

    image_size: None takes each image whole and at its own size, for the network to resize; a number takes central
      squares of so many pixels, as training does, and belongs to data that a model was trained on; so does (h, w).
    count: so many of them, drawn without replacement by `seed`; of a source without end, its first ones.
    Images of several sizes are resized to the network's one by one. Raises UserError for a network that takes images as
    they are, for fewer images than `count` and for files that cannot be read.
    """
    if isinstance(images, np.ndarray):
        images = _array_source(images)
    source = open_source(images, image_size, channels, seed) if isinstance(images, str) else images
    order = _order(source, count, seed)
    reading = functools.partial(_read, source, order, network, workers or min(16, os.cpu_count() or 1))
    return Images(source.name, len(order), reading)


def _order(source: data.Source, count: int | None, seed: int) -> np.ndarray:
    """Which images are taken. UserError where there are not so many."""
    total = source.size if count is None else count
    if total is None:
        raise UserError(f"{source.name} has no end: say how many of its images to take")
    if source.size is None or count is None:
        return np.arange(total)
    if 1 <= count <= source.size:
        return data.permutation(seed, source.size, 0)[:count]
    raise UserError(f"{source.name} has {source.size:,} images, and {count:,} were asked for")


def labels_of(
    source: str | data.Source,
    count: int,
    seed: int = 0,
    image_size: Size | None = None,
    channels: int | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) of the images that `images_of` takes of a source, and the names of all classes. UserError without."""
    if isinstance(source, str):
        source = open_source(source, image_size, channels, seed=(OTHER_SEED - seed) % 2**32)
    if not source.label_names:
        raise UserError(f"{source.name} has no classes: give --reference a set that has the classes of the run")
    opened = source
    order = _order(opened, count if opened.size is None else min(count, opened.size), seed)

    def load(k: int) -> list[int]:
        return [int(opened.read(int(i))["label"]) for i in order[k * 32 : (k + 1) * 32]]

    parts = data.threaded(load, 0, -(-len(order) // 32), min(16, os.cpu_count() or 1))
    return np.array([label for part in parts for label in part]), source.label_names


def _array_source(images: np.ndarray) -> data.Source:
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype not in (np.uint8, np.float32):
        raise UserError(
            f"images have the shape {images.shape} and dtype {images.dtype}: (n, h, w, 1 | 3) of uint8, or of float32 "
            "in [-1, 1], are accepted"
        )
    shape = images.shape[1], images.shape[2], images.shape[3]
    return data.Source("array", shape, images.dtype, len(images), None, lambda i: {"image": images[i]})


def _read(source: data.Source, order: np.ndarray, network: FeatureNetwork, workers: int) -> Iterator[np.ndarray]:
    """In chunks, which threads read ahead; where sizes differ, resized from there on."""
    chunk = 32

    def load(k: int) -> list[np.ndarray]:
        try:
            return [source.read(int(i))["image"] for i in order[k * chunk : (k + 1) * chunk]]
        except data.CorruptImage as error:
            raise UserError(f"{source.name} has an image that cannot be read ({error}): repair or remove it") from error

    shape, mixed = None, False
    for images in data.threaded(load, 0, -(-len(order) // chunk), workers):
        shape = shape or images[0].shape
        if other := [image.shape for image in images if image.shape != shape]:
            mixed = True
            if network.size is None:
                raise UserError(
                    f"{source.name} has images of {shape[0]} x {shape[1]} and of {other[0][0]} x {other[0][1]} pixels, "
                    f"and {network.name} takes them as they are: have them resized, as {network.name}@64 does"
                )
        if mixed and network.size is not None:  # from the first chunk on where sizes differ: two programs at most
            size = network.size, network.size
            images = [resizing.resize(data.to_float(image), size, network.resize) for image in images]
        yield np.stack(images)


# ---------------------------------------------------------------------------------------------------------------------
# What a protocol says of a set of images


def images_of(
    source: str | data.Source,
    network: FeatureNetwork,
    count: int,
    seed: int = 0,
    image_size: Size | None = None,
    channels: int | None = None,
) -> tuple[Images, dict[str, Any]]:
    """`count` images of a source as `ganstyle train --data` takes it, chosen by the seed, or all where there are fewer.

    image_size: cropped and resized as for training; None: as they are. Raises UserError.
    """
    name = source.name if isinstance(source, data.Source) else source
    if isinstance(source, str):
        source = open_source(source, image_size, channels, seed=(OTHER_SEED - seed) % 2**32)
    taken = count if source.size is None else min(count, source.size)
    about = {"source": short_name(name), "count": taken, "of": source.size, "image_size": size_in_words(image_size)}
    return images_from(source, network, count=taken, seed=seed), about


def open_source(spec: str, image_size: Size | None, channels: int | None, seed: int) -> data.Source:
    """`data.open_source`. A size of two equal sides is that of a square."""
    size: Any = image_size[0] if isinstance(image_size, tuple) and len(set(image_size)) == 1 else image_size
    return data.open_source(spec, size, channels, seed)


def size_in_words(size: Size | None) -> int | list[int] | None:
    """As JSON has it: the side of a square, or [h, w]."""
    if not isinstance(size, tuple):
        return size
    return size[0] if size[0] == size[1] else list(size)


def short_name(spec: str) -> str:
    """Of a path its last part and what lies within it, since the same set may be reached by other paths."""
    path = existing(spec)
    return spec if path is None else str(Path(spec).expanduser().relative_to(path.parent))


def existing(spec: str) -> Path | None:
    """The file or folder that a source lies in, such as mnist.npz of mnist.npz/x_test; None for no path."""
    path = Path(spec).expanduser()
    for candidate in (path, *path.parents):
        if candidate.exists() and candidate.name:
            return candidate
    return None


def fingerprint(spec: str) -> Any:
    """What changes when the files of a source do: their names, sizes and times."""
    path = existing(spec)
    if path is None:
        return spec
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    listed = [(str(p.relative_to(path.parent)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return [str(path.resolve()), hashlib.sha256(repr(listed).encode()).hexdigest()]
