"""InceptionV3 as the Fréchet Inception Distance takes it, tapped by its layers' names.

    network, params = weights.load("inception-fid")
    taps = network.apply(params, images, ("pool3", "logits"))      # {"pool3": (b, 2048), "logits": (b, 1008)}

Szegedy et al. 2016 (arXiv:1512.00567), in the graph that TensorFlow gave out on 2015-12-05 and Heusel et al. 2017
(arXiv:1706.08500) measure with, as pytorch-fid's port has its weights. It is not torchvision's network, whose weights
were trained separately: averages leave out what pads them, the last block pools by the largest value (the paper: by the
mean), and there are 1008 classes, of which 1000 are ImageNet's in another order.

Images are RGB in [-1, 1]. TensorFlow's graph takes (x - 128) / 128 of bytes and pytorch-fid x / 127.5 - 1, which is a
little brighter; the network is the same, and `metrics.features` keeps the two apart.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ganstyle_jax.features import image_layers
from ganstyle_jax.nn import layers

Params = image_layers.Params
BATCH_NORM_EPSILON = 1e-3
CLASSES = 1008

# What each layer's convolutions take and give, by the names of torchvision's `inception_v3`: (rows, columns of the
# kernel, channels in, channels out).
Shape = tuple[int, int, int, int]
STEM = {
    "Conv2d_1a_3x3": (3, 3, 3, 32),
    "Conv2d_2a_3x3": (3, 3, 32, 32),
    "Conv2d_2b_3x3": (3, 3, 32, 64),
    "Conv2d_3b_1x1": (1, 1, 64, 80),
    "Conv2d_4a_3x3": (3, 3, 80, 192),
}


def _block_a(before: int, pooled: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, before, 64),
        "branch5x5_1": (1, 1, before, 48),
        "branch5x5_2": (5, 5, 48, 64),
        "branch3x3dbl_1": (1, 1, before, 64),
        "branch3x3dbl_2": (3, 3, 64, 96),
        "branch3x3dbl_3": (3, 3, 96, 96),
        "branch_pool": (1, 1, before, pooled),
    }


def _block_c(between: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, 768, 192),
        "branch7x7_1": (1, 1, 768, between),
        "branch7x7_2": (1, 7, between, between),
        "branch7x7_3": (7, 1, between, 192),
        "branch7x7dbl_1": (1, 1, 768, between),
        "branch7x7dbl_2": (7, 1, between, between),
        "branch7x7dbl_3": (1, 7, between, between),
        "branch7x7dbl_4": (7, 1, between, between),
        "branch7x7dbl_5": (1, 7, between, 192),
        "branch_pool": (1, 1, 768, 192),
    }


def _block_e(before: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, before, 320),
        "branch3x3_1": (1, 1, before, 384),
        "branch3x3_2a": (1, 3, 384, 384),
        "branch3x3_2b": (3, 1, 384, 384),
        "branch3x3dbl_1": (1, 1, before, 448),
        "branch3x3dbl_2": (3, 3, 448, 384),
        "branch3x3dbl_3a": (1, 3, 384, 384),
        "branch3x3dbl_3b": (3, 1, 384, 384),
        "branch_pool": (1, 1, before, 192),
    }


BLOCKS = {
    "Mixed_5b": _block_a(192, 32),
    "Mixed_5c": _block_a(256, 64),
    "Mixed_5d": _block_a(288, 64),
    "Mixed_6a": {
        "branch3x3": (3, 3, 288, 384),
        "branch3x3dbl_1": (1, 1, 288, 64),
        "branch3x3dbl_2": (3, 3, 64, 96),
        "branch3x3dbl_3": (3, 3, 96, 96),
    },
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": {
        "branch3x3_1": (1, 1, 768, 192),
        "branch3x3_2": (3, 3, 192, 320),
        "branch7x7x3_1": (1, 1, 768, 192),
        "branch7x7x3_2": (1, 7, 192, 192),
        "branch7x7x3_3": (7, 1, 192, 192),
        "branch7x7x3_4": (3, 3, 192, 192),
    },
    "Mixed_7b": _block_e(1280),
    "Mixed_7c": _block_e(2048),
}
CONVOLUTIONS = STEM | {f"{block}.{name}": shape for block, found in BLOCKS.items() for name, shape in found.items()}


@dataclasses.dataclass(frozen=True)
class InceptionV3:
    """Its convolutions have their batch normalisation folded in; hashable, so static for `jit`.

    Taps, with the channels that pytorch-fid's --dims counts: "pool1" (64) and "pool2" (192), the first and second
    largest-value pooling; "mixed5b" ... "mixed5d", "mixed6a" ... "mixed6e" (768), "mixed7a" ... "mixed7c" (2048), the
    blocks; "pool3" (2048), the mean over the picture, (b, 2048); "logits", (b, 1008); "logits_unbiased", the same
    without the bias, of which the published Inception Score is made (Salimans et al. 2016, the authors' code).

    Weights are {"Conv2d_1a_3x3": {"kernel": (3, 3, 3, 32), "bias": (32,)}, ..., "Mixed_5b.branch1x1": ..., "fc":
    {"kernel": (2048, 1008), "bias": (1008,)}}.
    """

    dtype: str = "float32"  # of the arithmetic and the features

    @property
    def names(self) -> list[str]:
        """All taps, in order."""
        blocks = [name.lower().replace("_", "") for name in BLOCKS]
        return ["pool1", "pool2", *blocks, "pool3", "logits", "logits_unbiased"]

    def check(self, taps: Iterable[str]) -> None:
        """ValueError for a tap that this network does not have."""
        if unknown := [tap for tap in taps if tap not in self.names]:
            raise ValueError(f"the network has no layer {unknown[0]!r}; it has {', '.join(self.names)}")

    def smallest_side(self, taps: Iterable[str]) -> int:
        """Pixels that the shorter side of an image needs to give every tap at least one value."""
        last = max((self.names.index(tap) for tap in taps), default=0)
        side = 1
        if last >= self.names.index("mixed7a"):
            side = 2 * side + 1
        if last >= self.names.index("mixed6a"):
            side = 2 * side + 1
        if last >= self.names.index("pool2"):
            side = 2 * side + 1 + 2  # Conv2d_4a has no padding
        return 2 * (2 * side + 1 + 2) + 1

    def init(self, key: jax.Array) -> Params:
        """Random weights, He et al. 2015."""
        params: Params = {}
        for key_layer, (name, shape) in zip(
            jax.random.split(key, len(CONVOLUTIONS)), CONVOLUTIONS.items(), strict=True
        ):
            kernel = jax.random.normal(key_layer, shape) * (2 / np.prod(shape[:3])) ** 0.5
            params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[3])}
        kernel = jax.random.normal(jax.random.fold_in(key, len(CONVOLUTIONS)), (2048, CLASSES)) * 2048**-0.5
        return params | {"fc": {"kernel": kernel, "bias": jnp.zeros(CLASSES)}}

    def apply(self, params: Params, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        """Images (b, h, w, 3) in [-1, 1] to the features of each tap, and no further than the last.

        The published size is 299 x 299, which is not asserted: each side has at least `smallest_side` pixels.
        ValueError for fewer.
        """
        self.check(taps)
        if min(images.shape[1:3]) < (side := self.smallest_side(taps)):
            raise ValueError(f"{', '.join(taps)} need images of {side} pixels or more, got shape {images.shape}")
        x, found, wanted = images.astype(self.dtype), {}, set(taps)
        for name in self.names:
            if wanted <= found.keys():
                break
            x = found[name] = self._layer(params, x, name, found)
        return {tap: found[tap] for tap in taps}

    def _layer(self, params: Params, x: jax.Array, name: str, found: dict[str, jax.Array]) -> jax.Array:
        if name == "pool1":
            x = _convolve(x, params["Conv2d_1a_3x3"], stride=2, padding="VALID")
            x = _convolve(x, params["Conv2d_2a_3x3"], padding="VALID")
            return _max_pool(_convolve(x, params["Conv2d_2b_3x3"]))
        if name == "pool2":
            x = _convolve(x, params["Conv2d_3b_1x1"])
            return _max_pool(_convolve(x, params["Conv2d_4a_3x3"], padding="VALID"))
        if name == "pool3":
            return x.mean((1, 2))
        if name.startswith("logits"):
            logits = found["pool3"] @ params["fc"]["kernel"].astype(x.dtype)
            return logits + params["fc"]["bias"].astype(x.dtype) if name == "logits" else logits
        block = f"Mixed_{name.removeprefix('mixed')}"
        own = {convolution: params[f"{block}.{convolution}"] for convolution in BLOCKS[block]}
        return _BRANCHES[block](own, x)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks: what runs side by side, joined along the channels


def _a(params: Params, x: jax.Array) -> jax.Array:
    one, five, three, pooled = _beside(params, x, "branch1x1", "branch5x5_1", "branch3x3dbl_1", "branch_pool")
    five = _convolve(five, params["branch5x5_2"])
    three = _convolve(_convolve(three, params["branch3x3dbl_2"]), params["branch3x3dbl_3"])
    return jnp.concatenate([one, five, three, pooled], axis=-1)


def _b(params: Params, x: jax.Array) -> jax.Array:
    three = _convolve(x, params["branch3x3"], stride=2, padding="VALID")
    double = _convolve(_convolve(x, params["branch3x3dbl_1"]), params["branch3x3dbl_2"])
    double = _convolve(double, params["branch3x3dbl_3"], stride=2, padding="VALID")
    return jnp.concatenate([three, double, _max_pool(x)], axis=-1)


def _c(params: Params, x: jax.Array) -> jax.Array:
    one, seven, double, pooled = _beside(params, x, "branch1x1", "branch7x7_1", "branch7x7dbl_1", "branch_pool")
    for i in (2, 3):
        seven = _convolve(seven, params[f"branch7x7_{i}"])
    for i in (2, 3, 4, 5):
        double = _convolve(double, params[f"branch7x7dbl_{i}"])
    return jnp.concatenate([one, seven, double, pooled], axis=-1)


def _d(params: Params, x: jax.Array) -> jax.Array:
    three, seven = _beside(params, x, "branch3x3_1", "branch7x7x3_1")
    three = _convolve(three, params["branch3x3_2"], stride=2, padding="VALID")
    for i in (2, 3):
        seven = _convolve(seven, params[f"branch7x7x3_{i}"])
    seven = _convolve(seven, params["branch7x7x3_4"], stride=2, padding="VALID")
    return jnp.concatenate([three, seven, _max_pool(x)], axis=-1)


def _e(params: Params, x: jax.Array, pooling: str) -> jax.Array:
    if pooling == "mean":
        one, three, double, pooled = _beside(params, x, "branch1x1", "branch3x3_1", "branch3x3dbl_1", "branch_pool")
    else:
        one, three, double = _beside(params, x, "branch1x1", "branch3x3_1", "branch3x3dbl_1")
        pooled = _convolve(_max_pool_same(x), params["branch_pool"])
    three = [_convolve(three, params[f"branch3x3_2{i}"]) for i in "ab"]
    double = _convolve(double, params["branch3x3dbl_2"])
    double = [_convolve(double, params[f"branch3x3dbl_3{i}"]) for i in "ab"]
    return jnp.concatenate([one, *three, *double, pooled], axis=-1)


_BRANCHES = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _a),
    "Mixed_6a": _b,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _c),
    "Mixed_7a": _d,
    "Mixed_7b": functools.partial(_e, pooling="mean"),
    "Mixed_7c": functools.partial(_e, pooling="max"),
}


def _convolve(
    x: jax.Array, params: dict[str, jax.Array], stride: int = 1, padding: str = "SAME", relu: bool = True
) -> jax.Array:
    kernel, bias = params["kernel"].astype(x.dtype), params["bias"].astype(x.dtype)
    axes = ("NHWC", "HWIO", "NHWC")
    if kernel.shape[:2] == (1, 1):
        x = x @ kernel[0, 0]
    elif stride == 1 and padding == "VALID" and layers.on_cpu("auto"):
        # Computed with a border and cropped: XLA's CPU backend takes two to three times as long for it without one.
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)[:, 1:-1, 1:-1]
    else:
        x = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=axes)
    return jax.nn.relu(x + bias) if relu else x + bias


def _beside(params: Params, x: jax.Array, *names: str) -> list[jax.Array]:
    """1x1 convolutions of the same values as one matrix product.

    "branch_pool" convolves means of 3x3 pixels. The two are exchanged, which changes nothing but the rounding and takes
    the means of fewer channels.
    """
    joined = {part: jnp.concatenate([params[name][part] for name in names], axis=-1) for part in ("kernel", "bias")}
    ends = np.cumsum([len(params[name]["bias"]) for name in names])[:-1]
    parts = jnp.split(_convolve(x, joined, relu=False), ends, axis=-1)
    means = (_mean_3x3(part) if name == "branch_pool" else part for name, part in zip(names, parts, strict=True))
    return [jax.nn.relu(part) for part in means]


def _mean_3x3(x: jax.Array) -> jax.Array:
    """Mean of each pixel and its neighbours, of as many as there are: (b, h, w, c) -> (b, h, w, c)."""
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)])
        x = functools.reduce(jnp.add, (lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)))
        places = np.arange(size)
        count = 1.0 + (places > 0) + (places < size - 1)
        x = x * (1 / count).astype(x.dtype).reshape([size if a == axis else 1 for a in range(4)])
    return x


def _max_pool(x: jax.Array) -> jax.Array:
    """Largest of 3x3, every second pixel: (b, h, w, c) -> (b, (h - 1) // 2, (w - 1) // 2, c)."""
    return image_layers.pool_3x3(x, "max", ceil_mode=False)


def _max_pool_same(x: jax.Array) -> jax.Array:
    """Largest of each pixel and its neighbours, of values that are not negative: (b, h, w, c) -> (b, h, w, c)."""
    for axis in (1, 2):
        padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)])
        parts = (lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(3))
        x = functools.reduce(jnp.maximum, parts)
    return x


def fold(kernel: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> dict:
    """A convolution and the batch normalisation that follows it as one with a bias, in float64.

    kernel: (h, w, in, out). The others (out,): the normalisation's factor, shift and running statistics.
    """
    with np.errstate(invalid="ignore"):  # of a negative variance: who reads weights looks for values not finite
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + BATCH_NORM_EPSILON)
    return {"kernel": kernel * factor, "bias": bias - mean * factor}
