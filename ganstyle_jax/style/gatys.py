"""Style transfer by image optimisation (Gatys, Ecker & Bethge 2016, CVPR; arXiv:1508.06576).

    picture = stylize(jax.random.key(0), content, [style], Config(size=512), *weights.load("vgg19-distilled"))

The image itself is what is optimised: its features are to equal the content picture's (content loss), and the
correlations of its features, over all places, the style picture's (style loss).

Differs from the paper:
- every loss is divided by the mean square of its target, so that the weights mean the same at any size, at any layer
  and with any feature network;
- coarse to fine: a small image is optimised first, enlarged and optimised again, up to the full size, which carries
  large structures over and takes a fraction of the time (Gatys et al. 2017, arXiv:1611.07865, section 6);
- starts from the content picture by default;
- L-BFGS has a line search with the strong Wolfe conditions, and variables of several scales (`spread`), so that a step
  moves whole areas as readily as single pixels: that takes fewer evaluations than the pixels themselves.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ganstyle_jax import images, losses
from ganstyle_jax.vgg import Network, Params

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is optimised, and how."""

    size: int = 512  # longer side of the result in pixels
    style_scale: float = 1.0  # longer side of the style pictures, of `size`
    content_weight: float = 0.05
    style_weight: float = 1.0
    tv_weight: float = 0.02  # of total variation, which smooths
    content_layers: tuple[str, ...] = ("relu4_1",)
    style_layers: tuple[str, ...] = STYLE_LAYERS
    style_layer_weights: tuple[float, ...] = (1.0,)  # one for each style layer, or one for all
    init: Literal["content", "noise"] = "content"  # what the smallest image begins with
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    steps: int = 60  # evaluations of loss and gradient at each size
    learning_rate: float = 0.05  # of Adam
    memory: int = 20  # pairs that L-BFGS keeps
    smallest: int = 128  # longer side of the first image in pixels
    factor: float = 2**0.5  # from one size to the next

    def __post_init__(self):
        for name in ("size", "steps", "memory", "smallest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("content_weight", "style_weight", "tv_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("style_scale", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.factor > 1:
            raise ValueError(f"factor must be more than 1, got {self.factor}")
        if not all(w >= 0 for w in self.style_layer_weights) or not sum(self.style_layer_weights) > 0:
            raise ValueError(f"style_layer_weights must be 0 or more, one of them more, got {self.style_layer_weights}")
        if len(self.style_layer_weights) not in (1, len(self.style_layers)):
            raise ValueError(
                f"style_layer_weights must be one number or {len(self.style_layers)}, one for each style layer, got "
                f"{len(self.style_layer_weights)}"
            )

    @property
    def sizes(self) -> list[int]:
        """Longer sides, from the smallest image to the last."""
        sizes = [self.size]
        while (size := round(self.size / self.factor ** len(sizes))) >= self.smallest:
            sizes.append(size)
        return sizes[::-1]


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@flax.struct.dataclass
class Targets:
    """What the features of the image are compared with."""

    content: dict[str, jax.Array]  # features (h, w, c) by layer
    style: dict[str, jax.Array]  # Gram matrices (c, c) by layer


def content_features(network: Network, params: Params, content: jax.Array, cfg: Config) -> dict[str, jax.Array]:
    """(h, w, 3) in [-1, 1] to features (h', w', c) by layer."""
    return {layer: x[0] for layer, x in network.apply(params, content[None], cfg.content_layers).items()}


def gram_matrices(network: Network, params: Params, style: jax.Array, cfg: Config) -> dict[str, jax.Array]:
    """(h, w, 3) in [-1, 1] to Gram matrices (c, c) by layer."""
    features = network.apply(params, style[None], cfg.style_layers)
    return {layer: losses.gram_matrix(x[0]) for layer, x in features.items()}


def loss_terms(
    network: Network, params: Params, image: jax.Array, targets: Targets, cfg: Config
) -> dict[str, jax.Array]:
    """The weighted terms of the loss of an image (h, w, 3); their sum is what is minimised."""
    taps = network.apply(params, image[None], tuple(dict.fromkeys((*cfg.content_layers, *cfg.style_layers))))
    weights = np.broadcast_to(np.asarray(cfg.style_layer_weights), len(cfg.style_layers))
    weights = dict(zip(cfg.style_layers, cfg.style_weight * weights / weights.sum(), strict=True))
    terms = {}
    for layer in cfg.content_layers:
        error = losses.relative_error(taps[layer][0], targets.content[layer])
        terms[f"content/{layer}"] = cfg.content_weight / len(cfg.content_layers) * error
    for layer, weight in weights.items():
        gram = losses.gram_matrix(taps[layer][0])
        terms[f"style/{layer}"] = weight * losses.relative_error(gram, targets.style[layer])
    terms["tv"] = cfg.tv_weight * losses.total_variation(image)
    return terms


# ---------------------------------------------------------------------------------------------------------------------
# Optimisation


@flax.struct.dataclass
class Iterate:
    """Where the optimisation of one image stands."""

    base: jax.Array  # (h, w, 3), the image at the beginning
    x: jax.Array  # (h, w, 3), the variables, see `to_image`
    value: jax.Array  # loss at x
    gradient: jax.Array
    opt_state: Any
    evaluations: jax.Array  # of loss and gradient so far
    resets: jax.Array  # how often L-BFGS forgot its history, because a line search failed or a value was not finite
    stuck: jax.Array  # resets in a row: two mean that nothing more can be gained in this arithmetic


LOSS_SCALE = 1e4  # so that gradients are longer than 1, or optax would not take the first step of L-BFGS to be so long
SCALES = 4  # of the variables: single pixels, and averages of squares of 2, 4, 8 and 16
COARSENESS = 0.4  # how much further a step moves the average of a square twice as large, as a power of 2


def to_image(base: jax.Array, x: jax.Array, cfg: Config) -> jax.Array:
    """The image that the variables stand for, (h, w, 3) both: for Adam they are the image itself.

    optax caps the first step of L-BFGS to length 1, which in these variables is 0.03 for every colour value.
    """
    if cfg.optimizer == "adam":
        return x
    return base + 0.03 * float(np.prod(x.shape)) ** 0.5 * spread(x)


def spread(x: jax.Array) -> jax.Array:
    """A symmetric linear map of (h, w, c) that enlarges the averages of 2^k x 2^k squares by 2^(COARSENESS k).

    Natural images vary the more the coarser one looks, about as the wavelength, and so do sensible changes to them.
    """
    h, w, c = x.shape
    edge = 2**SCALES
    levels = [jnp.pad(x, ((0, -h % edge), (0, -w % edge), (0, 0)))]
    for _ in range(SCALES):
        height, width, _ = levels[-1].shape
        levels.append(levels[-1].reshape(height // 2, 2, width // 2, 2, c).mean((1, 3)))
    added = jnp.zeros_like(levels[-1])
    for k in range(SCALES, 0, -1):
        added += (2 ** (COARSENESS * k) - 2 ** (COARSENESS * (k - 1))) * levels[k]
        added = jnp.repeat(jnp.repeat(added, 2, 0), 2, 1)
    return x + added[:h, :w]


def optimizer(cfg: Config) -> optax.GradientTransformationExtraArgs:
    if cfg.optimizer == "adam":
        return optax.with_extra_args_support(optax.adam(cfg.learning_rate))
    # The first guess is always 1, the length of a quasi-Newton step; after a failed search the last one would be 0.
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=15, initial_guess_strategy="one")
    return optax.lbfgs(memory_size=cfg.memory, linesearch=search)


def begin(objective: Callable[[jax.Array, jax.Array], jax.Array], image: jax.Array, cfg: Config) -> Iterate:
    """The first iterate. objective(base, x) is the loss, scaled."""
    # Copies, because the state is donated: the caller may still want the image, and no buffer may be donated twice.
    base, x = jnp.copy(image), jnp.zeros_like(image) if cfg.optimizer == "lbfgs" else jnp.copy(image)
    value, gradient = jax.value_and_grad(objective, argnums=1)(base, x)
    zero = jnp.zeros((), jnp.int32)
    return Iterate(base, x, value, gradient, optimizer(cfg).init(x), zero + 1, zero, zero)


def improve(objective: Callable[[jax.Array, jax.Array], jax.Array], at: Iterate, cfg: Config) -> Iterate:
    """One step of the optimizer: one evaluation for Adam, as many as the line search takes for L-BFGS."""
    solver: Any = optimizer(cfg)
    value_fn = functools.partial(objective, at.base)
    if cfg.optimizer == "adam":
        updates, opt_state = solver.update(at.gradient, at.opt_state, at.x)
        x = jnp.clip(at.x + updates, -1, 1)
        value, gradient = jax.value_and_grad(value_fn)(x)
        return dataclasses.replace(
            at, x=x, value=value, gradient=gradient, opt_state=opt_state, evaluations=at.evaluations + 1
        )
    updates, opt_state = solver.update(
        at.gradient, at.opt_state, at.x, value=at.value, grad=at.gradient, value_fn=value_fn
    )
    pairs, *others, search = opt_state
    moved = (search.info.decrease_error <= 0) & (search.value < at.value) & jnp.isfinite(search.grad).all()
    # Forgetting is to count pairs as nothing; the pairs themselves, most of the memory, need not be touched.
    pairs = pairs._replace(
        count=jnp.where(moved, pairs.count, 0), weights_memory=jnp.where(moved, pairs.weights_memory, 0)
    )
    return Iterate(
        at.base,
        jnp.where(moved, at.x + updates, at.x),
        jnp.where(moved, search.value, at.value),
        jnp.where(moved, search.grad, at.gradient),
        (pairs, *others, search),
        at.evaluations + search.info.num_linesearch_steps,
        at.resets + ~moved,
        jnp.where(moved, 0, at.stuck + 1),
    )


@functools.partial(jax.jit, static_argnames=("network", "cfg", "rows"), donate_argnames="at")
def advance(
    network: Network, params: Params, targets: Targets, at: Iterate, until: jax.Array, cfg: Config, rows: int = 64
) -> tuple[Iterate, jax.Array, jax.Array]:
    """Steps until at least `until` evaluations are done, `rows` steps at most, or nothing can be gained any more.

    Also returns the evaluations done, 0 where there was no step, and the loss after each step, (rows,) both.
    """
    objective = make_objective(network, params, targets, cfg)

    def more(carry):
        i, at, _, _ = carry
        return (i < rows) & (at.evaluations < until) & (at.stuck < 2)

    def step(carry):
        i, at, evaluations, values = carry
        at = improve(objective, at, cfg)
        return i + 1, at, evaluations.at[i].set(at.evaluations), values.at[i].set(at.value / LOSS_SCALE)

    empty = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, at.value.dtype)
    _, at, evaluations, values = lax.while_loop(more, step, (0, at, *empty))
    return at, evaluations, values


@functools.partial(jax.jit, static_argnames=("network", "cfg"))
def start(network: Network, params: Params, targets: Targets, image: jax.Array, cfg: Config) -> Iterate:
    return begin(make_objective(network, params, targets, cfg), image, cfg)


def make_objective(
    network: Network, params: Params, targets: Targets, cfg: Config
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss, scaled, as a function of where the image began and of the variables."""

    def objective(base, x):
        terms = loss_terms(network, params, to_image(base, x, cfg), targets, cfg)
        return LOSS_SCALE * functools.reduce(jnp.add, terms.values())

    return objective


# ---------------------------------------------------------------------------------------------------------------------
# From pictures to a picture


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback is told, about once a second."""

    shape: tuple[int, int]  # of the image at present
    evaluations: int  # of loss and gradient at this size
    done: float  # share of all work, from 0 to 1
    losses: list[tuple[int, float]]  # (evaluations, loss) after each step since the last call
    terms: dict[str, float]  # the loss in its parts
    resets: int  # how often L-BFGS has forgotten its history at this size
    image: np.ndarray  # (h, w, 3) float32 in [-1, 1]


def stylize(
    key: jax.Array,
    content: np.ndarray,
    styles: Sequence[np.ndarray],
    cfg: Config,
    network: Network,
    params: Params,
    style_weights: Sequence[float] | None = None,
    init_image: np.ndarray | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> np.ndarray:
    """The content picture in the styles' manner, (h, w, 3) float32 in [-1, 1] with a longer side of `cfg.size`.

    content, styles: (h, w, 3) in [-1, 1], of any size. style_weights: one for each style, of which the ratio counts; by
    default all the same. init_image: what to begin with, in the place of `cfg.init`. callback: called about once a
    second; an exception in it ends the optimisation.
    Raises ValueError for layers that the network lacks and for pictures too small for them.
    """
    weights = np.ones(len(styles)) if style_weights is None else np.asarray(style_weights, float)
    if not len(styles) or len(weights) != len(styles) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"there must be a weight, none below 0, for each of {len(styles)} styles, got {style_weights}")
    network.check((*cfg.content_layers, *cfg.style_layers))
    least = network.smallest_side((*cfg.content_layers, *cfg.style_layers))
    shapes = [fitted_shape(content.shape, size) for size in cfg.sizes]
    shapes = [shape for shape in shapes if min(shape) >= least] or shapes[-1:]
    if min(shapes[-1]) < least:
        raise ValueError(f"an image of {shapes[-1]} pixels is too small for these layers, which need {least} a side")
    work = np.cumsum([0.0] + [float(np.prod(shape)) for shape in shapes])
    apply_content = jax.jit(content_features, static_argnums=(0, 3))
    apply_style = jax.jit(gram_matrices, static_argnums=(0, 3))
    loss_terms_of = jax.jit(loss_terms, static_argnums=(0, 4))

    image = init_image
    for i, shape in enumerate(shapes):
        grams = []
        for style in styles:
            height, width = fitted_shape(style.shape, max(shape) * cfg.style_scale)
            style_shape = max(height, least), max(width, least)
            grams.append(apply_style(network, params, images.resize(style, style_shape), cfg))
        # Of all images with weighted squared distances to several matrices the best is the one nearest to their mean.
        gram = jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights / weights.sum(), g, strict=True)), *grams)
        content_here = images.resize(content, shape)
        targets = Targets(apply_content(network, params, content_here, cfg), gram)
        if image is None:
            noise = np.asarray(jax.random.normal(key, content_here.shape)) * 0.3
            image = content_here if cfg.init == "content" else np.clip(noise, -1, 1)
        at = start(network, params, targets, images.resize(image, shape), cfg)
        pace = 4  # evaluations in a dispatch, so many that it takes about a second
        while (done := int(at.evaluations)) < cfg.steps and int(at.stuck) < 2:
            before = time.perf_counter()
            at, evaluations, values = advance(network, params, targets, at, np.int32(min(done + pace, cfg.steps)), cfg)
            log = [(int(e), float(v)) for e, v in zip(evaluations, values, strict=True) if e]
            pace = max(1, min(64, int((log[-1][0] - done) / (time.perf_counter() - before))))
            if callback is not None:
                here = to_image(at.base, at.x, cfg)
                terms = loss_terms_of(network, params, here, targets, cfg)
                share = (work[i] + (work[i + 1] - work[i]) * min(1, log[-1][0] / cfg.steps)) / work[-1]
                terms = {name: float(value) for name, value in terms.items()}
                image_here = np.clip(np.asarray(here), -1, 1)
                callback(Progress(shape, log[-1][0], share, log, terms, int(at.resets), image_here))
        image = np.asarray(to_image(at.base, at.x, cfg))
    assert image is not None
    return np.clip(image, -1, 1)


def fitted_shape(shape: Sequence[int], longer: float) -> tuple[int, int]:
    """(h, w) of a picture of that shape whose longer side has so many pixels."""
    scale = longer / max(shape[:2])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
