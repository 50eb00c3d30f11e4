"""Style in one forward pass: a network that is trained to paint like a few pictures (Johnson, Alahi & Fei-Fei 2016).

Papers: arXiv:1603.08155, and for several styles in one network Dumoulin, Shlens & Kudlur 2017 (arXiv:1610.07629). Each
photograph of a batch draws a style; what the network makes of it is compared with the photograph by features, and with
the style by Gram matrices of features, of a network that is frozen.

Differs: the transformation network, see nn/image_transform.py, and colours are clipped in the place of a tanh, behind
which saturated places are no longer learned: dark ones became black holes within a few thousand steps. Every term of
the loss is relative, as where a picture is optimised: 1 for a picture without features, so that weights mean the same
for every style, layer and feature network, where the paper's have to be found anew for each. With them styles are
learned at like speed, and several share a network without one of large features drowning the others. Weights for
pictures are averaged over training.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ganstyle_jax.data import Source, Wanted
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.images import resize
from ganstyle_jax.io.pictures import read_picture
from ganstyle_jax.nn import layers
from ganstyle_jax.nn.image_transform import SMALLEST, ImageTransform, Output, Params, Upsampling
from ganstyle_jax.style.config import STYLE_LAYERS, fitted_shape
from ganstyle_jax.style.losses import Moments, means, moments
from ganstyle_jax.style.terms import content_term, style_term, tv_term, weighted


@dataclasses.dataclass(frozen=True)
class Config:
    """A network for a few styles and how it is trained."""

    style: tuple[Path, ...] = ()  # pictures to paint like, one or several
    image_size: int = 256  # pixels of a side of the photographs that it learns from; it paints any size
    width: int = 32  # channels at full size, twice as many at half of it and four times at a quarter
    blocks: int = 5  # residual blocks
    upsampling: Upsampling = "nearest"  # before a convolution; transposed: as in the paper, which leaves checkerboards
    output: Output = "clip"  # what takes colours to [-1, 1]; tanh, as in the paper: where it is flat nothing is learned
    features: str = "compact"  # the network that compares, by name or file; see ganstyle weights
    content_layer: str = "relu4_1"  # of that network, where the photograph is compared
    content_weight: float = 1.0  # of the content loss, which is 1 for a picture without features
    style_layers: tuple[str, ...] = STYLE_LAYERS  # where the styles are compared
    style_layer_weights: tuple[float, ...] = (1.0,)  # one for each style layer, or one for all
    style_weight: float = 10.0  # of the style loss, which is 1 for a picture without features too
    tv_weight: float = 0.2  # of total variation, which smooths
    style_size: int | None = None  # longer side of the style pictures in pixels; by default image_size
    learning_rate: float = 1e-3  # of Adam
    ema_halflife_images: float = 500.0  # images after which the average of the weights has half forgotten; 0: none
    dtype: Literal["float32", "float64"] = "float32"  # of weights and arithmetic

    def __post_init__(self):
        if self.image_size < SMALLEST:
            raise ValueError(f"image_size must be at least {SMALLEST} pixels, got {self.image_size}")
        if self.style_size is not None and self.style_size < SMALLEST:
            raise ValueError(f"style_size must be at least {SMALLEST} pixels, got {self.style_size}")
        for name in ("content_weight", "style_weight", "tv_weight", "ema_halflife_images"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not self.style_layers or len(set(self.style_layers)) < len(self.style_layers):
            raise ValueError(f"style_layers must be one or several different layers, got {' '.join(self.style_layers)}")
        if len(self.style_layer_weights) not in (1, len(self.style_layers)):
            raise ValueError(
                f"style_layer_weights must be one number or {len(self.style_layers)}, one for each style layer, got "
                f"{len(self.style_layer_weights)}"
            )
        if not all(0 <= w < math.inf for w in self.style_layer_weights) or not sum(self.style_layer_weights) > 0:
            raise ValueError(f"style_layer_weights must be 0 or more, one of them more, got {self.style_layer_weights}")
        if self.dtype not in get_args(Config.__annotations__["dtype"]):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype!r}")
        network(self)  # raises for what is its own


def network(cfg: Config) -> ImageTransform:
    """What paints."""
    return ImageTransform(cfg.width, cfg.blocks, max(1, len(cfg.style)), cfg.upsampling, cfg.output)


def sources(cfg: Config) -> dict[str, Wanted]:
    """Photographs; the styles are settings."""
    return {"content": Wanted(cfg.image_size)}


def settle(cfg: Config, found: Mapping[str, Source]) -> Config:
    """Styles by where they are, so that the run can be gone on with from another folder. UserError without any."""
    if not cfg.style:
        raise UserError("there is no style to learn: give one or several pictures, --style painting.jpg other.jpg")
    return dataclasses.replace(cfg, style=tuple(path.resolve() for path in cfg.style))


# ---------------------------------------------------------------------------------------------------------------------
# What pictures are compared by


def constants(cfg: Config) -> dict[str, Any]:
    """{"features": frozen weights, "styles": {layer: Moments, (styles, 1, c) and (styles, 1, c, c)}}.

    UserError for weights or a picture that is not here, for layers that the network does not have, and for a style that
    is too small for them.
    """
    feature_network, params = _load(cfg)
    deepest = max(map(feature_network.names.index, _layers(cfg)))
    needed = {name for name in feature_network.names[: deepest + 1] if name in params} | {"input"}
    if not isinstance(feature_network, vgg.VGG):  # whose weights have names of their own
        needed = set(params)
    params = {name: jax.tree.map(lambda x: jnp.asarray(x, cfg.dtype), params[name]) for name in sorted(needed)}
    styles = [_moments_of(feature_network, params, style_picture(path, cfg), cfg.style_layers) for path in cfg.style]
    return {"features": params, "styles": jax.tree.map(lambda *x: jnp.stack(x), *styles) if styles else {}}


def style_picture(path: Path, cfg: Config) -> jax.Array:
    """(h, w, 3) in [-1, 1], of the size at which it is learned from. UserError where it is too small."""
    picture = read_picture(path)
    shape = fitted_shape(picture.shape, cfg.style_size or cfg.image_size)
    least = _load(cfg)[0].smallest_side(_layers(cfg))
    if min(shape) < least:
        raise UserError(
            f"{path} becomes {shape[1]} x {shape[0]} pixels, too few for the layers {' '.join(_layers(cfg))}, which "
            f"need {least} a side: take a larger --style-size, or a picture that is less long"
        )
    return jnp.asarray(resize(picture, shape), cfg.dtype)


def _layers(cfg: Config) -> tuple[str, ...]:
    """All that are compared, each once."""
    return tuple(dict.fromkeys((cfg.content_layer, *cfg.style_layers)))


def _load(cfg: Config) -> tuple[vgg.Network, Params]:
    with jax.ensure_compile_time_eval():  # numbers also where this is read while something is traced
        found, params = weights.load_for_style(cfg.features)
    try:
        found.check(_layers(cfg))
    except ValueError as error:
        raise UserError(f"{cfg.features}: {error}") from None
    return dataclasses.replace(found, dtype=cfg.dtype), params


def _moments(features: jax.Array) -> Moments:
    """(h, w, c) -> of one region, which is all of it."""
    return means(moments(features), np.full(1, features.shape[0] * features.shape[1], np.float32))


def _moments_of(feature_network: vgg.Network, params: Params, picture: jax.Array, taps: tuple) -> dict[str, Moments]:
    def of(params, picture):
        return {tap: _moments(x[0]) for tap, x in feature_network.apply(params, picture[None], taps).items()}

    return jax.jit(of)(params, picture)


def losses(
    painted: jax.Array, images: jax.Array, chosen: jax.Array, cfg: Config, constants: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The weighted terms, each (b,), of pictures (b, h, w, 3) made of images (b, h, w, 3) in styles (b,) int.

    {"content/relu4_1", "style/relu1_1", ..., "tv"}; what is minimised is the mean of their sum.
    """
    feature_network = _load(cfg)[0]
    wanted = feature_network.apply(constants["features"], images, (cfg.content_layer,))[cfg.content_layer]
    taps = feature_network.apply(constants["features"], painted, _layers(cfg))
    share = cfg.style_layer_weights
    share = share * len(cfg.style_layers) if len(share) == 1 else share

    def of_one(picture, taps, wanted, style):
        terms = [content_term(f"content/{cfg.content_layer}", cfg.content_weight, cfg.content_layer, wanted)]
        for layer, weight in zip(cfg.style_layers, share, strict=True):
            terms.append(style_term(f"style/{layer}", cfg.style_weight * weight / sum(share), layer, style[layer]))
        return weighted([*terms, tv_term(cfg.tv_weight)], picture, taps)

    styles = jax.tree.map(lambda x: x[chosen], constants["styles"])
    return jax.vmap(of_one)(painted, taps, wanted, styles)


