"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958) with adaptive augmentation (Karras et al. 2020, arXiv:2006.06676).

A latent z becomes a style w by eight (or two) layers. The generator begins with a constant 4x4 picture and never sees
z: each convolution's input channels are scaled by what w says, and its output channels by what brings their variance
back to one (`modulated`). Noise lets pixels differ. The pictures of all resolutions are added up. Regularisation is
lazy: R1 every 16th step on the discriminator, the length of paths every 4th on the generator, each an optimizer step of
its own. What the discriminator sees is augmented, with a probability that follows how far it overfits.

Differs from the papers, as the authors' later code does (NVlabs/stylegan2-ada-pytorch): the steps of the two optimizers
follow each other, generator first, each with latents of its own; settings follow the size of the pictures and the batch
(`preset` "auto"). Differs from that code:
- the groups of `minibatch_deviation` are neighbours in the global batch, where theirs are strided in each device's, and
  as large as the batch can be divided by;
- the average style, the average path length and augmentation are those of the global batch, and parts of the state;
- `mirror` turns each real picture or not as it comes, where theirs doubles the data;
- half precision is bfloat16, and gradients that are not finite are left so, that the loop stops there;
- generated pictures are asked for with the labels of the batch's real ones, where theirs are drawn anew.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ganstyle_jax.data import Source, Wanted
from ganstyle_jax.nn import adaptive_augment, augment, classes, layers, losses, micro_batches, resampling
from ganstyle_jax.nn.classes import class_weights
from ganstyle_jax.nn.samples import diversity

_PAPER = {
    "latent_dim": 512,
    "mapping_layers": 8,
    "capacity": 32768,
    "max_channels": 512,
    "learning_rate": 2.5e-3,
    "path_length": 2.0,
    "style_mixing": 0.9,
    "group": 8,
    "discriminator": "resnet",
    "ema_halflife_images": 20_000.0,
    "ema_ramp_up": False,
}
_SMALLER_BATCH = {"learning_rate": 2e-3, "group": 4, "ema_halflife_images": 10_000.0}
_CIFAR = {"mapping_layers": 2, "group": 32, "ema_halflife_images": 500_000.0, "ema_ramp_up": True, "r1": 0.01}
PRESETS: dict[str, dict[str, Any]] = {
    # r1 and ema_halflife_images of the batch, see `of_the_batch`; capacity and learning_rate of the picture's size
    "auto": _PAPER | {"mapping_layers": 2, "group": 4, "ema_ramp_up": True, "ema_halflife_images": None, "r1": None},
    "cifar": _PAPER | _CIFAR | {"path_length": 0.0, "style_mixing": 0.0, "discriminator": "plain"},
    "paper256": _PAPER | {"capacity": 16384, "r1": 1.0},
    "paper512": _PAPER | {"r1": 0.5},
    "paper1024": _PAPER | _SMALLER_BATCH | {"r1": 2.0},
}
# Ours, for two CPU cores: "auto" with few channels.
PRESETS["small"] = PRESETS["auto"] | {"latent_dim": 64, "capacity": 1024, "max_channels": 64}
W_MEMORY = 0.995  # of the average style, for each batch of styles
PATH_MEMORY = 0.99  # of the average path length, for each step that measures it
CLAMP = 256.0  # largest absolute value of a layer, where any level computes in bfloat16


