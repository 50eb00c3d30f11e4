"""Networks whose features the metrics compare: by which name, with which weights, at which size.

    network = feature_network("inception")                          # or "compact", "vgg19:relu3_4", "mine.py:function"

Metrics of features are comparable only where network, weights and resizing are the same: `FeatureNetwork.protocol` is
what a result has to carry.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax import contract, data
from ganstyle_jax.features import glyph_reader, vgg, weights
from ganstyle_jax.features.alexnet import AlexNet
from ganstyle_jax.features.inception import InceptionV3
from ganstyle_jax.io.files import UserError, first_line
from ganstyle_jax.judge import resizing
from ganstyle_jax.judge.resizing import RESIZES, Resize

INCEPTION_SIZE = 299  # pixels
COMPACT_TAPS = ("relu2_1", "relu3_1", "relu4_1", "relu5_1")
# To what colours the one reader of pictures brings those that a file's profile or mode has: part of every protocol.
COLOURS = "sRGB"
SPECS = (
    "inception, compact, glyphs, a name that `ganstyle weights list` shows or a file of weights with :LAYER or "
    ":LAYER+LAYER behind it, or file.py:function; @SIZE at the end resizes to so many pixels"
)


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
                    images = resizing.resize(images, (self.size, self.size), self.resize)
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
        digest = digest_of(params)
    else:
        network, params = weights.load("inception-fid" if name == "inception" else name)
        if isinstance(network, weights.LpipsHeads):
            raise UserError(f"{name} has the linear heads of LPIPS, which give no features; features are {SPECS}")
        digest = digest_of(params)
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
    try:
        module = contract.load_file(path)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {first_line(error.__cause__ or error)}") from error
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


def digest_of(params: weights.Params) -> str:
    """SHA-256 of all weights in the order of their names, with names and shapes, as little-endian float32."""
    total = hashlib.sha256()
    for layer in sorted(params):
        for part in sorted(params[layer]):
            array = np.ascontiguousarray(params[layer][part], "<f4")
            total.update(f"{layer}/{part}{array.shape}".encode())
            total.update(array.data)
    return total.hexdigest()
