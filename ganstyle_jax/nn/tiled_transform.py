"""`ImageTransform` for pictures too large for one piece: strip by strip, equal to the whole or by a thumbnail.

    painted = exact(transform, params, image, style)                   # (h, w, 3) NumPy, whatever h and w are
    painted = by_thumbnail(transform, params, image, style)

Instance normalisation needs the mean and variance of every layer over all of the picture, so that strips cannot be
painted one by one. `exact` goes layer by layer: all strips through one layer, whose outputs wait on the host until the
layer's statistics are known, and then through the next. Each strip comes with a halo of a few rows of its neighbours,
so that every place is computed once. Rows' means and squared deviations are taken on the device, in float32 over some
thousand pixels each; over the rows they are merged in float64 on the host (Chan, Golub & LeVeque 1979, eq. 2.1), which
loses nothing however large the picture is.

`by_thumbnail` takes the statistics of the picture made small, as Chen et al. 2022 ("Towards ultra-resolution neural
style transfer via thumbnail instance normalization", arXiv:2103.11784, section 3.2) do: one pass, and no memory but a
strip's; the result is not that of the whole. Differs from the paper: strips that overlap by all that a place depends
on, where theirs are patches that meet at seams.

Strips are whole rows, so that columns need no halo. Several devices each take a strip at a time.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax.io import images
from ganstyle_jax.nn.devices import put
from ganstyle_jax.nn.image_transform import SMALLEST, ImageTransform, Params, enlarge, reduce, same, transposed

STRIP = 1 << 20  # pixels of a strip
THUMBNAIL = 1024  # pixels of the longer side
EPSILON = 1e-5  # as in nn.norm.instance_norm
Advance = Callable[[float], object]  # hears of shares of the work, which add up to 1


# ---------------------------------------------------------------------------------------------------------------------
# Strips


class Strips:
    """How a picture's rows are cut into parts as equal as may be, multiples of 4, and the devices that take them."""

    def __init__(self, height: int, width: int, pixels: int, devices: Sequence[Any] | None):
        devices = list(devices or jax.local_devices()[:1])
        count = -(-max(1, -(-height * width // max(pixels, 1))) // len(devices)) * len(devices)
        self.height = height
        self.side = max(SMALLEST, -(-height // (4 * count)) * 4)  # rows, of all strips but the last, which has fewer
        self.count = -(-height // self.side)
        self.together = min(len(devices), self.count)  # one for each device
        mesh = Mesh(np.asarray(devices[: self.together]), ("strip",), axis_types=(jax.sharding.AxisType.Auto,))
        self.divided = NamedSharding(mesh, PartitionSpec("strip"))
        self.replicated = NamedSharding(mesh, PartitionSpec())

    def edges(self, scale: int = 1) -> list[int]:
        """The first row of each, and the height, of a layer so many times smaller."""
        return [min(i * self.side, self.height) // scale for i in range(self.count + 1)]

    def groups(self) -> Iterator[range]:
        """Numbers of the strips that are worked on together."""
        for first in range(0, self.count, self.together):
            yield range(first, min(first + self.together, self.count))

    def on_devices(self, parts: list[np.ndarray]) -> jax.Array:
        """Arrays of one shape, a group's, as a batch; copies fill up the last group, so that one program serves all."""
        return put(np.stack(parts + parts[-1:] * (self.together - len(parts))), self.divided)


# ---------------------------------------------------------------------------------------------------------------------
# Layer by layer


def exact(
    transform: ImageTransform,
    params: Params,
    image: np.ndarray,
    style: Any = None,
    pixels: int = STRIP,
    devices: Sequence[Any] | None = None,
    advance: Advance = lambda share: None,
) -> np.ndarray:
    """What `transform.apply` makes of an image (h, w, 3) in [-1, 1], up to rounding; of the weights' dtype.

    style: (styles,) weights that sum to 1; by default the first style's. pixels: of a strip, which has at least 16
    rows. devices: that share the work, by default the first. The host holds the largest layer, 4 * width bytes for a
    pixel, and each device a few strips. ValueError for an image below 16 pixels a side.
    """
    dtype = np.dtype(params["out"]["kernel"].dtype)
    padded, (h, w) = _padded(image, dtype)
    strips = Strips(len(padded), padded.shape[1], pixels, devices)
    work = _work(transform)
    total = sum(work.values()) + (2 * transform.blocks - 1) * work["half"]
    on_device = jax.device_put(params, strips.replicated)

    def layer(source: _Layer, kind: _Kind, weights: Any, name: str, keep: bool = False) -> _Layer:
        step = work[name] / total / strips.count
        return _through(source, kind, weights, strips, lambda n: advance(n * step), keep)

    def normalised(source: _Layer, kind: _Kind, weights: Any, name: str, keep: bool = False) -> _Layer:
        made = layer(source, kind, weights, name, keep)
        mean, var = moments(np.concatenate(made.means), np.concatenate(made.squares), made.parts[0].shape[1])
        scale, shift = (np.asarray(_of_style(weights[part], style)) for part in ("scale", "shift"))
        made.normal = mean.astype(dtype), (scale / np.sqrt(var + EPSILON)).astype(dtype), shift.astype(dtype)
        return made

    edges = strips.edges()
    x = _Layer([padded[a:b] for a, b in itertools.pairwise(edges)], 1)
    for name, kind in (("down1", NINE), ("down2", DOWN), ("down3", DOWN)):
        x = normalised(x, kind, on_device[name], name)
    for i in range(1, transform.blocks + 1):
        block = on_device[f"block{i}"]
        x.settle(relu=True)
        inner = normalised(x, THREE, block["first"], "half", keep=True)
        inner = normalised(inner, THREE, block["second"], "half")
        inner.settle(relu=False)
        x.parts = [part + more for part, more in zip(x.parts, inner.parts, strict=True)]
    for name in ("up1", "up2"):
        x = normalised(x, UP[transform.upsampling], on_device[name], name)
    last = dataclasses.replace(NINE, end=transform.output)
    return np.concatenate(layer(x, last, on_device["out"], "out").parts)[:h, :w]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of layer, static for `jit`."""

    convolve: Callable  # of nn.image_transform
    halo: int  # rows of the input on either side
    crop: int  # rows of the output on either side that the halo gives
    smaller: float = 1  # how many times the output is smaller than the input
    beyond: Literal["reflect", "edge", "zero"] = "reflect"  # what lies beyond the picture
    end: str = ""  # "tanh" or "clip" of the last


NINE, THREE = _Kind(same, 4, 4), _Kind(same, 1, 1)
DOWN = _Kind(reduce, 2, 1, 2)
UP = {"nearest": _Kind(enlarge, 1, 2, 0.5, "edge"), "transposed": _Kind(transposed, 1, 2, 0.5, "zero")}


class _Layer:
    """A layer's output on the host, strip by strip, (rows, columns, c), before it is normalised."""

    def __init__(self, parts: list[Any], scale: int):
        self.parts, self.scale = parts, scale  # scale: how many times smaller than the picture
        self.means: list[np.ndarray] = []  # of rows, (rows, c)
        self.squares: list[np.ndarray] = []  # sums of squared deviations from these
        # (mean, factor, shift), each (c,): ReLU((x - mean) * factor + shift) is what the next layer sees.
        self.normal: tuple[np.ndarray, ...] | None = None

    def settle(self, relu: bool) -> None:
        """Normalises all of it now."""
        if self.normal is not None:
            mean, factor, shift = self.normal
            for i, part in enumerate(self.parts):
                part = (part - mean) * factor
                part += shift
                self.parts[i] = np.maximum(part, 0, out=part) if relu else part
            self.normal = None


def _through(
    source: _Layer, kind: _Kind, weights: Any, strips: Strips, advance: Callable[[int], object], keep: bool
) -> _Layer:
    """A layer of all strips. keep: the source, of which else the strips that are done with are let go."""
    made = _Layer([], round(source.scale * kind.smaller))
    starts, edges = strips.edges(source.scale), strips.edges(made.scale)
    rows = strips.side // source.scale
    for group in strips.groups():
        taken = [_rows(source.parts, starts, starts[i] - kind.halo, rows + 2 * kind.halo, kind) for i in group]
        inputs, there = zip(*taken, strict=True)
        there = strips.on_devices(list(there)) if kind.beyond == "zero" else None
        normal = None if source.normal is None else jax.device_put(source.normal, strips.replicated)
        outputs = _layer(strips.on_devices(list(inputs)), there, normal, weights["kernel"], weights["bias"], kind)
        y, means, squares = map(np.asarray, outputs)
        for place, i in enumerate(group):
            size = edges[i + 1] - edges[i]
            made.parts.append(y[place, :size])
            made.means.append(means[place, :size])
            made.squares.append(squares[place, :size])
        if not keep:  # what follows reaches back into the last strip of these at most
            source.parts[: group[-1]] = [None] * group[-1]
        advance(len(group))
    return made


def _rows(parts: list[Any], starts: list[int], first: int, count: int, kind: _Kind) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a layer from `first` on, beyond its border as the kind says; (1 where there is one, else 0)."""
    wanted, last = np.arange(first, first + count), starts[-1] - 1
    found = np.clip(wanted, 0, last)
    if kind.beyond == "reflect":
        # Rows still further below are of a last strip that is shorter than the others, and are cut off after.
        found = np.where(wanted < 0, -wanted, np.where(wanted - last > kind.halo, last, last - abs(wanted - last)))
        found = np.where((wanted >= 0) & (wanted <= last), wanted, found)
    strip = np.searchsorted(starts, found, side="right") - 1
    taken = [parts[i][found[strip == i] - starts[i]] for i in dict.fromkeys(strip.tolist())]
    return np.concatenate(taken), ((wanted >= 0) & (wanted <= last)).astype(taken[0].dtype)


@functools.partial(jax.jit, static_argnames="kind")
def _layer(x: Any, there: Any, normal: Any, kernel: Any, bias: Any, kind: _Kind) -> tuple[Any, Any, Any]:
    """(outputs without the halo's, means of their rows, sums of squared deviations from these)."""
    if normal is not None:
        mean, factor, shift = normal
        x = jax.nn.relu((x - mean) * factor + shift)
    if there is not None:
        x *= there[:, :, None, None]
    y = kind.convolve(x, kernel)[:, kind.crop : -kind.crop] + bias
    y = {"tanh": jnp.tanh, "clip": lambda y: jnp.clip(y, -1, 1), "": lambda y: y}[kind.end](y)
    means = y.mean(2)
    return y, means, ((y - means[:, :, None]) ** 2).sum(2)


def moments(means: np.ndarray, squares: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, biased variance), (c,) float64, of rows with these means and sums of squared deviations, (rows, c).

    Chan, Golub & LeVeque 1979, eq. 2.1, for parts of one size.
    """
    means = means.astype(np.float64)
    mean = means.mean(0)
    total = squares.sum(0, dtype=np.float64) + columns * ((means - mean) ** 2).sum(0)
    return mean, total / (len(means) * columns)


def _of_style(values: Any, style: Any) -> Any:
    """Scales or shifts (styles, c) -> (c,), as `ImageTransform.apply` blends them."""
    return values[0] if style is None else jnp.matmul(jnp.asarray(style, values.dtype), values, precision="highest")


def _padded(image: Any, dtype: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """The image padded by reflection to multiples of 4, as `ImageTransform.apply` does, and its own (h, w)."""
    image = np.asarray(image, dtype)
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < SMALLEST:
        raise ValueError(f"an image must be (h, w, 3), with at least {SMALLEST} pixels on each side, got {image.shape}")
    h, w = image.shape[:2]
    return np.pad(image, ((0, -h % 4), (0, -w % 4), (0, 0)), mode="reflect"), (h, w)


def _work(transform: ImageTransform) -> Mapping[str, float]:
    """Multiplications for a pixel of the picture, by layer, as nn.image_transform does them; "half": of a block."""
    w = transform.width
    ends = {
        "down1": 243 * w,
        "down2": 4.5 * w**2,
        "down3": 4.5 * w**2,
        "up1": 8 * w**2,
        "up2": 8 * w**2,
        "out": 243 * w,
    }
    return ends | {"half": 9 * w**2}


# ---------------------------------------------------------------------------------------------------------------------
# By a thumbnail


def by_thumbnail(
    transform: ImageTransform,
    params: Params,
    image: np.ndarray,
    style: Any = None,
    pixels: int = STRIP,
    devices: Sequence[Any] | None = None,
    advance: Advance = lambda share: None,
    thumbnail: int = THUMBNAIL,
) -> np.ndarray:
    """As `exact`, with the statistics of the image made so small that its longer side has `thumbnail` pixels."""
    padded, (h, w) = _padded(image, params["out"]["kernel"].dtype)
    shrink = min(1.0, thumbnail / max(h, w))
    small = images.resize(image, (max(SMALLEST, round(h * shrink)), max(SMALLEST, round(w * shrink))))
    strips = Strips(len(padded), padded.shape[1], pixels, devices)
    blend = None if style is None else jnp.asarray(style)[None]
    statistics = _statistics(transform, params, jnp.asarray(small)[None], blend)
    params, statistics, blend = jax.device_put((params, statistics, blend), strips.replicated)
    halo = reach(transform)
    height, size = len(padded), min(len(padded), strips.side + 2 * halo)
    made, edges = [], strips.edges()
    for group in strips.groups():
        # Windows of one height, moved into the picture at its ends: there the border is the picture's own.
        starts = [min(max(0, edges[i] - halo), height - size) for i in group]
        windows = strips.on_devices([padded[start : start + size] for start in starts])
        painted = np.asarray(_with_statistics(transform, params, statistics, windows, blend))
        for place, (i, start) in enumerate(zip(group, starts, strict=True)):
            made.append(painted[place, edges[i] - start : edges[i + 1] - start])
        advance(len(group) / strips.count)
    return np.concatenate(made)[:h, :w]


def reach(transform: ImageTransform) -> int:
    """How far a place of the picture acts, in pixels, normalisation apart; rounded up to a multiple of 4."""
    exact = 4 + 1 + 2 + 8 * transform.blocks + 4 + 2 + 4
    return -(-exact // 4) * 4


@functools.partial(jax.jit, static_argnums=0)
def _statistics(transform: ImageTransform, params: Params, image: Any, style: Any) -> list[Any]:
    """[(mean, variance) (1, 1, 1, c)] of every normalised layer, in their order."""
    found = []

    def note(x: Any, scale: Any, shift: Any) -> Any:
        mean = x.mean((1, 2), keepdims=True)
        var = jnp.mean((x - mean) ** 2, (1, 2), keepdims=True)
        found.append((mean, var))
        return _normalised(x, mean, var, scale, shift)

    transform.apply(params, image, style, normalise=note)
    return found


@functools.partial(jax.jit, static_argnums=0)
def _with_statistics(transform: ImageTransform, params: Params, statistics: Any, images: Any, style: Any) -> Any:
    known = iter(statistics)
    style = None if style is None else jnp.repeat(style, len(images), 0)

    def normalise(x: Any, scale: Any, shift: Any) -> Any:
        mean, var = next(known)
        return _normalised(x, mean, var, scale, shift)

    return transform.apply(params, images, style, normalise=normalise)


def _normalised(x: Any, mean: Any, var: Any, scale: Any, shift: Any) -> Any:
    return (x - mean) * (scale[:, None, None] * lax.rsqrt(var + EPSILON)) + shift[:, None, None]