# ---------------------------------------------------------------------------------------------------------------------
# State and training


@flax.struct.dataclass
class State:
    step: jax.Array  # () int32, training steps done
    params: Params  # those that have an effect, see `ImageTransform.trained`
    ema: Params  # the same, averaged over training
    opt_state: Any


def optimizer(cfg: Config) -> optax.GradientTransformation:
    return optax.adam(cfg.learning_rate)


def init(key: jax.Array, cfg: Config, constants: Mapping[str, Any]) -> State:
    """A new network."""
    return state_of(network(cfg).init(key, jnp.dtype(cfg.dtype)), cfg)


def state_of(params: Params, cfg: Config) -> State:
    """What training begins with from the weights of a whole network."""
    trained = network(cfg).trained(params)
    # A copy, because the state is donated to the step and no buffer may be donated twice.
    return State(jnp.zeros((), jnp.int32), trained, jax.tree.map(jnp.copy, trained), optimizer(cfg).init(trained))


def train_step(
    state: State,
    batch: dict,
    key: jax.Array,
    cfg: Config,
    constants: Mapping[str, Any],
    axis_name: str | None = None,
) -> tuple[State, dict]:
    """One step of Adam. batch["content"]["image"]: (b, s, s, 3) float in [-1, 1]."""
    images = batch["content"]["image"].astype(cfg.dtype)
    transform, b = network(cfg), len(images)
    chosen = layers.global_draw(lambda shape: jax.random.randint(key, shape, 0, transform.styles), (b,), axis_name)
    blend = jax.nn.one_hot(chosen, transform.styles, dtype=cfg.dtype)

    def loss(params):
        painted = transform.apply(transform.whole(params), images, blend, clip=False)
        terms = {name: jnp.mean(of_image) for name, of_image in losses(painted, images, chosen, cfg, constants).items()}
        style = sum(value for name, value in terms.items() if name.startswith("style/"))
        parts = {"content": terms[f"content/{cfg.content_layer}"], "style": style, "tv": terms["tv"]}
        return sum(parts.values()), {f"loss/{name}": value for name, value in parts.items()}

    (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    gradient, metrics = layers.pmean((gradient, {"loss": total, **metrics}), axis_name)
    updates, opt_state = optimizer(cfg).update(gradient, state.opt_state)
    params: Any = optax.apply_updates(state.params, updates)
    ema = layers.ema(state.ema, params, cfg.ema_halflife_images, b * layers.axis_size(axis_name))
    return State(state.step + 1, params, ema, opt_state), metrics


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@dataclasses.dataclass(frozen=True)
class ApplySettings:
    """What `ganstyle apply` paints like."""

    # names of styles that the network has learned, such as starry_night; by default the first. Several are blended
    style: tuple[str, ...] = ()
    # how much of each: of those that --style names, or of all in the order in which training was given them, such as
    # 0 1 or 0.3 0.7; by default equal shares
    blend: tuple[float, ...] = ()


def requests(key: jax.Array, n: int, cfg: Config, examples: Mapping[str, Any]) -> dict[str, Any]:
    """Photographs, each in one style, in turns."""
    styles = network(cfg).styles
    return {"content": examples["content"]["image"], "style": np.eye(styles, dtype=np.float32)[np.arange(n) % styles]}


def requests_of(pictures: Any, cfg: Config, settings: ApplySettings = ApplySettings()) -> dict[str, Any]:
    """Pictures (n, h, w, 3) in a blend of styles. UserError for styles that it has not learned, and for weights."""
    names = [path.stem for path in cfg.style]
    for name in settings.style:
        if names.count(name) != 1:
            raise UserError(
                f"--style must be of what this network has learned, {' '.join(names) or 'one style without a name'}, "
                f"got {name}" + (", which it has more than once: take --blend" if name in names else "")
            )
    styles = len(settings.style) or network(cfg).styles
    blend = settings.blend or (1.0,) * (len(settings.style) or 1)
    accepted = f"1 to {styles} numbers of 0 or more, not all 0" if styles > 1 else "one number above 0"
    if len(blend) > styles or not all(0 <= w < math.inf for w in blend) or not sum(blend) > 0:
        raise UserError(f"--blend must be {accepted}, got {' '.join(f'{w:g}' for w in blend)}")
    weights_of_styles = np.zeros(network(cfg).styles, np.float32)
    places = [names.index(name) for name in settings.style] or range(styles)
    for place, weight in enumerate(blend):  # what is left out gets nothing
        weights_of_styles[places[place]] += weight / sum(blend)
    return {"content": pictures, "style": np.repeat(weights_of_styles[None], len(pictures), 0)}


def generator(state: State, cfg: Config, constants: Mapping[str, Any]) -> dict[str, Params]:
    """{"params": the weights of `network(cfg)`}, averaged over training."""
    return {"params": network(cfg).whole(state.ema)}


def sample(variables: Mapping[str, Params], requests: Mapping[str, Any], cfg: Config) -> dict[str, jax.Array]:
    """Photographs and what is painted of them, each (n, h, w, 3) in [-1, 1]."""
    content = requests["content"]
    painted = network(cfg).apply(variables["params"], content, requests["style"])
    return {"content": content.astype(jnp.float32), "result": painted.astype(jnp.float32)}


def judged(cfg: Config) -> tuple[str, str]:
    return "result", "content"
