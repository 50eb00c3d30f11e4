"""How far an image is from what it is to be: the loss as a list of terms.

    terms = [style_term("style/relu1_1", 1.0, "relu1_1", target), tv_term(0.02)]
    loss = sum(weighted(terms, image, taps).values())

A term is written for one image in one piece, and `jax.vmap` makes it one of a batch. Tiles and rows are seen to here,
by `values`, so that whoever trains a network by these losses needs to know of neither.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ganstyle_jax.features.vgg import VGG, Network, Params
from ganstyle_jax.nn import tiles
from ganstyle_jax.nn.tiles import Canvas
from ganstyle_jax.style.config import Config, layer_weights
from ganstyle_jax.style.histogram import histogram_error
from ganstyle_jax.style.losses import (
    Moments,
    laplacian_error,
    mean_std_error,
    means,
    moments,
    relative_error,
    total_variation,
    wasserstein_error,
)
from ganstyle_jax.style.places import PLACES, POOLS, Patches, patch_shape
from ganstyle_jax.style.similarity import hypercolumns, patches_error, regular_places, self_similarity_error
from ganstyle_jax.style.targets import Targets, feature_shapes, features_of, of_image


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of the loss: weight * function(what it looks at), a scalar.

    It looks at features, {layer: (h, w, c)} of `layers`; without layers at the image (h, w, 3), which in tiles and rows
    may lie in the corner of a larger array; with `sums` at sums over places, {layer: sums(features, maps[layer])}, so
    that tiles can be summed up one after the other and no features need be kept.
    """

    name: str
    weight: Any  # a number or a scalar
    function: Callable[[Any], jax.Array]
    layers: tuple[str, ...] = ()
    # (h, w, c) and what goes with these places to a tree of sums; where the maps are 0 there must be nothing to add
    sums: Callable[[jax.Array, Any], Any] | None = None
    maps: dict[str, Any] = dataclasses.field(default_factory=dict)  # by layer: trees of arrays (..., h, w, c')


def weighted(
    terms: Sequence[Term], image: jax.Array | None, taps: dict[str, jax.Array], sums: dict[str, Any] | None = None
) -> dict[str, jax.Array]:
    """Each term's weight times its function, by name, of an image (h, w, 3) and its features.

    sums: of the terms with sums, as `sums_of` has them, where they have been made already.
    """
    sums = sums_of(terms, taps) if sums is None else sums
    found = {}
    for term in terms:
        seen = {layer: taps[layer] for layer in term.layers} if term.sums is None else sums[term.name]
        found[term.name] = term.weight * term.function(seen if term.layers else image)
    return found


def sums_of(terms: Sequence[Term], taps: dict[str, jax.Array]) -> dict[str, Any]:
    """By the names of the terms that look at sums."""
    return {
        term.name: {layer: term.sums(taps[layer], term.maps.get(layer)) for layer in term.layers}
        for term in terms
        if term.sums is not None
    }


def values(
    terms: Sequence[Term], network: Network, params: Params, image: jax.Array, canvas: Canvas
) -> dict[str, jax.Array]:
    """As `weighted`, of an image that may be cut: of tiles only those features are kept that a term needs whole."""
    summed = [term for term in terms if term.sums is not None]
    whole = layers_of([term for term in terms if term.sums is None])
    if canvas.tiled:
        sums = sums_by_tiles(summed, network, params, image, canvas) if summed else {}
        taps = features_of(network, params, image, whole, canvas) if whole else {}
    else:
        taps = features_of(network, params, image, layers_of(terms), canvas)
        sums = sums_of(summed, taps)
    real = feature_shapes(network, canvas.extent, whole) if whole else {}
    return weighted(terms, image, {layer: taps[layer][: real[layer][0], : real[layer][1]] for layer in whole}, sums)


def layers_of(terms: Sequence[Term]) -> tuple[str, ...]:
    """All that they look at, each once."""
    return tuple(dict.fromkeys(layer for term in terms for layer in term.layers))


