"""R3GAN (Huang, Gokaslan, Kuleshov & Tompkin 2024, arXiv:2501.05441): a relativistic loss, R1 and R2, a modern network.

As in the authors' code: no normalisation; the discriminator's update comes first, the generator's follows against the
new discriminator, and each has real pictures and latents of its own; both penalties at every step; five numbers move
along a cosine while the first `schedule_images` pictures are seen, and stay.

Differs from it:
- augmentation is chosen by its parts, of the pipeline of Karras et al. 2020 (arXiv:2006.06676), which is theirs
  (`augment_policy`), or of DiffAugment (`augment`), each for each picture with the scheduled probability;
- `mirror` turns each real picture or not as it comes, where theirs doubles the data;
- pictures leave the generator in float32 where its last stages are bfloat16, and samples are cut off at -1 and 1.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.data import Source, Wanted
from ganstyle_jax.nn import adaptive_augment, augment, classes, layers, losses, micro_batches, resampling
from ganstyle_jax.nn.classes import class_weights
from ganstyle_jax.nn.samples import diversity

Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a preset settles; the comments are at the fields of `Config` of the same names."""

    image_size: int
    widths: tuple[int, ...]
    gamma: Pair
    augment_probability: Pair
    bfloat16_stages: int
    ema_halflife_images: Pair
    schedule_images: int = 20_000_000
    latent_dim: int = 64
    blocks: int = 2
    group_size: int = 16
    learning_rate: Pair = (2e-4, 5e-5)
    beta2: Pair = (0.9, 0.99)


