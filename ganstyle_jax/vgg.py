"""Perceptual features: VGG-16, VGG-19, networks laid out like them, and SqueezeNet, tapped by their layers' names.

    network, params = weights.load("vgg19")
    taps = network.apply(params, images, ("relu1_1", "relu4_2"))      # {"relu1_1": (b, h, w, c), ...}

Papers: Simonyan & Zisserman 2015 (arXiv:1409.1556), configurations D and E; Iandola et al. 2016 (arXiv:1602.07360), in
the authors' version 1.1; both without their classifiers. `conv4_2` is the second convolution of VGG's fourth block,
`relu4_2` what follows it and `pool4` what ends the block.

Images are RGB in [-1, 1], as everywhere here. What a network was trained on differs: RGB in [0, 1] less ImageNet's mean
and over its deviation (torchvision), BGR in [0, 255] less a mean (Caffe, Keras), RGB in [0, 1] (the normalised VGG).
All of these are affine in the three colours, so a network begins with such a map and nobody else needs to know.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax import layers

Params = dict[str, dict[str, jax.Array]]
Padding = Literal["zeros", "reflect", "replicate"]
Extent = tuple[int | jax.Array, int | jax.Array]  # rows and columns of an image whose array may have more or fewer
POOL_GAIN = {"max": 1.0, "average": 2.0}  # the next layers expect values of the size of the largest
PAD_MODES = {"reflect": "reflect", "replicate": "edge"}
PAD_SHIFTS = {"reflect": 2, "replicate": 1}  # so many rows lie between what is put past the border and its source


@dataclasses.dataclass(frozen=True)
class VGG:
    """Blocks of 3x3 convolutions with ReLU, each but the last followed by 2x2 pooling; hashable, so static for `jit`.

    Its weights are a tree {"input": {"kernel": (3, 3), "bias": (3,)}, "conv1_1": {"kernel": (3, 3, 3, c), "bias":
    (c,)}, ...}; "input" takes RGB in [-1, 1] to what the first convolution expects.
    """

    channels: tuple[tuple[int, ...], ...]  # of each convolution, block by block
    padding: Padding = "zeros"  # of all convolutions
    first_padding: Padding | None = None  # of the first one, if it differs
    pooling: Literal["max", "average"] = "max"  # average: Gatys et al. 2016, doubled
    ceil_mode: bool = False  # a last odd row or column is pooled with itself rather than dropped
    dtype: str = "float32"  # of the arithmetic and the features
    remat: bool = False  # compute blocks again for the gradient rather than keep them: less memory, a third slower
    platform: Literal["auto", "cpu", "xla"] = "auto"  # see layers.conv

    @property
    def names(self) -> list[str]:
        """All taps, in order."""
        names = []
        for i, block in enumerate(self.channels, start=1):
            for j in range(1, len(block) + 1):
                names += [f"conv{i}_{j}", f"relu{i}_{j}"]
            names.append(f"pool{i}")
        return names[:-1]

    def check(self, taps: Iterable[str]) -> None:
        """ValueError for a tap that this network does not have."""
        _check(taps, self.names)

    def smallest_side(self, taps: Iterable[str]) -> int:
        """Pixels that the shorter side of an image needs to give every tap at least one value (two where reflected)."""
        side = 2 if self.first_padding == "reflect" else 1
        for tap in taps:
            block, needed = int(tap[4]), 2 if self.padding == "reflect" else 1
            if tap.startswith("pool") and not self.ceil_mode:
                needed = 2
            for _ in range(block - 1):
                needed = 2 * needed - self.ceil_mode
            side = max(side, needed)
        return side

    def stride(self, tap: str) -> int:
        """Pixels from one value of this tap to the next."""
        return 2 ** (int(tap[4]) - (not tap.startswith("pool")))

    def reach(self, taps: Iterable[str]) -> int:
        """Pixels beyond its own square of stride x stride that a value of these taps depends on at most, on each side.

        Poolings stay within the square; each convolution adds a value on each side, which is its stride in pixels.
        """
        return max((sum(map(self.stride, self._convolutions(tap))) for tap in taps), default=0)

    def _convolutions(self, tap: str) -> list[str]:
        """The names of all convolutions that this tap follows or is."""
        return [name for name in self.names[: self.names.index(tap) + 1] if name.startswith("conv")]

    def init(self, key: jax.Array) -> Params:
        """Random weights, He et al. 2015."""
        params: Params = {"input": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}
        before = 3
        for i, block in enumerate(self.channels, start=1):
            for j, features in enumerate(block, start=1):
                key, key_kernel = jax.random.split(key)
                params[f"conv{i}_{j}"] = _he(key_kernel, 3, before, features)
                before = features
        return params

    def apply(
        self, params: Params, images: jax.Array, taps: Sequence[str], extent: Extent | None = None
    ) -> dict[str, jax.Array]:
        """Images (b, h, w, 3) in [-1, 1] to the features (b, h', w', c) of each tap, and no further than the last.

        params: weights as they are, or from `prepare`.
        extent: the image's rows and columns, at least `smallest_side`, where the array has others; they may be traced.
        In a larger array the image is what comes first: of the features, extent // `stride` rows and columns, rounded
        up in `ceil_mode`, are those of the image alone, those beyond mean nothing but are finite, and the gradient by
        what lies beyond the image is 0. A smaller array is the first part of the image and padded at its own end as if
        it were all of it, so that features within `reach` of there are not the image's. Python's integers cost nothing
        on an axis where the array ends no later than the image.
        """
        self.check(taps)
        x = map_colours(images, params["input"], self.dtype)
        wanted, found = set(taps), {}
        for i in range(1, len(self.channels) + 1):
            if wanted <= found.keys():
                break
            # The extent is bound and not passed, because `checkpoint` makes arrays of integers that it is passed.
            block = functools.partial(self._block, i=i, wanted=frozenset(wanted), extent=extent)
            if self.remat:
                block = jax.checkpoint(block)
            x, new = block(params, x)
            found |= new
        return {tap: found[tap] for tap in taps}

    def _block(
        self, params: Params, x: jax.Array, i: int, wanted: frozenset[str], extent: Extent | None
    ) -> tuple[jax.Array, dict]:
        """One block, from what the one before gives to what it gives itself, and taps. extent: of the image."""
        found = {}
        if i > 1:
            x = found[f"pool{i - 1}"] = pool(x, self.pooling, self.ceil_mode, self._pooled(extent, i - 2))
        last = max((self.names.index(tap) for tap in wanted), default=-1)
        for j in range(1, len(self.channels[i - 1]) + 1):
            if self.names.index(f"conv{i}_{j}") > last:
                break
            padding = self.first_padding if (i, j) == (1, 1) and self.first_padding else self.padding
            kernel = params[f"conv{i}_{j}"]
            x = found[f"conv{i}_{j}"] = convolve(x, kernel, padding, self.platform, self._pooled(extent, i - 1))
            x = found[f"relu{i}_{j}"] = jax.nn.relu(x)
        return x, {tap: value for tap, value in found.items() if tap in wanted}

    def _pooled(self, extent: Extent | None, times: int) -> Extent | None:
        """What is left of the image's extent after so many poolings."""
        if extent is None:
            return None
        rows, columns = ((side + self.ceil_mode * (2**times - 1)) // 2**times for side in extent)
        return rows, columns


VGG16 = VGG(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3))
VGG19 = VGG(((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4))
# experiments/distill_vgg.py; zeros in the first layer too leave a rim, mirrored borders in all take half as long again
COMPACT = VGG(
    ((16, 16), (32, 32), (64, 48, 48, 64), (128, 96, 96, 128), (128,)), padding="zeros", first_padding="reflect"
)

# Channels of each fire module of SqueezeNet 1.1: what it squeezes to, and each half of what it expands to.
FIRES = {
    **{"fire2": (16, 64), "fire3": (16, 64), "fire4": (32, 128), "fire5": (32, 128)},
    **{"fire6": (48, 192), "fire7": (48, 192), "fire8": (64, 256), "fire9": (64, 256)},
}


@dataclasses.dataclass(frozen=True)
class SqueezeNet:
    """SqueezeNet 1.1: a 3x3 convolution of stride 2 without padding, then fire modules; hashable like `VGG`.

    A fire module squeezes by a 1x1 convolution and expands by a 1x1 and a 3x3 one side by side, each with ReLU; its tap
    is what they give together. Weights: as VGG's, with "conv1", "fire2_squeeze", "fire2_expand1x1", "fire2_expand3x3".
    """

    padding: Padding = "zeros"  # of the fire modules' 3x3 convolutions
    pooling: Literal["max", "average"] = "max"  # 3x3 of stride 2
    ceil_mode: bool = True  # pool what is left over at the edges too, as torchvision does and Keras does not
    dtype: str = "float32"  # of the arithmetic and the features
    remat: bool = False  # compute modules again for the gradient rather than keep them
    platform: Literal["auto", "cpu", "xla"] = "auto"  # see layers.conv

    @property
    def names(self) -> list[str]:
        """All taps, in order."""
        fires = list(FIRES)
        return ["conv1", "relu1", "pool1", *fires[:2], "pool3", *fires[2:4], "pool5", *fires[4:]]

    def check(self, taps: Iterable[str]) -> None:
        """ValueError for a tap that this network does not have."""
        _check(taps, self.names)

    def smallest_side(self, taps: Iterable[str]) -> int:
        """Pixels that the shorter side of an image needs to give every tap at least one value (two where reflected)."""
        needed = 1
        for name in reversed(self._until(taps)):
            if name in FIRES and self.padding == "reflect":
                needed = max(needed, 2)
            elif name.startswith("pool"):
                needed = 2 * needed if self.ceil_mode else 2 * needed + 1
            elif name == "conv1":
                needed = 2 * needed + 1
        return needed

    def init(self, key: jax.Array) -> Params:
        """Random weights, He et al. 2015."""
        params: Params = {"input": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}
        shapes, before = {"conv1": (3, 3, 64)}, 64
        for fire, (squeezed, expanded) in FIRES.items():
            shapes[f"{fire}_squeeze"] = (1, before, squeezed)
            shapes[f"{fire}_expand1x1"] = (1, squeezed, expanded)
            shapes[f"{fire}_expand3x3"] = (3, squeezed, expanded)
            before = 2 * expanded
        for key_layer, (layer, shape) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True):
            params[layer] = _he(key_layer, *shape)
        return params

    def apply(
        self, params: Params, images: jax.Array, taps: Sequence[str], extent: Extent | None = None
    ) -> dict[str, jax.Array]:
        """Images (b, h, w, 3) in [-1, 1] to the features (b, h', w', c) of each tap, and no further than the last.

        extent: None; ValueError for any, VGG's alone can be padded.
        """
        self.check(taps)
        if extent is not None:
            raise ValueError(f"SqueezeNet takes images without padding, that is extent=None, and not {extent}")
        x = map_colours(images, params["input"], self.dtype)
        found = {}
        for name in self._until(taps):
            if name == "conv1":
                kernel, bias = (params[name][part].astype(x.dtype) for part in ("kernel", "bias"))
                axes = ("NHWC", "HWIO", "NHWC")
                x = lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=axes) + bias
            elif name == "relu1":
                x = jax.nn.relu(x)
            elif name in FIRES:
                fire = jax.checkpoint(self._fire, static_argnums=2) if self.remat else self._fire
                x = fire(params, x, name)
            else:
                x = pool_3x3(x, self.pooling, self.ceil_mode)
            found[name] = x
        return {tap: found[tap] for tap in taps}

    def _until(self, taps: Iterable[str]) -> list[str]:
        """The taps up to the last of these."""
        return self.names[: max((self.names.index(tap) + 1 for tap in taps), default=0)]

    def _fire(self, params: Params, x: jax.Array, name: str) -> jax.Array:
        x = jax.nn.relu(convolve(x, params[f"{name}_squeeze"], "zeros", self.platform))
        left = convolve(x, params[f"{name}_expand1x1"], "zeros", self.platform)
        right = convolve(x, params[f"{name}_expand3x3"], self.padding, self.platform)
        return jax.nn.relu(jnp.concatenate([left, right], axis=-1))


