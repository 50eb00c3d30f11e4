"""Super-resolution by a network, with a pixel loss or a feature loss (Johnson, Alahi & Fei-Fei 2016, arXiv:1603.08155,
sections 3 and 4.2, and table 2 of the supplement).

A 9x9 convolution, residual blocks at the size of the small picture, and one doubling of the size after the other.
Trained on patches, whose small versions are made where the step runs; a network is made for one factor.

Differs from the paper, and what brings the paper's back:
- the network adds to the bicubically enlarged picture, and its last layer is linear, where the paper's is a scaled tanh
  that makes the picture alone; --no-skip makes it alone;
- no BatchNorm, which costs a network of differences their range (Lim et al. 2017, arXiv:1707.02921); --norm batch;
- repeated pixels and a convolution double the size, without the checkerboards of transposed ones (Odena et al. 2016);
  --upsampling transposed. "shuffle" does all work at the small size, for CPUs (Shi et al. 2016, arXiv:1609.05158);
- patches of 96 pixels instead of 288, turned and mirrored; pictures are shrunk bicubically without a Gaussian before,
  as the published test sets are; --patch 288 --image-size 288 --no-symmetries --blur 1;
- features of the network that ships with the package; --features vgg16. No histogram matching; --match-histograms.
Convolutions pad with zeros, as the paper's for super-resolution do, unlike those for styles.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ganstyle_jax.data import Wanted
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.nn import layers
from ganstyle_jax.restore import bicubic


@dataclasses.dataclass(frozen=True)
class Config:
    """A network that enlarges pictures, and how it is trained."""

    scale: int = 4  # times as wide and high: 2, 4 or 8
    image_size: int = 256  # pixels of the pictures that patches are cut from, a multiple of the scale
    patch: int = 96  # pixels of the large patches, a multiple of the scale
    symmetries: bool = True  # turn and mirror patches at random, in the eight ways that a square has
    blur: float = 0.0  # pixels, standard deviation of a Gaussian before pictures are shrunk (1 in the paper)
    width: int = 64  # channels
    blocks: int = 4  # residual blocks
    norm: Literal["none", "batch"] = "none"  # batch: BatchNorm after all convolutions but the last, as in the paper
    upsampling: Literal["nearest", "transposed", "shuffle"] = "nearest"  # transposed: as in the paper
    skip: bool = True  # add to the bicubically enlarged picture
    loss: Literal["pixel", "feature"] = "pixel"
    distance: Literal["squared", "absolute"] = "squared"  # of the pixel loss
    pixel_weight: float = 0.0  # of the pixel loss beside the feature loss, whose own weight is 1
    features: str = "compact"  # network of the feature loss: a name of `ganstyle weights list`, or a file of weights
    layers: tuple[str, ...] = ("relu2_2",)  # of that network, whose losses are added
    learning_rate: float = 1e-3  # of Adam
    schedule: Literal["constant", "cosine"] = "constant"  # learning rate down to 0
    schedule_steps: int = 0  # training steps after which a cosine has reached 0
    match_histograms: bool = False  # give results each colour's distribution of the small picture, as the paper does
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self):
        if self.scale not in (2, 4, 8):
            raise ValueError(f"scale must be 2, 4 or 8, got {self.scale}")
        for name in ("image_size", "patch"):
            size = getattr(self, name)
            if size < self.scale or size % self.scale:
                fits = max(self.scale, round(size / self.scale) * self.scale)
                raise ValueError(f"{name} must be a multiple of the scale {self.scale}, got {size}: take {fits}")
        if self.patch > self.image_size:
            raise ValueError(
                f"patch must be no larger than image_size, {self.image_size}, got {self.patch}: take --image-size "
                f"{self.patch} or a smaller patch"
            )
        for name, least in (("width", 1), ("blocks", 0), ("blur", 0), ("pixel_weight", 0), ("learning_rate", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in get_args(field.type):
                raise ValueError(f"{field.name} must be {' or '.join(get_args(field.type))}, got {value!r}")
        if self.schedule == "cosine" and self.schedule_steps < 1:
            raise ValueError(f"a cosine schedule needs schedule_steps >= 1, got {self.schedule_steps}")
        if self.loss == "feature" and not self.layers:
            raise ValueError("a feature loss needs layers, such as relu2_2, got none")

    @property
    def doublings(self) -> int:
        return self.scale.bit_length() - 1


def sources(cfg: Config) -> dict[str, Wanted]:
    """Pictures to learn from, of any kind that is to be enlarged later."""
    return {"pictures": Wanted(cfg.image_size)}


def constants(cfg: Config) -> Any:
    """The weights of the feature network; {} for a pixel loss. UserError for weights that are not here."""
    if cfg.loss == "pixel":
        return {}
    network, params = weights.load_for_style(cfg.features)
    network.check(cfg.layers)
    if cfg.patch < (needed := network.smallest_side(cfg.layers)):
        raise ValueError(f"patch must be at least {needed} for {', '.join(cfg.layers)}, got {cfg.patch}")
    return {"encoder": jax.tree.map(lambda x: jnp.asarray(x, cfg.dtype), params)}


@functools.lru_cache(maxsize=4)
def _feature_network(cfg: Config) -> vgg.Network:
    return dataclasses.replace(weights.load_for_style(cfg.features)[0], dtype=cfg.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The network


class Convolution(nn.Module):
    """`size` x `size`, of stride 1, zeros around; then BatchNorm, or a bias where there is none."""

    features: int
    size: int
    cfg: Config
    axis_name: str | None = None
    plain: bool = False  # never BatchNorm
    transposed: bool = False  # doubles the size: PyTorch's ConvTranspose2d(c, d, 3, 2, 1, output_padding=1)
    gain: float = 2.0  # variance of the result, relative to that of the input

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        cfg = self.cfg
        # Of a transposed convolution's products, one in four falls on each pixel.
        variance = self.gain * (4 if self.transposed else 1) / (self.size**2 * x.shape[-1])
        init = nn.initializers.normal(variance**0.5)
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features), cfg.dtype)
        if self.transposed:
            numbers = ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(
                x, kernel, (1, 1), ((1, 2), (1, 2)), lhs_dilation=(2, 2), dimension_numbers=numbers
            )
        else:
            x = layers.conv(x, kernel)
        if cfg.norm == "batch" and not self.plain:
            return layers.BatchNorm(jnp.dtype(cfg.dtype), jnp.dtype(cfg.dtype), self.axis_name, name="norm")(x, train)
        return x + self.param("bias", nn.initializers.zeros, (self.features,), cfg.dtype)


class Network(nn.Module):
    """Small pictures (b, h, w, 3) in [-1, 1] to (b, scale h, scale w, 3), not clipped; h and w from 1 up."""

    cfg: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(self, small: jax.Array, train: bool) -> jax.Array:
        cfg = self.cfg
        conv = functools.partial(Convolution, cfg=cfg, axis_name=self.axis_name)
        x = nn.relu(conv(cfg.width, 9, name="first")(small, train))
        for i in range(1, cfg.blocks + 1):
            y = nn.relu(conv(cfg.width, 3, name=f"block{i}_1")(x, train))
            # A smaller second half, so that a new network of many blocks is near to one without.
            x = x + conv(cfg.width, 3, gain=1 / cfg.blocks, name=f"block{i}_2")(y, train)
        # What is added to a picture begins small, what makes it alone begins with its size.
        last = functools.partial(conv, plain=True, gain=0.01 if cfg.skip else 0.5, name="last")
        if cfg.upsampling == "shuffle":
            x = shuffle(last(3 * cfg.scale**2, 3)(x, train), cfg.scale)
        else:
            for i in range(1, cfg.doublings + 1):
                if cfg.upsampling == "nearest":
                    x = x.repeat(2, 1).repeat(2, 2)
                up = conv(cfg.width, 3, transposed=cfg.upsampling == "transposed", name=f"up{i}")
                x = nn.relu(up(x, train))
            x = last(3, 9)(x, train)
        return x + bicubic.enlarge(small, cfg.scale) if cfg.skip else x


def shuffle(x: jax.Array, factor: int) -> jax.Array:
    """(b, h, w, c factor^2) -> (b, factor h, factor w, c), PyTorch's pixel_shuffle: channels (c, row, column)."""
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, -1, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * factor, w * factor, -1)