SCHEDULED = ("learning_rate", "gamma", "beta2", "ema_halflife_images", "augment_probability")
_SMALL = Recipe(64, (128, 128, 64, 32, 16), (2.0, 0.2), (0.0, 0.3), 0, (0.0, 20_000.0), 500_000, blocks=1)
_FFHQ64 = Recipe(64, (768, 768, 768, 768, 384), (2.0, 0.2), (0.0, 0.3), 4, (0.0, 500_000.0))
_CIFAR10 = Recipe(32, (768,) * 4, (0.05, 0.005), (0.0, 0.55), 3, (0.0, 5e6))
_IMAGENET32 = Recipe(32, (1536,) * 4, (0.5, 0.05), (0.0, 0.5), 3, (0.0, 5e7), 200_000_000, group_size=32)
PRESETS = {
    "small": _SMALL,
    "cifar10": _CIFAR10,
    "ffhq64": _FFHQ64,
    "ffhq256": dataclasses.replace(_FFHQ64, image_size=256, widths=(*_FFHQ64.widths, 192, 96), gamma=(150.0, 15.0)),
    "imagenet32": _IMAGENET32,
    "imagenet64": dataclasses.replace(
        _IMAGENET32,
        image_size=64,
        widths=(1536,) * 5,
        gamma=(1.0, 0.1),
        augment_probability=(0.0, 0.4),
        bfloat16_stages=4,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """An R3GAN and how it is trained. What is None is the preset's."""

    # where values that are not given come from: a network for a laptop, or the authors' for a set of pictures, of which
    # those for CIFAR-10 and ImageNet are also --conditional
    preset: Literal["small", "cifar10", "ffhq64", "ffhq256", "imagenet32", "imagenet64"] = "small"
    image_size: int | None = None  # pixels of a side, a power of two from 16 to 1024
    channels: int | None = None  # 1 or 3; None: as many as the data has
    conditional: bool = False  # on the data's classes, which are its labels
    classes: int | None = None  # how many; None: as many as the data has
    latent_dim: int | None = None  # numbers in a latent z, drawn from N(0, 1)
    width: int | None = None  # in place of widths: the finest stage's, doubled at each coarser one up to eightfold
    widths: tuple[int, ...] | None = None  # channels of each stage, from 4x4 pixels up, the same in both networks
    blocks: int | None = None  # residual blocks of a stage
    expansion: int = 2  # channels inside a residual block, times the stage's
    group_size: int | None = None  # channels of a group of the 3x3 convolutions; where there are fewer, one group
    bfloat16_stages: int | None = None  # finest stages of both networks that compute in bfloat16, the others in dtype
    schedule_images: int | None = None  # real pictures over which the pairs below go from the first value to the second
    learning_rate: Pair | None = None  # of Adam, for both networks
    # weight of R1 and R2, gamma / 2 |grad D|^2; of the preset small 2 to 0.2 at 64 pixels, else in proportion to the
    # number of pixels
    gamma: Pair | None = None
    beta2: Pair | None = None  # Adam's decay of the mean squared gradient; that of the mean gradient is 0
    ema_halflife_images: Pair | None = None  # images after which the generator's average has half forgotten
    augment_probability: Pair | None = None  # with which a picture goes through each part of augment
    augment: str = ""  # DiffAugment, a comma-separated list of color, translation, cutout
    # adaptive augmentation's parts, here with the scheduled probability: a comma-separated list of blit, geometry,
    # color, filter, noise, cutout
    augment_policy: str = ""
    mirror: bool = False  # turn real pictures left for right, each with a chance of one half
    weights: Literal["average", "last"] = "average"  # of samples: averaged over training, or those of the last step
    dtype: Literal["float32", "float64"] = "float32"  # of weights, and of the arithmetic outside the bfloat16 stages
    micro_batch: int | None = None  # pictures of the batch that are computed at a time, to save memory; None: all
    remat: bool = False  # compute blocks again for the gradient rather than keep them: less memory, a third slower
    convolution: Literal["auto", "cpu", "xla"] = "auto"  # see layers.grouped_conv

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in get_args(field.type):
                raise ValueError(f"{field.name} must be {' or '.join(get_args(field.type))}, got {value!r}")
        at_least_one = ("classes", "latent_dim", "width", "blocks", "expansion", "group_size", "schedule_images")
        for name in (*at_least_one, "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        size = self.recipe.image_size
        if not 16 <= size <= 1024 or size & (size - 1):
            fits = min(1024, max(16, 1 << max(0, size - 1).bit_length()))
            raise ValueError(f"image_size must be a power of two from 16 to 1024, got {size}: take {fits}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.classes is not None and not self.conditional:
            raise ValueError(f"classes go with conditional, which is off, got {self.classes}: leave them out")
        if self.width is not None and self.widths is not None:
            raise ValueError(f"width must not be given where widths are, got {self.width} and {self.widths}")
        recipe, stages = self.recipe, size.bit_length() - 2
        if len(recipe.widths) != stages or min(recipe.widths) < 1:
            raise ValueError(
                f"widths must be {stages} numbers from 1 up, one for each of 4x4 to {size}x{size} pixels, "
                f"got {recipe.widths}"
            )
        for width in recipe.widths:
            if self.expansion * width % min(recipe.group_size, self.expansion * width):
                raise ValueError(
                    f"group_size must divide expansion * width = {self.expansion * width}, got {recipe.group_size}"
                )
        if not 0 <= recipe.bfloat16_stages <= stages:
            raise ValueError(f"bfloat16_stages must be from 0 to {stages}, got {recipe.bfloat16_stages}")
        if recipe.bfloat16_stages and self.dtype == "float64":
            raise ValueError(f"bfloat16_stages must be 0 with dtype float64, got {recipe.bfloat16_stages}")
        for name in SCHEDULED:
            pair = getattr(recipe, name)
            if min(pair) < 0:
                raise ValueError(f"{name} must not be negative, got {pair}")
        if max(recipe.beta2) >= 1:
            raise ValueError(f"beta2 must be below 1, got {recipe.beta2}")
        if max(recipe.augment_probability) > 1:
            raise ValueError(f"augment_probability must be at most 1, got {recipe.augment_probability}")
        augment.check_policy(self.augment)
        adaptive_augment.check_policy(self.augment_policy)

    @property
    def recipe(self) -> Recipe:
        """The preset's values, and in their place those that are given."""
        preset = PRESETS[self.preset]
        size = preset.image_size if self.image_size is None else self.image_size
        derived: dict[str, Any] = {}
        if self.preset == "small":
            derived["gamma"] = tuple(gamma * (size / preset.image_size) ** 2 for gamma in preset.gamma)
        if self.width is not None or self.preset == "small":
            stages, finest = reversed(range(size.bit_length() - 2)), self.width or preset.widths[-1]
            derived["widths"] = tuple(finest << min(3, stage) for stage in stages)
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)}
        return dataclasses.replace(
            preset, **derived | {name: value for name, value in given.items() if value is not None}
        )

    @property
    def param_dtype(self):
        return jnp.float64 if self.dtype == "float64" else jnp.float32

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the pictures."""
        return self.recipe.image_size, self.recipe.image_size, self.channels or 3

    def stage_dtype(self, stage: int):
        """Of the arithmetic of a stage, 0 being the one of 4x4 pixels."""
        recipe = self.recipe
        return jnp.bfloat16 if stage >= len(recipe.widths) - recipe.bfloat16_stages else self.param_dtype


def sources(cfg: Config) -> dict[str, Wanted]:
    """One set of real pictures; each of the two updates of a step takes its own batch."""
    return {"real": Wanted(cfg.recipe.image_size, cfg.channels, batches=2)}


def settle(cfg: Config, found: Mapping[str, Source]) -> Config:
    """As many channels and, if conditional, classes as the data has, and all that is the preset's, for run.json.

    UserError where the classes are not the config's.
    """
    real = found["real"]
    recipe = {field.name: getattr(cfg.recipe, field.name) for field in dataclasses.fields(Recipe)}
    count = classes.settled(cfg.conditional, cfg.classes, real)
    return dataclasses.replace(cfg, **recipe, width=None, channels=real.image_shape[-1], classes=count)


# ---------------------------------------------------------------------------------------------------------------------
# Networks

_GAIN = (2 / (1 + 0.2**2)) ** 0.5  # of the leaky ReLU: by it weights are larger at the beginning (He et al. 2015)
_LAYERS = 3  # of a residual block


def _scaled(fan_in: int, gain: float = 1.0) -> nn.initializers.Initializer:
    """N(0, gain^2 / fan_in)."""
    return nn.initializers.normal(gain / fan_in**0.5)


def _pointwise(module: nn.Module, name: str, x: jax.Array, features: int, gain: float = 1.0) -> jax.Array:
    """1x1 convolution without bias, (..., c) -> (..., features)."""
    kernel = module.param(name, _scaled(x.shape[-1], gain), (x.shape[-1], features), module.cfg.param_dtype)
    return x @ kernel.astype(x.dtype)


class Block(nn.Module):
    """x + f(x) of f's three convolutions, 1x1, grouped 3x3 and 1x1, the last of which begins at 0 (section 4).

    The other two begin smaller by blocks^(-1 / (2 * 3 - 2)), as of Fixup (Zhang et al. 2019, arXiv:1901.09321). Biases
    stand before the two leaky ReLUs and nowhere else.
    """

    cfg: Config
    blocks: int  # of the whole network

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, features = self.cfg, self.cfg.expansion * x.shape[-1]
        group = min(cfg.recipe.group_size, features)
        gain = _GAIN * self.blocks ** (-1 / (2 * _LAYERS - 2))
        y = self._activated(_pointwise(self, "expand", x, features, gain), "bias1")
        kernel = self.param("grouped", _scaled(9 * group, gain), (3, 3, group, features), cfg.param_dtype)
        y = layers.grouped_conv(y, kernel.astype(x.dtype), features // group, cfg.convolution)
        return x + _pointwise(self, "project", self._activated(y, "bias2"), x.shape[-1], gain=0.0)

    def _activated(self, x: jax.Array, name: str) -> jax.Array:
        bias = self.param(name, nn.initializers.zeros, x.shape[-1:], self.cfg.param_dtype)
        return nn.leaky_relu(x + bias.astype(x.dtype), 0.2)


class Generator(nn.Module):
    """Latents (b, latent_dim) and, if conditional, labels as `class_weights` takes them, to pictures (b, s, s, c).

    It begins with 4x4 pixels that are learned, each channel times a linear function of the latent.
    """

    cfg: Config

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None) -> jax.Array:
        cfg, recipe = self.cfg, self.cfg.recipe
        x = z.astype(cfg.param_dtype)
        if cfg.conditional:
            weights = class_weights(label, cfg)
            shape = (weights.shape[1], recipe.latent_dim)
            x = jnp.concatenate([x, weights @ self.param("embed", _scaled(shape[0]), shape, cfg.param_dtype)], -1)
        basis = self.param("basis", nn.initializers.normal(1.0), (4, 4, recipe.widths[0]), cfg.param_dtype)
        x = basis * _pointwise(self, "latent", x, recipe.widths[0])[:, None, None]
        block = nn.remat(Block) if cfg.remat else Block
        for stage, width in enumerate(recipe.widths):
            x = x.astype(cfg.stage_dtype(stage))
            side = f"{4 << stage}x{4 << stage}"
            if stage > 0:
                if width != x.shape[-1]:
                    x = _pointwise(self, f"to_{side}", x, width)
                x = resampling.enlarge(x)
            for i in range(recipe.blocks):
                x = block(cfg, recipe.blocks * len(recipe.widths), name=f"{side}_block{i}")(x)
            self.sow("intermediates", side, x)
        return _pointwise(self, "to_picture", x, cfg.channels or 3).astype(cfg.param_dtype)


class Discriminator(nn.Module):
    """Pictures (b, s, s, c) in [-1, 1] and, if conditional, labels as `class_weights` takes them, to logits (b,).

    If conditional, a picture's features are multiplied with an embedding of its class (Miyato & Koyama 2018,
    arXiv:1802.05637, eq. 3, without the term that is common to all classes).
    """

    cfg: Config

    @nn.compact
    def __call__(self, images: jax.Array, label: jax.Array | None = None) -> jax.Array:
        cfg, recipe = self.cfg, self.cfg.recipe
        last = len(recipe.widths) - 1
        block = nn.remat(Block) if cfg.remat else Block
        x = _pointwise(self, "from_picture", images.astype(cfg.stage_dtype(last)), recipe.widths[last])
        for stage in reversed(range(last + 1)):
            x = x.astype(cfg.stage_dtype(stage))
            side = f"{4 << stage}x{4 << stage}"
            for i in range(recipe.blocks):
                x = block(cfg, recipe.blocks * len(recipe.widths), name=f"{side}_block{i}")(x)
            if stage > 0:
                x, width = resampling.reduce(x), recipe.widths[stage - 1]
                if width != x.shape[-1]:
                    x = _pointwise(self, f"from_{side}", x, width)
        basis = self.param("basis", _scaled(16), (4, 4, x.shape[-1]), cfg.param_dtype)
        x = jnp.einsum("bhwc,hwc->bc", x, basis.astype(x.dtype))
        x = _pointwise(self, "judge", x, recipe.widths[0] if cfg.conditional else 1).astype(cfg.param_dtype)
        if not cfg.conditional:
            return x[:, 0]
        weights = class_weights(label, cfg)
        shape = (weights.shape[1], recipe.widths[0])
        embedding = self.param("embed", _scaled(shape[0], shape[1] ** -0.5), shape, cfg.param_dtype)
        return (x * (weights @ embedding)).sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# State


@flax.struct.dataclass
class Network:
    """One network and its optimizer."""

    params: Any
    opt_state: Any  # Adam's mean squared gradients: with beta1 0 the mean gradient is the gradient itself


@flax.struct.dataclass
class State:
    step: jax.Array  # () int32, training steps done
    gen: Network
    disc: Network
    ema: Any  # the generator's weights, averaged


def init(key: jax.Array, cfg: Config) -> State:
    """A new pair of networks."""
    key_gen, key_disc = jax.random.split(key)
    z = jnp.zeros((2, cfg.recipe.latent_dim), cfg.param_dtype)
    images = jnp.zeros((2, *cfg.shape), cfg.param_dtype)
    label = jnp.zeros(2, jnp.int32) if cfg.conditional else None

    def network(module: nn.Module, key: jax.Array, inputs: jax.Array) -> Network:
        params = module.init(key, inputs, label)["params"]
        return Network(params, jax.tree.map(jnp.zeros_like, params))

    gen = network(Generator(cfg), key_gen, z)
    disc = network(Discriminator(cfg), key_disc, images)
    # A copy, because the state is donated to the step and no buffer may be donated twice.
    return State(jnp.zeros((), jnp.int32), gen, disc, ema=jax.tree.map(jnp.copy, gen.params))


def scheduled(images: jax.Array, cfg: Config) -> dict[str, jax.Array]:
    """The five numbers of `SCHEDULED` after so many pictures, () float: half a cosine from one value to the other."""
    done = jnp.minimum(images / cfg.recipe.schedule_images, 1)
    share = (1 - jnp.cos(jnp.pi * done)) / 2
    pairs = {name: getattr(cfg.recipe, name) for name in SCHEDULED}
    return {name: first + share * (last - first) for name, (first, last) in pairs.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_step(
    state: State, batch: dict, key: jax.Array, cfg: Config, axis_name: str | None = None
) -> tuple[State, dict]:
    """The discriminator's update, then the generator's, then the average.

    batch["real"]["image"]: (2b, s, s, c) float in [-1, 1], of which every other picture belongs to the generator's
    update, so that no picture leaves its device; ["label"]: (2b,) int32 where conditional, and generated pictures are
    asked for with the labels of the real ones that they are compared with. Returns the new state and scalar metrics.
    """
    images = batch["real"]["image"].astype(cfg.param_dtype)
    b = len(images) // 2
    global_batch = b * layers.axis_size(axis_name)
    now = scheduled(state.step.astype(cfg.param_dtype) * global_batch, cfg)
    parts = []
    for i, key_i in enumerate(jax.random.split(key)):
        real = images.reshape(b, 2, *images.shape[1:])[:, i]
        if cfg.mirror:
            real = augment.flip(jax.random.fold_in(key_i, 0), real, axis_name)
        z = layers.global_normal(
            jax.random.fold_in(key_i, 1), (b, cfg.recipe.latent_dim), axis_name, dtype=cfg.param_dtype
        )
        label = batch["real"]["label"].reshape(b, 2)[:, i] if cfg.conditional else None
        distortions = (draw_distortion(jax.random.fold_in(key_i, 2 + j), b, now, cfg, axis_name) for j in range(2))
        parts.append(Part(z, real, label, *distortions))

    disc, disc_metrics = update_discriminator(state.disc, state.gen, parts[0], now, state.step, cfg, axis_name)
    gen, gen_metrics = update_generator(state.gen, disc, parts[1], now, state.step, cfg, axis_name)
    # A half-life of 0, as at the first step, keeps nothing of what was.
    decay = 0.5 ** (global_batch / jnp.maximum(now["ema_halflife_images"], 1e-8))
    ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema, gen.params)
    return State(state.step + 1, gen, disc, ema), layers.pmean(disc_metrics | gen_metrics, axis_name)


class Part(NamedTuple):
    """What one update sees, or a part of that."""

    z: jax.Array  # (b, latent_dim)
    real: jax.Array  # (b, s, s, c)
    label: jax.Array | None  # (b,), of both
    of_real: Any  # how real pictures are augmented, and generated ones: of `draw_distortion`
    of_fake: Any


def update_discriminator(disc: Network, gen: Network, part: Part, now: dict, step, cfg: Config, axis_name: str | None):
    """One step down softplus(D(G(z)) - D(x)) + gamma / 2 (R1 + R2), the penalties by what comes before augmentation."""

    def loss_function(params, part: Part):
        fake = apply(Generator(cfg), gen.params, part.z, part.label)

        def logits(real, fake):
            seen = [distort(real, part.of_real, cfg), distort(fake, part.of_fake, cfg)]
            return apply_to_both(params, seen, part.label, cfg)

        (real_logits, fake_logits), pull_back = jax.vjp(logits, part.real, fake)
        r1, r2 = (jnp.sum(g**2, (1, 2, 3)) for g in pull_back([jnp.ones_like(real_logits)] * 2))
        adversarial = losses.relativistic(real_logits, fake_logits)
        difference = real_logits - fake_logits
        return (adversarial + now["gamma"] / 2 * (r1 + r2)).mean(), {
            "loss/disc": adversarial,
            "penalty/r1": r1,
            "penalty/r2": r2,
            "logit/difference": difference,
            "accuracy": (difference > 0).astype(difference.dtype),
        }

    parts = micro_batches.count(len(part.z), cfg.micro_batch, 1, axis_name)
    (_, of_each), gradients = micro_batches.value_and_grad(loss_function, disc.params, part, parts)
    return descend(disc, gradients, now, step, axis_name), jax.tree.map(jnp.mean, of_each)


def update_generator(gen: Network, disc: Network, part: Part, now: dict, step, cfg: Config, axis_name: str | None):
    """One step down softplus(D(x) - D(G(z)))."""

    def loss_function(params, part: Part):
        fake = apply(Generator(cfg), params, part.z, part.label)
        real_logits, fake_logits = (
            apply(Discriminator(cfg), disc.params, distort(images, drawn, cfg), part.label)
            for images, drawn in ((part.real, part.of_real), (fake, part.of_fake))
        )
        return losses.relativistic(fake_logits, real_logits).mean(), None

    parts = micro_batches.count(len(part.z), cfg.micro_batch, 1, axis_name)
    (loss, _), gradients = micro_batches.value_and_grad(loss_function, gen.params, part, parts)
    return descend(gen, gradients, now, step, axis_name), {"loss/gen": loss}


def apply(module: nn.Module, params, inputs: jax.Array, label: jax.Array | None) -> jax.Array:
    return jnp.asarray(module.apply({"params": layers.gathered(params)}, inputs, label))


def apply_to_both(params, batches: list[jax.Array], label: jax.Array | None, cfg: Config) -> list[jax.Array]:
    """The discriminator's logits of real and of generated pictures that share their labels."""
    if layers.backend() == "cpu":  # each on its own, which fits its caches better
        return [apply(Discriminator(cfg), params, batch, label) for batch in batches]
    # In one pass: fewer and larger kernels. Interleaved, so that no picture leaves its device.
    together = jnp.stack(batches, 1).reshape(-1, *batches[0].shape[1:])
    logits = apply(Discriminator(cfg), params, together, None if label is None else jnp.repeat(label, 2))
    return [logits[0::2], logits[1::2]]


def descend(network: Network, gradients, now: dict[str, jax.Array], step: jax.Array, axis_name: str | None) -> Network:
    """One step of Adam (Kingma & Ba 2015, Algorithm 1) with beta1 0, epsilon 1e-8 and a beta2 that moves.

    As in PyTorch's Adam, 1 - beta2^t is made with the beta2 of this step. Under `pmap` the gradients are averaged here,
    and nowhere else.
    """
    gradients = layers.pmean(gradients, axis_name)
    beta2, rate = now["beta2"], now["learning_rate"]
    correction = 1 - beta2 ** (step + 1)
    squares = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, network.opt_state, gradients)
    params = jax.tree.map(
        lambda p, v, g: p - rate * g / (jnp.sqrt(v / correction) + 1e-8), network.params, squares, gradients
    )
    return Network(params, squares)