Network = VGG | SqueezeNet


def prepare(network: Network, params: Params) -> Params:
    """The same weights as `apply` computes fastest with, for who uses them many times: the same features by other sums.

    On CPUs the largest kernels are replaced by "winograd" (4, 4, in, out).
    """
    if not layers.on_cpu(network.platform) or network.dtype == "bfloat16":  # whose precision the maps would spend
        return params
    large = [name for name, layer in params.items() if "kernel" in layer and _is_large(layer["kernel"])]
    mapped = _winograd_kernels({name: params[name]["kernel"] for name in large})
    return params | {name: {"winograd": mapped[name], "bias": params[name]["bias"]} for name in large}


def _is_large(kernel: jax.Array) -> bool:
    return kernel.shape[:2] == (3, 3) and kernel.size >= 9 * 128 * 256  # 128 * 128 is no faster


_winograd_kernels = jax.jit(lambda kernels: jax.tree.map(layers.winograd_kernel, kernels))


def _check(taps: Iterable[str], names: list[str]) -> None:
    if unknown := [tap for tap in taps if tap not in names]:
        raise ValueError(f"the network has no layer {unknown[0]!r}; it has {', '.join(names)}")


def _he(key: jax.Array, size: int, before: int, features: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (size, size, before, features)) * (2 / (size**2 * before)) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(features)}


