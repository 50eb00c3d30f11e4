"""AdaIN: any picture in the style of any other, in one pass (Huang & Belongie 2017, arXiv:1703.06868).

A frozen encoder takes content and style to features; the content's get the means and standard deviations of the
style's, channel by channel (`adain`), and a trained decoder takes the result back to a picture.

Which features. AdaIN works on the encoder's ReLU, also where a linear head lies behind it, as in the compact network:
its channels stand for single channels of VGG-19, which is what the paper exchanges statistics of, while a head's are
principal components. The decoder too is better served, since the ReLU's channels are of like size (standard deviations
of 0.3 to 1.5, a head's of 0.2 to 4.8). On 32 photographs and paintings AdaIN on the ReLU left 0.75 of the squared error
of the style's covariances at relu4_1, as the head sees them, on the head itself 0.87; of the Gram matrices' 0.039
against 0.043. The losses do compare behind the heads, where distances are about VGG-19's.

Differs from the paper: losses are relative, each divided by the squares of its target, so that one style weight suits
every encoder (`losses_of`); the statistics are those of the whole batch's crops alike, with the biased variance where
PyTorch's versions have the unbiased one; the decoder may be wider or narrower than the encoder's mirror, and its
weights averaged over training.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ganstyle_jax.data import Wanted
from ganstyle_jax.features import weights
from ganstyle_jax.features.image_layers import Params, convolve
from ganstyle_jax.features.vgg import COMPACT, VGG
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.pictures import read_picture
from ganstyle_jax.nn import layers
from ganstyle_jax.nn.augment import crop
from ganstyle_jax.style import colours

TAP = "relu4_1"  # what AdaIN works on
STYLE_TAPS = ("relu1_1", "relu2_1", "relu3_1", TAP)  # whose means and deviations the style loss compares
STRIDE = 8  # pixels from one of AdaIN's values to the next
EPS = 1e-5  # added to variances


@dataclasses.dataclass(frozen=True)
class Config:
    """A decoder and how it is trained. The defaults are the paper's, for the encoder that ships with the package."""

    image_size: int = 512  # pixels of a side to which contents and styles are brought
    crop: int = 256  # pixels of a side of the random part that a step sees
    encoder: str = "compact"  # a VGG by name or file; see ganstyle weights
    width: float = 1.0  # of the decoder: hidden channels, as multiples of the encoder's
    content_weight: float = 1.0  # of the distance of the result's features to AdaIN's
    style_weight: float = 10.0  # of the distance of means and standard deviations to the style's, at four layers
    learning_rate: float = 1e-4
    decay: float = 5e-5  # after t steps the learning rate is divided by 1 + decay * t
    ema_halflife_images: float = 0.0  # images after which the decoder's average has half forgotten; 0: no average
    dtype: Literal["float32", "float64"] = "float32"  # of weights and arithmetic
    convolution: Literal["auto", "cpu", "xla"] = "auto"  # see layers.conv

    def __post_init__(self):
        if self.crop < 2 * STRIDE or self.crop % STRIDE:
            fits = max(2 * STRIDE, self.crop // STRIDE * STRIDE)
            raise ValueError(
                f"crop must be a multiple of {STRIDE} from {2 * STRIDE} pixels up, got {self.crop}: take {fits}"
            )
        if self.image_size < self.crop:
            raise ValueError(f"image_size must be at least the crop's {self.crop}, got {self.image_size}")
        for name in ("width", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("content_weight", "style_weight", "decay", "ema_halflife_images"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, accepted in (("dtype", ("float32", "float64")), ("convolution", ("auto", "cpu", "xla"))):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be {' or '.join(accepted)}, got {getattr(self, name)!r}")


def sources(cfg: Config) -> dict[str, Wanted]:
    return {"content": Wanted(cfg.image_size), "style": Wanted(cfg.image_size)}


# ---------------------------------------------------------------------------------------------------------------------
# Encoder


def constants(cfg: Config) -> dict[str, Params]:
    """{"encoder": the frozen weights up to relu4_1}. UserError for weights that are not here, or of another network."""
    network, params = _load(cfg)
    needed = {"input", *(name for name in network.names[: network.names.index(TAP)] if name.startswith("conv"))}
    return {"encoder": {name: _cast(params[name], cfg) for name in network.names + ["input"] if name in needed}}


def encoder(cfg: Config) -> VGG:
    """The encoder's architecture."""
    network = COMPACT if cfg.encoder == "compact" else _load(cfg)[0]  # which need not be read to be known
    return dataclasses.replace(network, dtype=cfg.dtype, platform=cfg.convolution)


def _load(cfg: Config) -> tuple[VGG, Params]:
    with jax.ensure_compile_time_eval():  # numbers also where this is read while something is traced
        network, params = weights.load_for_style(cfg.encoder)
    if not isinstance(network, VGG) or len(network.channels) < 4:
        raise UserError(
            f"the encoder {cfg.encoder} has no {TAP}, on which AdaIN works: take a VGG of four blocks or more, such "
            "as compact or vgg19"
        )
    return network, params


def _cast(tree: Any, cfg: Config) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, cfg.dtype), tree)


def encode(params: Params, pictures: jax.Array, cfg: Config, taps: Sequence[str] = (TAP,)) -> dict[str, jax.Array]:
    """Pictures (b, h, w, 3) in [-1, 1] to the encoder's ReLU, {tap: (b, h', w', c)}; heads are passed over."""
    return encoder(cfg).apply(_without_heads(params), pictures, taps)


def _without_heads(params: Params) -> Params:
    return {name: {part: x for part, x in layer.items() if part != "head"} for name, layer in params.items()}


def behind_head(params: Params, features: jax.Array, tap: str) -> jax.Array:
    """What the losses compare: features (..., c) of a tap behind its linear head, where the encoder has one."""
    layer = params[tap.replace("relu", "conv")]
    return features @ layer["head"] if "head" in layer else features


# ---------------------------------------------------------------------------------------------------------------------
# AdaIN


def moments(features: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each channel over the places, (b, h, w, c) -> twice (b, 1, 1, c).

    The variance is the biased one, with 1e-5 added. mask: (b, h, w, 1), how much each place counts; where nothing does,
    the mean is 0.
    """
    if mask is None:
        mean = features.mean((1, 2), keepdims=True)
        variance = jnp.mean((features - mean) ** 2, (1, 2), keepdims=True)
    else:
        share = mask / jnp.maximum(mask.sum((1, 2), keepdims=True), 1e-8)
        mean = jnp.sum(share * features, (1, 2), keepdims=True)
        variance = jnp.sum(share * (features - mean) ** 2, (1, 2), keepdims=True)
    return mean, jnp.sqrt(variance + EPS)


def adain(content: jax.Array, style: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The content's features with the means and deviations of the style's (eq. 8).

    (b, h, w, c) and (b or 1, h', w', c) -> (b, h, w, c). mask: (b, h, w, 1), the places of the content whose
    statistics are exchanged.
    """
    (mean, std), (wanted_mean, wanted_std) = moments(content, mask), moments(style)
    return (content - mean) / std * wanted_std + wanted_mean


# ---------------------------------------------------------------------------------------------------------------------
# Decoder


@dataclasses.dataclass(frozen=True)
class Layer:
    """A 3x3 convolution of the decoder with reflected borders."""

    name: str
    before: int  # channels
    after: int
    enlarge: bool  # to twice the size by repetition, after the ReLU


def decoder_layers(network: VGG, width: float = 1.0) -> list[Layer]:
    """The mirror of the encoder up to relu4_1: its convolutions backwards, a pooling being an enlargement.

    For VGG-19 the nine layers of the paper, of 512, 256, ..., 64 channels to 3.
    """
    found: list[Layer] = []
    blocks = [*network.channels[:3], network.channels[3][:1]]
    wide = [[max(1, round(width * c)) for c in block] for block in blocks]
    wide[3] = list(blocks[3])
    before = [c for block in wide for c in block]
    into = [3, *before[:-1]]
    firsts = np.cumsum([0, *map(len, blocks[:-1])])
    for i in reversed(range(len(before))):
        found.append(Layer(f"conv{len(found) + 1}", before[i], into[i], enlarge=i in firsts[1:]))
    return found


def decode(params: Params, features: jax.Array, cfg: Config) -> jax.Array:
    """Features (b, h, w, c) of relu4_1 to images (b, 8 h, 8 w, 3), about in [-1, 1]; h and w at least 2.

    Convolutions with ReLU, but none behind the last; nothing is normalised, since that would undo AdaIN.
    """
    x, found = features, decoder_layers(encoder(cfg), cfg.width)
    for layer in found:
        x = convolve(x, params[layer.name], "reflect", cfg.convolution)
        if layer is not found[-1]:
            x = jax.nn.relu(x)
        if layer.enlarge:
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return x


# ---------------------------------------------------------------------------------------------------------------------
# State and training


@flax.struct.dataclass
class State:
    step: jax.Array  # () int32, training steps done
    params: Params  # the decoder's
    ema: Params  # the same, averaged over training
    opt_state: Any


def optimizer(cfg: Config) -> optax.GradientTransformation:
    return optax.adam(lambda step: cfg.learning_rate / (1 + cfg.decay * step))


def init(key: jax.Array, cfg: Config, constants: Mapping) -> State:
    """A new decoder (He et al. 2015; the last layer at a tenth of it, so that pictures begin grey)."""
    params = {}
    found = decoder_layers(encoder(cfg), cfg.width)
    for layer, key_layer in zip(found, jax.random.split(key, len(found)), strict=True):
        kernel = jax.random.normal(key_layer, (3, 3, layer.before, layer.after), cfg.dtype)
        gain = 0.1 if layer is found[-1] else 2**0.5
        params[layer.name] = {
            "kernel": gain / (9 * layer.before) ** 0.5 * kernel,
            "bias": jnp.zeros(layer.after, cfg.dtype),
        }
    # A copy, because the state is donated to the step and no buffer may be donated twice.
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), params, ema, optimizer(cfg).init(params))