def sums_by_tiles(
    terms: Sequence[Term], network: Network, params: Params, image: jax.Array, canvas: Canvas
) -> dict[str, Any]:
    """As `sums_of`, with the features of one tile at a time."""
    assert isinstance(network, VGG)
    stride = network.stride

    def of_tile(window, place, args):
        params, maps = args
        taps = network.apply(params, window[None], layers_of(terms), place.extent())
        here = []
        for term in terms:
            cut = {
                layer: jax.tree.map(lambda x, layer=layer: place.mask(x, window, stride(layer)), of)
                for layer, of in maps[term.name].items()
            }
            here.append(dataclasses.replace(term, maps=cut))
        return sums_of(here, {layer: x[0] for layer, x in taps.items()})

    return tiles.sum_over(of_tile, image, (params, {term.name: term.maps for term in terms}), canvas)


# ---------------------------------------------------------------------------------------------------------------------
# The terms


def content_term(name: str, weight: Any, layer: str, target: jax.Array, inside: jax.Array | None = None) -> Term:
    """Squared differences of features from the content picture's (h, w, c), over the sum of its squares.

    inside: (1, h, w, 1), what counts.
    """

    def squares(features, maps):
        precision = jnp.promote_types(features.dtype, jnp.float32)
        error = (features.astype(precision) - maps["content"].astype(precision)) ** 2
        return jnp.sum(error * maps["inside"][0] if "inside" in maps else error)

    def relative(found):
        total = target.astype(found[layer].dtype) ** 2
        total = jnp.sum(total if inside is None else total * inside[0])
        return found[layer] / jnp.maximum(total, 1e-12)

    maps = {"content": target} | ({} if inside is None else {"inside": inside})
    return Term(name, weight, relative, (layer,), squares, {layer: maps})


def style_term(
    name: str,
    weight: Any,
    layer: str,
    target: Moments,
    factors: jax.Array | None = None,
    share: Any = 1.0,
    regions: jax.Array | None = None,
    areas: Any = None,
    spreads: bool = False,
) -> Term:
    """How far the moments of features are from a style's: by Gram matrices, or as Gaussians where factors are given.

    spreads: by means and standard deviations instead.

    target: of one region or several. factors: `targets.factors_of` it. share: (regions,), how much each counts.
    regions: masks (regions, h, w, 1), by default all places for one; areas: their sums, by default the masks' own.
    """

    def measure(features, masks):
        ones = jnp.full((1,), features.shape[0] * features.shape[1], jnp.float32)
        return moments(features, masks), ones if masks is None else jnp.sum(masks, (1, 2, 3), jnp.float32)

    def error(found):
        total, counted = found[layer]
        found = means(total, counted if areas is None else areas)
        if spreads:
            errors = mean_std_error(found, target)
        elif factors is None:
            errors = jax.vmap(relative_error)(found.gram, target.gram)
        else:
            errors = jax.vmap(wasserstein_error)(found, target, factors)
        return jnp.sum(share * errors)

    return Term(name, weight, error, (layer,), measure, {} if regions is None else {layer: regions})


def histogram_term(
    name: str, weight: Any, layer: str, tables: jax.Array, share: Any = 1.0, regions: jax.Array | None = None
) -> Term:
    """How far the distributions of a layer's channels are from a style's, see histogram.py.

    tables: quantiles (regions, m, c). share, regions: as of `style_term`.
    """

    def error(found):
        features = found[layer].reshape(-1, found[layer].shape[-1])
        if regions is None:
            errors = histogram_error(features, tables[0])
        else:
            masks = _flat(regions, found[layer].shape)
            errors = jax.vmap(histogram_error, (None, 0, 0))(features, tables, masks)
        return jnp.sum(share * errors)

    return Term(name, weight, error, (layer,))