def map_colours(images: jax.Array, params: dict[str, jax.Array], dtype: str) -> jax.Array:
    """The affine map of the three colours, (..., 3) -> (..., 3), at full precision whatever the features' type."""
    return (jnp.matmul(images, params["kernel"], precision="highest") + params["bias"]).astype(dtype)


def convolve(
    x: jax.Array, params: dict[str, jax.Array], padding: str, platform: str = "auto", extent: Extent | None = None
) -> jax.Array:
    """Convolution that keeps the size, with bias; 3x3 or, with zeros, any odd size. extent: of x, see `VGG.apply`."""
    if "winograd" in params:
        conv = functools.partial(layers.winograd, kernel=params["winograd"].astype(x.dtype))
    else:
        conv = functools.partial(layers.conv, kernel=params["kernel"].astype(x.dtype), platform=platform)
    bias = params["bias"].astype(x.dtype)
    if padding == "zeros":
        return conv(_blank(x, extent)) + bias
    return conv(_pad(x, padding, ((1, 1), (1, 1)), extent))[:, 1:-1, 1:-1] + bias


def pool(x: jax.Array, pooling: str, ceil_mode: bool = False, extent: Extent | None = None) -> jax.Array:
    """2x2 pooling of stride 2, (b, h, w, c) -> (b, h // 2, w // 2, c), rounded up in `ceil_mode`.

    extent: of x, see `VGG.apply`; that of the result is its half, rounded likewise.
    """
    if ceil_mode:  # a repeated value changes neither the largest nor the mean
        x = _pad(x, "replicate", ((0, x.shape[1] % 2), (0, x.shape[2] % 2)), extent)
    if pooling == "max":
        return layers.max_pool(x)
    return POOL_GAIN[pooling] * _mean(layers.windows(x, 2))


