"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360) in the authors' version 1.1, without its classifier.

    network, params = weights.load("squeezenet")
    taps = network.apply(params, images, ("fire2", "fire9"))      # {"fire2": (b, h, w, c), ...}

Images are RGB in [-1, 1]; see vgg.py for the map of the colours that the network begins with.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.features.image_layers import (
    Extent,
    Padding,
    Params,
    check_taps,
    convolve,
    he_normal,
    map_colours,
    pool_3x3,
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

    padding: Padding = "zeros"  # of the fire modules' 3x3 convolutions; circular: of all layers
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
        check_taps(taps, self.names)

    def smallest_side(self, taps: Iterable[str]) -> int:
        """Pixels that the shorter side of an image needs to give every tap at least one value (two where reflected)."""
        if self.padding == "circular":
            return max(map(self.stride, taps), default=1)
        needed = 1
        for name in reversed(self._until(taps)):
            if name in FIRES and self.padding == "reflect":
                needed = max(needed, 2)
            elif name.startswith("pool"):
                needed = 2 * needed if self.ceil_mode else 2 * needed + 1
            elif name == "conv1":
                needed = 2 * needed + 1
        return needed

    def seamless(self) -> "SqueezeNet":
        """The same network for images that go on at their other end, whose sides are multiples of the strides."""
        return dataclasses.replace(self, padding="circular")

    def stride(self, tap: str) -> int:
        """Pixels from one value of this tap to the next."""
        return 2 ** (1 + sum(name.startswith("pool") for name in self._until([tap])))

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
            params[layer] = he_normal(key_layer, *shape)
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
                if self.padding == "circular":
                    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="wrap")
                x = lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=axes) + bias
            elif name == "relu1":
                x = jax.nn.relu(x)
            elif name in FIRES:
                fire = jax.checkpoint(self._fire, static_argnums=2) if self.remat else self._fire
                x = fire(params, x, name)
            else:
                x = pool_3x3(x, self.pooling, self.ceil_mode, self.padding == "circular")
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
