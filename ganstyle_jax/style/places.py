"""What is aimed for by terms that need places one by one, where those of targets.py need but sums over them.

The distributions of a style's channels (histogram.py), its patches, and the content's likeness to itself and its edges
(similarity.py, losses.py). In tiles, whole layers of features are kept for these.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.style.config import FURTHER, Config
from ganstyle_jax.style.histogram import mean_square, quantiles
from ganstyle_jax.style.similarity import CHUNK, hypercolumns

PATCHES = 4096  # how many there may be at a quarter of a picture's resolution; with more it is an eighth
PLACES = 1024  # whose likeness to each other is compared: as many as in the paper
POOLS = (4, 16)  # of the Laplacian: both of the paper


@flax.struct.dataclass
class Patches:
    """A style's features, place by place, of each region."""

    columns: jax.Array  # (regions, m, c), less their mean
    mean: jax.Array  # (regions, c)
    spread: jax.Array  # (regions, c), standard deviations
    squares: jax.Array  # (regions, layers), mean squares of a layer's columns, summed over its channels


@flax.struct.dataclass
class Places:
    """All that is aimed for here; what no term needs is left away."""

    tables: dict[str, jax.Array]  # quantiles by layer, (regions, m, c)
    patches: Patches | None = None
    content: jax.Array | None = None  # the picture (h, w, 3)


def any_of(cfg: Config) -> bool:
    """Whether there are such terms at all."""
    return cfg.style_loss in ("histogram", "patches") or any(map(cfg.has, FURTHER))


def histogram_layers(cfg: Config) -> tuple[str, ...]:
    """Where distributions are compared, for either reason."""
    named = cfg.histogram_layers if cfg.has("histogram_weight") else ()
    return tuple(dict.fromkeys((*(cfg.style_layers if cfg.style_loss == "histogram" else ()), *named)))


def patch_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(h, w) at which patches of a picture (h, w) are compared."""
    height, width = (max(1, side // 4) for side in shape[:2])
    if height * width > PATCHES:
        height, width = (max(1, side // 8) for side in shape[:2])
    return height, width


def check(cfg: Config, styles: int, style_weights: Sequence[float] | None, style_layers: Sequence[Any] | None) -> None:
    """ValueError where styles are to count in a way that patches cannot."""
    if cfg.style_loss == "patches" and styles > 1:
        if style_layers:
            raise ValueError("with the style loss patches a style counts in all layers: none can be chosen for it")
        if style_weights is not None and len({weight for weight in style_weights if weight}) > 1:
            raise ValueError(
                "with the style loss patches each place takes what is nearest of all styles, so that they count alike "
                f"or with 0 not at all, got the weights {' '.join(f'{weight:g}' for weight in style_weights)}"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Of the styles


@functools.partial(jax.jit, static_argnames="layers")
def tables_of(taps: dict[str, jax.Array], masks: dict[str, jax.Array], layers: tuple[str, ...]) -> dict[str, jax.Array]:
    """Quantiles of a style's features (h, w, c) by layer, where its masks (h, w, 1) are: (m, c)."""
    found = {}
    for layer in layers:
        weights = masks[layer].reshape(-1) if masks else None
        found[layer] = quantiles(taps[layer].reshape(-1, taps[layer].shape[-1]), weights)
    return found


def blended_tables(tables: Sequence[dict[str, jax.Array]], counts: dict[str, Any]) -> dict[str, jax.Array]:
    """All styles everywhere: the mean of their quantiles, which is between them as `targets.blended` is."""
    found = {}
    for layer in tables[0]:
        shares = [w / mean_square(x[layer]) for w, x in zip(counts[layer], tables, strict=True)]
        found[layer] = sum(share * x[layer] for share, x in zip(shares, tables, strict=True)) / sum(shares)
    return found


@functools.partial(jax.jit, static_argnames=("layers", "shape"))
def columns_of(taps: dict[str, jax.Array], layers: tuple[str, ...], shape: tuple[int, int]) -> jax.Array:
    """Hypercolumns of features (h_l, w_l, c_l) at a resolution: (h * w, sum c_l)."""
    columns = hypercolumns([taps[layer] for layer in layers], shape)
    return columns.reshape(-1, columns.shape[-1])


@functools.partial(jax.jit, static_argnames=("channels", "count"))
def patches_of(columns: jax.Array, white: jax.Array, channels: tuple[int, ...], count: int) -> Patches:
    """Of columns (n, c), of layers with so many channels, `count` of those that are white, (n,); of one region.

    Of more they are as many in equal steps; of fewer they are repeated, which changes nothing of what is nearest.
    """
    total = jnp.sum(white)
    mean = jnp.sum(columns * white[:, None], axis=0) / total
    columns -= mean
    layers = np.split(np.arange(sum(channels)), np.cumsum(channels)[:-1])
    variance = jnp.sum(columns**2 * white[:, None], axis=0) / total
    squares = jnp.stack([jnp.sum(variance[layer]) for layer in layers])
    whites_first = jnp.argsort(white <= 0)  # stable
    there = total.astype(jnp.int32)
    step = jnp.arange(count)
    taken = jnp.where(there > count, step * (there / count), step % there).astype(jnp.int32)
    return Patches(columns[whites_first[taken]], mean, jnp.sqrt(variance), jnp.maximum(squares, 1e-12))


def white_in(mask: Any | None, shape: tuple[int, int]) -> np.ndarray:
    """Which places (h, w) a mask covers by half and more, or else those that it covers most: 1 or 0, (h * w,)."""
    if mask is None:
        return np.ones(shape[0] * shape[1], np.float32)
    covered = np.asarray(jax.image.resize(jnp.asarray(mask, jnp.float32), shape, "linear")).reshape(-1)
    return (covered >= min(0.5, covered.max())).astype(np.float32)


def patch_count(shape: Sequence[int], cfg: Config) -> int:
    """How many places of styles are kept for an image (h, w), whatever shapes they have: as many as a square has."""
    side = math.ceil(max(shape[:2]) * cfg.style_scale)
    height, width = patch_shape((side, side))
    return height * width


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def needed(
    cfg: Config, shape: Sequence[int], of_pixel: dict[str, float], channels: dict[str, int], regions: int
) -> float:
    """Bytes that these terms take for an image (h, w): an estimate, on the safe side.

    of_pixel: how many features of each layer there are for a pixel. channels: how many for a place of the layer.
    """
    total, pixels, regions = 0.0, shape[0] * shape[1], max(1, regions)
    total += 4 * 8 * regions * pixels * sum(of_pixel[layer] for layer in histogram_layers(cfg))
    if cfg.style_loss == "patches":
        height, width = patch_shape(shape)
        here, there = height * width, patch_count(shape, cfg)
        depth = sum(channels[layer] for layer in cfg.style_layers)
        total += 4 * regions * (depth * (6 * here + 3 * there) + 2 * min(here, CHUNK) * there)
        total += 4 * 3 * pixels * sum(of_pixel[layer] for layer in cfg.style_layers)
    if cfg.has("self_similarity_weight"):
        total += 4 * len(cfg.content_layers) * 8 * PLACES**2
        total += 4 * 3 * pixels * sum(of_pixel[layer] for layer in cfg.content_layers)
    if cfg.has("laplacian_weight"):
        total += 4 * 3 * 4 * pixels
    return total