def patches_term(
    name: str,
    weight: Any,
    layers: tuple[str, ...],
    patches: Patches,
    shape: tuple[int, int],
    layer_weights: Sequence[Any] = (1.0,),
    share: Any = 1.0,
    regions: jax.Array | None = None,
) -> Term:
    """How far hypercolumns of these layers are from the nearest of a style's, see similarity.py.

    Both are centred, each by its own mean: else most places would find the same few of the style's. Of the mean and of
    how strong features are the angle then knows nothing, so that means and standard deviations are compared besides.
    shape: (h, w) at which they are compared. layer_weights: how much each layer counts, by its style's variance.
    share, regions: as of `style_term`, of the first of the layers.
    """

    def error(found):
        columns = hypercolumns([found[layer] for layer in layers], shape)
        columns = columns.reshape(-1, columns.shape[-1])
        given = layer_weights if len(layer_weights) == len(layers) else tuple(layer_weights) * len(layers)

        def of_region(patches, mask):
            scales = [jnp.sqrt(w / x) for w, x in zip(given, patches.squares, strict=True)]
            scale = jnp.concatenate([jnp.full(found[x].shape[-1], s) for x, s in zip(layers, scales, strict=True)])
            weigh = jnp.ones(len(columns), columns.dtype) if mask is None else mask
            weigh = (weigh / jnp.maximum(jnp.sum(weigh), 1e-12))[:, None]
            mean = jnp.sum(columns * weigh, axis=0)
            centred = columns - mean
            floor = 1e-5 * jnp.mean(patches.spread**2) + 1e-12  # the gradient is finite where a channel is constant
            spread = jnp.sqrt(jnp.sum(centred**2 * weigh, axis=0) + floor)
            apart = (mean - patches.mean) ** 2 + (spread - jnp.sqrt(patches.spread**2 + floor)) ** 2
            moments_apart = jnp.sum(apart * scale**2) / sum(given)
            return patches_error(centred * scale, patches.columns * scale, mask) + moments_apart

        if regions is None:
            errors = of_region(jax.tree.map(lambda x: x[0], patches), None)
        else:
            masks = regions[:, : found[layers[0]].shape[0], : found[layers[0]].shape[1]]
            masks = jax.image.resize(masks, (len(masks), *shape, 1), "linear").reshape(len(masks), -1)
            errors = jax.vmap(of_region)(patches, masks)
        return jnp.sum(share * errors)

    return Term(name, weight, error, layers)


def self_similarity_term(name: str, weight: Any, layer: str, content: jax.Array) -> Term:
    """How differently places are alike among themselves than in the content picture, of features (h, w, c) of both.

    content may have more rows and columns than the image's features, which do not count.
    """

    def error(found):
        h, w, c = found[layer].shape
        chosen = regular_places((h, w), PLACES)
        return self_similarity_error(found[layer].reshape(-1, c)[chosen], content[:h, :w].reshape(-1, c)[chosen])

    return Term(name, weight, error, (layer,))


def laplacian_term(weight: Any, content: jax.Array, extent: tuple[int, int] | None = None) -> Term:
    """How differently edges run than in the content picture (h, w, 3), pooled finely and coarsely."""

    def error(image):
        return jnp.mean(jnp.stack([laplacian_error(image, content, pool, extent) for pool in POOLS]))

    return Term("laplacian", weight, error)


