"""What the feature networks are made of: the map of the colours, convolutions that keep the size, poolings.

An image may end before its array does: `extent` says where, see `VGG.apply`.
"""

import functools
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.nn import layers

Params = dict[str, dict[str, jax.Array]]
Padding = Literal["zeros", "reflect", "replicate", "circular"]
Extent = tuple[int | jax.Array, int | jax.Array]  # rows and columns of an image whose array may have more or fewer
POOL_GAIN = {"max": 1.0, "average": 2.0}  # the next layers expect values of the size of the largest
PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
PAD_SHIFTS = {"reflect": 2, "replicate": 1}  # so many rows lie between what is put past the border and its source


def check_taps(taps: Iterable[str], names: list[str]) -> None:
    if unknown := [tap for tap in taps if tap not in names]:
        raise ValueError(f"the network has no layer {unknown[0]!r}; it has {', '.join(names)}")


def he_normal(key: jax.Array, size: int, before: int, features: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (size, size, before, features)) * (2 / (size**2 * before)) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(features)}


def map_colours(images: jax.Array, params: dict[str, jax.Array], dtype: str) -> jax.Array:
    """The affine map of the three colours, (..., 3) -> (..., 3), at full precision whatever the features' type."""
    return (jnp.matmul(images, params["kernel"], precision="highest") + params["bias"]).astype(dtype)


def convolve(
    x: jax.Array, params: dict[str, jax.Array], padding: str, platform: str = "auto", extent: Extent | None = None
) -> jax.Array:
    """Convolution that keeps the size, with bias; 3x3 or, with zeros, any odd size. extent: of x, see `VGG.apply`."""
    if "winograd" in params:
        conv = functools.partial(layers.winograd, kernel=params["winograd"].astype(x.dtype))
    else:
        conv = functools.partial(layers.conv, kernel=params["kernel"].astype(x.dtype), platform=platform)
    bias = params["bias"].astype(x.dtype)
    if padding == "zeros":
        return conv(_blank(x, extent)) + bias
    return conv(_pad(x, padding, ((1, 1), (1, 1)), extent))[:, 1:-1, 1:-1] + bias


def pool(x: jax.Array, pooling: str, ceil_mode: bool = False, extent: Extent | None = None) -> jax.Array:
    """2x2 pooling of stride 2, (b, h, w, c) -> (b, h // 2, w // 2, c), rounded up in `ceil_mode`.

    extent: of x, see `VGG.apply`; that of the result is its half, rounded likewise.
    """
    if ceil_mode:  # a repeated value changes neither the largest nor the mean
        x = _pad(x, "replicate", ((0, x.shape[1] % 2), (0, x.shape[2] % 2)), extent)
    if pooling == "max":
        return layers.max_pool(x)
    return POOL_GAIN[pooling] * _mean(layers.windows(x, 2))


def _blank(x: jax.Array, extent: Extent | None) -> jax.Array:
    """Zeros in the place of all that is not the image, (b, h, w, c)."""
    for axis, side in enumerate(extent or (), start=1):
        if not _fills(side, x.shape[axis]):
            x = jnp.where(_places(x, axis) < side, x, 0)
    return x


def _pad(x: jax.Array, padding: str, widths: tuple[tuple[int, int], ...], extent: Extent | None) -> jax.Array:
    """np.pad of an image that may end before its array does: (b, h, w, c) -> (b, low + h + high, low + w + high, c).

    padding: any but "zeros"; "circular" raises ValueError where the image ends within the array, since what follows its
    end then lies elsewhere. widths: (low, high) of rows and of columns, each 0 or 1. The padding follows the
    image where that ends within the array, and else the array; what is left beyond it becomes 0.
    """
    if extent is None:
        return jnp.pad(x, ((0, 0), *widths, (0, 0)), mode=PAD_MODES[padding])
    for axis, (side, (low, high)) in enumerate(zip(extent, widths, strict=True), start=1):
        size = x.shape[axis]
        if _fills(side, size):
            x = jnp.pad(x, [(low, high) if a == axis else (0, 0) for a in range(4)], mode=PAD_MODES[padding])
            continue
        if padding == "circular":
            raise ValueError("circular padding takes images that fill their array, in one piece")
        shift = PAD_SHIFTS[padding]
        # Of x and of x shifted, element by element: devices that share the rows then exchange a few with their
        # neighbours, while an index that is not known when compiling would have them gather the whole.
        x = _move(x, axis, low, high)
        place, end = _places(x, axis) - low, jnp.minimum(side, size)
        past = jnp.where(place == end, _move(x, axis, shift, -shift), 0)
        padded = jnp.where(place < end, x, past)
        x = jnp.where(place < 0, _move(x, axis, -shift, shift), padded) if low else padded
    return x


def _fills(side: int | jax.Array, size: int) -> bool:
    """Whether an image is known to end no earlier than its array."""
    return isinstance(side, int) and side >= size


def _places(x: jax.Array, axis: int) -> jax.Array:
    """The index of each row or column, (b, h, w, 1)."""
    return lax.broadcasted_iota(jnp.int32, (*x.shape[:3], 1), axis)


def _move(x: jax.Array, axis: int, low: int, high: int) -> jax.Array:
    """Zeros before and after; where a width is negative, so many values fewer."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)])


def pool_3x3(x: jax.Array, pooling: str, ceil_mode: bool, circular: bool = False) -> jax.Array:
    """3x3 pooling of stride 2, (b, h, w, c) -> (b, (h - 1) // 2, (w - 1) // 2, c), or h // 2 and w // 2 in `ceil_mode`.

    circular: of an image that goes on at its other end, -> (b, h // 2, w // 2, c), of even h and w.

    There the last row and column are repeated where they are needed: the largest values are those of PyTorch's
    `ceil_mode`, averages differ from its at these edges.
    """
    if circular:
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="wrap")
    elif ceil_mode:
        x = jnp.pad(x, ((0, 0), (0, (x.shape[1] + 1) % 2), (0, (x.shape[2] + 1) % 2), (0, 0)), mode="edge")
    return _max_pool_3x3(x) if pooling == "max" else POOL_GAIN[pooling] * _mean(layers.windows(x, 3))


def _mean(parts: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, parts) / len(parts)


@jax.custom_vjp
def _max_pool_3x3(x: jax.Array) -> jax.Array:
    """As `layers.max_pool`, of windows that overlap."""
    return functools.reduce(jnp.maximum, layers.windows(x, 3))


def _max_pool_3x3_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    x, y = residuals
    taken, total = jnp.zeros(y.shape, bool), jnp.zeros(x.shape, gradient.dtype)
    left = [side - 2 * pooled + 1 for side, pooled in zip(x.shape[1:3], y.shape[1:3], strict=True)]
    for n, part in enumerate(layers.windows(x, 3)):
        first = (part == y) & ~taken
        taken |= first
        i, j = divmod(n, 3)
        places = ((0, 0, 0), (i, left[0] - i, 1), (j, left[1] - j, 1), (0, 0, 0))  # back to where the part came from
        total += lax.pad(jnp.where(first, gradient, 0), jnp.zeros((), gradient.dtype), places)
    return (total,)


_max_pool_3x3.defvjp(lambda x: ((y := _max_pool_3x3(x)), (x, y)), _max_pool_3x3_backward)
