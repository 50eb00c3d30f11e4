"""Perceptual features: VGG-16, VGG-19 and networks laid out like them, tapped by the field's names of their layers.

    network, params = vgg.load("compact")
    taps = network.apply(params, images, ("relu1_1", "relu4_2"))      # {"relu1_1": (b, h, w, c), ...}

Paper: Simonyan & Zisserman 2015 (arXiv:1409.1556), configurations D and E without their classifiers. `conv4_2` is the
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

from ganstyle_jax import layers

Params = dict[str, dict[str, jax.Array]]
POOL_GAIN = {"max": 1.0, "average": 2.0}  # the next layers expect values of the size of the largest
PAD_MODES = {"reflect": "reflect", "replicate": "edge"}


@dataclasses.dataclass(frozen=True)
class VGG:
    """Blocks of 3x3 convolutions with ReLU, each but the last followed by 2x2 pooling; hashable, so static for `jit`.

    Its weights are a tree {"input": {"kernel": (3, 3), "bias": (3,)}, "conv1_1": {"kernel": (3, 3, 3, c), "bias":
    (c,)}, ...}; "input" takes RGB in [-1, 1] to what the first convolution expects.
    """

    channels: tuple[tuple[int, ...], ...]  # of each convolution, block by block
    padding: Literal["zeros", "reflect", "replicate"] = "zeros"  # of all convolutions
    first_padding: Literal["zeros", "reflect", "replicate"] | None = None  # of the first one, if it differs
    pooling: Literal["max", "average"] = "max"  # average: Gatys et al. 2016, doubled
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
        if unknown := [tap for tap in taps if tap not in self.names]:
            raise ValueError(f"the network has no layer {unknown[0]!r}; it has {', '.join(self.names)}")

    def smallest_side(self, taps: Iterable[str]) -> int:
        """Pixels that the shorter side of an image needs to give every tap at least one value (two where reflected)."""
        depth = max((int(tap[4]) + tap.startswith("pool") for tap in taps), default=1)
        return 2 ** (depth - 1) * (2 if "reflect" in (self.padding, self.first_padding) else 1)

    def init(self, key: jax.Array) -> Params:
        """Random weights, He et al. 2015."""
        params: Params = {"input": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}
        before = 3
        for i, block in enumerate(self.channels, start=1):
            for j, features in enumerate(block, start=1):
                key, key_kernel = jax.random.split(key)
                kernel = jax.random.normal(key_kernel, (3, 3, before, features)) * (2 / (9 * before)) ** 0.5
                params[f"conv{i}_{j}"] = {"kernel": kernel, "bias": jnp.zeros(features)}
                before = features
        return params

    def apply(self, params: Params, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        """Images (b, h, w, 3) in [-1, 1] to the features (b, h', w', c) of each tap, and no further than the last."""
        self.check(taps)
        x = images.astype(self.dtype) @ params["input"]["kernel"].astype(self.dtype)
        x += params["input"]["bias"].astype(self.dtype)
        wanted, found = set(taps), {}
        for i in range(1, len(self.channels) + 1):
            if wanted <= found.keys():
                break
            block = self._block
            if self.remat:
                block = jax.checkpoint(block, static_argnums=(2, 3))
            x, new = block(params, x, i, frozenset(wanted))
            found |= new
        return {tap: found[tap] for tap in taps}

    def _block(self, params: Params, x: jax.Array, i: int, wanted: frozenset[str]) -> tuple[jax.Array, dict]:
        found = {}
        if i > 1:
            x = found[f"pool{i - 1}"] = pool(x, self.pooling)
        last = max((self.names.index(tap) for tap in wanted), default=-1)
        for j in range(1, len(self.channels[i - 1]) + 1):
            if self.names.index(f"conv{i}_{j}") > last:
                break
            padding = self.first_padding if (i, j) == (1, 1) and self.first_padding else self.padding
            x = found[f"conv{i}_{j}"] = convolve(x, params[f"conv{i}_{j}"], padding, self.platform)
            x = found[f"relu{i}_{j}"] = jax.nn.relu(x)
        return x, {tap: value for tap, value in found.items() if tap in wanted}


VGG16 = VGG(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3))
VGG19 = VGG(((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4))
COMPACT = VGG(((16, 16), (32, 32), (64, 64, 64), (128, 128), (128,)), padding="reflect")  # ships with the package


def convolve(x: jax.Array, params: dict[str, jax.Array], padding: str, platform: str = "auto") -> jax.Array:
    """3x3 convolution that keeps the size, with bias."""
    kernel, bias = params["kernel"].astype(x.dtype), params["bias"].astype(x.dtype)
    if padding == "zeros":
        return layers.conv(x, kernel, platform) + bias
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=PAD_MODES[padding])
    return layers.conv(x, kernel, platform)[:, 1:-1, 1:-1] + bias


def pool(x: jax.Array, pooling: str) -> jax.Array:
    """2x2 pooling of stride 2, (b, h, w, c) -> (b, h // 2, w // 2, c)."""
    if pooling == "max":
        return layers.max_pool(x)
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    quarters = [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]
    return POOL_GAIN[pooling] / 4 * functools.reduce(jnp.add, quarters)