def _flat(masks: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Masks (regions, h, w, 1) of a larger array to (regions, h' * w') of features of that shape."""
    return masks[:, : shape[0], : shape[1]].reshape(len(masks), -1)


def tv_term(weight: Any, extent: tuple[int, int] | None = None, circular: bool = False) -> Term:
    """Total variation, which smooths."""
    return Term("tv", weight, functools.partial(total_variation, extent=extent, circular=circular))


def range_term(weight: Any, canvas: Canvas | None = None) -> Term:
    """Mean squared distance of colours from [-1, 1]."""

    def outside(image):
        h, w = image.shape[:2] if canvas is None else canvas.extent
        beyond = jnp.maximum(jnp.abs(image if canvas is None else canvas.clear(image)) - 1, 0)
        return jnp.sum(beyond**2) / (3 * h * w)

    return Term("range", weight, outside)


def temporal_term(weight: Any, previous: jax.Array, trusted: jax.Array, extent: tuple[int, int] | None = None) -> Term:
    """Mean of trusted * (image - previous)^2 over places and colours (Ruder et al. 2016, arXiv:1604.08610, eq. 7).

    previous: (h, w, 3), the frame before as it is to be seen here. trusted: (h, w, 1) from 0 to 1, 0 beyond `extent`.
    """
    h, w = extent or previous.shape[:2]
    return Term("temporal", weight, lambda image: jnp.sum(trusted * (image - previous) ** 2) / (3 * h * w))


# ---------------------------------------------------------------------------------------------------------------------
# Of one image that is optimised


def terms_of(targets: Targets, cfg: Config) -> list[Term]:
    """What is minimised, for one image."""
    canvas, content_weight = targets.canvas, cfg.content_weight / max(1, len(cfg.content_layers))
    places: Any = targets.places  # has what the settings ask for
    terms = [
        content_term(f"content/{layer}", content_weight, layer, targets.content[layer], targets.inside.get(layer))
        for layer in cfg.content_layers
    ]
    weights = layer_weights(cfg)
    for layer, weight in zip(cfg.style_layers, weights, strict=True):
        parts = (targets.style[layer], targets.factors.get(layer), targets.share[layer], targets.regions.get(layer))
        name, weight = f"style/{layer}", cfg.style_weight * weight / sum(weights)
        if cfg.style_loss == "histogram":
            terms.append(histogram_term(name, weight, layer, places.tables[layer], *parts[2:]))
        elif cfg.style_loss != "patches":
            spreads = cfg.style_loss == "mean-std"
            terms.append(style_term(name, weight, layer, *parts, targets.areas[layer], spreads))
    terms += further_terms(targets, cfg)
    terms += [tv_term(cfg.tv_weight, canvas.padded, cfg.tileable), range_term(cfg.range_weight, canvas)]
    if cfg.has("temporal_weight") and targets.previous is not None and targets.trusted is not None:
        terms.append(temporal_term(cfg.temporal_weight, targets.previous, targets.trusted, canvas.extent))
    return terms


def further_terms(targets: Targets, cfg: Config) -> list[Term]:
    """Those that need places one by one, where there are any."""
    found, layers = [], cfg.style_layers
    wanted: Any = targets.places  # has what the settings ask for
    if wanted is None:
        return found
    if cfg.style_loss == "patches" and layers:
        finest = layers[0]
        parts = (layer_weights(cfg), targets.share[finest], targets.regions.get(finest))
        shape = patch_shape(targets.canvas.extent)
        found.append(patches_term("style/patches", cfg.style_weight, layers, wanted.patches, shape, *parts))
    if cfg.has("histogram_weight"):
        for layer in cfg.histogram_layers:
            parts = (wanted.tables[layer], targets.share[layer], targets.regions.get(layer))
            weight = cfg.histogram_weight / len(cfg.histogram_layers)
            found.append(histogram_term(f"histogram/{layer}", weight, layer, *parts))
    if cfg.has("self_similarity_weight"):
        weight = cfg.self_similarity_weight / len(cfg.content_layers)
        found += [
            self_similarity_term(f"self-similarity/{layer}", weight, layer, targets.content[layer])
            for layer in cfg.content_layers
        ]
    if cfg.has("laplacian_weight"):
        found.append(laplacian_term(cfg.laplacian_weight, wanted.content, targets.canvas.extent))
    return found


@functools.partial(jax.jit, static_argnames="network")
def loss_terms(
    network: Network, params: Params, image: jax.Array, targets: Targets, cfg: Config
) -> dict[str, jax.Array]:
    """The weighted terms of the loss of an image (h, w, 3); their sum is what is minimised."""
    return values(terms_of(targets, cfg), of_image(network, cfg), params, image, targets.canvas)
