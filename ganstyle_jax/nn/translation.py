"""The networks that translate pictures of one kind into another: two generators and a discriminator of patches.

    generator = ResNetGenerator(blocks=9)
    params = generator.init(jax.random.key(0))
    translated = generator.apply(params, images)                       # (b, h, w, 3) in [-1, 1] -> the same
    logits = PatchDiscriminator().apply(judge, translated)             # (b, h', w', 1), one for each patch

They are those of CycleGAN (Zhu et al. 2017, arXiv:1703.10593, section 7.2) and pix2pix (Isola et al. 2017,
arXiv:1611.07004, section 6.1) as the common PyTorch implementation, pytorch-CycleGAN-and-pix2pix, has them. All
normalise each picture by itself (`layers.instance_norm`, no running statistics), so that what becomes of a picture
does not depend on the rest of the batch: batches may be joined and divided at will.

Weights are trees of dicts, a layer {"kernel": HWIO, "bias", "scale", "shift"}. Of these all but the kernel may be
missing, and then count as 0, 1 and 0. `init` makes those that have an effect: a normalisation takes away the bias
before it, whose gradient would be rounding errors; a file's may be left in or out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp

from ganstyle_jax.nn import layers
from ganstyle_jax.nn.image_transform import (
    Padding,
    Upsampling,
    enlarge,
    padded,
    put_layer,
    reduce,
    same,
    transposed,
    valid,
)

Params = dict[str, Any]  # {layer: {"kernel", ...}}, or of a block {"first": .., "second": ..}
SMALLEST = 16  # pixels of a side: reflection at a quarter of the size needs more than one
SLOPE = 0.2  # of leaky ReLU


def _leaky(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, SLOPE * x)


def _biased(x: jax.Array, weights: Params) -> jax.Array:
    return x + weights["bias"] if "bias" in weights else x


def _normal(x: jax.Array, weights: Params) -> jax.Array:
    """Instance normalisation of what a convolution gives."""
    return layers.instance_norm(x, weights.get("scale"), weights.get("shift"))


def _layer(key: jax.Array, shape: tuple[int, ...], dtype: Any, bias: bool, affine: bool) -> Params:
    """Weights of N(0, 0.02^2), biases of 0, scales of N(1, 0.02^2), shifts of 0 (section 7.1 of CycleGAN)."""
    weights = {"kernel": 0.02 * jax.random.normal(key, shape, dtype)}
    channels = shape[3]
    if bias:
        weights["bias"] = jnp.zeros(channels, dtype)
    if affine:
        weights["scale"] = 1 + 0.02 * jax.random.normal(jax.random.fold_in(key, 1), (channels,), dtype)
        weights["shift"] = jnp.zeros(channels, dtype)
    return weights


def _checked(network: Any, positive: tuple[str, ...], choices: dict[str, tuple[str, ...]]) -> None:
    for name in positive:
        if getattr(network, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(network, name)}")
    for name, accepted in choices.items():
        if getattr(network, name) not in accepted:
            raise ValueError(f"{name} must be {' or '.join(accepted)}, got {getattr(network, name)!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Generators


@dataclasses.dataclass(frozen=True)
class ResNetGenerator:
    """Layers, in order: down1 (7x7), down2, down3 (3x3, stride 2), block1.., up1, up2 (3x3, twice the size), out (7x7).

    All but the last are followed by instance normalisation and ReLU; a block is two 3x3 convolutions, without the
    second ReLU, and adds its input. Hashable, so static for `jit`; its weights are a tree of arrays, see `init`.

    Padding as in the common implementation: 7x7 as `ends` says, down2 and down3 with zeros, blocks as `padding` says.
    """

    width: int = 64  # channels at full size; twice as many at half of it, four times at a quarter
    blocks: int = 9  # residual blocks; 6 for pictures of 128 pixels
    upsampling: Upsampling = "transposed"  # as in the paper; "nearest": before a 3x3 convolution, no checkerboards
    padding: Padding = "reflect"  # of the blocks
    ends: Padding = "reflect"  # of the 7x7 convolutions; "zero": as in the common implementation's first versions
    affine: bool = False  # scales and shifts of the normalisations
    channels: int = 3  # of the pictures that come out
    inputs: int = 3  # of those that go in

    def __post_init__(self):
        choices = {"upsampling": get_args(Upsampling), "padding": get_args(Padding), "ends": get_args(Padding)}
        _checked(self, ("width", "channels", "inputs"), choices)
        if self.blocks < 0:
            raise ValueError(f"blocks must not be negative, got {self.blocks}")

    @property
    def multiple(self) -> int:
        """Of which the sides of a picture are multiples, or else it is padded by reflection."""
        return 4

    @property
    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Of kernels, (rows, columns, in, out), by the names of layers in their order; "block1/first" in block1."""
        w = self.width
        shapes = {"down1": (7, 7, self.inputs, w), "down2": (3, 3, w, 2 * w), "down3": (3, 3, 2 * w, 4 * w)}
        for i in range(1, self.blocks + 1):
            shapes |= {f"block{i}/{half}": (3, 3, 4 * w, 4 * w) for half in ("first", "second")}
        return shapes | {"up1": (3, 3, 4 * w, 2 * w), "up2": (3, 3, 2 * w, w), "out": (7, 7, w, self.channels)}

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """{"down1": {"kernel": (7, 7, 3, w)}, "down2": .., "down3": .., "block1": {"first": {"kernel": (3, 3, 4 w, 4
        w)}, "second": ..}, ..., "up1": .., "up2": .., "out": {"kernel": (7, 7, w, 3), "bias": (3,)}}.

        With `affine` all but "out" have "scale" and "shift" (c,) too. A shift that later normalisations take away is
        left out, see `silent_shift`. The kernels of a transposed convolution are PyTorch's up to the order of axes, see
        image_transform.transposed: (in, out, rows, columns) there.
        """
        params: Params = {}
        for i, (name, shape) in enumerate(self.shapes.items()):
            last = name == "out"
            layer = _layer(jax.random.fold_in(key, i), shape, dtype, bias=last, affine=self.affine and not last)
            block, _, half = name.partition("/")
            if half == "second" and self.silent_shift(block):
                layer.pop("shift", None)
            put_layer(params, name, layer)
        return params

    def silent_shift(self, block: str) -> bool:
        """Whether the shift of what a block adds has no effect: no zeros are padded before it is normalised again."""
        return self.upsampling == "nearest" and (self.padding == "reflect" or block == f"block{self.blocks}")

    def apply(self, params: Params, images: jax.Array) -> jax.Array:
        """Images (b, h, w, 3) in [-1, 1], of any sides from 16 pixels up, to images of the same shape and range.

        An image is padded by reflection to multiples of 4 and the result is cropped. ValueError for a smaller one.
        """
        with jax.named_scope("generator"):
            x, _ = self.encode(params, images)
            return self.decode(params, x)[:, : images.shape[1], : images.shape[2]]

    def encode(self, params: Params, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Images to what the last block gives, (b, h/4, w/4, 4 w), and what there is on the way, by names.

        "pixels" (b, h, w, 3), the images as they are taken; "down2" and "down3", before their normalisation; "block1",
        "block2", ..., what each block gives. Of those that nobody uses the compiler makes nothing.
        """
        x = fitted(images, self.multiple).astype(params["out"]["kernel"].dtype)
        found = {"pixels": x}
        x = jax.nn.relu(_normal(same(x, params["down1"]["kernel"], self.ends), params["down1"]))
        for name in ("down2", "down3"):
            x = found[name] = _biased(reduce(x, params[name]["kernel"], "zero"), params[name])
            x = jax.nn.relu(_normal(x, params[name]))
        for i in range(1, self.blocks + 1):
            block = params[f"block{i}"]
            with jax.named_scope(f"block{i}"):
                inner = jax.nn.relu(_normal(same(x, block["first"]["kernel"], self.padding), block["first"]))
                x = x + _normal(same(inner, block["second"]["kernel"], self.padding), block["second"])
            found[f"block{i}"] = x
        return x, found

    def decode(self, params: Params, x: jax.Array) -> jax.Array:
        """What the last block gives to images, (b, h/4, w/4, 4 w) -> (b, h, w, 3)."""
        up = {"nearest": enlarge, "transposed": transposed}[self.upsampling]
        for name in ("up1", "up2"):
            x = jax.nn.relu(_normal(up(x, params[name]["kernel"]), params[name]))
        return jnp.tanh(_biased(same(x, params["out"]["kernel"], self.ends), params["out"]))


@dataclasses.dataclass(frozen=True)
class UNetGenerator:
    """Layers, in order: down1.. to 1x1 pixel for pictures of 2^depth pixels, up(depth).. back; all 4x4 of stride 2.

    Leaky ReLU lies before, and instance normalisation behind every "down" but the first and the last, which has but one
    pixel; ReLU before and normalisation behind every "up" but the last, up1, whose result goes through tanh. What
    "down" i gives is laid beside what "up" i + 1 gives, as further channels, behind it.

    Dropout of one half follows the first three "up", as in the paper; the common implementation has it one layer later.
    """

    width: int = 64  # channels at half size; doubled at each coarser one, up to eight times
    depth: int = 8  # times that the picture is halved
    affine: bool = False  # scales and shifts of the normalisations
    channels: int = 3  # of the pictures that come out
    inputs: int = 3  # of those that go in

    def __post_init__(self):
        _checked(self, ("width", "channels", "inputs"), {})
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2, got {self.depth}")

    @property
    def multiple(self) -> int:
        return 2**self.depth

    def channels_at(self, level: int) -> int:
        """Of what "down" number `level` gives, from 1."""
        return self.width * min(8, 2 ** (level - 1))

    @property
    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Of kernels, (4, 4, in, out), by the names of layers in their order."""
        before = [self.inputs, *(self.channels_at(i) for i in range(1, self.depth))]
        shapes = {f"down{i}": (4, 4, before[i - 1], self.channels_at(i)) for i in range(1, self.depth + 1)}
        for i in range(self.depth, 0, -1):
            joined = 1 if i == self.depth else 2
            after = self.channels_at(i - 1) if i > 1 else self.channels
            shapes[f"up{i}"] = (4, 4, joined * self.channels_at(i), after)
        return shapes

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """{"down1": {"kernel": (4, 4, 3, w), "bias": (w,)}, "down2": {"kernel": (4, 4, w, 2 w)}, ..., "up1": {"kernel":
        (4, 4, 2 w, 3), "bias": (3,)}}; those that are normalised have no "bias", and with `affine` "scale", "shift".
        """
        plain = ("down1", f"down{self.depth}", "up1")
        return {
            name: _layer(
                jax.random.fold_in(key, i), shape, dtype, bias=name in plain, affine=self.affine and name not in plain
            )
            for i, (name, shape) in enumerate(self.shapes.items())
        }

    @property
    def dropped(self) -> tuple[str, ...]:
        """The layers that dropout follows."""
        return tuple(f"up{i}" for i in range(self.depth, 1, -1))[:3]

    def apply(
        self, params: Params, images: jax.Array, drop: Callable[[str, jax.Array], jax.Array] | None = None
    ) -> jax.Array:
        """Images (b, h, w, 3) in [-1, 1], of any sides from 16 pixels up, to images of the same shape and range.

        drop: of a layer's name and its result to what dropout leaves of it; by default everything. An image is padded
        by reflection to multiples of 2^depth and the result is cropped. ValueError for a smaller one.
        """
        h, w = images.shape[1:3]
        x = fitted(images, self.multiple).astype(params["up1"]["kernel"].dtype)
        found = []
        for i in range(1, self.depth + 1):
            weights = params[f"down{i}"]
            x = _biased(layers.halve(x if i == 1 else _leaky(x), weights["kernel"]), weights)
            if 1 < i < self.depth:
                x = _normal(x, weights)
            found.append(x)
        for i in range(self.depth, 0, -1):
            weights = params[f"up{i}"]
            if i < self.depth:
                x = jnp.concatenate([found[i - 1], x], -1)
            x = layers.double(jax.nn.relu(x), weights["kernel"])
            if i > 1:
                x = _normal(x, weights)
                x = drop(f"up{i}", x) if drop is not None and f"up{i}" in self.dropped else x
        return jnp.tanh(_biased(x, params["up1"]))[:, :h, :w]


def fitted(images: jax.Array, multiple: int) -> jax.Array:
    """Padded by reflection at the lower right to sides that are multiples; ValueError for less than 16 pixels."""
    h, w = images.shape[1:3]
    if h < SMALLEST or w < SMALLEST:  # and not the smaller one: symbols of `jax.export` are not compared
        raise ValueError(f"an image must have at least {SMALLEST} pixels on each side, got {h}x{w}")
    return jnp.pad(images, ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0)), mode="reflect")