def train_step(
    state: State, batch: Mapping, key: jax.Array, cfg: Config, constants: Mapping, axis_name: str | None = None
) -> tuple[State, dict]:
    """One update of the decoder. batch["content" or "style"]["image"]: (b, s, s, 3) float in [-1, 1].

    The i-th content is given the i-th style. Returns the new state and scalar metrics.
    """
    content, style = (
        crop(jax.random.fold_in(key, i), batch[name]["image"].astype(cfg.dtype), cfg.crop, axis_name)
        for i, name in enumerate(("content", "style"))
    )
    params = constants["encoder"]
    style = encode(params, style, cfg, STYLE_TAPS)
    target = adain(encode(params, content, cfg)[TAP], style[TAP])

    def loss(decoder):
        result = encode(params, decode(layers.gathered(decoder), target, cfg), cfg, STYLE_TAPS)
        of_content, of_style = (x.mean() for x in losses_of(params, result, target, style))
        total = cfg.content_weight * of_content + cfg.style_weight * of_style
        return total, {"loss": total, "loss/content": of_content, "loss/style": of_style}

    (_, metrics), gradient = layers.pmean(jax.value_and_grad(loss, has_aux=True)(state.params), axis_name)
    updates, opt_state = optimizer(cfg).update(gradient, state.opt_state, state.params)
    new: Any = optax.apply_updates(state.params, updates)
    batch_size = len(content) * layers.axis_size(axis_name)
    ema = layers.ema(state.ema, new, cfg.ema_halflife_images, batch_size, (state.step + 1) * batch_size)
    return State(state.step + 1, new, ema, opt_state), metrics