# ---------------------------------------------------------------------------------------------------------------------
# State


@flax.struct.dataclass
class State:
    step: jax.Array  # () int32, training steps done
    params: Any
    batch_stats: Any  # {} without BatchNorm
    opt_state: Any


def optimizer(cfg: Config) -> optax.GradientTransformation:
    rate = cfg.learning_rate
    return optax.adam(optax.cosine_decay_schedule(rate, cfg.schedule_steps) if cfg.schedule == "cosine" else rate)


def init(key: jax.Array, cfg: Config, constants: Any = ()) -> State:
    """A new network."""
    side = cfg.patch // cfg.scale
    variables = Network(cfg).init(key, jnp.zeros((2, side, side, 3), cfg.dtype), train=True)
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer(cfg).init(params))


# ---------------------------------------------------------------------------------------------------------------------
# Training


def patches(pictures: jax.Array, key: jax.Array, cfg: Config, axis_name: str | None = None) -> jax.Array:
    """One patch of each picture, (b, s, s, 3) -> (b, patch, patch, 3), from anywhere in it, turned and mirrored."""
    b, room = len(pictures), cfg.image_size - cfg.patch + 1
    draw = lambda i, most: layers.global_draw(  # noqa: E731
        lambda shape: jax.random.randint(jax.random.fold_in(key, i), shape, 0, most), (b,), axis_name
    )
    cut = lambda picture, y, x: lax.dynamic_slice(picture, (y, x, 0), (cfg.patch, cfg.patch, 3))  # noqa: E731
    found = jax.vmap(cut)(pictures, draw(0, room), draw(1, room))
    if cfg.symmetries:
        which = draw(2, 8)[:, None, None, None]
        found = jnp.where(which & 1, found[:, ::-1], found)
        found = jnp.where(which & 2, found[:, :, ::-1], found)
        found = jnp.where(which & 4, found.swapaxes(1, 2), found)
    return found


