"""What style transfer compares: Gram matrices, what each layer takes for style, and what it still knows of a picture.

Every picture here that is not given is made by `gatys.stylize` itself, with one part of its loss and nothing else.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ganstyle_jax.features.vgg import Network, Params
from ganstyle_jax.io import images
from ganstyle_jax.look.explain.sections import FAKE, REAL, Picture, Section, figure, show
from ganstyle_jax.style import gatys, losses


@dataclasses.dataclass(frozen=True)
class Settings:
    size: int = 144  # longer side of the pictures that are optimised, pixels
    steps: int = 120  # evaluations of loss and gradient for each
    seed: int = 0  # of the noise that they begin with


# ---------------------------------------------------------------------------------------------------------------------
# Mathematics


def gram_matrices(
    network: Network, params: Params, picture: np.ndarray, layers: Sequence[str] = gatys.STYLE_LAYERS
) -> dict[str, np.ndarray]:
    """(h, w, 3) in [-1, 1] to (c, c) by layer, as the style loss compares them."""

    @jax.jit
    def grams(params, picture):
        taps = network.apply(params, picture[None], tuple(layers))
        return {layer: losses.gram_matrix(x[0]) for layer, x in taps.items()}

    return {layer: np.asarray(x) for layer, x in grams(params, jnp.asarray(picture)).items()}


def cluster_order(gram: np.ndarray) -> np.ndarray:
    """The channels of a Gram matrix (c, c) in an order that puts those together that occur together, (c,).

    Average linkage by 1 - cosine, the cosine being G_ij / sqrt(G_ii G_jj); silent channels come last.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    lengths = np.sqrt(np.diag(gram).astype(np.float64))
    loud = np.flatnonzero(lengths > 1e-6 * lengths.max())
    silent = np.flatnonzero(lengths <= 1e-6 * lengths.max())
    if len(loud) < 3:
        return np.concatenate([loud, silent])
    cosines = gram[np.ix_(loud, loud)] / np.outer(lengths[loud], lengths[loud])
    distances = np.clip(1 - (cosines + cosines.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    order = leaves_list(linkage(squareform(distances, checks=False), "average", optimal_ordering=True))
    return np.concatenate([loud[order], silent])


def texture_config(layers: Sequence[str], settings: Settings) -> gatys.Config:
    """The style loss of these layers alone, from noise: no content, a little smoothing."""
    return gatys.Config(
        size=settings.size,
        content_layers=(),
        content_weight=0.0,
        style_layers=tuple(layers),
        tv_weight=0.005,
        init="noise",
        steps=settings.steps,
        smallest=settings.size,
    )


def inversion_config(layer: str, settings: Settings) -> gatys.Config:
    """The content loss of one layer alone, from noise (Mahendran & Vedaldi 2015, arXiv:1412.0035, section 3)."""
    return gatys.Config(
        size=settings.size,
        content_layers=(layer,),
        content_weight=1.0,
        style_layers=(),
        style_weight=0.0,
        tv_weight=0.01,
        init="noise",
        steps=settings.steps,
        smallest=settings.size,
    )


def optimise(picture: np.ndarray, cfg: gatys.Config, network: Network, params: Params, seed: int) -> np.ndarray:
    """An image from noise whose features are to be this picture's, by the loss of cfg; (h, w, 3) in [-1, 1]."""
    return gatys.stylize(jax.random.key(seed), picture, [picture], cfg, network, params)


def style_errors(grams: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> dict[str, float]:
    """The style loss of each layer, relative: 0 for equal Gram matrices, 1 for a picture without features."""
    return {
        layer: float(losses.relative_error(jnp.asarray(grams[layer]), jnp.asarray(targets[layer]))) for layer in targets
    }


def content_error(network: Network, params: Params, found: np.ndarray, target: np.ndarray, layer: str) -> float:
    """The content loss of one layer, relative: 0 for equal features, 1 for a picture without features."""
    a, b = (network.apply(params, jnp.asarray(x)[None], (layer,))[layer] for x in (found, target))
    return float(losses.relative_error(a, b))


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def explain_style(
    content: np.ndarray,
    style: np.ndarray,
    result: np.ndarray,
    network: Network,
    params: Params,
    out: Path,
    settings: Settings | None = None,
    network_name: str = "compact",
) -> list[Section]:
    """Draws into the folder out. content, style, result: (h, w, 3) in [-1, 1], of any sizes.

    Raises ValueError for a network without the layers relu1_1 to relu5_1.
    """
    settings = settings or Settings()
    network.check(gatys.STYLE_LAYERS)
    shown, painting, made = (shrunk(x, 2 * settings.size) for x in (content, style, result))
    return [
        gram_section(shown, painting, made, network, params, out, network_name),
        layers_section(shrunk(style, settings.size), network, params, out, settings),
        inversion_section(shrunk(content, settings.size), network, params, out, settings),
    ]


def shrunk(picture: np.ndarray, size: int) -> np.ndarray:
    """To a longer side of `size` pixels, and no shorter one below 32, which the deepest layers need."""
    height, width = gatys.fitted_shape(picture.shape, size)
    return images.resize(picture, (max(height, 32), max(width, 32)))


def gram_section(content, style, result, network, params, out: Path, name: str) -> Section:
    pictures = {"content": content, "style": style, "result": result}
    grams = {kind: gram_matrices(network, params, picture) for kind, picture in pictures.items()}
    errors = {kind: style_errors(grams[kind], grams["style"]) for kind in ("content", "result")}
    rows = len(gatys.STYLE_LAYERS) + 1
    with figure(out / "gram.png", rows, 3, 2.16 * rows) as (_, axes):
        for axis, (kind, picture) in zip(axes[0], pictures.items(), strict=True):
            show(axis, picture, kind)
        for row, layer in zip(axes[1:], gatys.STYLE_LAYERS, strict=True):
            heard = np.max([np.diag(grams[kind][layer]) for kind in pictures], axis=0)
            order = cluster_order(grams["style"][layer])
            order = order[heard[order] > 1e-6 * heard.max()]  # what no picture excites would be black on all three
            most = grams["style"][layer].max()
            for axis, kind in zip(row, pictures, strict=True):
                below = "" if kind == "style" else f"error {errors[kind][layer]:.2g}"
                values = np.sqrt(np.maximum(grams[kind][layer][np.ix_(order, order)], 0) / most)
                show(axis, values, "", below, cmap="magma", vmin=0, vmax=1)
            row[0].set_ylabel(f"{layer}\n{len(order)} of {len(heard)}")
    caption = (
        "One row for each style layer, with the channels that any of the three pictures excites, of all it has. Each "
        "square holds every channel against every other; bright: both are active at the same places. Below: the "
        "style loss of that layer, 0 for the style itself, 1 for a picture without features."
    )
    text = (
        f"A Gram matrix holds, for every two channels of a layer of the network ({name}), the mean over all places of "
        "their product (Gatys et al. 2016, equation 3): which features occur together, and nothing about where. That "
        "is all that style transfer takes from the style picture. Channels are ordered by clustering those of the "
        "style, and all three pictures use the same order and scale (the square root, the style's largest value "
        "being 1). The result's squares are to look like the style's although its shapes are the content's; the "
        "errors say how far they do. It does not prove that people see the same style, for which other statistics of "
        "a picture count too."
    )
    return Section("Gram matrices: what is compared", text, (Picture("gram.png", caption),))


def layers_section(style, network, params, out: Path, settings: Settings) -> Section:
    layers = gatys.STYLE_LAYERS
    targets = gram_matrices(network, params, style)
    chosen = [(layer,) for layer in layers] + [layers[: i + 1] for i in range(1, len(layers))]
    made = {}
    for some in tqdm(chosen, "an image from each layer", leave=False):
        made[some] = optimise(style, texture_config(some, settings), network, params, settings.seed)
    errors = {some: style_errors(gram_matrices(network, params, image), targets) for some, image in made.items()}
    with figure(out / "style-layers.png", len(layers), 3, 2.16 * len(layers)) as (drawing, axes):
        for i, layer in enumerate(layers):
            together = layers[: i + 1]
            show(axes[i, 0], made[(layer,)], layer + " alone" if i else f"{layer} alone")
            if i:
                show(axes[i, 1], made[together], f"up to {layer}")
            else:
                show(axes[i, 1], style, "the style picture")
            bars, places = axes[i, 2], np.arange(len(layers))
            bars.bar(places - 0.2, [max(errors[(layer,)][x], 1e-5) for x in layers], 0.4, color=FAKE, label="alone")
            bars.bar(places + 0.2, [max(errors[together][x], 1e-5) for x in layers], 0.4, color=REAL, label="up to")
            bars.set_yscale("log")
            bars.set_ylim(1e-4, 1)
            bars.set_xticks(places, [x[4:].replace("_1", "") for x in layers])
            bars.set_title("error by layer" if i == 0 else "")
        drawing.legend(*axes[0, 2].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
    caption = (
        "Left: from noise, by the Gram matrix of one layer alone. Middle: by all layers up to it. Right: the style "
        "loss that is left in each of the five layers (1 to 5), on a logarithmic scale; orange for the left picture, "
        "blue for the middle one."
    )
    text = (
        "Each picture was optimised from the same noise by the style loss of one layer alone, or of all layers up to "
        f"one, in {settings.steps} evaluations at {settings.size} pixels; there is no content picture. The first "
        "layer gives colours and grain, the next ones strokes, and deeper ones larger and larger motifs (Gatys et "
        "al. 2015, arXiv:1505.07376, figure 2). A deep layer alone says little of the colours, as the error that it "
        "leaves in the first one shows, which is why several are added up. Not all that one sees is the layer's "
        "doing: flat squares come from the optimiser, which moves squares of up to 16 pixels as a whole, and a deep "
        "layer's loss is harder to bring down than the first one's."
    )
    return Section("What each layer contributes to the style", text, (Picture("style-layers.png", caption),))


def inversion_section(content, network, params, out: Path, settings: Settings) -> Section:
    layers, made, left = gatys.STYLE_LAYERS, {}, {}
    for layer in tqdm(layers, "an image from features", leave=False):
        made[layer] = optimise(content, inversion_config(layer, settings), network, params, settings.seed)
        left[layer] = content_error(network, params, made[layer], content, layer)
    with figure(out / "inversion.png", 2, 3, 4.7) as (_, axes):
        show(axes[0, 0], content, "the picture", " ")
        for axis, layer in zip(axes.ravel()[1:], layers, strict=True):
            show(axis, made[layer], layer, f"loss left {left[layer]:.2g}")
    caption = "From noise, by the features of one layer alone. Below: the content loss left; without features it is 1."
    text = (
        "What does a layer still know of a picture? From noise, an image is optimised whose features in that layer "
        "are to equal the picture's, place by place (Mahendran & Vedaldi 2015), with the content loss, a little "
        f"smoothing and {settings.steps} evaluations. Early layers give the picture back almost exactly; deeper ones "
        "keep the things and their places and let go of colours and fine detail, so that the content layer decides "
        "how much freedom the style has. What an image lacks, the layer need not lack: the loss that is left says "
        "how far the optimisation came."
    )
    return Section("What each layer knows of the content", text, (Picture("inversion.png", caption),))
