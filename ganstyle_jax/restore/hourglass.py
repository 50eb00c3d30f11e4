"""The network of Deep Image Prior: an hourglass with thin skip connections (Ulyanov, Vedaldi & Lempitsky 2018,
arXiv:1711.10925, figure 21 of the longer version and the supplement).

    network = Hourglass(depth=32, channels=(128,) * 5, skip=(4,) * 5)
    params = network.init(jax.random.key(0))
    picture = network.apply(params, noise)                             # (1, h, w, 32) -> (1, h, w, 3) in [0, 1]

Differs: convolutions that BatchNorm follows have no biases, which it would take away again. With their own biases the
authors' networks give the same pictures. What comes from the skip and what comes from below are convolved each by
itself and added, which is the convolution of both laid beside each other. Where nearest pixels are enlarged, BatchNorm
is taken of the small picture, which has the same mean and variance, and enlarging and convolving are one step
(image_transform.enlarge).
"""

import dataclasses
import itertools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from ganstyle_jax.nn.image_transform import enlarge, reduce, same, valid
from ganstyle_jax.nn.norm import instance_norm

Params = dict[str, Any]
Upsampling = Literal["nearest", "bilinear"]
SLOPE = 0.2  # of LeakyReLU below 0


@dataclasses.dataclass(frozen=True)
class Hourglass:
    """Scales, from the finest: down (stride 2), inner, the next scale, enlarging, joined with skip, up, point (1x1).

    All convolutions but the last are padded by reflection and followed by BatchNorm of this picture's own statistics
    and LeakyReLU; what is joined is normalised once more. Hashable, so static for `jit`.
    """

    depth: int = 32  # channels of the input
    channels: tuple[int, ...] = (128,) * 5
    skip: tuple[int, ...] = (4,) * 5  # channels of the skip connections, 0 for none
    kernel_down: int = 3  # pixels of the kernels on the way down, odd
    pointwise: bool = True
    upsampling: tuple[Upsampling, ...] = ("bilinear",) * 5
    colours: int = 3

    def __post_init__(self):
        for name in ("skip", "upsampling"):
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(
                    f"{name} must be of as many scales as channels, {len(self.channels)}, got {getattr(self, name)}"
                )
        if not self.channels or min(self.channels) < 1 or min(self.skip) < 0:
            raise ValueError(f"channels must be 1 or more and skip not negative, got {self.channels} and {self.skip}")
        if self.kernel_down < 3 or self.kernel_down % 2 == 0:
            raise ValueError(f"kernel_down must be odd and at least 3, got {self.kernel_down}")
        if wrong := [x for x in self.upsampling if x not in get_args(Upsampling)]:
            raise ValueError(f"upsampling must be {' or '.join(get_args(Upsampling))}, got {wrong[0]!r}")

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The next larger sides that all scales halve and that are long enough to be reflected at the coarsest."""
        unit = 2 ** len(self.channels)
        least = unit * (self.kernel_down // 2 + 1)
        return max(least, height + -height % unit), max(least, width + -width % unit)

    @property
    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Of kernels, (rows, columns, in, out), by "scale1/down", .., in the order in which they are applied."""
        found, size, before = {}, self.kernel_down, self.depth
        for i, (c, s) in enumerate(zip(self.channels, self.skip, strict=True)):
            name, deeper = f"scale{i + 1}", self.channels[min(i + 1, len(self.channels) - 1)]
            found |= {f"{name}/down": (size, size, before, c), f"{name}/inner": (size, size, c, c)}
            if s:
                found[f"{name}/skip"] = (1, 1, before, s)
            found[f"{name}/up"] = (3, 3, s + deeper, c)
            if self.pointwise:
                found[f"{name}/point"] = (1, 1, c, c)
            before = c
        return found | {"out": (1, 1, self.channels[0], self.colours)}

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """Random weights as PyTorch's: kernels and the last bias uniform within 1 / sqrt(inputs), scales 1, shifts 0.

        {"scale1": {"down": {"kernel", "scale", "shift"}, "inner", "skip", "joined": {"scale", "shift"}, "up",
        "point"}, .., "out": {"kernel", "bias"}}.
        """
        params: Params = {}
        # All in one draw, which compiles in a fraction of the time.
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        numbers = jax.random.uniform(key, (sum(sizes) + self.colours,), dtype, -1, 1)
        parts = jnp.split(numbers, list(itertools.accumulate(sizes)))
        for (name, shape), part in zip(self.shapes.items(), parts[:-1], strict=True):
            bound = math.prod(shape[:3]) ** -0.5
            kernel = bound * part.reshape(shape)
            scale, _, layer = name.partition("/")
            if not layer:
                params[name] = {"kernel": kernel, "bias": bound * parts[-1]}
                continue
            of = params.setdefault(scale, {})
            of[layer] = {"kernel": kernel, "scale": jnp.ones(shape[3], dtype), "shift": jnp.zeros(shape[3], dtype)}
            if layer == "up":
                of["joined"] = {"scale": jnp.ones(shape[2], dtype), "shift": jnp.zeros(shape[2], dtype)}
        return params

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """(1, h, w, depth) -> (1, h, w, colours) in [0, 1]; h and w as `canvas` gives them."""
        wanted = self.canvas(*x.shape[1:3])
        if x.shape[1:3] != wanted or x.shape[3] != self.depth:
            raise ValueError(f"the input must be {wanted[0]}x{wanted[1]} of {self.depth} channels, got {x.shape[1:]}")
        out = params["out"]
        return jax.nn.sigmoid(_pointwise(self._scale(params, x, 0), out["kernel"]) + out["bias"])

    def _scale(self, params: Params, x: jax.Array, i: int) -> jax.Array:
        of, skip = params[f"scale{i + 1}"], self.skip[i]
        y = _normal(reduce(x, of["down"]["kernel"]), of["down"])
        y = _normal(same(y, of["inner"]["kernel"]), of["inner"])
        if i + 1 < len(self.channels):
            y = self._scale(params, y, i + 1)
        joined, kernel = of["joined"], of["up"]["kernel"]
        beside = []
        if skip:
            s = _normal(_pointwise(x, of["skip"]["kernel"]), of["skip"])
            beside = [instance_norm(s, joined["scale"][None, :skip], joined["shift"][None, :skip])]
        deeper = joined["scale"][None, skip:], joined["shift"][None, skip:]
        if self.upsampling[i] == "nearest":
            y = enlarge(instance_norm(y, *deeper), kernel[:, :, skip:])
        else:
            y = same(instance_norm(bilinear(y), *deeper), kernel[:, :, skip:])
        y = sum((same(s, kernel[:, :, :skip]) for s in beside), start=y)
        y = _normal(y, of["up"])
        return _normal(_pointwise(y, of["point"]["kernel"]), of["point"]) if self.pointwise else y


def bilinear(x: jax.Array) -> jax.Array:
    """(b, h, w, c) -> (b, 2h, 2w, c): PyTorch's Upsample(scale_factor=2, mode="bilinear")."""
    for axis in (1, 2):
        size = x.shape[axis]
        first, last = (jax.lax.slice_in_dim(x, k, k + 1, axis=axis) for k in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
        pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def _normal(x: jax.Array, of: Params) -> jax.Array:
    """BatchNorm of one picture, whose own statistics are the batch's, and LeakyReLU."""
    return jax.nn.leaky_relu(instance_norm(x, of["scale"][None], of["shift"][None]), SLOPE)


def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return valid(x, kernel)
