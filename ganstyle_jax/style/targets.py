"""What the optimised image is to be like: features of the content picture, moments of the styles' features."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ganstyle_jax.features.vgg import VGG, Network, Params
from ganstyle_jax.nn import compiled, tiles
from ganstyle_jax.nn.tiles import Canvas
from ganstyle_jax.style import places
from ganstyle_jax.style.config import SCALES, Config, layers_named
from ganstyle_jax.style.losses import Moments, covariance, factor, means, moments
from ganstyle_jax.style.places import Patches, Places


@flax.struct.dataclass
class Targets:
    """What the features of an image are compared with, by layer.

    Masks are needed only where some places count less than others: for styles of regions, where the content is
    transparent, and where the image lies in an array larger than itself (see tiles.py).
    """

    content: dict[str, jax.Array]  # features (h, w, c)
    style: dict[str, Moments]
    factors: dict[str, jax.Array]  # of the styles' covariances, (regions, c, c); empty unless by Wasserstein distance
    share: dict[str, jax.Array | np.ndarray]  # (regions,) by style layer, how much each counts
    regions: dict[str, jax.Array]  # masks (regions, h, w, 1) from 0 to 1 by style layer, or empty
    areas: dict[str, jax.Array | np.ndarray]  # their sums, (regions,)
    inside: dict[str, jax.Array]  # masks (1, h, w, 1) by content layer, or empty
    previous: jax.Array | None = None  # (h, w, 3), what the image is held to in time, where it is
    trusted: jax.Array | None = None  # (h, w, 1) from 0 to 1, how much that is so
    places: Places | None = None  # what further terms aim for, where there are any
    canvas: Canvas = flax.struct.field(pytree_node=False, kw_only=True)


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
    previous: Any | None = None,
    trusted: Any | None = None,
    style_layers: Sequence[str | Sequence[str]] | None = None,
    opaque: Any | None = None,
) -> Targets:
    """From pictures (h, w, 3) of the sizes that they are to be compared at; weights, masks, layers as in `gatys.Job`.

    previous, trusted: as in `gatys.Job`, of the content's shape. mesh: devices that share the rows of the image, on an
    axis "rows".
    """
    weights = np.ones(len(styles)) if style_weights is None else np.asarray(style_weights, float)
    masks = [None] * len(styles) if style_masks is None else style_masks
    found = [style_target(network, params, *pair, cfg, mesh) for pair in zip(styles, masks, strict=True)]
    counts = counts_by_layer(weights, style_layers, cfg)
    if content_masks is None:
        style, share = blended(found, counts), dict.fromkeys(cfg.style_layers, np.ones(1))
        regions = None if opaque is None else np.asarray(opaque)[None]
    else:
        seen = 1 if opaque is None else np.asarray(opaque)
        regions = np.stack([np.asarray(mask) for mask in content_masks]) * seen
        # So that each place that is seen weighs its style as its content.
        parts = regions.mean((1, 2)) / np.mean(seen)
        share = {layer: count / weights.mean() * parts for layer, count in counts.items()}
        style = jax.tree.map(lambda *x: jnp.concatenate(x), *found)

    canvas = canvas_of(content.shape[:2], network, cfg, mesh)
    network = of_image(network, cfg)
    everywhere, areas = masks_of(network, canvas, cfg)
    seen = everywhere if opaque is None else masks_of(network, canvas, cfg, np.asarray(opaque)[None])[0]
    inside = {layer: seen[layer] for layer in cfg.content_layers}
    within = everywhere
    if regions is not None:
        within, areas = masks_of(network, canvas, cfg, regions)
    if previous is not None:
        trusted = np.ones(content.shape[:2], np.float32) if trusted is None else np.asarray(trusted, np.float32)
        previous, trusted = canvas.put(previous), canvas.put(trusted[..., None])
    whole = not canvas.tiled and canvas.padded is None
    further = None
    if places.any_of(cfg):
        places.check(cfg, len(styles), style_weights if content_masks is None else None, style_layers)
        further = Places(
            tables=tables_of(network, params, styles, masks, counts, content_masks is not None, cfg, mesh),
            patches=patches_of(network, params, styles, masks, weights, content_masks is not None, cfg, mesh, content),
            content=canvas.put(content) if cfg.has("laplacian_weight") else None,
        )
    return Targets(
        content=content_features(network, params, canvas.put(content), inside, cfg, canvas),
        style=style,
        factors=factors_of(style) if cfg.style_loss == "wasserstein" else {},
        share=jax.tree.map(np.float32, share),
        regions={} if whole and regions is None else {layer: within[layer] for layer in cfg.style_layers},
        areas={layer: areas[layer] for layer in cfg.style_layers},
        inside={} if whole and opaque is None else inside,
        previous=previous,
        trusted=trusted,
        places=further,
        canvas=canvas,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Of the styles


def style_target(
    network: Network, params: Params, style: Any, mask: Any | None, cfg: Config, mesh: Mesh | None
) -> dict[str, Moments]:
    """The moments of a style picture's features by layer, of what is white in its mask."""
    canvas = canvas_of(style.shape[:2], network, cfg, mesh)
    masks, areas = masks_of(network, canvas, cfg, None if mask is None else np.asarray(mask)[None])
    return style_moments(network, params, canvas.put(style), masks, areas, cfg, canvas)