def draw_distortion(
    key: jax.Array, b: int, now: dict[str, jax.Array], cfg: Config, axis_name: str | None
) -> tuple[dict[str, jax.Array], list[tuple[Any, jax.Array]]]:
    """How b pictures are to be augmented, for `distort`; each part of `augment` by the numbers of those it changes."""
    p, shape, dtype = now["augment_probability"], (b, *cfg.shape), cfg.param_dtype
    policy = adaptive_augment.draw(jax.random.fold_in(key, 100), shape, p, cfg.augment_policy, dtype, axis_name)
    parts = []
    for i, part in enumerate(augment.check_policy(cfg.augment)):
        key_part, key_which = jax.random.split(jax.random.fold_in(key, i))
        choose = functools.partial(jax.random.bernoulli, key_which, p)
        chosen = layers.global_draw(choose, (b, 1, 1, 1), axis_name)
        parts.append((augment.draw(key_part, shape, part, dtype, axis_name), chosen))
    return policy, parts


def distort(images: jax.Array, drawn: Any, cfg: Config) -> jax.Array:
    """What the discriminator sees in place of pictures (b, s, s, c)."""
    policy, parts = drawn
    images = adaptive_augment.transform(images, policy)
    for part, (numbers, chosen) in zip(augment.check_policy(cfg.augment), parts, strict=True):
        images = jnp.where(chosen, augment.transform(images, numbers, part), images)
    return images


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def requests(key: jax.Array, n: int, cfg: Config, examples: Mapping[str, Any] | None = None) -> Any:
    """Latents (n, latent_dim), N(0, 1); if conditional, {"latents": these, "label": (n,) int32}, classes in turn."""
    latents = jax.random.normal(key, (n, cfg.recipe.latent_dim), cfg.param_dtype)
    if not cfg.conditional:
        return latents
    return {"latents": latents, "label": jnp.arange(n, dtype=jnp.int32) % (cfg.classes or 1)}


