"""Features of images for the metrics: which network, at which size, computed in streams over all devices.

    network = feature_network("inception")                          # or "compact", "vgg19:relu3_4", "mine.py:function"
    images = images_from("photos.zip", network)
    features, logits = extract(network, images)                     # (n, 2048) and (n, 1008) float32
    statistics = moments(network, images)                           # a Gaussian, in memory that does not grow with n

Metrics of features are comparable only where network, weights and resizing are the same: `FeatureNetwork.protocol` is
what a result has to carry. How published numbers resized (Parmar et al. 2022, arXiv:2104.11222, section 3):

    clean          Pillow's bicubic, which smooths what a smaller image cannot hold, without rounding to bytes
    legacy-tf      TensorFlow 1's bilinear: no smoothing, pixels' corners as their centres; the first FIDs
    legacy-torch   PyTorch's bilinear: no smoothing; pytorch-fid
    none           images as they are
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ganstyle_jax import data, glyph_reader, vgg, weights
from ganstyle_jax.alexnet import AlexNet
from ganstyle_jax.files import UserError, atomic_path, first_line
from ganstyle_jax.inception import InceptionV3
from ganstyle_jax.metrics.distances import Gaussian, Moments

Resize = Literal["clean", "legacy-tf", "legacy-torch", "none"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
INCEPTION_SIZE = 299  # pixels
COMPACT_TAPS = ("relu2_1", "relu3_1", "relu4_1", "relu5_1")
BATCH_SIZE = 64  # images for each device
MOMENTS_ROWS = 1024  # images whose features are added at once: fewer spend their time on passing over the (d, d) sums
SPECS = (
    "inception, compact, glyphs, a name that `ganstyle weights list` shows or a file of weights with :LAYER or "
    ":LAYER+LAYER behind it, or file.py:function; @SIZE at the end resizes to so many pixels"
)


# ---------------------------------------------------------------------------------------------------------------------
# Resizing
#
# Each of the three is linear and acts on rows and columns alike, so that a matrix for each says all of it: the same on
# the host and on devices, and there at the speed of matrix products.


def resize(images: Any, size: tuple[int, int], mode: Resize) -> Any:
    """Images (..., h, w, c) of any range to (..., *size, c) float32, NumPy's or JAX's, also inside `jit`.

    Bicubic overshoots at edges and is not clipped, as in the published `clean`. mode "none": ValueError unless the size
    is right already.
    """
    height, width = images.shape[-3:-1]
    if (height, width) == tuple(size):
        return images.astype(np.float32)
    if mode == "none":
        raise ValueError(f"images of {height} x {width} pixels are not to be resized, and not {size[0]} x {size[1]}")
    rows, columns = resize_matrix(height, size[0], mode), resize_matrix(width, size[1], mode)
    images = images.astype(np.float32)
    if isinstance(images, np.ndarray):
        images = np.matmul(rows, images.reshape(*images.shape[:-2], -1)).reshape(*images.shape[:-3], size[0], width, -1)
        return np.matmul(columns, images)
    images = jnp.einsum("ph,...hwc->...pwc", rows, images, precision="highest")
    return jnp.einsum("qw,...pwc->...pqc", columns, images, precision="highest")


@functools.lru_cache(maxsize=64)
def resize_matrix(before: int, after: int, mode: Resize) -> np.ndarray:
    """What a resized row of `after` pixels takes of each of `before` pixels, (after, before) float32; rows add to 1."""
    places = np.arange(after)
    matrix = np.zeros((after, before))
    if mode == "clean":
        # As Pillow's precompute_coeffs: Keys' cubic (1981) with a = -0.5, as wide as a new pixel is in old ones.
        scale = before / after
        wide = max(scale, 1.0)
        for i in places:
            centre = (i + 0.5) * scale
            first, end = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), before)
            taps = _cubic((np.arange(first, end) - centre + 0.5) / wide)
            matrix[i, first:end] = taps / taps.sum()
        return matrix.astype(np.float32)
    if mode not in ("legacy-tf", "legacy-torch"):
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {mode!r}")
    # In float32, as both compute it: where a pixel falls is a difference of large numbers.
    scale = np.float32(before) / np.float32(after)
    at = places.astype(np.float32)
    half = np.float32(0.5)
    at = np.maximum((at + half) * scale - half, 0) if mode == "legacy-torch" else at * scale
    lower = np.minimum(at.astype(np.int64), before - 1)
    share = at - lower.astype(np.float32)
    np.add.at(matrix, (places, lower), 1 - share)
    np.add.at(matrix, (places, np.minimum(lower + 1, before - 1)), share)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x < 2, -0.5 * (((x - 5) * x + 8) * x - 4), 0))


# ---------------------------------------------------------------------------------------------------------------------
# Networks


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """What turns images into features: of which network, by which weights, at which size."""

    name: str  # for records, "inception:pool3"
    digest: str  # SHA-256 of the weights, whatever file they came in, or of a user's Python file
    resize: Resize
    size: int | None  # pixels that images are resized to, both ways; None: images as they are
    dim: int | None  # features of an image; None where a user's function decides by the image
    params: Any
    function: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
    """(params, images (b, s, s, 3) float32 in [-1, 1]) to features (b, dim) and class logits (b, k) or None."""

    @property
    def protocol(self) -> dict[str, Any]:
        """What has to be equal for two results to be comparable, of what the network decides."""
        return {"features": self.name, "weights": self.digest, "resize": self.resize, "size": self.size}

    @functools.cached_property
    def compute(self) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]:
        """(params, images (b, h, w, 1 | 3) uint8, or float32 in [-1, 1]) to features and logits; compiled by size."""

        @jax.jit
        def compute(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            images = data.to_float(images)
            images = jnp.broadcast_to(images, (*images.shape[:3], 3))  # grey is repeated
            with jax.default_matmul_precision("highest"):  # TPUs and GPUs would round to 10 bits and fewer
                if self.size is not None:
                    images = resize(images, (self.size, self.size), self.resize)
                features, logits = self.function(params, images)
            if features.ndim != 2 or len(features) != len(images):
                raise UserError(
                    f"{self.name} gives features of shape {features.shape} for {len(images)} images; (b, d) is needed"
                )
            return features.astype(jnp.float32), None if logits is None else logits.astype(jnp.float32)

        return compute


def default() -> str:
    """The network to measure with: Inception where its weights are here, else the compact one."""
    return "inception" if "inception-fid" in weights.kept_names() else "compact"


def feature_network(spec: str, resize: Resize | None = None) -> FeatureNetwork:
    """The network that `spec` names, and its weights from the home folder or a file. Raises UserError.

    inception[:TAP]: InceptionV3 of FID. TAP is one of its layers, by default pool3, and its logits come without the
      bias, as the published Inception Score has them. Resized to 299 pixels, by default `clean`. In `legacy-torch`
      bytes become x / 127.5 - 1, as in pytorch-fid; otherwise (x - 128) / 128, as in TensorFlow's graph and clean-fid.
    NAME[:TAP] or FILE[:TAP]: VGG or SqueezeNet that `weights.load` knows; TAP such as relu3_4 or relu2_2+relu3_4, each
      averaged over the picture. By default a VGG's last ReLU of the third block, and of the compact network relu2_1,
      relu3_1, relu4_1 and relu5_1. Images as they are.
    glyphs: the 128 features of the reader of glyphs, which ships with the package, and its logits; it has a size of its
      own, and brings images to it.
    FILE.py:FUNCTION: the user's function of images (b, h, w, 3) float32 in [-1, 1], to features (b, d). It is compiled,
      so it is made of jax.numpy; what is not, can be wrapped in jax.pure_callback.

    @SIZE behind any of them resizes to so many pixels, by default `clean`. resize: "none" leaves images as they are.
    """
    if resize is not None and resize not in RESIZES:
        raise UserError(f"resize must be one of {', '.join(RESIZES)}, got {resize!r}")
    rest, at, end = spec.rpartition("@")
    size = int(end) if at and end.isdecimal() else None
    name, _, taps = (rest if size is not None else spec).partition(":")
    if size == 0:
        raise UserError(f"{spec} asks for images of 0 pixels")
    if name.endswith(".py"):
        name, digest, params, function, dim = _of_file(Path(name), taps)
    elif name == "glyphs" and not taps:
        params, function, dim = glyph_reader.load().params, _of_reader, glyph_reader.FEATURES
        digest = _digest(params)
    else:
        network, params = weights.load("inception-fid" if name == "inception" else name)
        if isinstance(network, weights.LpipsHeads):
            raise UserError(f"{name} has the linear heads of LPIPS, which give no features; features are {SPECS}")
        digest = _digest(params)
        if isinstance(network, InceptionV3) and size is None:
            size = INCEPTION_SIZE
        name, function, dim = _of_network(Path(name).name, network, taps, resize, size)
        if isinstance(network, vgg.Network):
            params = vgg.prepare(network, params)
    if resize is None:
        resize = "none" if size is None else "clean"
    if resize == "none":
        size = None
    elif size is None:
        raise UserError(f"{spec} takes images as they are; say to how many pixels {resize} is to resize: {spec}@64")
    return FeatureNetwork(name, digest, resize, size, dim, params, function)


def _of_network(
    name: str, network: vgg.Network | InceptionV3 | AlexNet, spec: str, resize: Resize | None, size: int | None
) -> tuple[str, Callable, int]:
    """Its name with the taps, what computes their means, and how many there are."""
    logits = ("logits_unbiased",) if isinstance(network, InceptionV3) and spec in ("", "pool3") else ()
    if spec:
        taps = tuple(spec.split("+"))
    elif isinstance(network, InceptionV3):
        taps = ("pool3",)
    elif network == vgg.COMPACT:
        taps = COMPACT_TAPS
    else:
        relus = [tap for tap in network.names if tap.startswith("relu3_")]
        taps = (relus or network.names)[-1:]
    try:
        network.check(taps)
    except ValueError as error:
        raise UserError(f"{name}:{spec}: {error}") from error
    smallest = network.smallest_side(taps)
    if size is not None and size < smallest:
        raise UserError(f"{name}:{'+'.join(taps)} needs images of {smallest} pixels or more, and @{size} is fewer")

    def function(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        if min(images.shape[1:3]) < smallest:
            raise UserError(
                f"{name}:{'+'.join(taps)} needs images of {smallest} pixels or more, and these have "
                f"{images.shape[1]} x {images.shape[2]}: resize them, as {name}:{'+'.join(taps)}@64 does"
            )
        if isinstance(network, InceptionV3) and resize != "legacy-torch":
            images = (127.5 * images - 0.5) / 128
        found = network.apply(params, images, (*taps, *logits))
        means = [found[tap] if found[tap].ndim == 2 else found[tap].mean((1, 2)) for tap in taps]
        return jnp.concatenate(means, axis=-1), found[logits[0]] if logits else None

    shapes = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, size or smallest, size or smallest, 3), jnp.float32)
    dim = jax.eval_shape(function, shapes, image)[0].shape[1]
    return f"{name}:{'+'.join(taps)}", function, dim


def _of_reader(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    found = glyph_reader.apply(params, images)
    return found["features"], found["class"]


def _of_file(path: Path, name: str) -> tuple[str, str, None, Callable, None]:
    if not path.is_file():
        raise UserError(f"there is no file {path}; features are {SPECS}")
    module_name = f"ganstyle_features_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {first_line(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{path} has no function {name!r}: name one as {path}:FUNCTION")

    def function(params: Any, images: jax.Array) -> tuple[jax.Array, None]:
        try:
            return jnp.asarray(found(images)), None
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError, TypeError) as error:
            raise UserError(
                f"{path}:{name} cannot be compiled ({first_line(error)}): make it of jax.numpy, or wrap what is not in "
                "jax.pure_callback"
            ) from error

    return f"{path.name}:{name}", hashlib.sha256(path.read_bytes()).hexdigest(), None, function, None


def _digest(params: weights.Params) -> str:
    """SHA-256 of all weights in the order of their names, with names and shapes, as little-endian float32."""
    total = hashlib.sha256()
    for layer in sorted(params):
        for part in sorted(params[layer]):
            array = np.ascontiguousarray(params[layer][part], "<f4")
            total.update(f"{layer}/{part}{array.shape}".encode())
            total.update(array.data)
    return total.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Images


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
    image_size: int | None = None,
    channels: int | None = None,
    count: int | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Images:
    """The images of whatever `data.open_source` opens, of an open source, or of an array (n, h, w, 1 | 3).

    image_size: None takes each image whole and at its own size, for the network to resize; a number takes central
      squares of so many pixels, as training does, and belongs to data that a model was trained on.
    count: so many of them, drawn without replacement by `seed`; of a source without end, its first ones.
    Images of several sizes are resized to the network's one by one. Raises UserError for a network that takes images as
    they are, for fewer images than `count` and for files that cannot be read.
    """
    if isinstance(images, np.ndarray):
        images = _array_source(images)
    source = data.open_source(images, image_size, channels, seed) if isinstance(images, str) else images
    total = source.size if count is None else count
    if total is None:
        raise UserError(f"{source.name} has no end: say how many of its images to take")
    if source.size is None or count is None:
        order = np.arange(total)
    elif 1 <= count <= source.size:
        order = data.permutation(seed, source.size, 0)[:count]
    else:
        raise UserError(f"{source.name} has {source.size:,} images, and {count:,} were asked for")
    reading = functools.partial(_read, source, order, network, workers or min(16, os.cpu_count() or 1))
    return Images(source.name, len(order), reading)


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
            images = [resize(data.to_float(image), size, network.resize) for image in images]
        yield np.stack(images)


# ---------------------------------------------------------------------------------------------------------------------
# Features


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


# ---------------------------------------------------------------------------------------------------------------------
# Statistics in files


def save_statistics(path: Path | str, gaussian: Gaussian, network: FeatureNetwork, source: str = "") -> None:
    """Writes mean and covariance as pytorch-fid reads them (.npz with mu and sigma, float64), and their protocol."""
    about = {"count": gaussian.count, **network.protocol, "source": source}
    arrays: dict[str, Any] = {"mu": gaussian.mean, "sigma": gaussian.covariance}
    arrays |= {key: np.array(value) for key, value in about.items() if value is not None}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_statistics(path: Path | str, network: FeatureNetwork) -> tuple[Gaussian, dict[str, Any]]:
    """Mean and covariance of a file, and what it says of how they came about: count, features, weights, resize, source.

    What it does not say is "unknown", as all of it is of pytorch-fid's own files. UserError for a file that is none, or
    where it says or shows that its features are not those of `network`.
    """
    try:
        with open(path, "rb") as opened:
            file = np.load(opened, allow_pickle=False)
            found = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else {}
    except OSError as error:
        raise UserError(f"cannot read the statistics in {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} holds no statistics ({first_line(error)}): a .npz with mu and sigma is needed"
        ) from error
    if not {"mu", "sigma"} <= found.keys():
        raise UserError(f"{path} has {', '.join(found) or 'one array alone'}: a .npz with mu and sigma is needed")
    about = {key: array.item() for key, array in found.items() if key not in ("mu", "sigma") and array.ndim == 0}
    dim = found["mu"].size
    if network.dim is not None and dim != network.dim:
        raise UserError(f"{path} has the statistics of {dim} features, and {network.name} gives {network.dim}")
    for key, own in network.protocol.items():
        if key in about and about[key] != own:
            raise UserError(
                f"{path} was made with {key} {about[key]}, and {network.name} has {own}: measure the reference again"
            )
    count = int(about["count"]) if "count" in about else None
    gaussian = Gaussian(found["mu"].astype(np.float64), found["sigma"].astype(np.float64), count)
    return gaussian, {key: about.get(key, "unknown") for key in ("count", "features", "weights", "resize", "source")}


def is_statistics(path: Path | str) -> bool:
    """Whether a file is an .npz with mu and sigma."""
    try:
        with zipfile.ZipFile(path) as file:
            return {"mu.npy", "sigma.npy"} <= set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