def counts_by_layer(
    weights: np.ndarray, style_layers: Sequence[str | Sequence[str]] | None, cfg: Config
) -> dict[str, np.ndarray]:
    """How much each style counts in each style layer: its weight, or 0 where it does not. Raises ValueError."""
    if style_layers is None:
        return dict.fromkeys(cfg.style_layers, weights)
    chosen = [layers_named(names, cfg) for names in style_layers]
    counts = {layer: weights * [layer in names for names in chosen] for layer in cfg.style_layers}
    if left := [layer for layer, count in counts.items() if not count.sum() > 0]:
        raise ValueError(f"each style layer needs a style that counts in it, and {', '.join(left)} has none")
    return counts


def blended(styles: Sequence[dict[str, Moments]], counts: dict[str, np.ndarray]) -> dict[str, Moments]:
    """All styles everywhere, each as near as its weight says. counts: of each style, by layer.

    Of all images with weighted squared distances to several matrices the best is the one nearest to their mean. Here a
    style's weight is divided by its matrix' norm: between two styles of equal weight the mean is then as far from both,
    measured by their own norms, where without it the one of the larger norm would be met and the other not. The norm of
    the mean is the harmonic mean of theirs.
    """
    if len(styles) == 1:
        return styles[0]
    found = {}
    for layer, count in counts.items():
        of_layer = [style[layer] for style in styles]
        shares = [w / jnp.maximum(jnp.linalg.norm(x.gram), 1e-12) for w, x in zip(count, of_layer, strict=True)]
        shares = [share / sum(shares) for share in shares]
        found[layer] = jax.tree.map(lambda *x, s=shares: sum(w * y for w, y in zip(s, x, strict=True)), *of_layer)
    return found


def factors_of(style: dict[str, Moments]) -> dict[str, jax.Array]:
    """Of the styles' covariances, by layer, for the Wasserstein distance."""
    return {layer: jax.vmap(factor)(covariance(x)) for layer, x in style.items()}


@functools.partial(compiled.soon, static_argnames=("network", "canvas"))
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


