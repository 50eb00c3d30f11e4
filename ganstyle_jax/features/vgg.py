"""Perceptual features: VGG-16, VGG-19 and networks laid out like them, tapped by their layers' names.

    network, params = weights.load("vgg19")
    taps = network.apply(params, images, ("relu1_1", "relu4_2"))      # {"relu1_1": (b, h, w, c), ...}

Paper: Simonyan & Zisserman 2015 (arXiv:1409.1556), configurations D and E, without their classifiers. `conv4_2` is the
second convolution of the fourth block, `relu4_2` what follows it and `pool4` what ends the block.

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

from ganstyle_jax.features.image_layers import (
    Extent,
    Padding,
    Params,
    check_taps,
    convolve,
    he_normal,
    map_colours,
    pool,
)
from ganstyle_jax.features.squeezenet import FIRES as FIRES
from ganstyle_jax.features.squeezenet import SqueezeNet
from ganstyle_jax.nn import layers


@dataclasses.dataclass(frozen=True)
class VGG:
    """Blocks of 3x3 convolutions with ReLU, each but the last followed by 2x2 pooling; hashable, so static for `jit`.

    Its weights are a tree {"input": {"kernel": (3, 3), "bias": (3,)}, "conv1_1": {"kernel": (3, 3, 3, c), "bias":
    (c,)}, ...}; "input" takes RGB in [-1, 1] to what the first convolution expects. A small network may stand for a
    larger one: "head" (c, d) beside a kernel takes what follows the ReLU to the larger network's features, or to their
    first principal components, whose Gram matrices and distances are then about the larger one's. It changes the tap
    alone; the next convolution goes on from the ReLU.
    """

    channels: tuple[tuple[int, ...], ...]  # of each convolution, block by block
    padding: Padding = "zeros"  # of all convolutions
    first_padding: Padding | None = None  # of the first one, if it differs
    pooling: Literal["max", "average"] = "max"  # average: Gatys et al. 2016, doubled
    ceil_mode: bool = False  # a last odd row or column is pooled with itself rather than dropped
    # channels of the linear maps behind some "relu" taps, block by block, 0 where there is none: see `init`
    heads: tuple[tuple[int, ...], ...] = ()
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
        check_taps(taps, self.names)

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

    def seamless(self) -> "VGG":
        """The same network for images that go on at their other end, whose sides are multiples of the strides."""
        return dataclasses.replace(self, padding="circular", first_padding=None)

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
                params[f"conv{i}_{j}"] = he_normal(key_kernel, 3, before, features)
                head = self.heads[i - 1][j - 1] if self.heads else 0
                if head:
                    scale = features**-0.5
                    params[f"conv{i}_{j}"]["head"] = scale * jax.random.normal(key_kernel, (features, head))
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
            with jax.named_scope(f"vgg/conv{i}_{j}"):
                x = found[f"conv{i}_{j}"] = convolve(x, kernel, padding, self.platform, self._pooled(extent, i - 1))
                x = found[f"relu{i}_{j}"] = jax.nn.relu(x)
            if "head" in kernel and f"relu{i}_{j}" in wanted:
                found[f"relu{i}_{j}"] = x @ kernel["head"].astype(x.dtype)
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
    ((16, 32), (48, 64), (96, 64, 64, 80), (192, 128, 128, 160), (256,)),
    padding="zeros",
    first_padding="reflect",
    heads=((16, 0), (48, 0), (96, 0, 0, 0), (192, 128, 0, 0), (256,)),
)

Network = VGG | SqueezeNet  # what style transfer compares by


def prepare(network: Network, params: Params) -> Params:
    """The same weights as `apply` computes fastest with, for who uses them many times: the same features by other sums.

    On CPUs the largest kernels are replaced by "winograd" (4, 4, in, out).
    """
    if not layers.on_cpu(network.platform) or network.dtype == "bfloat16":  # whose precision the maps would spend
        return params
    large = [name for name, layer in params.items() if "kernel" in layer and _is_large(layer["kernel"])]
    mapped = _winograd_kernels({name: params[name]["kernel"] for name in large})
    kept = {name: {part: x for part, x in params[name].items() if part != "kernel"} for name in large}
    return params | {name: kept[name] | {"winograd": mapped[name]} for name in large}


def _is_large(kernel: jax.Array) -> bool:
    return (
        kernel.shape[:2] == (3, 3) and kernel.size >= 9 * 128 * 256
    )  # smaller ones take longer to compile than they gain


_winograd_kernels = jax.jit(lambda kernels: jax.tree.map(layers.winograd_kernel, kernels))
