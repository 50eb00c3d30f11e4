"""Convolutions on CPUs, strip by strip.

XLA's CPU backend lays a convolution out as a matrix of pixels by all that each sees, and multiplies that: as fast as
any library while the matrix fits the caches, and a quarter as fast where it does not. So that it does, large maps are
cut into strips of rows, which one loop goes through. Of many channels the products are written out, which is faster
still: of the columns that each pixel sees, laid beside each other, with each row of the kernel. Only sums are added in
another order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
# Measured on CPUs with AVX-512, 1 and 2 MiB of second-level cache a core.
LARGE = 12 * 2**20  # bytes of that matrix from which strips pay
STRIP = 2**18  # pixels times channels of x that a strip is about, from 256 to 4,096 pixels
MANY = 512  # channels times columns of the kernel, from which products are written out
Padding = tuple[int, int]  # rows above and below, columns left and right, all of zeros


def convolve(x: jax.Array, kernel: jax.Array, padding: Padding = (0, 0), stride: int = 1) -> jax.Array:
    """(b, h, w, c), (p, q, c, d) -> (b, (h - p) // stride + 1, (w - q) // stride + 1, d), h and w with the padding."""
    b, (p, q, c, d) = len(x), kernel.shape
    if x.dtype.itemsize < 4 or not all(isinstance(side, int) for side in x.shape):  # symbols of `jax.export`
        return _whole(x, kernel, padding, stride)
    if (p, q, stride, padding) == (1, 1, 1, (0, 0)) and b * x.shape[1] * x.shape[2] * c * x.dtype.itemsize < LARGE:
        return x @ kernel[0, 0]
    height, width = ((n + 2 * k - m) // stride + 1 for n, k, m in zip(x.shape[1:3], padding, (p, q), strict=True))
    many = q * c >= MANY
    if not many and b * height * width * p * q * c * x.dtype.itemsize < LARGE:
        return _whole(x, kernel, padding, stride)
    rows, x = _rows(b * width, height, c), _padded(x, padding)

    def strip(y: jax.Array, top: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, stride * top, stride * (rows - 1) + p, 1)
        if many:
            seen = _seen(part, (p, q), rows, width, stride)
            made = sum(m @ k.reshape(-1, d) for m, k in zip(seen, kernel, strict=True)).reshape(b, rows, width, d)
        else:
            made = _whole(part, kernel, (0, 0), stride)
        return lax.dynamic_update_slice_in_dim(y, made, top, 1)

    return _each(strip, jnp.zeros((b, height, width, d), x.dtype), height, rows)


def kernel_gradient(
    x: jax.Array, y: jax.Array, size: tuple[int, int], padding: Padding = (0, 0), stride: int = 1
) -> jax.Array:
    """The derivative of sum(y * convolve(x, kernel)) by a kernel of that size: (b, h, w, c), (b, h', w', d) -> (p, q,
    c, d)."""
    (p, q), c, (b, height, width, d) = size, x.shape[3], y.shape
    if stride == 1 and c > 4 * d and p > 1:  # what each pixel of the other one meets is the smaller matrix
        wide = (p - 1 - padding[0], q - 1 - padding[1])
        return kernel_gradient(y, x, size, wide)[::-1, ::-1].swapaxes(2, 3)
    x = _padded(x, padding)
    rows = _rows(b * width, height, c)
    if stride == 1 and (rows == height or x.dtype.itemsize < 4):
        # Channels in the place of pictures and pictures in that of channels, brought there before the convolution.
        swapped = lax.optimization_barrier((x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)))
        return _whole(*swapped).transpose(1, 2, 0, 3)

    def strip(total: jax.Array, top: jax.Array, rows: int = rows) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, stride * top, stride * (rows - 1) + p, 1)
        given = lax.dynamic_slice_in_dim(y, top, rows, 1).reshape(-1, d)
        return total + jnp.stack([given.T @ m for m in _seen(part, size, rows, width, stride)])

    whole = height // rows * rows
    total = _each(strip, jnp.zeros((p, d, q * c), x.dtype), whole, rows)
    if whole < height:
        total = strip(total, jnp.int32(whole), height - whole)
    return total.reshape(p, d, q, c).transpose(0, 2, 3, 1)


def _seen(x: jax.Array, size: tuple[int, int], rows: int, width: int, stride: int) -> list[jax.Array]:
    """What each pixel of a strip of the result sees of each row of the kernel: p times (b * rows * width, q * c)."""
    (p, q), c = size, x.shape[3]
    beside = jnp.concatenate([x[:, :, v : v + stride * (width - 1) + 1 : stride] for v in range(q)], -1)
    return [beside[:, u : u + stride * (rows - 1) + 1 : stride].reshape(-1, q * c) for u in range(p)]


def _whole(x: jax.Array, kernel: jax.Array, padding: Padding = (0, 0), stride: int = 1) -> jax.Array:
    pads = [(side, side) for side in padding]
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_NHWC)


def _padded(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *((side, side) for side in padding), (0, 0)))


def _rows(across: int, height: int, c: int) -> int:
    """Of the result in a strip; across: pixels of a row, of all pictures."""
    most = max(1, min(max(256, STRIP // c), 4096) // across)
    return -(-height // -(-height // most))  # all strips alike


def _each(strip: Callable[[jax.Array, jax.Array], jax.Array], begun: jax.Array, height: int, rows: int) -> jax.Array:
    """`strip` of the first row of each strip, one after the other; the last one's rows may be some of those before."""
    count = -(-height // rows)
    if count == 1:
        return strip(begun, jnp.int32(0))

    def go(i: jax.Array, carried: jax.Array) -> jax.Array:
        return strip(carried, jnp.minimum(i * rows, height - rows))

    return lax.fori_loop(0, count, go, begun)