def tables_of(
    network: Network,
    params: Params,
    styles: Sequence[Any],
    masks: Sequence[Any | None],
    counts: dict[str, np.ndarray],
    apart: bool,
    cfg: Config,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    """Quantiles of the styles' features by layer, (regions, m, c). apart: each style has a region to itself."""
    if not (layers := places.histogram_layers(cfg)):
        return {}
    found = []
    for style, mask in zip(styles, masks, strict=True):
        canvas = canvas_of(style.shape[:2], network, cfg, mesh)
        taps = whole_features(network, params, canvas.put(style), layers, canvas)
        white = {}
        if mask is not None:
            mask = jnp.asarray(mask, jnp.float32)
            white = {layer: jax.image.resize(mask, x.shape[:2], "linear") for layer, x in taps.items()}
        found.append(places.tables_of(taps, white, layers))
    if apart:
        return jax.tree.map(lambda *x: jnp.stack(x), *found)
    return jax.tree.map(lambda x: x[None], places.blended_tables(found, counts))


def patches_of(
    network: Network,
    params: Params,
    styles: Sequence[Any],
    masks: Sequence[Any | None],
    weights: np.ndarray,
    apart: bool,
    cfg: Config,
    mesh: Mesh | None,
    content: Any,
) -> Patches | None:
    """The styles' patches, with an axis of regions: one for each style, or one of all that weigh."""
    if cfg.style_loss != "patches":
        return None
    columns, whites, channels = [], [], ()
    for style, mask in zip(styles, masks, strict=True):
        canvas, shape = canvas_of(style.shape[:2], network, cfg, mesh), places.patch_shape(style.shape)
        taps = whole_features(network, params, canvas.put(style), cfg.style_layers, canvas)
        columns.append(places.columns_of(taps, cfg.style_layers, shape))
        whites.append(places.white_in(mask, shape))
        channels = tuple(taps[layer].shape[-1] for layer in cfg.style_layers)
    if not apart:
        counting = np.flatnonzero(weights)
        columns = [jnp.concatenate([columns[i] for i in counting])]
        whites = [np.concatenate([whites[i] for i in counting])]
    count = places.patch_count(content.shape, cfg)
    found = [places.patches_of(*pair, channels, count) for pair in zip(columns, whites, strict=True)]
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


@functools.partial(compiled.soon, static_argnames=("network", "layers", "canvas"))
def whole_features(
    network: Network, params: Params, image: jax.Array, layers: tuple[str, ...], canvas: Canvas
) -> dict[str, jax.Array]:
    """As `features_of`, of the image's extent alone."""
    real = feature_shapes(network, canvas.extent, layers)
    found = features_of(network, params, image, layers, canvas)
    return {layer: x[: real[layer][0], : real[layer][1]] for layer, x in found.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Of the content


@functools.partial(compiled.soon, static_argnames=("network", "canvas"))
def content_features(
    network: Network, params: Params, content: jax.Array, inside: dict[str, jax.Array], cfg: Config, canvas: Canvas
) -> dict[str, jax.Array]:
    """(h, w, 3) in [-1, 1] to features (h', w', c) by layer, zeros where its mask (1, h', w', 1) is."""
    found = features_of(network, params, content, cfg.content_layers, canvas)
    return {layer: jnp.where(inside[layer][0] > 0, x, 0) for layer, x in found.items()}


def features_of(
    network: Network, params: Params, image: jax.Array, layers: tuple[str, ...], canvas: Canvas
) -> dict[str, jax.Array]:
    """(h, w, 3) in [-1, 1] to features (h', w', c) by layer; those beyond the extent mean nothing.

    In tiles nothing but these is kept, for the gradient neither: there each tile's features are computed again.
    """

    def features(image, extent):
        return {layer: x[0] for layer, x in network.apply(params, image[None], layers, extent).items()}

    if not canvas.tiled:
        return features(image, canvas.padded)
    return tiles.map_over(lambda window, place: features(window, place.extent()), image, canvas)


# ---------------------------------------------------------------------------------------------------------------------
# In tiles, in rows, in regions


def of_image(network: Network, cfg: Config) -> Network:
    """What sees the image that is made, and its content; the styles are seen by the network as it is."""
    return network.seamless() if cfg.tileable else network


def canvas_of(extent: Sequence[int], network: Network, cfg: Config, mesh: Mesh | None = None) -> Canvas:
    """How an image of that extent is cut, if it is. Raises ValueError where it cannot be."""
    if not cfg.tile and mesh is None:
        return tiles.whole(extent)
    if cfg.tileable:
        raise ValueError("a tileable picture is made in one piece, not in tiles or rows")
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
