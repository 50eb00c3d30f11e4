"""LPIPS 0.1, a distance of two pictures by learned weights of a network's features (Zhang et al. 2018).

    measure = lpips.load("alex")                # after `ganstyle weights fetch alexnet` and `... fetch lpips-alex`
    distances = measure(images1, images2)       # (b,)

arXiv:1801.03924, eq. 1. At each tap features are brought to length 1 in each pixel; the squared differences, weighted
by channel and summed, are averaged over pixels, and the taps are added. Version 0.1 is the one that takes images as the
networks were trained on them: its shift and scale of RGB in [-1, 1] are ImageNet's mean and deviation, which is the map
of colours that the networks here begin with. Version 0.0 is not here.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.features import alexnet, weights
from ganstyle_jax.features.vgg import VGG, VGG16, Params, SqueezeNet
from ganstyle_jax.io.files import UserError

Kind = Literal["alex", "vgg", "squeeze"]
Trunk = VGG | SqueezeNet | alexnet.AlexNet


@dataclasses.dataclass(frozen=True)
class _Variant:
    trunk: Trunk
    weights: str  # the trunk's name in the list of weights
    taps: tuple[str, ...]


VARIANTS: dict[str, _Variant] = {
    "alex": _Variant(alexnet.AlexNet(), "alexnet", alexnet.TAPS),
    "vgg": _Variant(VGG16, "vgg16", ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")),
    "squeeze": _Variant(SqueezeNet(), "squeezenet", ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Lpips:
    """What `load` makes; call it with two batches of pictures."""

    kind: Kind
    trunk: Trunk
    params: Params
    heads: tuple[jax.Array, ...]  # (c,) of each tap, at least 0

    def __call__(self, images1: jax.Array | np.ndarray, images2: jax.Array | np.ndarray) -> jax.Array:
        """Distances (b,) float32, at least 0, of pictures (b, h, w, 3) or grey (b, h, w, 1) in [-1, 1].

        Differentiable by the pictures. Raises UserError for shapes that differ and for pictures that are too small.
        """
        taps = VARIANTS[self.kind].taps
        if images1.shape != images2.shape or images1.ndim != 4 or images1.shape[3] not in (1, 3):
            raise UserError(
                f"LPIPS compares pictures of one shape, (b, h, w, 3) or grey (b, h, w, 1), and these are"
                f" {images1.shape} and {images2.shape}: resize or crop them before"
            )
        needed = self.trunk.smallest_side(taps)
        if min(images1.shape[1:3]) < needed:
            raise UserError(
                f"LPIPS ({self.kind}) takes pictures of {needed} pixels and more, and these are {images1.shape[1:3]}:"
                " enlarge them, and say so beside the result"
            )
        return _distances(self.trunk, taps, self.params, self.heads, jnp.asarray(images1), jnp.asarray(images2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distances(
    trunk: Trunk, taps: tuple[str, ...], params: Params, heads: tuple[jax.Array, ...], a: jax.Array, b: jax.Array
) -> jax.Array:
    shape = (len(a), *a.shape[1:3], 3)
    with jax.default_matmul_precision("highest"):  # TF32 would change the third digit
        of_a, of_b = (trunk.apply(params, jnp.broadcast_to(x, shape), taps) for x in (a, b))
    total = jnp.zeros(len(a))
    for tap, head in zip(taps, heads, strict=True):
        squares = (_unit(of_a[tap]) - _unit(of_b[tap])) ** 2
        total += (squares * head).sum(-1).mean((1, 2))
    return total


def _unit(x: jax.Array) -> jax.Array:
    """Of length 1 along the channels, and 0 where x is; the gradient there is 0 too and not NaN, as of a plain root."""
    squares = (x**2).sum(-1, keepdims=True)
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return x / (norm + 1e-10)


def load(kind: Kind = "alex", trunk: Path | str | None = None, heads: Path | str | None = None) -> Lpips:
    """LPIPS of AlexNet, VGG-16 or SqueezeNet.

    trunk, heads: files, or names of `ganstyle weights list`; by default the published ones, "alexnet", "vgg16" or
    "squeezenet" of torchvision and "lpips-alex" and so on. Never downloads anything. UserError says how to get what is
    missing, and is raised for a trunk that the heads were not trained with.
    """
    if kind not in VARIANTS:
        raise UserError(f"LPIPS has the networks {', '.join(VARIANTS)}, and {kind!r} is not among them")
    variant = VARIANTS[kind]
    network, params = weights.load(variant.weights if trunk is None else trunk)
    colours = {k: np.asarray(x) for k, x in params.get("input", {}).items()}
    as_torchvision = colours.keys() == weights.IMAGENET_INPUT.keys() and all(
        np.allclose(x, weights.IMAGENET_INPUT[k], rtol=1e-5) for k, x in colours.items()
    )
    if network != variant.trunk or not as_torchvision:
        raise UserError(
            f"LPIPS ({kind}) was trained with {variant.weights} of torchvision, and {trunk} is another network: run"
            f" `ganstyle weights fetch {variant.weights}`"
        )
    found, arrays = weights.load(f"lpips-{kind}" if heads is None else heads)
    expected = weights.PUBLISHED[f"lpips-{kind}"].network
    assert isinstance(expected, weights.LpipsHeads)
    if found != expected:
        raise UserError(
            f"LPIPS ({kind}) needs heads of {', '.join(map(str, expected.widths))} channels, and {heads} has"
            f" {found}: run `ganstyle weights fetch lpips-{kind}`"
        )
    return Lpips(kind, variant.trunk, params, tuple(of["weight"] for _, of in sorted(arrays.items())))
