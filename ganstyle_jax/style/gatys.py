"""Style transfer by image optimisation (Gatys, Ecker & Bethge 2016, CVPR; arXiv:1508.06576).

    picture = stylize(jax.random.key(0), content, [style], Config(size=512), *weights.load("compact"))

The image itself is what is optimised: its features are to equal the content picture's (content loss), and the
correlations of its features, over all places, the style picture's (style loss).

Differs from the paper:
- every loss is divided by the mean square of its target, so that the weights mean the same at any size, at any layer
  and with any feature network;
- coarse to fine: a small image is optimised first, enlarged and optimised again, up to the full size, which carries
  large structures over and takes a fraction of the time (Gatys et al. 2017, arXiv:1611.07865, section 6);
- starts from the content picture by default;
- colours outside [-1, 1] are penalised, because to clip them at the end undoes more than the last evaluations gain;
- L-BFGS has a line search with the strong Wolfe conditions, and variables of several scales (`spread`), so that a step
  moves whole areas as readily as single pixels: that takes fewer evaluations than the pixels themselves;
- styles can be confined to regions by masks (Gatys et al. 2017, section 4) and compared as Gaussians instead of by Gram
  matrices;
- an image can be cut into tiles, or into rows on several devices (tiles.py), and many can be made at once.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax import images, losses, processes, tiles, vgg
from ganstyle_jax.tiles import Canvas
from ganstyle_jax.vgg import VGG, Network, Params

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is optimised, and how."""

    size: int = 512  # longer side of the result in pixels
    style_scale: float = 1.0  # longer side of the style pictures, of `size`
    content_weight: float = 0.05  # of the content loss, which is 1 for an image without features
    style_weight: float = 1.0  # of the style loss, which is 1 for an image without features too
    tv_weight: float = 0.02  # of total variation, which smooths
    range_weight: float = 10.0  # of colours outside [-1, 1], which would be lost when the picture is shown
    content_layers: tuple[str, ...] = ("relu4_1",)  # of the network, where the content is compared
    style_layers: tuple[str, ...] = STYLE_LAYERS  # of the network, where the styles are compared
    style_layer_weights: tuple[float, ...] = (1.0,)  # one for each style layer, or one for all
    style_loss: Literal["gram", "wasserstein"] = "gram"  # of Gram matrices, or of means and covariances as Gaussians
    init: Literal["content", "noise", "style"] = "content"  # the first image; style: noise of the style's colours
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"  # Adam needs less memory and several times as many evaluations
    steps: int = 60  # evaluations of loss and gradient at each size
    learning_rate: float = 0.05  # of Adam
    memory: int = 20  # pairs that L-BFGS keeps
    smallest: int = 128  # longer side of the first image in pixels
    factor: float = 2**0.5  # from one size to the next
    averaging: float = 0.0  # the result is the running mean of the images on the way, which forgets at this rate
    tile: int = 0  # pixels of the side of a tile, for images too large for memory in one piece; 0 for one piece

    def __post_init__(self):
        for name in ("size", "steps", "memory", "smallest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("content_weight", "style_weight", "tv_weight", "range_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        for name in ("style_scale", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if self.tile < 0:
            raise ValueError(f"tile must not be negative, got {self.tile}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be at least 0 and less than 1, got {self.averaging}")
        if not 1 < self.factor < math.inf:
            raise ValueError(f"factor must be more than 1, got {self.factor}")
        if not all(0 <= w < math.inf for w in self.style_layer_weights) or not sum(self.style_layer_weights) > 0:
            raise ValueError(f"style_layer_weights must be 0 or more, one of them more, got {self.style_layer_weights}")
        if len(self.style_layer_weights) not in (1, len(self.style_layers)):
            raise ValueError(
                f"style_layer_weights must be one number or {len(self.style_layers)}, one for each style layer, got "
                f"{len(self.style_layer_weights)}"
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """All that are compared, each once."""
        return tuple(dict.fromkeys((*self.content_layers, *self.style_layers)))

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
class Moments:
    """What a style is: means and products of channels over the places of each region, or their sums."""

    mean: jax.Array  # (regions, c)
    gram: jax.Array  # (regions, c, c)


@flax.struct.dataclass
class Targets:
    """What the features of an image are compared with, by layer.

    Masks are needed only where some places count less than others: for styles of regions, and where the image lies in
    an array larger than itself (see tiles.py).
    """

    content: dict[str, jax.Array]  # features (h, w, c)
    style: dict[str, Moments]
    factors: dict[str, jax.Array]  # of the styles' covariances, (regions, c, c); empty unless by Wasserstein distance
    share: jax.Array | np.ndarray  # (regions,), how much each counts
    regions: dict[str, jax.Array]  # masks (regions, h, w, 1) from 0 to 1 by style layer, or empty
    areas: dict[str, jax.Array | np.ndarray]  # their sums, (regions,)
    inside: dict[str, jax.Array]  # masks (1, h, w, 1) by content layer, or empty
    canvas: Canvas = flax.struct.field(pytree_node=False)


def moments(features: jax.Array, regions: jax.Array | None = None) -> Moments:
    """Sums over places: features (h, w, c), masks (r, h, w, 1) of regions or None for one region of all places."""
    flat = features.reshape(-1, features.shape[-1])
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.promote_types(features.dtype, jnp.float32))
    if regions is None:
        return Moments(dot("pc->c", flat)[None], dot("pc,pd->cd", flat, flat)[None])
    masks = regions.reshape(len(regions), -1).astype(features.dtype)
    return Moments(dot("rp,pc->rc", masks, flat), dot("rpc,pd->rcd", masks[..., None] * flat, flat))


def sums(
    network: Network, params: Params, image: jax.Array, targets: Targets, cfg: Config, extent: Any = None
) -> tuple[dict[str, jax.Array], dict[str, Moments]]:
    """All that the loss needs of an image's features, sums over places: squared errors of content, and moments."""
    taps = network.apply(params, image[None], cfg.layers, extent)
    content, style = {}, {}
    for layer in cfg.content_layers:
        precision = jnp.promote_types(taps[layer].dtype, jnp.float32)
        error = (taps[layer][0].astype(precision) - targets.content[layer].astype(precision)) ** 2
        content[layer] = jnp.sum(error * targets.inside[layer][0] if targets.inside else error)
    for layer in cfg.style_layers:
        style[layer] = moments(taps[layer][0], targets.regions.get(layer))
    return content, style


def sums_by_tiles(
    network: Network, params: Params, image: jax.Array, targets: Targets, cfg: Config
) -> tuple[dict[str, jax.Array], dict[str, Moments]]:
    """As `sums`, with the features of one tile at a time."""
    assert isinstance(network, VGG)

    def of_tile(window, place, args):
        params, targets = args
        content = {layer: place.cut(x, window, network.stride(layer)) for layer, x in targets.content.items()}
        inside = {layer: place.mask(x, window, network.stride(layer)) for layer, x in targets.inside.items()}
        regions = {layer: place.mask(x, window, network.stride(layer)) for layer, x in targets.regions.items()}
        here = dataclasses.replace(targets, content=content, inside=inside, regions=regions)
        return sums(network, params, window, here, cfg, place.extent())

    return tiles.sum_over(of_tile, image, (params, targets), targets.canvas)


@functools.partial(jax.jit, static_argnames=("network", "cfg"))
def loss_terms(
    network: Network, params: Params, image: jax.Array, targets: Targets, cfg: Config
) -> dict[str, jax.Array]:
    """The weighted terms of the loss of an image (h, w, 3); their sum is what is minimised."""
    canvas = targets.canvas
    if canvas.tiled:
        content, style = sums_by_tiles(network, params, image, targets, cfg)
    else:
        content, style = sums(network, params, image, targets, cfg, canvas.padded)
    weights = np.broadcast_to(np.asarray(cfg.style_layer_weights), len(cfg.style_layers))
    weights = dict(zip(cfg.style_layers, cfg.style_weight * weights / weights.sum(), strict=True))
    terms = {}
    for layer, error in content.items():
        squares = jnp.sum(targets.content[layer].astype(error.dtype) ** 2)
        terms[f"content/{layer}"] = cfg.content_weight / len(cfg.content_layers) * error / jnp.maximum(squares, 1e-12)
    for layer, weight in weights.items():
        found = means(style[layer], targets.areas[layer])
        if cfg.style_loss == "gram":
            errors = jax.vmap(losses.relative_error)(found.gram, targets.style[layer].gram)
        else:
            errors = jax.vmap(wasserstein_error)(found, targets.style[layer], targets.factors[layer])
        terms[f"style/{layer}"] = weight * jnp.sum(targets.share * errors)
    terms["tv"] = cfg.tv_weight * losses.total_variation(image, canvas.padded)
    outside = jnp.maximum(jnp.abs(canvas.clear(image)) - 1, 0)
    terms["range"] = cfg.range_weight * jnp.sum(outside**2) / (3 * canvas.extent[0] * canvas.extent[1])
    return terms


def means(total: Moments, areas: jax.Array | np.ndarray) -> Moments:
    return Moments(total.mean / areas[:, None], total.gram / areas[:, None, None])


def wasserstein_error(found: Moments, target: Moments, factor: jax.Array) -> jax.Array:
    """Squared distance of two Gaussians with these moments, over the distance from the target to features of zeros."""
    distance = losses.wasserstein(found.mean, covariance(found), target.mean, factor)
    return distance / jnp.maximum(jnp.trace(target.gram), 1e-12)


def covariance(of: Moments) -> jax.Array:
    return of.gram - of.mean[..., :, None] * of.mean[..., None, :]


# ---------------------------------------------------------------------------------------------------------------------
# What to aim for


def make_targets(
    network: Network,
    params: Params,
    content: Any,
    styles: Sequence[Any],
    cfg: Config,
    style_weights: Sequence[float] | None = None,
    content_masks: Sequence[Any] | None = None,
    style_masks: Sequence[Any] | None = None,
    mesh: Mesh | None = None,
) -> Targets:
    """From pictures (h, w, 3) of the sizes that they are to be compared at; weights and masks as in `Job`.

    mesh: devices that share the rows of the image, on an axis "rows".
    """
    canvas = canvas_of(content.shape[:2], network, cfg, mesh)
    found = []
    for i, style in enumerate(styles):
        around = canvas_of(style.shape[:2], network, cfg, mesh)
        mask = None if style_masks is None else np.asarray(style_masks[i])[None]
        masks, areas = masks_of(network, around, cfg, mask)
        found.append(style_moments(network, params, around.put(style), masks, areas, cfg, around))
    weights = np.ones(len(styles)) if style_weights is None else np.asarray(style_weights, float)
    share, masks = np.ones(1), None
    if content_masks is None and len(styles) == 1:
        style = found[0]
    elif content_masks is None:
        # All styles everywhere: of all images with weighted squared distances to several matrices the best is the one
        # nearest to their mean, which are also the moments of all styles' features thrown together.
        blend = weights / weights.sum()
        style = jax.tree.map(lambda *x: sum(w * y for w, y in zip(blend, x, strict=True)), *found)
    else:
        masks = np.stack([np.asarray(mask) for mask in content_masks])
        share = weights / weights.mean() * masks.mean((1, 2))  # so that each place weighs its style as its content
        style = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
    factors = {}
    if cfg.style_loss == "wasserstein":
        factors = {layer: jax.vmap(losses.factor)(covariance(x)) for layer, x in style.items()}
    everywhere = masks_of(network, canvas, cfg)
    regions, areas = everywhere if masks is None else masks_of(network, canvas, cfg, masks)
    inside = {layer: everywhere[0][layer] for layer in cfg.content_layers}
    features = content_features(network, params, canvas.put(content), inside, cfg, canvas)
    whole = not canvas.tiled and canvas.padded is None
    return Targets(
        content=features,
        style=style,
        factors=factors,
        share=np.asarray(share, np.float32),
        regions={} if whole and masks is None else {layer: regions[layer] for layer in cfg.style_layers},
        areas={layer: areas[layer] for layer in cfg.style_layers},
        inside={} if whole else inside,
        canvas=canvas,
    )


def canvas_of(extent: Sequence[int], network: Network, cfg: Config, mesh: Mesh | None = None) -> Canvas:
    """How an image of that extent is cut, if it is. Raises ValueError where it cannot be."""
    if not cfg.tile and mesh is None:
        return tiles.whole(extent)
    if not isinstance(network, VGG):
        raise ValueError("only a network laid out like VGG sees an image in tiles or rows, not SqueezeNet")
    edge = max(2**SCALES, *(network.stride(layer) for layer in cfg.layers))  # no square of an average may be cut
    if mesh is not None:
        if cfg.tile:
            raise ValueError("an image is cut into tiles on one device or into rows on several, not both")
        return tiles.by_rows(extent, edge, mesh)
    return tiles.by_tiles(extent, edge, cfg.tile, network.reach(cfg.layers))


def masks_of(
    network: Network, canvas: Canvas, cfg: Config, masks: np.ndarray | None = None
) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
    """Masks (regions, h, w) from 0 to 1, or None for one region of all, to (regions, h', w', 1) by layer; their sums.

    A feature belongs to a region as much as the pixels that it stands for do on average.
    """
    real, whole = (feature_shapes(network, extent, cfg.layers) for extent in (canvas.extent, canvas.shape))
    found, areas = {}, {}
    for layer in cfg.layers:
        here = np.ones((1, *real[layer]))
        if masks is not None:
            here = jax.image.resize(jnp.asarray(masks, jnp.float32), (len(masks), *real[layer]), "linear")
        here = np.asarray(here, np.float32)
        found[layer], areas[layer] = canvas.put(here[..., None], whole[layer], axis=1), here.sum((1, 2))
    return found, areas


@functools.lru_cache(maxsize=64)
def feature_shapes(network: Network, extent: tuple[int, int], layers: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """(h, w) of the features of an image of that extent, by layer."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *extent, 3), jnp.float32)
    found: Any = jax.eval_shape(lambda params, image: network.apply(params, image, layers), params, image)
    return {layer: x.shape[1:3] for layer, x in found.items()}


@functools.partial(jax.jit, static_argnames=("network", "cfg", "canvas"))
def content_features(
    network: Network, params: Params, content: jax.Array, inside: dict[str, jax.Array], cfg: Config, canvas: Canvas
) -> dict[str, jax.Array]:
    """(h, w, 3) in [-1, 1] to features (h', w', c) by layer, zeros where its mask (1, h', w', 1) is."""

    def features(image, extent):
        return {layer: x[0] for layer, x in network.apply(params, image[None], cfg.content_layers, extent).items()}

    if not canvas.tiled:
        found = features(content, canvas.padded)
    else:
        found = tiles.map_over(lambda window, place: features(window, place.extent()), content, canvas)
    return {layer: jnp.where(inside[layer][0] > 0, x, 0) for layer, x in found.items()}


@functools.partial(jax.jit, static_argnames=("network", "cfg", "canvas"))
def style_moments(
    network: Network,
    params: Params,
    style: jax.Array,
    masks: dict[str, jax.Array],
    areas: dict[str, jax.Array],
    cfg: Config,
    canvas: Canvas,
) -> dict[str, Moments]:
    """(h, w, 3) in [-1, 1] to moments of its features by layer; masks: (1, h', w', 1), of which areas are the sums."""

    def of(image, masks, extent):
        taps = network.apply(params, image[None], cfg.style_layers, extent)
        return {layer: moments(x[0], masks[layer]) for layer, x in taps.items()}

    def of_tile(window, place, args):
        assert isinstance(network, VGG)
        masks = {layer: place.mask(x, window, network.stride(layer)) for layer, x in args.items()}
        return of(window, masks, place.extent())

    total: Any = tiles.sum_over(of_tile, style, masks, canvas) if canvas.tiled else of(style, masks, canvas.padded)
    return {layer: means(x, areas[layer]) for layer, x in total.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Optimisation


@flax.struct.dataclass
class Iterate:
    """Where the optimisation of one image stands, or of several with a leading axis."""

    base: jax.Array  # (h, w, 3), the image at the beginning
    x: jax.Array  # (h, w, 3), the variables, see `to_image`
    mean: jax.Array  # (h, w, 3), running mean of the images since then; of no size without `cfg.averaging`
    value: jax.Array  # loss at x
    gradient: jax.Array
    opt_state: Any
    steps: jax.Array  # of the optimizer
    evaluations: jax.Array  # of loss and gradient
    resets: jax.Array  # how often L-BFGS forgot its history, because a line search failed or a value was not finite
    stuck: jax.Array  # resets in a row: two mean that nothing more can be gained in this arithmetic


LOSS_SCALE = 1e4  # so that gradients are longer than 1, or optax would not take the first step of L-BFGS to be so long
SCALES = 4  # of the variables: single pixels, and averages of squares of 2, 4, 8 and 16
COARSENESS = 0.4  # how much further a step moves the average of a square twice as large, as a power of 2


def to_image(base: jax.Array, x: jax.Array, cfg: Config, canvas: Canvas) -> jax.Array:
    """The image that the variables stand for, (h, w, 3) both: for Adam they are the image itself.

    optax caps the first step of L-BFGS to length 1, which in these variables is 0.03 for every colour value.
    """
    if cfg.optimizer == "adam":
        return x
    return base + 0.03 * (3 * canvas.extent[0] * canvas.extent[1]) ** 0.5 * spread(canvas.clear(x))


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


@functools.partial(jax.jit, static_argnames=("cfg", "canvas"))
def picture_of(at: Iterate, cfg: Config, canvas: Canvas) -> jax.Array:
    """The image so far, (h, w, 3), or (b, h, w, 3) of several: the last, or the mean of those on the way."""

    def one(at):
        last = to_image(at.base, at.x, cfg, canvas)
        if not cfg.averaging:
            return last
        return jnp.where(at.steps > 0, at.mean / jnp.maximum(1 - cfg.averaging**at.steps, 1e-6), last)

    return one(at) if at.value.ndim == 0 else jax.vmap(one)(at)


def optimizer(cfg: Config) -> optax.GradientTransformationExtraArgs:
    if cfg.optimizer == "adam":
        return optax.with_extra_args_support(optax.adam(cfg.learning_rate))
    # The first guess is always 1, the length of a quasi-Newton step; after a failed search the last one would be 0.
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=15, initial_guess_strategy="one")
    return optax.lbfgs(memory_size=cfg.memory, linesearch=search)


def variables(image: jax.Array, cfg: Config) -> tuple[jax.Array, jax.Array]:
    """The base and the variables at which the optimisation of an image begins; copies, because they are donated."""
    return jnp.copy(image), jnp.zeros_like(image) if cfg.optimizer == "lbfgs" else jnp.copy(image)


def begin(image: jax.Array, cfg: Config) -> Iterate:
    """The first iterate of an image (h, w, 3), whose loss and gradient are not known yet."""
    base, x = variables(image, cfg)
    zero = jnp.zeros((), jnp.int32)
    mean = jnp.zeros_like(image) if cfg.averaging else jnp.zeros(0)
    # Types as they will be after a step, or that would be compiled twice: optax begins with numbers of no fixed type.
    opt_state = jax.tree.map(lambda x: lax.convert_element_type(x, x.dtype), optimizer(cfg).init(x))
    return Iterate(base, x, mean, jnp.zeros((), x.dtype), jnp.zeros_like(x), opt_state, zero, zero, zero, zero)


def improve(objective: Callable[[jax.Array, jax.Array], jax.Array], at: Iterate, cfg: Config) -> Iterate:
    """One step of the optimizer: one evaluation for Adam, as many as the line search takes for L-BFGS."""
    solver: Any = optimizer(cfg)
    value_fn = functools.partial(objective, at.base)
    if cfg.optimizer == "adam":
        updates, opt_state = solver.update(at.gradient, at.opt_state, at.x)
        x = jnp.clip(at.x + updates, -1, 1)
        value, gradient = jax.value_and_grad(value_fn)(x)
        changed = {"evaluations": at.evaluations + 1}
    else:
        updates, opt_state = solver.update(
            at.gradient, at.opt_state, at.x, value=at.value, grad=at.gradient, value_fn=value_fn
        )
        pairs, *others, search = opt_state
        moved = (search.info.decrease_error <= 0) & (search.value < at.value) & jnp.isfinite(search.grad).all()
        # Forgetting is to count pairs as nothing; the pairs themselves, most of the memory, need not be touched.
        pairs = pairs._replace(
            count=jnp.where(moved, pairs.count, 0), weights_memory=jnp.where(moved, pairs.weights_memory, 0)
        )
        opt_state = (pairs, *others, search)
        x = jnp.where(moved, at.x + updates, at.x)
        value, gradient = jnp.where(moved, search.value, at.value), jnp.where(moved, search.grad, at.gradient)
        changed = {
            "evaluations": at.evaluations + search.info.num_linesearch_steps.astype(jnp.int32),
            "resets": at.resets + ~moved,
            "stuck": jnp.where(moved, 0, at.stuck + 1),
        }
    return dataclasses.replace(
        at, x=x, value=value, gradient=gradient, opt_state=opt_state, steps=at.steps + 1, **changed
    )


@functools.partial(jax.jit, static_argnames=("network", "cfg", "mesh"))
def evaluate(
    network: Network, params: Params, targets: Targets, image: jax.Array, cfg: Config, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The loss of an image (h, w, 3), scaled, its gradient with respect to the variables there, and its terms.

    Of several images (b, h, w, 3) with as many targets all have a leading axis. mesh: devices among which they are
    dealt out, on an axis "pictures".
    """

    def one(targets, image):
        base, x = variables(image, cfg)

        def objective(x):
            terms = loss_terms(network, params, to_image(base, x, cfg, targets.canvas), targets, cfg)
            return LOSS_SCALE * functools.reduce(jnp.add, terms.values()), terms

        (value, terms), gradient = jax.value_and_grad(objective, has_aux=True)(x)
        return value, gradient, terms

    return one(targets, image) if image.ndim == 3 else _by_pictures(jax.vmap(one), mesh)(targets, image)


@functools.partial(jax.jit, static_argnames=("cfg", "canvas"))
def start(
    image: jax.Array,
    value: jax.Array,
    gradient: jax.Array,
    cfg: Config,
    before: Iterate | None = None,
    canvas: Canvas | None = None,
) -> Iterate:
    """The first iterate of an image (h, w, 3), or of several (b, h, w, 3), with its loss and gradient by `evaluate`.

    before: where smaller ones ended, from which Adam takes its moments. canvas: whose devices are to share the rows.
    """

    def one(image, value, gradient, before):
        at = begin(image, cfg)
        at = dataclasses.replace(at, value=value, gradient=gradient, evaluations=at.evaluations + 1)
        if before is None or cfg.optimizer != "adam":
            return at
        # A pixel's derivative is the smaller the more pixels there are.
        ratio = before.x.size / image.size
        adam, *others = before.opt_state
        mu = ratio * jax.image.resize(adam.mu, image.shape, "linear")
        nu = ratio**2 * jax.image.resize(adam.nu, image.shape, "linear")
        return dataclasses.replace(at, opt_state=(adam._replace(mu=mu, nu=nu), *others))

    arguments = (image, value, gradient, before)
    at = one(*arguments) if image.ndim == 3 else jax.vmap(one)(*arguments)
    return at if canvas is None else canvas.share(at)


@functools.partial(jax.jit, static_argnames=("network", "cfg", "mesh", "rows"), donate_argnames="at")
def advance(
    network: Network,
    params: Params,
    targets: Targets,
    at: Iterate,
    until: jax.Array,
    cfg: Config,
    mesh: Mesh | None = None,
    rows: int = 64,
) -> tuple[Iterate, jax.Array, jax.Array]:
    """Steps until at least `until` evaluations are done, `rows` steps at most, or nothing can be gained any more.

    Several images (see `evaluate`) are worked on until the last is done. Also returns the evaluations done after each
    step, 0 where there was none, and the loss, (rows,) or (b, rows) both.
    """

    def one(targets, at):
        at = improve(make_objective(network, params, targets, cfg), at, cfg)
        if cfg.averaging:
            image = to_image(at.base, at.x, cfg, targets.canvas)
            at = dataclasses.replace(at, mean=cfg.averaging * at.mean + (1 - cfg.averaging) * image)
        return at

    def many(targets, at, until):
        def unless_done(pair):
            targets, at = pair
            return lax.cond((at.evaluations < until) & (at.stuck < 2), one, lambda targets, at: at, targets, at)

        def many_or_one(targets, at):
            if at.value.ndim == 0:
                return one(targets, at)
            if cfg.optimizer == "adam":
                return jax.vmap(one)(targets, at)
            # Pictures of one device in turn: side by side every branch of the line search is computed for all of them,
            # which takes six times as long, and none could stop before the last.
            return lax.map(unless_done, (targets, at))

        def more(carry):
            i, at, _, _ = carry
            return (i < rows) & jnp.any((at.evaluations < until) & (at.stuck < 2))

        def step(carry):
            i, before, evaluations, values = carry
            at = many_or_one(targets, before)
            done = jnp.where(at.evaluations > before.evaluations, at.evaluations, 0)  # some may wait for the others
            return i + 1, at, evaluations.at[..., i].set(done), values.at[..., i].set(at.value / LOSS_SCALE)

        empty = jnp.zeros((*at.value.shape, rows), jnp.int32), jnp.zeros((*at.value.shape, rows), at.value.dtype)
        return lax.while_loop(more, step, (0, at, *empty))[1:]

    return many(targets, at, until) if at.value.ndim == 0 else _by_pictures(many, mesh)(targets, at, until)


def _by_pictures(function: Callable, mesh: Mesh | None) -> Callable:
    """Each device works on its share of the pictures, at its own pace; arguments without axes are everyone's."""
    if mesh is None:
        return function

    def spec(x):
        return PartitionSpec("pictures") if jnp.ndim(x) else PartitionSpec()

    def shared(*args):
        specs = jax.tree.map(spec, args)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("pictures"), check_vma=False)(
            *args
        )

    return shared


def make_objective(
    network: Network, params: Params, targets: Targets, cfg: Config
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss, scaled, as a function of where the image began and of the variables."""

    def objective(base, x):
        terms = loss_terms(network, params, to_image(base, x, cfg, targets.canvas), targets, cfg)
        return LOSS_SCALE * functools.reduce(jnp.add, terms.values())

    return objective


# ---------------------------------------------------------------------------------------------------------------------
# From pictures to a picture


@dataclasses.dataclass(frozen=True)
class Job:
    """One picture to make. Pictures are (h, w, 3) in [-1, 1], of any size; masks (h, w) from 0 to 1, of their pictures.

    Without content masks the styles are blended; with them each style keeps to its mask.
    """

    content: np.ndarray
    styles: Sequence[np.ndarray]
    style_weights: Sequence[float] | None = None  # one for each style, of which the ratio counts; by default all equal
    content_masks: Sequence[np.ndarray] | None = None  # where in the content each style is to go
    style_masks: Sequence[np.ndarray] | None = None  # which part of each style picture is its style
    init_image: np.ndarray | None = None  # to begin with, in the place of `Config.init`

    def __post_init__(self):
        weights = np.ones(len(self.styles)) if self.style_weights is None else np.asarray(self.style_weights, float)
        if not self.styles or len(weights) != len(self.styles) or not (weights >= 0).all() or not weights.sum() > 0:
            raise ValueError(
                f"there must be a weight, none below 0, for each of {len(self.styles)} styles, got {self.style_weights}"
            )
        contents = [self.content] * len(self.styles)
        for name, masks, pictures in (
            ("content", self.content_masks, contents),
            ("style", self.style_masks, self.styles),
        ):
            if masks is None:
                continue
            if len(masks) != len(self.styles):
                raise ValueError(f"there must be a {name} mask for each of {len(self.styles)} styles, got {len(masks)}")
            for mask, picture in zip(masks, pictures, strict=True):
                if np.shape(mask) != np.shape(picture)[:2]:
                    raise ValueError(
                        f"a {name} mask must have the {np.shape(picture)[1]} x {np.shape(picture)[0]} pixels of its "
                        f"picture, got {' x '.join(map(str, np.shape(mask)[::-1]))}"
                    )
                if not np.max(mask) > 0:
                    raise ValueError(f"a {name} mask is black all over, so that it covers nothing")


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback is told, about once a second."""

    shape: tuple[int, int]  # of the image at present
    evaluations: int  # of loss and gradient at this size
    done: float  # share of all work, from 0 to 1
    losses: list[tuple[int, float]]  # (evaluations, loss) after each step since the last call
    # the loss in its parts, at the beginning of this size and, in the last call, at its end; now, where `detailed`
    terms: dict[str, float]
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
    content_masks: Sequence[np.ndarray] | None = None,
    style_masks: Sequence[np.ndarray] | None = None,
    devices: Sequence[Any] | None = None,
    detailed: bool = False,
) -> np.ndarray:
    """The content picture in the styles' manner, (h, w, 3) float32 in [-1, 1] with a longer side of `cfg.size`.

    For the pictures, weights and masks see `Job`. callback: called about once a second; an exception in it ends the
    optimisation. devices: to share the picture's rows. detailed: the callback is told of the present terms every time,
    for one more evaluation each.
    Raises ValueError for layers that the network lacks, pictures too small for them and masks that do not fit.
    """
    job = Job(content, styles, style_weights, content_masks, style_masks, init_image)
    mesh = Mesh(np.asarray(devices), ("rows",)) if devices is not None and len(devices) > 1 else None
    tell = None if callback is None else lambda progress: callback(progress[0])
    return _stylize(key, [job], cfg, network, params, tell, rows=mesh, detailed=detailed)[0]


def stylize_many(
    key: jax.Array,
    jobs: Sequence[Job],
    cfg: Config,
    network: Network,
    params: Params,
    callback: Callable[[list[Progress]], None] | None = None,
    devices: Sequence[Any] | None = None,
) -> list[np.ndarray]:
    """As `stylize` for many pictures in one program, each what it would be by itself.

    All contents must come to the same shape, and all jobs or none have content masks, for as many styles.
    devices: among which the pictures are dealt out. callback: told of all pictures at once.
    """
    if len({fitted_shape(job.content.shape, cfg.size) for job in jobs}) > 1:
        raise ValueError("pictures that are made together must have the same shape")
    if len({None if job.content_masks is None else len(job.content_masks) for job in jobs}) > 1:
        raise ValueError("pictures that are made together must all have as many content masks")
    mesh = Mesh(np.asarray(devices), ("pictures",)) if devices is not None and len(devices) > 1 else None
    # Every device has as many pictures; those that fill up are made in vain.
    filled = [*jobs, *[jobs[-1]] * (-len(jobs) % (mesh.size if mesh else 1))]
    tell = None if callback is None else lambda progress: callback(progress[: len(jobs)])
    return _stylize(key, filled, cfg, network, params, tell, pictures=mesh)[: len(jobs)]


def _stylize(
    key: jax.Array,
    jobs: Sequence[Job],
    cfg: Config,
    network: Network,
    params: Params,
    callback: Callable[[list[Progress]], None] | None,
    rows: Mesh | None = None,
    pictures: Mesh | None = None,
    detailed: bool = False,
) -> list[np.ndarray]:
    network.check(cfg.layers)
    if rows is None:
        params = vgg.prepare(network, params)
    else:  # of plain convolutions XLA exchanges the borders without gathering all of them
        everywhere = NamedSharding(rows, PartitionSpec())
        params = jax.tree.map(lambda x: processes.put(x, everywhere), params)
    shapes = shapes_of(jobs[0].content.shape, cfg, network)
    work = np.cumsum([0.0] + [float(np.prod(shape)) for shape in shapes])
    # One picture by itself has no axis for pictures: the compiler does better without.
    single = len(jobs) == 1 and pictures is None
    stack = (lambda *x: x[0]) if single else (lambda *x: jnp.stack(x))
    result: list[Any] = [job.init_image for job in jobs]
    at = None
    for i, shape in enumerate(shapes):
        canvas = canvas_of(shape, network, cfg, rows)
        targets, begins = [], []
        for job, image in zip(jobs, result, strict=True):
            content, styles = resized(job, shape, cfg, network.smallest_side(cfg.layers))
            masks = (job.style_weights, job.content_masks, job.style_masks)
            targets.append(make_targets(network, params, content, styles, cfg, *masks, mesh=rows))
            image = first_image(key, content, styles, job, cfg) if image is None else images.resize(image, shape)
            begins.append(canvas.put(image))
        targets = jax.tree.map(stack, *targets)
        # Moments of an array that is larger than its image lie elsewhere in it.
        before = at if cfg.optimizer == "adam" and canvas.padded is None else None
        first = stack(*begins)
        value, gradient, terms = evaluate(network, params, targets, first, cfg, pictures)
        at = start(first, value, gradient, cfg, before, canvas)
        pace = 4  # evaluations in a dispatch, so many that it takes about a second
        while (done := _done(at, cfg)) < cfg.steps:
            then = time.perf_counter()
            until = np.int32(min(done + pace, cfg.steps))
            at, evaluations, values = advance(network, params, targets, at, until, cfg, pictures)
            now = _done(at, cfg)
            pace = max(1, min(64, int((now - done) / (time.perf_counter() - then))))
            if rows is not None:  # the slowest process' pace is that of all
                pace = -processes.agree(lambda pace=pace: [-pace], rows)()[0]
            image = picture_of(at, cfg, canvas)
            last = now >= cfg.steps
            if last or detailed:
                terms = evaluate(network, params, targets, image, cfg, pictures)[2]
            if callback is not None:
                share = (work[i] + (work[i + 1] - work[i]) * (1 if last else now / cfg.steps)) / work[-1]
                callback(_progress(shape, share, at, evaluations, values, terms, canvas.crop(image)))
        result = list(canvas.crop(picture_of(at, cfg, canvas)).reshape(-1, *shape, 3))
    return [np.clip(image, -1, 1) for image in result]


def _done(at: Iterate, cfg: Config) -> int:
    """Evaluations of the picture that has the fewest; what can gain nothing more counts as finished."""
    return int(jnp.where(at.stuck < 2, at.evaluations, cfg.steps).min())


def _progress(
    shape: tuple[int, int],
    done: float,
    at: Iterate,
    evaluations: jax.Array,
    values: jax.Array,
    terms: dict[str, jax.Array],
    images: np.ndarray,
) -> list[Progress]:
    """Of each picture; the arrays have no axis for pictures where there is one."""
    at_evaluations, resets = np.atleast_1d(at.evaluations), np.atleast_1d(at.resets)
    logs = zip(np.atleast_2d(evaluations), np.atleast_2d(values), strict=True)
    told = []
    for j, ((log, log_values), image) in enumerate(zip(logs, images.reshape(-1, *shape, 3), strict=True)):
        losses = [(int(e), float(v)) for e, v in zip(log, log_values, strict=True) if e]
        parts = {name: float(np.atleast_1d(value)[j]) for name, value in terms.items()}
        image = np.clip(image, -1, 1)
        told.append(Progress(shape, int(at_evaluations[j]), done, losses, parts, int(resets[j]), image))
    return told


def shapes_of(shape: Sequence[int], cfg: Config, network: Network) -> list[tuple[int, int]]:
    """(h, w) of the images on the way from coarse to fine. Raises ValueError where even the last one is too small."""
    least = network.smallest_side(cfg.layers)
    shapes = [fitted_shape(shape, size) for size in cfg.sizes]
    if min(shapes[-1]) < least:
        height, width = shapes[-1]
        raise ValueError(
            f"an image of {width} x {height} pixels is too small for these layers, which need {least} a side"
        )
    return [shape for shape in shapes if min(shape) >= least]


def resized(job: Job, shape: tuple[int, int], cfg: Config, least: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The content and the styles as they are compared with an image of that shape."""
    styles = []
    for style in job.styles:
        height, width = fitted_shape(style.shape, max(shape) * cfg.style_scale)
        styles.append(images.resize(style, (max(height, least), max(width, least))))
    return images.resize(job.content, shape), styles


def first_image(key: jax.Array, content: np.ndarray, styles: Sequence[np.ndarray], job: Job, cfg: Config) -> np.ndarray:
    """What the optimisation begins with, by `cfg.init`."""
    if cfg.init == "content":
        return content
    noise = np.asarray(jax.random.normal(key, content.shape))
    if cfg.init == "noise":
        return np.clip(0.3 * noise, -1, 1)
    weights = np.ones(len(styles)) if job.style_weights is None else np.asarray(job.style_weights, float)
    colours = np.concatenate([style.reshape(-1, 3) for style in styles])
    share = np.repeat(weights / [style[..., 0].size for style in styles], [style[..., 0].size for style in styles])
    mean = np.average(colours, axis=0, weights=share)
    values, axes = np.linalg.eigh(np.cov(colours.T, aweights=share))
    return np.clip(mean + noise * np.sqrt(np.maximum(values, 0)) @ axes.T, -1, 1).astype(np.float32)


def fitted_shape(shape: Sequence[int], longer: float) -> tuple[int, int]:
    """(h, w) of a picture of that shape whose longer side has so many pixels."""
    scale = longer / max(shape[:2])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