def generator(state: State, cfg: Config) -> dict:
    """The generator's weights, according to `cfg.weights`."""
    return {"params": state.ema if cfg.weights == "average" else state.gen.params}


def sample(variables: dict, requests: Any, cfg: Config) -> jax.Array:
    """Requests to pictures (n, s, s, c) in [-1, 1].

    In the place of labels (n,) weights of the classes (n, classes) float may be given, for what lies between them.
    """
    z, label = _parts(requests)
    return jnp.clip(apply(Generator(cfg), variables["params"], z, label), -1, 1)


def _parts(requests: Any) -> tuple[jax.Array, jax.Array | None]:
    return (requests["latents"], requests["label"]) if isinstance(requests, Mapping) else (requests, None)


def watch(
    metrics: Mapping[str, float], pictures: np.ndarray, real: Mapping[str, Any]
) -> tuple[dict[str, float], str | None]:
    """How much samples differ from each other, 1 being as much as real pictures, and what looks like collapse."""
    relative = diversity(pictures) / max(diversity(real["real"]["image"]), 1e-6)
    accuracy = metrics.get("accuracy", 0.0)
    warning = None
    if relative < 0.1 or (relative < 0.4 and accuracy > 0.99):
        warning = (
            f"the samples are too much alike (diversity {relative:.3f} of the data's, the discriminator right about "
            f"{accuracy:.3f} of the pairs): the generator has collapsed, unless it has only begun to learn and more "
            "steps help. Go back to an earlier checkpoint, or try a larger --gamma or --augment color,translation"
        )
    return {"diversity": round(relative, 4)}, warning


# ---------------------------------------------------------------------------------------------------------------------
# Seeing inside


def discriminate(state: State, images: jax.Array, cfg: Config) -> jax.Array:
    """Pictures (n, s, s, c) in [-1, 1] to logits (n,); if conditional, the mean over all classes.

    Only differences of them mean anything: the loss knows no others.
    """
    label = jnp.full((len(images), cfg.classes), 1 / cfg.classes) if cfg.classes else None
    return apply(Discriminator(cfg), state.disc.params, images.astype(cfg.param_dtype), label)


def first_layer(variables: dict, cfg: Config) -> jax.Array:
    """The generator's first weights, (latent_dim, channels at 4x4): what a latent is multiplied with."""
    return variables["params"]["latent"][: cfg.recipe.latent_dim]


def activations(variables: dict, requests: Any, cfg: Config) -> dict[str, jax.Array]:
    """Requests to the absolute values of what the generator's stages give, "4x4" and so on: (n, 4, 4, channels), ..."""
    z, label = _parts(requests)
    captured: Any = Generator(cfg).apply(variables, z, label, mutable=["intermediates"])[1]
    return {name: jnp.abs(x).astype(cfg.param_dtype) for name, (x,) in captured["intermediates"].items()}
