"""Style transfer by image optimisation (Gatys, Ecker & Bethge 2016, CVPR; arXiv:1508.06576).

    picture = stylize(jax.random.key(0), content, [style], Config(size=512))

The image itself is what is optimised: its features are to equal the content picture's (content loss), and the
correlations of its features, over all places, the style picture's (style loss).

Differs from the paper:
- every loss is divided by the mean square of its target, so that the weights mean the same at any size, at any layer
  and with any feature network;
- coarse to fine: a small image is optimised first, enlarged and optimised again, up to the full size, which carries
  large structures over and takes a fraction of the time (Gatys et al. 2017, arXiv:1611.07865, section 6);
- starts from the content picture by default, and L-BFGS has a line search with the strong Wolfe conditions.
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
from ganstyle_jax.vgg import VGG, Params

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
    memory: int = 10  # pairs that L-BFGS keeps
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
        if len(self.style_layer_weights) not in (1, len(self.style_layers)):
            raise ValueError(
                f"style_layer_weights must be one number or {len(self.style_layers)}, one for each style layer, got "
                f"{len(self.style_layer_weights)}"
            )

    @property
    def sizes(self) -> list[int]:
        """Longer sides, from the smallest image to the last."""
        sizes = [self.size]
        while sizes[0] / self.factor >= self.smallest:
            sizes.insert(0, round(self.size / self.factor ** len(sizes)))
        return sizes


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@flax.struct.dataclass
class Targets:
    """What the features of the image are compared with."""

    content: dict[str, jax.Array]  # features (h, w, c) by layer
    style: dict[str, jax.Array]  # Gram matrices (c, c) by layer


def content_features(network: VGG, params: Params, content: jax.Array, cfg: Config) -> dict[str, jax.Array]:
    """(h, w, 3) in [-1, 1] to features (h', w', c) by layer."""
    return {layer: x[0] for layer, x in network.apply(params, content[None], cfg.content_layers).items()}


def gram_matrices(network: VGG, params: Params, style: jax.Array, cfg: Config) -> dict[str, jax.Array]:
    """(h, w, 3) in [-1, 1] to Gram matrices (c, c) by layer."""
    features = network.apply(params, style[None], cfg.style_layers)
    return {layer: losses.gram_matrix(x[0]) for layer, x in features.items()}


def loss_terms(network: VGG, params: Params, image: jax.Array, targets: Targets, cfg: Config) -> dict[str, jax.Array]:
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

    x: jax.Array  # the variables: the image over `step_size`
    value: jax.Array  # loss at x
    gradient: jax.Array
    opt_state: Any
    evaluations: jax.Array  # of loss and gradient so far
    resets: jax.Array  # how often L-BFGS forgot its history, because a line search failed or a value was not finite
    stuck: jax.Array  # resets in a row: two mean that nothing more can be gained in this arithmetic


LOSS_SCALE = 1e4  # so that gradients are longer than 1, or optax would not take the first step of L-BFGS to be so long


def step_size(shape: Sequence[int]) -> float:
    """optax caps the first step of L-BFGS to length 1, and in these variables that is 0.03 for every colour value."""
    return 0.03 * float(np.prod(shape)) ** 0.5


def optimizer(cfg: Config) -> optax.GradientTransformationExtraArgs:
    if cfg.optimizer == "adam":
        return optax.with_extra_args_support(optax.adam(cfg.learning_rate))
    return optax.lbfgs(memory_size=cfg.memory, linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=15))


def begin(objective: Callable[[jax.Array], jax.Array], image: jax.Array, cfg: Config) -> Iterate:
    """The first iterate."""
    # A copy for Adam, because the state is donated and the caller may still want the image.
    x = image / step_size(image.shape) if cfg.optimizer == "lbfgs" else jnp.copy(image)
    value, gradient = jax.value_and_grad(objective)(x)
    zero = jnp.zeros((), jnp.int32)
    return Iterate(x, value, gradient, optimizer(cfg).init(x), zero + 1, zero, zero)


def improve(objective: Callable[[jax.Array], jax.Array], at: Iterate, cfg: Config) -> Iterate:
    """One step of the optimizer: one evaluation for Adam, as many as the line search takes for L-BFGS."""
    solver: Any = optimizer(cfg)
    if cfg.optimizer == "adam":
        updates, opt_state = solver.update(at.gradient, at.opt_state, at.x)
        x = jnp.clip(at.x + updates, -1, 1)
        value, gradient = jax.value_and_grad(objective)(x)
        return dataclasses.replace(
            at, x=x, value=value, gradient=gradient, opt_state=opt_state, evaluations=at.evaluations + 1
        )
    updates, opt_state = solver.update(
        at.gradient, at.opt_state, at.x, value=at.value, grad=at.gradient, value_fn=objective
    )
    search = opt_state[-1]
    better = (search.info.decrease_error <= 0) & (search.value < at.value) & jnp.isfinite(search.grad).all()
    evaluations = at.evaluations + search.info.num_linesearch_steps

    def move():
        x, stuck = at.x + updates, jnp.zeros_like(at.stuck)
        return Iterate(x, search.value, search.grad, opt_state, evaluations, at.resets, stuck)

    def forget():
        fresh = solver.init(at.x)
        return Iterate(at.x, at.value, at.gradient, fresh, evaluations, at.resets + 1, at.stuck + 1)

    return lax.cond(better, move, forget)


@functools.partial(jax.jit, static_argnames=("network", "cfg", "rows"), donate_argnames="at")
def advance(
    network: VGG, params: Params, targets: Targets, at: Iterate, until: jax.Array, cfg: Config, rows: int = 64
) -> tuple[Iterate, jax.Array, jax.Array]:
    """Steps until at least `until` evaluations are done, `rows` steps at most, or nothing can be gained any more.

    Also returns the evaluations done, 0 where there was no step, and the loss after each step, (rows,) both.
    """
    objective = make_objective(network, params, targets, at.x.shape, cfg)

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
def start(network: VGG, params: Params, targets: Targets, image: jax.Array, cfg: Config) -> Iterate:
    return begin(make_objective(network, params, targets, image.shape, cfg), image, cfg)


def make_objective(network: VGG, params: Params, targets: Targets, shape: tuple[int, ...], cfg: Config):
    """The loss, scaled, as a function of the variables."""

    def objective(x):
        terms = loss_terms(network, params, to_image(x, cfg), targets, cfg)
        return LOSS_SCALE * functools.reduce(jnp.add, terms.values())

    return objective


def to_image(x: jax.Array, cfg: Config) -> jax.Array:
    return x * step_size(x.shape) if cfg.optimizer == "lbfgs" else x


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
    network: VGG,
    params: Params,
    style_weights: Sequence[float] | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> np.ndarray:
    """The content picture in the styles' manner, (h, w, 3) float32 in [-1, 1] with a longer side of `cfg.size`.

    content, styles: (h, w, 3) in [-1, 1], of any size. style_weights: one for each style, their ratio counts; by
    default all the same. callback: called about once a second; an exception in it ends the optimisation.
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

    image = None
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
                here = np.clip(np.asarray(to_image(at.x, cfg)), -1, 1)
                terms = term_values(network, params, targets, at.x, cfg)
                share = (work[i] + (work[i + 1] - work[i]) * min(1, log[-1][0] / cfg.steps)) / work[-1]
                terms = {name: float(value) for name, value in terms.items()}
                callback(Progress(shape, log[-1][0], share, log, terms, int(at.resets), here))
        image = np.asarray(to_image(at.x, cfg))
    assert image is not None
    return np.clip(image, -1, 1)


@functools.partial(jax.jit, static_argnames=("network", "cfg"))
def term_values(network: VGG, params: Params, targets: Targets, x: jax.Array, cfg: Config) -> dict[str, jax.Array]:
    return loss_terms(network, params, to_image(x, cfg), targets, cfg)


def fitted_shape(shape: Sequence[int], longer: float) -> tuple[int, int]:
    """(h, w) of a picture of that shape whose longer side has so many pixels."""
    scale = longer / max(shape[:2])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