def losses(found: jax.Array, truth: jax.Array, cfg: Config, constants: Any) -> dict[str, jax.Array]:
    """Each loss that the config has, of each picture: (b, h, w, 3) both -> (b,)."""
    difference = found - truth
    error = jnp.abs(difference) if cfg.distance == "absolute" else difference**2
    terms = {"pixel": error.mean((1, 2, 3))}  # the paper's l_pixel, section 3.2
    if cfg.loss == "feature":
        network, total = _feature_network(cfg), jnp.zeros(len(found), found.dtype)
        of_found, of_truth = (network.apply(constants["encoder"], x, cfg.layers) for x in (found, truth))
        for layer in cfg.layers:  # eq. 2
            total += ((of_found[layer] - of_truth[layer]) ** 2).mean((1, 2, 3))
        terms["feature"] = total
    return terms


def train_step(
    state: State, batch: dict, key: jax.Array, cfg: Config, constants: Any = (), axis_name: str | None = None
) -> tuple[State, dict]:
    """One update. batch["pictures"]["image"]: (b, s, s, 3) float32 in [-1, 1]."""
    truth = patches(batch["pictures"]["image"].astype(cfg.dtype), key, cfg, axis_name)
    small = bicubic.shrink(truth, cfg.scale, cfg.blur)
    network = Network(cfg, axis_name)

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        found, new = network.apply(variables, small, train=True, mutable=["batch_stats"])
        terms = {name: values.mean() for name, values in losses(found, truth, cfg, constants).items()}
        total = terms["pixel"] if cfg.loss == "pixel" else terms["feature"] + cfg.pixel_weight * terms["pixel"]
        return total, (new.get("batch_stats", {}), terms)

    (_, (batch_stats, terms)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    gradient = layers.pmean(gradient, axis_name)
    updates, opt_state = optimizer(cfg).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = layers.pmean({f"loss/{name}": value for name, value in terms.items()}, axis_name)
    return State(state.step + 1, params, batch_stats, opt_state), metrics


# ---------------------------------------------------------------------------------------------------------------------
# Results


def requests(key: jax.Array, n: int, cfg: Config, examples: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures made small, (n, s / scale, s / scale, 3), and the pictures themselves."""
    truth = jnp.asarray(examples["pictures"]["image"][:n])
    return {"small": bicubic.shrink(truth, cfg.scale, cfg.blur), "truth": truth}


def requests_of(pictures: Any, cfg: Config) -> dict[str, Any]:
    """The user's own pictures (n, h, w, 3) are the small ones."""
    return {"small": pictures}


def generator(state: State, cfg: Config, constants: Any = ()) -> dict:
    return {"params": state.params, "batch_stats": state.batch_stats}


def sample(variables: dict, requests: Mapping[str, jax.Array], cfg: Config) -> dict[str, jax.Array]:
    """requests["small"] (n, h, w, 3) in [-1, 1], enlarged twice, (n, scale h, scale w, 3), and the truth if known."""
    small = jnp.asarray(requests["small"], cfg.dtype)
    result: Any = Network(cfg).apply(variables, small, train=False)
    if cfg.match_histograms:
        result = with_histograms_of(result, small)
    pictures = {"bicubic": bicubic.enlarge(small, cfg.scale), "result": result}
    if "truth" in requests:
        pictures["truth"] = requests["truth"]
    return {title: jnp.clip(jnp.asarray(x), -1, 1).astype(jnp.float32) for title, x in pictures.items()}


def judged(cfg: Config) -> tuple[str, str]:
    return "result", "pictures"


def watch(
    metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray], real: Mapping[str, Any]
) -> tuple[dict[str, float], str | None]:
    """PSNR of the grid's pictures in dB, over all colours, of the network's and of the bicubically enlarged ones."""
    found = {}
    for title in ("bicubic", "result"):
        error = np.mean((np.float64(pictures[title]) - np.float64(pictures["truth"])) ** 2, axis=(1, 2, 3))
        found[f"psnr/{title}"] = round(float(np.mean(10 * np.log10(4 / np.maximum(error, 1e-10)))), 3)
    return found, None


def with_histograms_of(pictures: jax.Array, references: jax.Array) -> jax.Array:
    """Each colour's values with those of the reference of the same rank in their stead (section 4.2).

    (b, h, w, c) and (b, h', w', c) -> (b, h, w, c). Equal values take ranks in the order of their places; between the
    reference's values it is linear. The paper does not say in which colours it matches; here red, green and blue.
    """

    def match(values, wanted):
        levels = [(jnp.arange(len(x), dtype=values.dtype) + 0.5) / len(x) for x in (values, wanted)]
        return jnp.zeros_like(values).at[jnp.argsort(values)].set(jnp.interp(levels[0], levels[1], jnp.sort(wanted)))

    flat = [jnp.moveaxis(x.reshape(len(x), -1, x.shape[-1]), 1, 2) for x in (pictures, references)]
    return jnp.moveaxis(jax.vmap(jax.vmap(match))(*flat), 2, 1).reshape(pictures.shape)