def _blank(x: jax.Array, extent: Extent | None) -> jax.Array:
    """Zeros in the place of all that is not the image, (b, h, w, c)."""
    for axis, side in enumerate(extent or (), start=1):
        if not _fills(side, x.shape[axis]):
            x = jnp.where(_places(x, axis) < side, x, 0)
    return x


def _pad(x: jax.Array, padding: str, widths: tuple[tuple[int, int], ...], extent: Extent | None) -> jax.Array:
    """np.pad of an image that may end before its array does: (b, h, w, c) -> (b, low + h + high, low + w + high, c).

    padding: "reflect" or "replicate". widths: (low, high) of rows and of columns, each 0 or 1. The padding follows the
    image where that ends within the array, and else the array; what is left beyond it becomes 0.
    """
    if extent is None:
        return jnp.pad(x, ((0, 0), *widths, (0, 0)), mode=PAD_MODES[padding])
    for axis, (side, (low, high)) in enumerate(zip(extent, widths, strict=True), start=1):
        size, shift = x.shape[axis], PAD_SHIFTS[padding]
        if _fills(side, size):
            x = jnp.pad(x, [(low, high) if a == axis else (0, 0) for a in range(4)], mode=PAD_MODES[padding])
            continue
        # Of x and of x shifted, element by element: devices that share the rows then exchange a few with their
        # neighbours, while an index that is not known when compiling would have them gather the whole.
        x = _move(x, axis, low, high)
        place, end = _places(x, axis) - low, jnp.minimum(side, size)
        past = jnp.where(place == end, _move(x, axis, shift, -shift), 0)
        padded = jnp.where(place < end, x, past)
        x = jnp.where(place < 0, _move(x, axis, -shift, shift), padded) if low else padded
    return x