def losses_of(
    params: Params, result: Mapping[str, jax.Array], target: jax.Array, style: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """(content, style) losses of each picture, (b,) both (eq. 12 and 13), from the features of result and style.

    Both are 0 where the result has all that it should have, and about 1 for features of zeros: squared differences over
    the squares of what is wanted, behind the heads; the style's is the sum over four layers, of means and standard
    deviations. In the paper they are norms of the differences; of a normalised VGG-19, whose channels have means of 1,
    the common PyTorch version's mean squared differences are the same up to a factor that all layers share nearly.
    """
    found, wanted = (behind_head(params, x, TAP) for x in (result[TAP], target))
    of_content = jnp.sum((found - wanted) ** 2, (1, 2, 3)) / jnp.maximum(jnp.sum(wanted**2, (1, 2, 3)), 1e-12)
    of_style = jnp.zeros_like(of_content)
    for tap in STYLE_TAPS:
        (mean, std), (wanted_mean, wanted_std) = (moments(behind_head(params, x[tap], tap)) for x in (result, style))
        error = jnp.sum((mean - wanted_mean) ** 2 + (std - wanted_std) ** 2, (1, 2, 3))
        of_style += error / jnp.sum(wanted_mean**2 + wanted_std**2, (1, 2, 3))
    return of_content, of_style


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


@dataclasses.dataclass(frozen=True)
class ApplySettings:
    """What `ganstyle apply` paints like."""

    style: tuple[Path, ...] = ()  # pictures whose style is taken, one or more
    style_weights: tuple[float, ...] = ()  # share of each style; by default equal
    style_size: int = 512  # pixels to which the shorter side of a style picture is brought; smaller: finer strokes
    alpha: float = 1.0  # how much of the style, from 0, the content decoded as it is, to 1
    masks: tuple[Path, ...] = ()  # for each style a picture of the content's size, white where the style is to go
    preserve_colors: colours.How = "none"  # the content's, see ganstyle stylize

    def __post_init__(self):
        if self.style_size < 2 * STRIDE:
            raise ValueError(f"style_size must be at least {2 * STRIDE}, got {self.style_size}")
        if not 0 <= self.alpha < np.inf:
            raise ValueError(f"alpha must not be negative, got {self.alpha:g}")
        given = self.style_weights
        if given and (len(given) != len(self.style) or not all(0 <= w < np.inf for w in given) or not sum(given) > 0):
            raise ValueError(
                f"style_weights must be {len(self.style)} numbers of 0 or more for as many styles, not all 0, got "
                f"{' '.join(f'{w:g}' for w in given)}"
            )
        if self.masks and len(self.masks) != len(self.style):
            raise ValueError(f"masks must be one for each of {len(self.style)} styles, got {len(self.masks)}")


def requests(key: jax.Array, n: int, cfg: Config, examples: Mapping[str, Any]) -> dict[str, Any]:
    """Contents and styles (n, s, s, 3) as they come, and for each how much of the style it gets: all, 1."""
    return {name: examples[name]["image"] for name in ("content", "style")} | {"alpha": np.ones(n, np.float32)}


def requests_of(pictures: Any, cfg: Config, settings: ApplySettings = ApplySettings()) -> dict[str, Any]:
    """Pictures (n, h, w, 3) in the style of others: what `sample` takes. UserError for files that do not fit."""
    if not settings.style:
        raise UserError("give the picture whose style is to be taken, such as --style painting.jpg")
    contents = np.asarray(pictures, np.float32)
    n, k = len(contents), len(settings.style)
    styles = [_at_size(read_picture(path), settings.style_size) for path in settings.style]
    how = settings.preserve_colors
    matched = [np.stack([colours.prepare_style(style, x, how) for x in contents]) for style in styles]
    shares = np.asarray(settings.style_weights or np.ones(k), np.float32)
    found = {
        "content": np.stack([colours.prepare_content(x, how) for x in contents]),
        "style": matched,
        "style_weights": np.broadcast_to(shares, (n, k)),
        "alpha": np.full(n, settings.alpha, np.float32),
    }
    if settings.masks:
        masks = np.stack([_mask(path, contents.shape[1:3]) for path in settings.masks])
        found["masks"] = np.broadcast_to(masks, (n, *masks.shape))
    if how == "luma":
        found["colours"] = contents
    return found


def _at_size(picture: np.ndarray, side: int) -> np.ndarray:
    """The shorter side brought to so many pixels."""
    scale = side / min(picture.shape[:2])
    height, width = (max(side, round(scale * x)) for x in picture.shape[:2])
    return np.clip(images.resize(picture, (height, width)), -1, 1).astype(np.float32)


def _mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The brightness of a picture, from 0 for black to 1 for white."""
    mask = read_picture(path)
    if mask.shape[:2] != shape:
        raise UserError(
            f"the mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels: it must have as many as the content, "
            f"{shape[1]} x {shape[0]}"
        )
    return np.clip((mask @ images.LUMA + 1) / 2, 0, 1).astype(np.float32)


def generator(state: State, cfg: Config, constants: Mapping) -> dict[str, Params]:
    """{"params": the decoder, averaged if it is; "encoder": the frozen weights without heads}, for `stylise`."""
    return {"params": state.ema, "encoder": _without_heads(constants["encoder"])}


def sample(variables: Mapping, requests: Mapping[str, Any], cfg: Config) -> dict[str, jax.Array]:
    """{"content", "style", "result"}, each (n, h, w, 3) in [-1, 1]; of several styles the first is shown.

    requests: "content" (n, h, w, 3), "style" (n, h', w', 3) or a list of such, "alpha" (n,); if wanted "style_weights"
    (n, styles) and "masks" (n, styles, h, w), and "colours" (n, h, w, 3), of which all but the luma is taken.
    """
    content = requests["content"].astype(cfg.dtype)
    styles = requests["style"] if isinstance(requests["style"], list | tuple) else [requests["style"]]
    more = (requests.get("style_weights"), requests["alpha"], requests.get("masks"))
    result = stylise(variables, cfg, content, styles, *more)
    if "colours" in requests:
        coloured = requests["colours"].astype(cfg.dtype)
        result = jnp.clip(coloured + ((result - coloured) @ images.LUMA.astype(cfg.dtype))[..., None], -1, 1)
    return {"content": content, "style": styles[0].astype(cfg.dtype), "result": result}


def judged(cfg: Config) -> tuple[str, str]:
    return "result", "style"


# ---------------------------------------------------------------------------------------------------------------------
# Any pictures, several styles


def stylise(
    variables: Mapping,
    cfg: Config,
    content: jax.Array,
    styles: Sequence[jax.Array],
    style_weights: Any = None,
    alpha: Any = 1.0,
    masks: Any = None,
) -> jax.Array:
    """Pictures in the style of others: (b, h, w, 3) in [-1, 1], of any size from 16 pixels up, to the same.

    variables: from `generator`, or {"params": a decoder, "encoder": from `constants`}.
    styles: pictures (b or 1, h', w', 3) in [-1, 1], each of any size from 16 pixels up.
    style_weights: (styles,) or (b, styles), not negative, of each style's share; by default equal. They are divided by
        their sum (section 7.2, "style interpolation").
    alpha: () or (b,), from 0, which decodes the content as it is, to 1, all of the style (eq. 14); beyond, exaggerated.
    masks: (styles, h, w) or (b, styles, h, w), not negative, where each style goes ("spatial control"). Each style's
        statistics replace those of the content within its mask; where masks overlap, styles are mixed by mask times
        weight, where none is, the content stays.
    Raises ValueError for other shapes. A function of arrays, so that it can be compiled with `cfg` static.
    """
    b, h, w = content.shape[:3]
    features = style_features(variables, cfg, styles)
    content = _padded(_checked(content, "content").astype(cfg.dtype))
    found = encode(variables["encoder"], content, cfg)[TAP]
    shares = jnp.ones(len(styles)) if style_weights is None else jnp.asarray(style_weights)
    if shares.shape[-1:] != (len(styles),) or shares.ndim > 2 or (shares.ndim == 2 and len(shares) not in (1, b)):
        raise ValueError(f"weights must be one for each of {len(styles)} styles, got shape {shares.shape}")
    shares = shares.astype(cfg.dtype).reshape(-1, len(styles), 1, 1, 1)
    if masks is not None:
        places = _cells(jnp.asarray(masks, cfg.dtype), len(styles), (b, h, w))
        shares = shares * places
    total = shares.sum(1)
    exchanged = [
        adain(found, style, None if masks is None else jnp.broadcast_to(places[:, k], (b, *places.shape[2:])))
        for k, style in enumerate(features)
    ]
    mixed = sum(shares[:, k] * x for k, x in enumerate(exchanged)) / jnp.where(total > 0, total, 1)
    mixed = jnp.where(total > 0, mixed, found)
    alpha = jnp.asarray(alpha, cfg.dtype).reshape(-1, 1, 1, 1)
    target = (1 - alpha) * found + alpha * mixed
    return jnp.clip(decode(variables["params"], target, cfg)[:, :h, :w], -1, 1)


def style_features(variables: Mapping, cfg: Config, styles: Sequence[jax.Array]) -> list[jax.Array]:
    """relu4_1 of each style, (b or 1, h', w', c)."""
    if not styles:
        raise ValueError("give one style at least, got none")
    return [encode(variables["encoder"], _checked(style, "style").astype(cfg.dtype), cfg)[TAP] for style in styles]


def _checked(given: Any, name: str) -> jax.Array:
    pictures = jnp.asarray(given)
    if pictures.ndim != 4 or pictures.shape[3] != 3 or min(pictures.shape[1:3]) < 2 * STRIDE:
        raise ValueError(
            f"{name} pictures must be (b, h, w, 3), {2 * STRIDE} pixels of a side or more, got shape {pictures.shape}"
        )
    return pictures


def _padded(pictures: jax.Array) -> jax.Array:
    """Reflected beyond its lower right to sides that are multiples of 8, so that the decoder gives no fewer pixels."""
    bottom, right = (-side % STRIDE for side in pictures.shape[1:3])
    return jnp.pad(pictures, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="reflect") if bottom or right else pictures


def _cells(masks: jax.Array, count: int, shape: tuple[int, int, int]) -> jax.Array:
    """Masks of the pictures' size to their means over AdaIN's places, (b or 1, styles, h', w', 1)."""
    b, h, w = shape
    masks = masks[None] if masks.ndim == 3 else masks
    if masks.shape[0] not in (1, b) or masks.shape[1:] != (count, h, w):
        raise ValueError(f"masks must be one for each of {count} styles, {h} x {w}, got shape {masks.shape}")
    padded = jnp.pad(masks, ((0, 0), (0, 0), (0, -h % STRIDE), (0, -w % STRIDE)), mode="edge")
    parts = padded.reshape(len(masks), count, -(-h // STRIDE), STRIDE, -(-w // STRIDE), STRIDE)
    return parts.mean((3, 5))[..., None]
