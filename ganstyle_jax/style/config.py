"""What the optimisation of an image is to be: its settings, and the sizes that it goes through from coarse to fine."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax

from ganstyle_jax.features.vgg import Network

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
SCALES = 4  # of the variables: single pixels, and averages of squares of 2, 4, 8 and 16
SMALLEST_FACTOR = 1.05  # with which there are 29 sizes from 128 to 512 pixels, where each takes `steps`

CONTENT_WEIGHT = 0.05  # of style_strength 0.5
STRENGTH_SPAN = 1000.0  # by which the content weight grows and falls towards 0 and 1

# A setting either shapes the compiled programs, is a number in them, or is known only to the loop around them.
PROGRAM = (
    *("content_layers", "style_layers", "style_loss", "histogram_layers"),
    *("optimizer", "memory", "tile", "tileable"),
)
NUMBERS = ("content_weight", "style_weight", "tv_weight", "range_weight", "style_layer_weights", "learning_rate")
FURTHER = ("histogram_weight", "laplacian_weight", "self_similarity_weight")
OPTIONAL = ("averaging", "temporal_weight", *FURTHER)  # numbers, of which 0 leaves a part of the program away
TURNED = (*NUMBERS, *OPTIONAL, "style_strength", "steps")  # what may be another in the middle of the work


@dataclasses.dataclass(frozen=True)
class Config:
    """What is optimised, and how.

    A tree for JAX, whose leaves are NUMBERS: given to a compiled function, they are its arguments, so that another
    weight or rate compiles nothing. Within one, what is in none of the three lists above is None.
    """

    size: int = 512  # longer side of the result in pixels
    style_scale: float = 1.0  # longer side of the style pictures, of `size`
    content_weight: float = CONTENT_WEIGHT  # of the content loss, which is 1 for an image without features
    # in the place of content_weight: from 0, nearly the photograph, to 1, the style with next to nothing of the content
    style_strength: float = 0.5
    style_weight: float = 1.0  # of the style loss, which is 1 for an image without features too
    tv_weight: float = 0.02  # of total variation, which smooths
    range_weight: float = 10.0  # of colours outside [-1, 1], which would be lost when the picture is shown
    temporal_weight: float = 1.0  # of what a frame of a film differs by from the one before, moved along with it
    content_layers: tuple[str, ...] = ("relu4_1",)  # of the network, where the content is compared
    style_layers: tuple[str, ...] = STYLE_LAYERS  # of the network, where the styles are compared
    style_layer_weights: tuple[float, ...] = (1.0,)  # one for each style layer, or one for all
    # gram: products of channels; wasserstein: means and covariances, as of Gaussians; mean-std: means and standard
    # deviations; histogram: all of each channel's distribution; patches: each place as one of the style's nearest to it
    style_loss: Literal["gram", "wasserstein", "mean-std", "histogram", "patches"] = "gram"
    histogram_weight: float = 0.0  # of the channels' distributions beside the style loss: against blotches
    histogram_layers: tuple[str, ...] = ("relu1_1", "relu4_1")  # of the style layers, where they are compared then
    laplacian_weight: float = 0.0  # of how edges run in the content picture, in pixels: against broken lines
    self_similarity_weight: float = 0.0  # of which places of the content are alike, whatever colours they have
    init: Literal["content", "noise", "style"] = "content"  # the first image; style: noise of the style's colours
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"  # Adam needs less memory and several times as many evaluations
    steps: int = 100  # evaluations of loss and gradient at the smallest size
    taper: float = 0.66  # how evaluations get fewer with the size, as its power: 0 for as many at each
    learning_rate: float = 0.05  # of Adam
    memory: int = 20  # pairs that L-BFGS keeps
    smallest: int = 128  # longer side of the first image in pixels
    factor: float = 2.0  # from one size to the next
    averaging: float = 0.0  # the result is the running mean of the images on the way, which forgets at this rate
    tile: int = 0  # pixels of the side of a tile, for images too large for memory in one piece; 0 for one piece
    tileable: bool = False  # a picture that repeats: its right side goes on at its left, its bottom at its top

    def __post_init__(self):
        if not 0 <= self.style_strength <= 1:
            raise ValueError(f"style_strength must be from 0 to 1, got {self.style_strength}")
        if self.style_strength != 0.5:
            weight = content_weight_of(self.style_strength)
            if self.content_weight not in (CONTENT_WEIGHT, weight):
                raise ValueError(
                    "style_strength stands for a content_weight, so that only one of them can be given, got "
                    f"{self.style_strength:g} (which is {weight:.3g}) and {self.content_weight:g}"
                )
            object.__setattr__(self, "content_weight", weight)
        for name in ("size", "steps", "memory", "smallest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("content_weight", "style_weight", "tv_weight", "range_weight", "temporal_weight", *FURTHER):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        for name in ("style_scale", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.taper <= 2:
            raise ValueError(f"taper must be from 0 to 2, got {self.taper}")
        if self.tile < 0:
            raise ValueError(f"tile must not be negative, got {self.tile}")
        if self.tile and self.tileable:
            raise ValueError(f"a tileable picture is made in one piece, not in tiles: leave tile at 0, got {self.tile}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be at least 0 and less than 1, got {self.averaging}")
        if not 1 < self.factor < math.inf:
            raise ValueError(f"factor must be more than 1, got {self.factor}")
        if self.factor < SMALLEST_FACTOR:
            raise ValueError(
                f"factor must be at least {SMALLEST_FACTOR}, or there are too many sizes, got {self.factor}"
            )
        if self.histogram_weight and (strange := [x for x in self.histogram_layers if x not in self.style_layers]):
            raise ValueError(
                f"histogram_layers must be some of the style_layers {' '.join(self.style_layers)}, got {strange[0]}"
            )
        for name in ("content_layers", "style_layers", "histogram_layers"):
            layers = getattr(self, name)
            if twice := [layer for layer in dict.fromkeys(layers) if layers.count(layer) > 1]:
                raise ValueError(f"{name} must be different layers, got {', '.join(twice)} more than once")
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

    def has(self, name: str) -> bool:
        """Whether one of OPTIONAL is not 0, without a look at the number, which may be a tracer."""
        value = getattr(self, name)
        return not isinstance(value, (int, float)) or value != 0

    def steps_at(self, size: int) -> int:
        """Evaluations at a size, the longer side of an image: the larger it is, the more is settled already."""
        return max(1, round(self.steps * min(1.0, self.smallest / size) ** self.taper))

    @property
    def evaluations(self) -> int:
        """At all sizes together."""
        return sum(map(self.steps_at, self.sizes))

    @property
    def sizes(self) -> list[int]:
        """Longer sides, from the smallest image to the last."""
        sizes = [self.size]
        while (size := round(self.size / self.factor ** len(sizes))) >= self.smallest:
            sizes.append(size)
        return sizes[::-1]


def _flatten(cfg: Config) -> tuple[tuple[dict[str, Any]], tuple]:
    # One weight for all layers is the same program as one for each, and an integer the same as a float.
    numbers = {name: getattr(cfg, name) for name in (*NUMBERS, *OPTIONAL)}
    numbers["style_layer_weights"] = layer_weights(cfg)
    numbers = {name: x for name, x in numbers.items() if name in NUMBERS or cfg.has(name)}
    numbers = jax.tree.map(lambda x: float(x) if isinstance(x, (int, float)) else x, numbers)
    return (numbers,), tuple(getattr(cfg, name) for name in PROGRAM)


def _unflatten(program: tuple, children: tuple[dict[str, Any]]) -> Config:
    cfg = object.__new__(Config)  # unchecked: there may be tracers among the numbers
    values = dict.fromkeys(field.name for field in dataclasses.fields(Config)) | dict.fromkeys(OPTIONAL, 0.0)
    for name, value in (values | dict(zip(PROGRAM, program, strict=True)) | children[0]).items():
        object.__setattr__(cfg, name, value)
    return cfg


jax.tree_util.register_pytree_node(Config, _flatten, _unflatten)


def layer_weights(cfg: Config) -> tuple[Any, ...]:
    """One for each style layer, in their order."""
    given = cfg.style_layer_weights
    return given * len(cfg.style_layers) if len(given) == 1 else given


def content_weight_of(style_strength: float) -> float:
    """It falls from 0 to 1, by the same factor for equal steps, with the default in the middle.

    Of a photograph and the Starry Night at 192 pixels, by the compact network: at 0 the content loss is 0.0003, and the
    picture differs from the photograph by 0.07 of a colour's range of 2, root mean square; at 0.17 it is 0.009 and
    0.15, at 0.33 0.085 and 0.23.
    """
    return CONTENT_WEIGHT * STRENGTH_SPAN ** (1 - 2 * style_strength)


def with_strength(cfg: Config, style_strength: float) -> Config:
    """The same with another style_strength, whatever the content weight was; no program is compiled for it."""
    weight = content_weight_of(style_strength)
    return dataclasses.replace(cfg, style_strength=style_strength, content_weight=weight)


def changes(one: Config, other: Config) -> list[str]:
    """The settings in which they differ; a part of the program that is on in one alone is an "optional part"."""
    names = [f.name for f in dataclasses.fields(Config) if getattr(one, f.name) != getattr(other, f.name)]
    return names + ["an optional part"] * any(one.has(name) != other.has(name) for name in OPTIONAL)


def layers_named(names: str | Sequence[str], cfg: Config) -> tuple[str, ...]:
    """Style layers: "fine" (the first half of them, which sees strokes), "coarse" (the rest), "all", or names.

    Names are a sequence, or joined by commas. Raises ValueError for what is no style layer.
    """
    half = -(-len(cfg.style_layers) // 2)
    words = {"all": cfg.style_layers, "fine": cfg.style_layers[:half], "coarse": cfg.style_layers[half:]}
    if isinstance(names, str) and names in words:
        return words[names]
    found = tuple(names.split(",")) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in found if name not in cfg.style_layers]:
        known = ",".join(cfg.style_layers)
        raise ValueError(f"the layers of a style must be fine, coarse, all, or some of {known}, got {unknown[0]!r}")
    return found


def shapes_of(shape: Sequence[int], cfg: Config, network: Network) -> list[tuple[int, int]]:
    """(h, w) of the images on the way from coarse to fine. Raises ValueError where even the last one is too small.

    Sides of `tileable` ones are multiples of the layers' strides and of the variables' squares, the nearest ones.
    """
    least = network.smallest_side(cfg.layers)
    shapes = [fitted_shape(shape, size) for size in cfg.sizes]
    if cfg.tileable:
        edge = max(2**SCALES, *(network.stride(layer) for layer in cfg.layers))
        near = [[max(edge, round(side / edge) * edge) for side in shape] for shape in shapes]
        shapes = list(dict.fromkeys((height, width) for height, width in near))
    if min(shapes[-1]) < least:
        height, width = shapes[-1]
        raise ValueError(
            f"an image of {width} x {height} pixels is too small for these layers, which need {least} a side"
        )
    return [shape for shape in shapes if min(shape) >= least]


def fitted_shape(shape: Sequence[int], longer: float) -> tuple[int, int]:
    """(h, w) of a picture of that shape whose longer side has so many pixels."""
    scale = longer / max(shape[:2])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