# ---------------------------------------------------------------------------------------------------------------------
# Discriminator


@dataclasses.dataclass(frozen=True)
class PatchDiscriminator:
    """Layers, in order: conv1.. of stride 2, one more of stride 1, and "judge" to one logit for each patch; all 4x4.

    Leaky ReLU follows all but "judge", behind instance normalisation but for the first. Three halvings see 70x70
    pixels.
    """

    width: int = 64  # channels at half size; doubled at each coarser one, up to eight times
    halvings: int = 3
    affine: bool = False  # scales and shifts of the normalisations
    inputs: int = 3  # channels: 6 where a picture is judged together with what it was made of

    def __post_init__(self):
        _checked(self, ("width", "halvings", "inputs"), {})

    @property
    def smallest(self) -> int:
        """Pixels of a side below which a map that is normalised has one pixel, of which nothing would be left."""
        return 3 * 2**self.halvings

    @property
    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Of kernels, (4, 4, in, out), by the names of layers in their order."""
        channels = [self.inputs, *(self.width * min(8, 2**i) for i in range(self.halvings + 1))]
        shapes = {f"conv{i + 1}": (4, 4, channels[i], channels[i + 1]) for i in range(self.halvings + 1)}
        return shapes | {"judge": (4, 4, channels[-1], 1)}

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> Params:
        """{"conv1": {"kernel": (4, 4, 3, w), "bias": (w,)}, "conv2": {"kernel": (4, 4, w, 2 w)}, ..., "judge":
        {"kernel": (4, 4, 8 w, 1), "bias": (1,)}}; those between have "scale" and "shift" with `affine`.
        """
        plain = ("conv1", "judge")
        return {
            name: _layer(
                jax.random.fold_in(key, i), shape, dtype, bias=name in plain, affine=self.affine and name not in plain
            )
            for i, (name, shape) in enumerate(self.shapes.items())
        }

    def apply(self, params: Params, images: jax.Array) -> jax.Array:
        """Images (b, h, w, inputs) in [-1, 1] to logits (b, h / 2^halvings - 2, w / 2^halvings - 2, 1).

        h and w are multiples of 2^halvings.
        """
        x = images.astype(params["judge"]["kernel"].dtype)
        for i in range(1, self.halvings + 2):
            weights = params[f"conv{i}"]
            with jax.named_scope(f"discriminator/conv{i}"):
                if i <= self.halvings:
                    x = layers.halve(x, weights["kernel"])
                else:
                    x = valid(padded(x, 1, "zero"), weights["kernel"])
                x = _leaky(_biased(x, weights) if i == 1 else _normal(x, weights))
        return _biased(valid(padded(x, 1, "zero"), params["judge"]["kernel"]), params["judge"])
