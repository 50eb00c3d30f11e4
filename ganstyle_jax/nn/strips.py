"""Convolutions on CPUs, strip by strip.

XLA's CPU backend lays a convolution out as a matrix of pixels by all that each sees, and multiplies that: as fast as
any library while the matrix fits the caches, and a quarter as fast where it does not. So that it does, large maps are
cut into strips of rows, which one loop goes through. Only sums over pixels are added in another order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
# Measured on CPUs with AVX-512, 1 and 2 MiB of second-level cache a core.
LARGE = 12 * 2**20  # bytes of that matrix from which strips pay
STRIP = 2**18  # pixels times channels of x that a strip is about, from 256 to 4,096 pixels


Padding = tuple[int, int]  # rows above and below, columns left and right, all of zeros


def convolve(x: jax.Array, kernel: jax.Array, padding: Padding = (0, 0), stride: int = 1) -> jax.Array:
    """(b, h, w, c), (p, q, c, d) -> (b, (h - p) // stride + 1, (w - q) // stride + 1, d), h and w with the padding."""
    b, (p, q, c, d) = len(x), kernel.shape
    height, width = ((n + 2 * k - m) // stride + 1 for n, k, m in zip(x.shape[1:3], padding, (p, q), strict=True))
    rows = _rows(x, (p, q), height, width)
    if rows is None:
        single = (p, q, stride, padding) == (1, 1, 1, (0, 0))
        return x @ kernel[0, 0] if single else _whole(x, kernel, padding, stride)
    x = _padded(x, padding)

    def strip(y: jax.Array, top: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, stride * top, stride * (rows - 1) + p, 1)
        return lax.dynamic_update_slice_in_dim(y, _whole(part, kernel, (0, 0), stride), top, 1)

    return _each(strip, jnp.zeros((b, height, width, d), x.dtype), height, rows)


def kernel_gradient(
    x: jax.Array, y: jax.Array, size: tuple[int, int], padding: Padding = (0, 0), stride: int = 1
) -> jax.Array:
    """The derivative of sum(y * convolve(x, kernel)) by a kernel of that size: (b, h, w, c), (b, h', w', d) -> (p, q,
    c, d)."""
    (p, q), c, (_, height, width, d) = size, x.shape[3], y.shape
    if stride == 1 and c > 4 * d and p > 1:  # what each pixel of the other one meets is the smaller matrix
        wide = (p - 1 - padding[0], q - 1 - padding[1])
        return kernel_gradient(y, x, size, wide)[::-1, ::-1].swapaxes(2, 3)
    rows, x = _rows(x, size, height, width, large=0), _padded(x, padding)
    if rows is None and stride == 1:
        # Channels in the place of pictures and pictures in that of channels, brought there before the convolution.
        swapped = lax.optimization_barrier((x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)))
        return _whole(*swapped).transpose(1, 2, 0, 3)
    rows = rows or height

    def strip(total: jax.Array, top: jax.Array, rows: int = rows) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, stride * top, stride * (rows - 1) + p, 1)
        given = lax.dynamic_slice_in_dim(y, top, rows, 1).reshape(-1, d)
        beside = jnp.concatenate([part[:, :, v : v + stride * (width - 1) + 1 : stride] for v in range(q)], -1)
        met = [beside[:, u : u + stride * (rows - 1) + 1 : stride].reshape(-1, q * c) for u in range(p)]
        return total + jnp.stack([given.T @ m for m in met])

    whole = height // rows * rows
    total = _each(strip, jnp.zeros((p, d, q * c), x.dtype), whole, rows)
    if whole < height:
        total = strip(total, jnp.int32(whole), height - whole)
    return total.reshape(p, d, q, c).transpose(0, 2, 3, 1)


def _whole(x: jax.Array, kernel: jax.Array, padding: Padding = (0, 0), stride: int = 1) -> jax.Array:
    pads = [(side, side) for side in padding]
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_NHWC)


def _padded(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *((side, side) for side in padding), (0, 0)))


def _rows(x: jax.Array, size: tuple[int, int], height: int, width: int, large: int = LARGE) -> int | None:
    """Of the result in a strip; None where all of it is one."""
    (p, q), b, c = size, len(x), x.shape[3]
    if not all(isinstance(side, int) for side in x.shape):  # symbols of `jax.export`
        return None
    if x.dtype.itemsize < 4 or b * height * width * p * q * c * x.dtype.itemsize < large:
        return None
    rows = max(1, min(max(256, STRIP // c), 4096) // (b * width))
    return rows if 2 * rows <= height else None


def _each(strip: Callable[[jax.Array, jax.Array], jax.Array], begun: jax.Array, height: int, rows: int) -> jax.Array:
    """`strip` of the first row of each strip, one after the other; the last one's rows may be some of those before."""
    count = -(-height // rows)
    if count == 1:
        return strip(begun, jnp.int32(0))

    def go(i: jax.Array, carried: jax.Array) -> jax.Array:
        return strip(carried, jnp.minimum(i * rows, height - rows))

    return lax.fori_loop(0, count, go, begun)