@dataclasses.dataclass(frozen=True)
class Config:
    """A StyleGAN2 and how it is trained. What is None is as the preset says."""

    image_size: int = 64  # pixels of a side, a power of two from 16 to 1024
    channels: int | None = None  # 1 or 3; None: as many as the data has
    conditional: bool = False  # on the data's classes, which are its labels
    classes: int | None = None  # how many; None: as many as the data has
    # the authors' settings: auto, which follows size and batch, or those of a paper; small is ours, for CPUs
    preset: Literal["auto", "cifar", "paper256", "paper512", "paper1024", "small"] = "auto"
    latent_dim: int | None = None  # numbers in a latent z, drawn from N(0, 1), and in a style w
    mapping_layers: int | None = None  # layers from z to w
    capacity: int | None = None  # a level of s x s pixels has capacity / s channels,
    max_channels: int | None = None  # and at most so many
    discriminator: Literal["resnet", "plain"] | None = None  # with or without paths round its convolutions
    group: int | None = None  # pictures that the discriminator compares with each other
    learning_rate: float | None = None  # of both networks' Adam
    beta1: float = 0.0  # Adam's decay of the mean gradient, for both networks
    beta2: float = 0.99  # Adam's decay of the mean squared gradient
    style_mixing: float | None = None  # probability that a step's pictures have their finer levels by another style
    r1: float | None = None  # weight gamma of the R1 penalty, gamma / 2 |grad D|^2 on real pictures
    r1_interval: int = 16  # steps from one R1 penalty, so many times as strong, to the next
    path_length: float | None = None  # weight of the penalty on how path lengths differ
    path_interval: int = 4  # steps from one such penalty to the next
    ema_halflife_images: float | None = None  # images after which the generator's average has half forgotten
    ema_ramp_up: bool | None = None  # whether that half-life is at most a twentieth of the images seen
    augment: Literal["adaptive", "fixed", "none"] = "adaptive"  # of all that the discriminator sees
    # a comma-separated list of blit, geometry, color, filter, noise, cutout
    augment_policy: str = "blit,geometry,color"
    augment_p: float = 0.0  # probability of each transformation: at the first step, or throughout if fixed
    augment_target: float = 0.6  # mean sign of the real pictures' logits that the probability is to keep
    augment_speed_images: float = 500_000.0  # images in which the probability goes from 0 to 1
    augment_interval: int = 4  # steps from one adjustment of the probability to the next
    mirror: bool = False  # turn real pictures left for right, each with a chance of one half
    weights: Literal["average", "last"] = "average"  # of samples: averaged over training, or those of the last step
    truncation: float = 1.0  # psi of samples: how far styles are from their average; 1: as they are
    noise: Literal["const", "random", "none"] = "const"  # of samples: the same in all pictures, or another in each
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of the finest levels' arithmetic; weights: float32
    half_levels: int = 4  # resolutions, from the finest, which compute in bfloat16 if dtype is that
    micro_batch: int | None = None  # pictures of the batch that are computed at a time, to save memory; None: all
    remat: bool = False  # compute levels again for the gradient rather than keep them: less memory, a third slower
    convolution: Literal["auto", "cpu", "xla"] = "auto"  # see layers.halve

    def __post_init__(self):
        size = self.image_size
        if not 16 <= size <= 1024 or size & (size - 1):
            fits = min(1024, max(16, 1 << max(0, size - 1).bit_length()))
            raise ValueError(f"image_size must be a power of two from 16 to 1024, got {size}: take {fits}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), get_args(field.type)
            literal = next((kind for kind in (field.type, *kinds) if get_origin(kind) is Literal), None)
            optional = type(None) in kinds
            if literal and not (optional and value is None) and value not in get_args(literal):
                raise ValueError(f"{field.name} must be {' or '.join(get_args(literal))}, got {value!r}")
        at_least_one = ("latent_dim", "mapping_layers", "max_channels", "group", "classes", "micro_batch")
        for name in (*at_least_one, "r1_interval", "path_interval", "augment_interval"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.capacity is not None and self.capacity < size:
            raise ValueError(f"capacity must be at least image_size, {size}, got {self.capacity}")
        not_negative = ("learning_rate", "r1", "path_length", "ema_halflife_images", "augment_p", "half_levels")
        for name in not_negative:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("style_mixing", "augment_target"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        if self.augment_speed_images <= 0:
            raise ValueError(f"augment_speed_images must be above 0, got {self.augment_speed_images}")
        adaptive_augment.check_policy(self.augment_policy)

    @property
    def param_dtype(self):
        """Weights keep float32 under bfloat16. Linen keeps it under x64 too, unless it is told otherwise."""
        return jnp.float64 if self.dtype == "float64" else jnp.float32

    @property
    def levels(self) -> list[int]:
        """Pixels of a side, from 4 up."""
        return [1 << i for i in range(2, self.image_size.bit_length())]

    @property
    def styles(self) -> int:
        """How many styles w a picture has: one for each convolution, and the last one's for its colours."""
        return 2 * len(self.levels)

    def width(self, level: int) -> int:
        """Channels of a level."""
        cfg = complete(self)
        return max(1, min(cfg.capacity // level, cfg.max_channels))

    def level_dtype(self, level: int):
        """What a level computes in."""
        if self.dtype != "bfloat16":
            return self.param_dtype
        return jnp.bfloat16 if level >= max(8, self.image_size << 1 >> self.half_levels) else jnp.float32

    @property
    def clamp(self) -> float | None:
        return CLAMP if self.dtype == "bfloat16" and self.half_levels else None


Complete = Any  # a Config in which only r1 and ema_halflife_images may be None, as type checkers cannot know


def complete(cfg: Config) -> Complete:
    """With what the preset says in the place of None; of "auto" r1 and ema_halflife_images wait for the batch."""
    said = dict(PRESETS[cfg.preset])
    if cfg.preset == "auto":  # its settings were found for the sizes in between
        said["capacity"] = 32768 if cfg.image_size >= 512 else 16384
        said["learning_rate"] = 2e-3 if cfg.image_size >= 1024 else 2.5e-3
    return dataclasses.replace(cfg, **{name: x for name, x in said.items() if getattr(cfg, name) is None})


def of_the_batch(cfg: Config, batch: int) -> Complete:
    """`complete`, and what follows a global batch of that size: the authors' rules of thumb of "auto"."""
    cfg = complete(cfg)
    r1 = 0.0002 * cfg.image_size**2 / batch if cfg.r1 is None else cfg.r1
    halflife = batch * 10_000 / 32 if cfg.ema_halflife_images is None else cfg.ema_halflife_images
    return dataclasses.replace(cfg, r1=r1, ema_halflife_images=halflife)


def sources(cfg: Config) -> dict[str, Wanted]:
    """One set of real pictures."""
    return {"real": Wanted(cfg.image_size, cfg.channels)}


def settle(cfg: Config, found: Mapping[str, Source]) -> Config:
    """As many channels and, if they are asked for, classes as the data has, and what the preset says."""
    real = found["real"]
    count = classes.settled(cfg.conditional, cfg.classes, real)
    return complete(dataclasses.replace(cfg, channels=real.image_shape[-1], classes=count))


# ---------------------------------------------------------------------------------------------------------------------
# What both networks are made of: weights begin as N(0, 1) and are scaled where they are used, so that Adam, whose steps
# do not depend on how long a gradient is, moves all of them as fast (an "equalised" learning rate, Karras et al. 2018)


class Dense(nn.Module):
    """(b, n) -> (b, features): a fully connected layer, whose weights learn `rate` times as fast."""

    features: int
    cfg: Config
    rate: float = 1.0
    bias: float = 0.0  # what it begins with
    activate: bool = False

    @nn.compact
    def __call__(self, x):
        dtype, (_, n) = self.cfg.param_dtype, x.shape
        kernel = self.param("kernel", nn.initializers.normal(1 / self.rate), (n, self.features), dtype)
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,), dtype)
        y = x @ (kernel * (self.rate / math.sqrt(n))) + bias * self.rate
        return activated(y) if self.activate else y


class Conv(nn.Module):
    """A convolution of the discriminator, (b, h, w, c) -> (b, h, w, features), or halved; 1x1 or 3x3."""

    features: int
    cfg: Config
    size: int = 3
    halve: bool = False
    plain: bool = False  # neither bias nor activation
    gain: float = 1.0

    @nn.compact
    def __call__(self, x):
        cfg, (p, c) = self.cfg, (self.size, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.normal(1.0), (p, p, c, self.features), cfg.param_dtype)
        kernel = (kernel / math.sqrt(p * p * c)).astype(x.dtype)
        if p == 1:
            x = (resampling.reduce(x) if self.halve else x) @ kernel[0, 0]
        elif self.halve:
            x = resampling.convolve_and_halve(x, kernel, cfg.convolution)
        else:
            x = layers.conv(x, kernel, cfg.convolution)
        if self.plain:
            return x * self.gain
        bias = self.param("bias", nn.initializers.zeros, (self.features,), cfg.param_dtype)
        return activated(x + bias.astype(x.dtype), cfg.clamp, self.gain)


def activated(x: jax.Array, clamp: float | None = None, gain: float = 1.0) -> jax.Array:
    """Leaky ReLU, times sqrt(2) to keep the variance; then clamped."""
    x = nn.leaky_relu(x, 0.2) * (math.sqrt(2) * gain)
    return x if clamp is None else jnp.clip(x, -clamp * gain, clamp * gain)


def normalised(x: jax.Array) -> jax.Array:
    """(b, n) with a mean square of 1 in each row."""
    return x * lax.rsqrt(jnp.mean(x**2, 1, keepdims=True) + 1e-8)


class StyleMapping(nn.Module):
    """Latents (b, n), labels as `class_weights` takes them, or both to styles (b, features)."""

    features: int
    cfg: Config
    depth: int

    @nn.compact
    def __call__(self, z: jax.Array | None, label: jax.Array | None = None) -> jax.Array:
        cfg = self.cfg
        parts = [] if z is None else [normalised(z)]
        if label is not None:
            parts.append(normalised(Dense(self.features, cfg, name="embed")(class_weights(label, cfg))))
        x = jnp.concatenate(parts, 1)
        for i in range(self.depth):
            x = Dense(self.features, cfg, rate=0.01, activate=True, name=f"fc{i}")(x)
        return x


# ---------------------------------------------------------------------------------------------------------------------
# Generator


def modulated(
    x: jax.Array, kernel: jax.Array, style: jax.Array, cfg: Config, double: bool = False, demodulate: bool = True
) -> jax.Array:
    """A convolution with weights s_i k_ij for each picture, each output divided by their length (section 2.2).

    x: (b, h, w, c); kernel: (p, p, c, d); style s: (b, c). Computed as the input times s, the one convolution, and the
    output divided by the length: the same numbers, without a convolution for each picture (the appendix's grouped one).
    """
    if demodulate and x.dtype == jnp.bfloat16:  # neither changes the result: nothing then leaves the range of 8 bits
        kernel = kernel / (math.sqrt(math.prod(kernel.shape[:3])) * jnp.abs(kernel).max((0, 1, 2)))
        style = style / jnp.abs(style).max(1, keepdims=True)
    x, weights = x * style.astype(x.dtype)[:, None, None], kernel.astype(x.dtype)
    if len(kernel) == 1:
        x = x @ weights[0, 0]
    elif double:
        x = resampling.double_and_convolve(x, weights, cfg.convolution)
    else:
        x = layers.conv(x, weights, cfg.convolution)
    if demodulate:
        lengths = jnp.matmul(style**2, jnp.sum(kernel**2, (0, 1)), precision="highest")
        x = x * lax.rsqrt(lengths + 1e-8).astype(x.dtype)[:, None, None]
    return x


class Layer(nn.Module):
    """A modulated 3x3 convolution, noise, bias and activation: (b, h, w, c) -> (b, h, w, features), or doubled."""

    features: int
    cfg: Config
    double: bool = False

    @nn.compact
    def __call__(self, x, w, noise):
        cfg, (zeros, normal) = self.cfg, (nn.initializers.zeros, nn.initializers.normal(1.0))
        style = Dense(x.shape[-1], cfg, bias=1.0, name="affine")(w)
        kernel = self.param("kernel", normal, (3, 3, x.shape[-1], self.features), cfg.param_dtype)
        strength = self.param("noise_strength", zeros, (), cfg.param_dtype)
        bias = self.param("bias", zeros, (self.features,), cfg.param_dtype)
        x = modulated(x, kernel, style, cfg, self.double)
        if noise is not None:
            x = x + (noise * strength).astype(x.dtype)[..., None]
        return activated(x + bias.astype(x.dtype), cfg.clamp)


class ToPicture(nn.Module):
    """Features (b, h, w, c) to their part of the picture, (b, h, w, channels), not demodulated."""

    cfg: Config

    @nn.compact
    def __call__(self, x, w):
        cfg, (c, colors) = self.cfg, (x.shape[-1], self.cfg.channels or 3)
        style = Dense(c, cfg, bias=1.0, name="affine")(w) / math.sqrt(c)
        kernel = self.param("kernel", nn.initializers.normal(1.0), (1, 1, c, colors), cfg.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (colors,), cfg.param_dtype)
        y = modulated(x, kernel, style, cfg, demodulate=False) + bias.astype(x.dtype)
        return (y if cfg.clamp is None else jnp.clip(y, -cfg.clamp, cfg.clamp)).astype(cfg.param_dtype)


class Level(nn.Module):
    """One resolution: features doubled and convolved, and their part of the picture."""

    size: int
    cfg: Config

    @nn.compact
    def __call__(self, x, ws, noise):
        cfg, width = self.cfg, self.cfg.width(self.size)
        if x is None:
            const = self.param("const", nn.initializers.normal(1.0), (4, 4, width), cfg.param_dtype)
            x = jnp.broadcast_to(const, (len(ws), 4, 4, width)).astype(cfg.level_dtype(4))
        else:
            x = x.astype(cfg.level_dtype(self.size))
            x = Layer(width, cfg, double=True, name="conv0")(x, ws[:, 0], noise.get("conv0"))
        x = Layer(width, cfg, name="conv1")(x, ws[:, -2], noise.get("conv1"))
        return x, ToPicture(cfg, name="to_picture")(x, ws[:, -1])


class Synthesis(nn.Module):
    """Styles (b, styles, n) and noise to pictures (b, s, s, c), which may leave [-1, 1].

    noise: {"b8": {"conv0": (b or 1, 8, 8), "conv1": ...}, ...}; what is missing is 0.
    """

    cfg: Config

    @nn.compact
    def __call__(self, ws: jax.Array, noise: Mapping[str, Any]) -> jax.Array:
        x = picture = None
        level = nn.remat(Level) if self.cfg.remat else Level
        for i, size in enumerate(self.cfg.levels):
            # A level's last style is the next one's first.
            mine = ws[:, max(0, 2 * i - 1) : 2 * i + 2]
            x, part = level(size, self.cfg, name=f"b{size}")(x, mine, noise.get(f"b{size}", {}))
            picture = part if picture is None else resampling.enlarge(picture) + part
        assert picture is not None
        return picture


def noise_shapes(cfg: Config) -> dict[str, dict[str, tuple[int, int]]]:
    """Where noise is added, and the (h, w) of each."""
    names = {size: ("conv1",) if size == 4 else ("conv0", "conv1") for size in cfg.levels}
    return {f"b{size}": {name: (size, size) for name in names[size]} for size in cfg.levels}


def draw_noise(key: jax.Array, b: int, cfg: Config, axis_name: str | None = None) -> dict[str, dict[str, jax.Array]]:
    """N(0, 1) for b pictures, each place with its own key."""
    found, count = {}, 0
    for level, places in noise_shapes(cfg).items():
        found[level] = {}
        for name, shape in places.items():
            k = jax.random.fold_in(key, count := count + 1)
            found[level][name] = layers.global_normal(k, (b, *shape), axis_name, cfg.param_dtype)
    return found


def map_styles(params: Any, z: jax.Array, label: jax.Array | None, cfg: Config) -> jax.Array:
    """Latents (b, latent_dim) and labels (b,), or None, to styles (b, latent_dim)."""
    module = StyleMapping(complete(cfg).latent_dim, cfg, complete(cfg).mapping_layers)
    return jnp.asarray(module.apply({"params": params["mapping"]}, z, label))


def paint(params: Any, ws: jax.Array, noise: Any, cfg: Config) -> jax.Array:
    """Styles (b, styles, latent_dim) and noise to pictures."""
    return jnp.asarray(Synthesis(cfg).apply({"params": params["synthesis"]}, ws, noise))


# ---------------------------------------------------------------------------------------------------------------------
# Discriminator


class Block(nn.Module):
    """Features (b, s, s, c) to those of half the size."""

    size: int
    cfg: Config

    @nn.compact
    def __call__(self, x):
        cfg = self.cfg
        wide, after = cfg.width(self.size), cfg.width(self.size // 2)
        if complete(cfg).discriminator == "plain":
            return Conv(after, cfg, halve=True, name="conv1")(Conv(wide, cfg, name="conv0")(x))
        gain = math.sqrt(0.5)  # of each of two that are added, so that the variance stays
        round_it = Conv(after, cfg, size=1, halve=True, plain=True, gain=gain, name="skip")(x)
        x = Conv(wide, cfg, name="conv0")(x)
        return Conv(after, cfg, halve=True, gain=gain, name="conv1")(x) + round_it


def minibatch_deviation(x: jax.Array, most: int, axis_name: str | None = None) -> jax.Array:
    """How much pictures differ from their neighbours: (b, h, w, c) -> (b,) (Karras et al. 2018, section 3).

    Groups of g neighbours in the global batch, g at most `most` and a divisor of the batch: the standard deviation of
    each value over its group, on average.
    """
    group = group_of(len(x), most, axis_name)
    gathering = len(x) % group > 0  # a group lies on several devices
    whole = layers.global_batch(x, axis_name) if gathering else x
    parts = whole.reshape(-1, group, *x.shape[1:])
    variance = jnp.mean((parts - parts.mean(1, keepdims=True)) ** 2, 1)
    found = jnp.sqrt(variance + 1e-8).mean((1, 2, 3)).repeat(group)
    return layers.local_part(found, axis_name) if gathering else found


def group_of(b: int, most: int, axis_name: str | None = None) -> int:
    """How many pictures are compared with each other, of b on each device."""
    everything = b * layers.axis_size(axis_name)
    return max(g for g in range(1, min(most, everything) + 1) if everything % g == 0)


class Discriminator(nn.Module):
    """Pictures (b, s, s, c) and labels (b,), or None, to logits (b,)."""

    cfg: Config
    axis_name: str | None = None
    alone: bool = False  # each picture is a group by itself

    @nn.compact
    def __call__(self, images: jax.Array, label: jax.Array | None = None) -> jax.Array:
        cfg, width = self.cfg, self.cfg.width(4)
        *_, size = cfg.levels
        x = images.astype(cfg.level_dtype(size))
        x = Conv(cfg.width(size), cfg, size=1, name="from_picture")(x)
        block = nn.remat(Block) if cfg.remat else Block
        for size in reversed(cfg.levels[1:]):
            x = block(size, cfg, name=f"b{size}")(x.astype(cfg.level_dtype(size)))
        x = x.astype(cfg.param_dtype)
        group = 1 if self.alone else complete(cfg).group
        differing = minibatch_deviation(x, group, self.axis_name)
        x = jnp.concatenate([x, jnp.broadcast_to(differing[:, None, None, None], (*x.shape[:3], 1))], 3)
        x = Conv(width, cfg, name="conv")(x)
        x = Dense(width, cfg, activate=True, name="fc")(x.reshape(len(x), -1))
        if label is None:
            return Dense(1, cfg, name="out")(x)[:, 0]
        # By projection on what the label is mapped to (Miyato & Koyama 2018), which has eight layers of its own.
        mapped = StyleMapping(width, cfg, 8, name="mapping")(None, label)
        return (Dense(width, cfg, name="out")(x) * mapped).sum(1) / math.sqrt(width)


def judge(params: Any, images: jax.Array, label: jax.Array | None, cfg: Config, axis_name: str | None) -> jax.Array:
    """Logits (b,) of pictures as they are."""
    return jnp.asarray(Discriminator(cfg, axis_name).apply({"params": layers.gathered(params)}, images, label))


# ---------------------------------------------------------------------------------------------------------------------
# State


@flax.struct.dataclass
class Network:
    """One network and its optimizer."""

    params: Any
    opt_state: Any


@flax.struct.dataclass
class State:
    step: jax.Array  # () int32, training steps done
    gen: Network  # params: {"mapping": ..., "synthesis": ...}
    disc: Network
    ema: Any  # the generator's weights, averaged
    noise: Any  # that of samples, {"b4": {"conv1": (4, 4)}, ...}: drawn once
    w_avg: jax.Array  # (latent_dim,), the average style
    path_mean: jax.Array  # (), the average length of paths
    r1: jax.Array  # (), mean |grad D|^2 when it was last measured
    augment_p: jax.Array  # (), probability of each transformation
    signs: jax.Array  # (2,): sum of the signs of the real pictures' logits since the last adjustment, and their number


def optimizer(cfg: Config, which: Literal["generator", "discriminator"]) -> optax.GradientTransformation:
    """Adam, its constants those that make a step in `interval`, which is one more, change nothing (appendix B)."""
    cfg = complete(cfg)
    interval = cfg.path_interval if which == "generator" else cfg.r1_interval
    ratio = interval / (interval + 1)
    assert cfg.learning_rate is not None
    return optax.adam(cfg.learning_rate * ratio, cfg.beta1**ratio, cfg.beta2**ratio)


def init(key: jax.Array, cfg: Config) -> State:
    """A new pair of networks."""
    full: Complete = complete(cfg)
    key_map, key_paint, key_disc, key_noise = jax.random.split(key, 4)
    dtype = cfg.param_dtype
    label = jnp.zeros(2, jnp.int32) if cfg.conditional else None
    z = jnp.zeros((2, full.latent_dim), dtype)
    mapping = StyleMapping(full.latent_dim, cfg, full.mapping_layers).init(key_map, z, label)["params"]
    ws = jnp.zeros((2, cfg.styles, full.latent_dim), dtype)
    gen = {"mapping": mapping, "synthesis": Synthesis(cfg).init(key_paint, ws, {})["params"]}
    images = jnp.zeros((2, cfg.image_size, cfg.image_size, cfg.channels or 3), dtype)
    disc = Discriminator(cfg).init(key_disc, images, label)["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        gen=Network(gen, optimizer(cfg, "generator").init(gen)),
        disc=Network(disc, optimizer(cfg, "discriminator").init(disc)),
        ema=jax.tree.map(jnp.copy, gen),  # a copy, because the state is donated and no buffer may be donated twice
        noise=jax.tree.map(lambda x: x[0], draw_noise(key_noise, 1, cfg)),
        w_avg=jnp.zeros(full.latent_dim, dtype),
        path_mean=jnp.zeros((), dtype),
        r1=jnp.zeros((), dtype),
        augment_p=jnp.asarray(cfg.augment_p, dtype),
        signs=jnp.zeros(2, dtype),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_step(
    state: State, batch: dict, key: jax.Array, cfg: Config, axis_name: str | None = None
) -> tuple[State, dict]:
    """The generator's update and, every path_interval steps, its path lengths'; then the discriminator's and R1's.

    batch["real"]["image"]: (b, s, s, c) float in [-1, 1]; ["label"] (b,) int32 if conditional, which generated pictures
    are asked for with too. Returns the new state and scalar metrics.
    """
    real = batch["real"]["image"].astype(cfg.param_dtype)
    if cfg.mirror:
        real = augment.flip(jax.random.fold_in(key, 4), real, axis_name)
    label = batch["real"]["label"] if cfg.conditional else None
    b = len(real)
    whole = b * layers.axis_size(axis_name)
    full = of_the_batch(cfg, whole)
    keys = [jax.random.fold_in(key, i) for i in range(4)]

    state, gen_metrics = update_generator(state, b, label, keys[0], full, axis_name)
    if full.path_length:
        half = half_of(b, axis_name)
        less = None if label is None else label[::2][:half]
        state = lazily(full.path_interval, regularise_paths, state, half, less, keys[1], full, axis_name)
    state, disc_metrics = update_discriminator(state, real, label, keys[2], full, axis_name)
    if full.r1:
        state = lazily(full.r1_interval, regularise_gradients, state, real, label, keys[3], full, axis_name)

    seen = state.step.astype(full.param_dtype) * whole if full.ema_ramp_up else None
    ema = layers.ema(state.ema, state.gen.params, full.ema_halflife_images, whole, seen)
    state = dataclasses.replace(state, step=state.step + 1, ema=ema)
    if full.augment == "adaptive":
        state = adapt(state, whole, full)
    found = {"penalty/r1": state.r1, "path_length": state.path_mean, "augment_p": state.augment_p}
    return state, gen_metrics | disc_metrics | found


def lazily(interval: int, phase: Callable, state: State, *arguments) -> State:
    """The phase in every step that the interval divides, the first one among them."""
    now = state.step % interval == 0
    with jax.named_scope(f"every_{interval}_steps"):  # which `ganstyle plan` reads
        return lax.cond(now, lambda state: phase(state, *arguments), lambda state: state, state)


def half_of(b: int, axis_name: str | None) -> int:
    """Half of the batch, as path lengths are measured on. ValueError where devices cannot halve theirs."""
    if axis_name is not None and b % 2:
        raise ValueError(f"path_length needs an even number of pictures on each device, or to be 0, got {b}")
    return max(1, b // 2)


def draw(key: jax.Array, b: int, cfg: Complete, axis_name: str | None = None) -> dict[str, Any]:
    """What b generated pictures are made of: "latents" (b, latent_dim), "noise", and if styles are mixed "others" and
    "cut" (b,), the first style that is another latent's; the same in all of a step's pictures, as the authors have it.
    """
    cfg = complete(cfg)
    keys = [jax.random.fold_in(key, i) for i in range(5)]

    def latents(key: jax.Array) -> jax.Array:
        return layers.global_normal(key, (b, cfg.latent_dim), axis_name, cfg.param_dtype)

    found = {"latents": latents(keys[0]), "noise": draw_noise(keys[1], b, cfg, axis_name)}
    if cfg.style_mixing:
        mixing = jax.random.uniform(keys[2]) < cfg.style_mixing
        cut = jnp.where(mixing, jax.random.randint(keys[3], (), 1, cfg.styles), cfg.styles)
        found |= {"cut": jnp.broadcast_to(cut, (b,)), "others": latents(keys[4])}
    return found


def make(params: Any, drawn: dict[str, Any], label: jax.Array | None, cfg: Complete) -> tuple[jax.Array, jax.Array]:
    """(each picture's styles (b, styles, latent_dim), its latents' style (b, latent_dim)) of what was drawn."""
    w = map_styles(params, drawn["latents"], label, cfg)
    ws = jnp.broadcast_to(w[:, None], (len(w), cfg.styles, w.shape[1]))
    if "cut" in drawn:
        other = map_styles(params, drawn["others"], label, cfg)[:, None]
        ws = jnp.where((jnp.arange(cfg.styles) < drawn["cut"][:, None])[:, :, None], ws, other)
    return ws, lax.stop_gradient(w)


def remember(state: State, w: jax.Array, axis_name: str | None) -> State:
    """With the mean of the batch's styles (b, latent_dim) in the average."""
    mean = layers.pmean(w.mean(0), axis_name)
    return dataclasses.replace(state, w_avg=mean + W_MEMORY * (state.w_avg - mean))


def draw_distortion(key: jax.Array, b: int, state: State, cfg: Complete, axis_name: str | None) -> dict[str, jax.Array]:
    """How b pictures are to be augmented, for `adaptive_augment.transform`."""
    if cfg.augment == "none":
        return {}
    shape = (b, cfg.image_size, cfg.image_size, cfg.channels or 3)
    return adaptive_augment.draw(key, shape, state.augment_p, cfg.augment_policy, cfg.param_dtype, axis_name)


def parts_of(b: int, cfg: Complete, axis_name: str | None) -> tuple[int, int]:
    """(in how many parts b pictures are judged, how many of them belong together)."""
    group = group_of(b, cfg.group, axis_name)
    return micro_batches.count(b, cfg.micro_batch, group, axis_name), group


def update_generator(state: State, b: int, label, key, cfg: Complete, axis_name: str | None) -> tuple[State, dict]:
    """One step down the non-saturating loss, of b pictures."""
    key_draw, key_shown = jax.random.split(key)
    batch = draw(key_draw, b, cfg, axis_name), label, draw_distortion(key_shown, b, state, cfg, axis_name)

    def loss_function(params, batch):
        drawn, label, distortion = batch
        params = layers.gathered(params)
        ws, w = make(params, drawn, label, cfg)
        images = adaptive_augment.transform(paint(params, ws, drawn["noise"], cfg), distortion)
        return losses.generator_non_saturating(judge(state.disc.params, images, label, cfg, axis_name)).mean(), w

    parts = parts_of(b, cfg, axis_name)
    (loss, w), gradients = micro_batches.value_and_grad(loss_function, state.gen.params, batch, *parts)
    gen = descend(state.gen, gradients, cfg, "generator", axis_name)
    return remember(dataclasses.replace(state, gen=gen), w, axis_name), layers.pmean({"loss/gen": loss}, axis_name)


def regularise_paths(state: State, b: int, label, key, cfg: Complete, axis_name: str | None) -> State:
    """One step towards styles whose steps move every picture as far (section 3.2), of b pictures.

    Of random pictures y of unit length, |J^T y| for the Jacobian J of the picture by its styles, which is its mean
    square over all of them, is to be what it is on average over training.
    """
    key_draw, key_project = jax.random.split(key)
    shape = (b, cfg.image_size, cfg.image_size, cfg.channels or 3)
    project = layers.global_normal(key_project, shape, axis_name, cfg.param_dtype) / cfg.image_size

    def lengths_of(params, batch):
        drawn, label, project = batch
        params = layers.gathered(params)
        ws, w = make(params, drawn, label, cfg)
        return path_lengths(lambda ws: paint(params, ws, drawn["noise"], cfg), ws, project), w

    def penalty(lengths):
        path_mean = state.path_mean + (1 - PATH_MEMORY) * (layers.pmean(lengths.mean(), axis_name) - state.path_mean)
        return cfg.path_interval * cfg.path_length * ((lengths - path_mean) ** 2).mean(), path_mean

    batch = draw(key_draw, b, cfg, axis_name), label, project
    parts = micro_batches.count(b, cfg.micro_batch, 1, axis_name)
    path_mean, w, gradients = micro_batches.value_and_grad_of_all(lengths_of, penalty, state.gen.params, batch, parts)
    gen = descend(state.gen, gradients, cfg, "generator", axis_name)
    return remember(dataclasses.replace(state, gen=gen, path_mean=path_mean), w, axis_name)


def path_lengths(paint: Callable[[jax.Array], jax.Array], ws: jax.Array, project: jax.Array) -> jax.Array:
    """Styles (b, styles, n) and pictures y to the lengths of J^T y, (b,)."""
    back = jax.grad(lambda ws: jnp.sum(paint(ws) * project))(ws)
    return jnp.sqrt(jnp.sum(back**2, 2).mean(1))


def update_discriminator(
    state: State, real, label, key, cfg: Complete, axis_name: str | None
) -> tuple[State, dict[str, jax.Array]]:
    """One step down the logistic loss, against new pictures of the generator as it is now."""
    b, (key_draw, *keys) = len(real), jax.random.split(key, 3)
    distortions = [draw_distortion(k, b, state, cfg, axis_name) for k in keys]  # of generated and of real pictures
    batch = draw(key_draw, b, cfg, axis_name), real, label, *distortions

    def loss_function(params, batch):
        drawn, real, label, of_fake, of_real = batch
        gen = layers.gathered(state.gen.params)
        ws, w = make(gen, drawn, label, cfg)
        fake = adaptive_augment.transform(paint(gen, ws, drawn["noise"], cfg), of_fake)
        real = adaptive_augment.transform(real, of_real)
        real_logits, fake_logits = (judge(params, images, label, cfg, axis_name) for images in (real, fake))
        return losses.discriminator_logistic(real_logits, fake_logits).mean(), (real_logits, fake_logits, w)

    found, gradients = micro_batches.value_and_grad(
        loss_function, state.disc.params, batch, *parts_of(b, cfg, axis_name)
    )
    loss, (real_logits, fake_logits, w) = found
    metrics = {
        "loss/disc": loss,
        "logit/real": real_logits.mean(),
        "logit/fake": fake_logits.mean(),
        "accuracy/real": (real_logits > 0).mean(dtype=loss.dtype),
        "accuracy/fake": (fake_logits <= 0).mean(dtype=loss.dtype),
    }
    disc = descend(state.disc, gradients, cfg, "discriminator", axis_name)
    state = remember(dataclasses.replace(state, disc=disc), w, axis_name)
    return count_signs(state, real_logits, axis_name), layers.pmean(metrics, axis_name)


def regularise_gradients(state: State, real, label, key, cfg: Complete, axis_name: str | None) -> State:
    """One step down R1, gamma / 2 |grad D|^2 by real pictures before they are augmented."""
    batch = real, label, draw_distortion(key, len(real), state, cfg, axis_name)

    def loss_function(params, batch):
        real, label, distortion = batch

        def logits_of(images):
            return judge(params, adaptive_augment.transform(images, distortion), label, cfg, axis_name)

        logits, pull_back = jax.vjp(logits_of, real)
        (gradient,) = pull_back(jnp.ones_like(logits))
        squared = jnp.sum(gradient**2, (1, 2, 3))
        return cfg.r1_interval * cfg.r1 / 2 * squared.mean(), (squared, logits)

    found, gradients = micro_batches.value_and_grad(
        loss_function, state.disc.params, batch, *parts_of(len(real), cfg, axis_name)
    )
    _, (squared, logits) = found
    disc = descend(state.disc, gradients, cfg, "discriminator", axis_name)
    state = dataclasses.replace(state, disc=disc, r1=layers.pmean(squared.mean(), axis_name))
    return count_signs(state, logits, axis_name)


def count_signs(state: State, logits: jax.Array, axis_name: str | None) -> State:
    """With the signs of the real pictures' logits added up, and how many they are."""
    count = len(logits) * layers.axis_size(axis_name)
    total = layers.pmean(jnp.sign(logits).mean(), axis_name) * count
    return dataclasses.replace(state, signs=state.signs + jnp.stack([total, jnp.asarray(count, total.dtype)]))


def adapt(state: State, batch: int, cfg: Complete) -> State:
    """After every augment_interval steps, the probability moved by what the signs since then were on average."""
    sign = state.signs[0] / jnp.maximum(state.signs[1], 1)
    images, now = batch * cfg.augment_interval, state.step % cfg.augment_interval == 0
    p = adaptive_augment.adjusted(state.augment_p, sign, cfg.augment_target, images, cfg.augment_speed_images)
    return dataclasses.replace(
        state,
        augment_p=jnp.where(now, p, state.augment_p),
        signs=jnp.where(now, jnp.zeros_like(state.signs), state.signs),
    )


def descend(network: Network, gradients, cfg: Complete, which, axis_name: str | None) -> Network:
    """One optimizer step. Under `pmap` the gradients are averaged here, and nowhere else."""
    gradients = layers.pmean(gradients, axis_name)
    updates, opt_state = optimizer(cfg, which).update(gradients, network.opt_state, network.params)
    return Network(optax.apply_updates(network.params, updates), opt_state)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def requests(key: jax.Array, n: int, cfg: Config, examples: Mapping[str, Any] | None = None) -> Any:
    """Latents (n, latent_dim), N(0, 1); if conditional {"latents": ..., "label": (n,) int32}, the classes in turn."""
    latents = jax.random.normal(key, (n, complete(cfg).latent_dim), cfg.param_dtype)
    return {"latents": latents, "label": in_turn(n, cfg)} if cfg.conditional else latents


def in_turn(n: int, cfg: Complete) -> jax.Array:
    """The classes 0, 1, ... again and again, (n,) int32."""
    return jnp.arange(n, dtype=jnp.int32) % cfg.classes


def generator(state: State, cfg: Config) -> dict:
    """The generator as samples are made from it: {"params", "w_avg", "noise"}."""
    params = state.ema if cfg.weights == "average" else state.gen.params
    return {"params": params, "w_avg": state.w_avg, "noise": state.noise}


def sample(variables: dict, requests: Any, cfg: Config) -> jax.Array:
    """Latents (n, latent_dim), or with labels as `requests` gives them, to images (n, s, s, c) in [-1, 1]."""
    return synthesize(variables, to_w(variables, requests, cfg), cfg)


def to_w(variables: dict, requests: Any, cfg: Config) -> jax.Array:
    """Requests to styles (n, styles, latent_dim), truncated towards the average by `cfg.truncation` (psi)."""
    latents, label = (requests["latents"], requests["label"]) if isinstance(requests, Mapping) else (requests, None)
    if cfg.conditional and label is None:
        label = in_turn(len(latents), cfg)
    w = map_styles(variables["params"], latents, label if cfg.conditional else None, cfg)
    if cfg.truncation != 1:
        w = variables["w_avg"] + cfg.truncation * (w - variables["w_avg"])
    return jnp.broadcast_to(w[:, None], (len(w), cfg.styles, w.shape[1]))


def synthesize(variables: dict, w: jax.Array, cfg: Config) -> jax.Array:
    """Styles (n, styles, latent_dim), or (n, latent_dim) for all levels, to images (n, s, s, c) in [-1, 1]."""
    if w.ndim == 2:
        w = jnp.broadcast_to(w[:, None], (len(w), cfg.styles, w.shape[1]))
    return jnp.clip(paint(variables["params"], w, sample_noise(variables, len(w), cfg), cfg), -1, 1)


def sample_noise(variables: dict, n: int, cfg: Config) -> Any:
    """What `cfg.noise` says: the state's in every picture, for each of the n another one, or none.

    Whatever it says, maps of each picture (n, h, w) in the place of the state's (h, w), as projection finds them.
    """
    if all(x.ndim == 3 for x in jax.tree.leaves(variables["noise"])):
        return variables["noise"]
    if cfg.noise == "const":
        return jax.tree.map(lambda x: x[None], variables["noise"])
    return draw_noise(jax.random.key(0), n, cfg) if cfg.noise == "random" else {}


def mix(variables: dict, latents_a: Any, latents_b: Any, cfg: Config, layers: Iterable[int]) -> jax.Array:
    """Pictures (n, s, s, c) of n requests with the styles of n others in these of `cfg.styles` layers, 0 the coarsest.

    Raises ValueError for a layer that is not there.
    """
    taken = np.zeros(cfg.styles, bool)
    for layer in layers:
        if not 0 <= layer < cfg.styles:
            raise ValueError(f"layers must be from 0 to {cfg.styles - 1}, got {layer}")
        taken[layer] = True
    a, b = (to_w(variables, latents, cfg) for latents in (latents_a, latents_b))
    return synthesize(variables, jnp.where(taken[None, :, None], b, a), cfg)


def watch(
    metrics: Mapping[str, float], pictures: np.ndarray, real: Mapping[str, Any]
) -> tuple[dict[str, float], str | None]:
    """How much samples differ from each other, 1 being as much as real pictures; what looks like collapse."""
    relative = diversity(pictures) / max(diversity(real["real"]["image"]), 1e-6)
    p, warning = metrics.get("augment_p", 0.0), None
    if relative < 0.1:
        warning = (
            f"the samples are too much alike (diversity {relative:.3f} of the data's): the generator has collapsed, "
            "unless it has only begun to learn and more steps help. Go back to an earlier checkpoint, or try a larger "
            "--r1 or a lower --learning-rate"
        )
    elif p > 0.85:
        warning = (
            f"the probability of augmentation has reached {p:.2f}: the discriminator knows the real pictures by heart, "
            "and augmentation begins to show in the samples. More pictures help, or a larger --r1"
        )
    return {"diversity": round(relative, 4), "augment_p": round(p, 4)}, warning


# ---------------------------------------------------------------------------------------------------------------------
# Seeing inside


def discriminate(state: State, images: jax.Array, cfg: Config) -> jax.Array:
    """Images (n, s, s, c) in [-1, 1] to logits (n,), each of its image alone, which is compared with no other.

    If conditional, as pictures of the class for which each logit is highest.
    """
    module, images = Discriminator(cfg, alone=True), images.astype(cfg.param_dtype)
    if not cfg.conditional:
        return jnp.asarray(module.apply({"params": state.disc.params}, images))

    def of_class(label: jax.Array) -> jax.Array:
        labels = jnp.broadcast_to(label, (len(images),))
        return jnp.asarray(module.apply({"params": state.disc.params}, images, labels))

    return lax.map(of_class, jnp.arange(complete(cfg).classes, dtype=jnp.int32)).max(0)


def first_layer(variables: dict, cfg: Config) -> jax.Array:
    """The generator's first weights, (latent_dim, latent_dim): what a normalised latent is multiplied with."""
    return variables["params"]["mapping"]["fc0"]["kernel"][: complete(cfg).latent_dim]


def activations(variables: dict, requests: Any, cfg: Config) -> dict[str, jax.Array]:
    """Requests to the generator's features at each resolution, "4x4" and so on: (n, 4, 4, channels), ..."""

    def is_level(module: nn.Module, method: str) -> bool:
        return isinstance(module, Level) and method == "__call__"

    w = to_w(variables, requests, cfg)
    captured: Any = Synthesis(cfg).apply(
        {"params": variables["params"]["synthesis"]},
        w,
        sample_noise(variables, len(w), cfg),
        capture_intermediates=is_level,
    )
    levels = captured[1]["intermediates"]
    return {f"{s}x{s}": levels[f"b{s}"]["__call__"][0][0].astype(cfg.param_dtype) for s in cfg.levels}
