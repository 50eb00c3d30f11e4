"""AlexNet without its classifier, for LPIPS, tapped by its layers' names.

    network, params = weights.load("alexnet")
    taps = network.apply(params, images, alexnet.TAPS)      # {"relu1": (b, h, w, 64), ...}

Paper: Krizhevsky 2014 (arXiv:1404.5997), the version on one GPU, as torchvision has it. Images are RGB in [-1, 1], as
everywhere here; see vgg.py for the map of the colours that the network begins with.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.features import image_layers

# Of each convolution: features, side of the kernel, stride, padding with zeros.
CONVOLUTIONS = {
    **{"conv1": (64, 11, 4, 2), "conv2": (192, 5, 1, 2), "conv3": (384, 3, 1, 1)},
    **{"conv4": (256, 3, 1, 1), "conv5": (256, 3, 1, 1)},
}
TAPS = ("relu1", "relu2", "relu3", "relu4", "relu5")


@dataclasses.dataclass(frozen=True)
class AlexNet:
    """Five convolutions with ReLU, 3x3 pooling of stride 2 after the first two; hashable, so static for `jit`.

    Weights: as vgg.VGG's, {"input": {"kernel": (3, 3), "bias": (3,)}, "conv1": {"kernel": (11, 11, 3, 64), ...}, ...}.
    """

    dtype: str = "float32"  # of the arithmetic and the features

    @property
    def names(self) -> list[str]:
        """All taps, in order."""
        names = []
        for i in range(1, 6):
            names += [f"conv{i}", f"relu{i}", *([f"pool{i}"] if i < 3 else [])]
        return names

    def check(self, taps: Iterable[str]) -> None:
        """ValueError for a tap that this network does not have."""
        if unknown := [tap for tap in taps if tap not in self.names]:
            raise ValueError(f"the network has no layer {unknown[0]!r}; it has {', '.join(self.names)}")

    def smallest_side(self, taps: Iterable[str]) -> int:
        """Pixels that the shorter side of an image needs to give every tap at least one value."""
        needed = 1
        for name in reversed(self._until(taps)):
            if name.startswith("pool"):
                needed = 2 * needed + 1
            elif name == "conv1":
                needed = 4 * (needed - 1) + 11 - 2 * 2
        return needed

    def init(self, key: jax.Array) -> image_layers.Params:
        """Random weights, He et al. 2015."""
        params: image_layers.Params = {"input": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}
        before = 3
        for key_layer, (name, (features, side, _, _)) in zip(
            jax.random.split(key, 5), CONVOLUTIONS.items(), strict=True
        ):
            kernel = jax.random.normal(key_layer, (side, side, before, features)) * (2 / (side**2 * before)) ** 0.5
            params[name], before = {"kernel": kernel, "bias": jnp.zeros(features)}, features
        return params

    def apply(self, params: image_layers.Params, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        """Images (b, h, w, 3) in [-1, 1] to the features (b, h', w', c) of each tap, and no further than the last."""
        self.check(taps)
        x = image_layers.map_colours(images, params["input"], self.dtype)
        found = {}
        for name in self._until(taps):
            if name.startswith("conv"):
                _, _, stride, padding = CONVOLUTIONS[name]
                kernel, bias = (params[name][part].astype(x.dtype) for part in ("kernel", "bias"))
                pads, axes = ((padding, padding),) * 2, ("NHWC", "HWIO", "NHWC")
                x = lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=axes) + bias
            elif name.startswith("relu"):
                x = jax.nn.relu(x)
            else:
                x = image_layers.pool_3x3(x, "max", ceil_mode=False)
            found[name] = x
        return {tap: found[tap] for tap in taps}

    def _until(self, taps: Iterable[str]) -> list[str]:
        """The taps up to the last of these."""
        return self.names[: max((self.names.index(tap) + 1 for tap in taps), default=0)]