def _fills(side: int | jax.Array, size: int) -> bool:
    """Whether an image is known to end no earlier than its array."""
    return isinstance(side, int) and side >= size


def _places(x: jax.Array, axis: int) -> jax.Array:
    """The index of each row or column, (b, h, w, 1)."""
    return lax.broadcasted_iota(jnp.int32, (*x.shape[:3], 1), axis)


def _move(x: jax.Array, axis: int, low: int, high: int) -> jax.Array:
    """Zeros before and after; where a width is negative, so many values fewer."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)])


def pool_3x3(x: jax.Array, pooling: str, ceil_mode: bool) -> jax.Array:
    """3x3 pooling of stride 2, (b, h, w, c) -> (b, (h - 1) // 2, (w - 1) // 2, c), or h // 2 and w // 2 in `ceil_mode`.

    There the last row and column are repeated where they are needed: the largest values are those of PyTorch's
    `ceil_mode`, averages differ from its at these edges.
    """
    if ceil_mode:
        x = jnp.pad(x, ((0, 0), (0, (x.shape[1] + 1) % 2), (0, (x.shape[2] + 1) % 2), (0, 0)), mode="edge")
    return _max_pool_3x3(x) if pooling == "max" else POOL_GAIN[pooling] * _mean(layers.windows(x, 3))


def _mean(parts: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, parts) / len(parts)


@jax.custom_vjp
def _max_pool_3x3(x: jax.Array) -> jax.Array:
    """As `layers.max_pool`, of windows that overlap."""
    return functools.reduce(jnp.maximum, layers.windows(x, 3))


def _max_pool_3x3_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    x, y = residuals
    taken, total = jnp.zeros(y.shape, bool), jnp.zeros(x.shape, gradient.dtype)
    left = [side - 2 * pooled + 1 for side, pooled in zip(x.shape[1:3], y.shape[1:3], strict=True)]
    for n, part in enumerate(layers.windows(x, 3)):
        first = (part == y) & ~taken
        taken |= first
        i, j = divmod(n, 3)
        places = ((0, 0, 0), (i, left[0] - i, 1), (j, left[1] - j, 1), (0, 0, 0))  # back to where the part came from
        total += lax.pad(jnp.where(first, gradient, 0), jnp.zeros((), gradient.dtype), places)
    return (total,)


_max_pool_3x3.defvjp(lambda x: ((y := _max_pool_3x3(x)), (x, y)), _max_pool_3x3_backward)
