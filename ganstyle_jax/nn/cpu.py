"""A convolution and its gradient by the kernel, written as XLA's CPU backend does them fast.

Convolutions of large maps without any padding take it four times as long as those with (JAX 0.10): so one row
of zeros is added, and cut off again. The gradient by the kernel is slow as a convolution, since the kernel there is as
large as a large picture. It is products of matrices, strip by strip, so that what is multiplied stays in the caches.
Only sums are added in another order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
# Measured on CPUs with AVX-512, 1 and 2 MiB of second-level cache a core.
STRIP = 2**18  # pixels times channels of x that a strip is about,
LEAST, MOST = 256, 4096  # within these pixels
Sides = tuple[int, int]  # of rows and of columns
Product = Callable[[jax.Array, jax.Array], jax.Array]


def convolve(x: jax.Array, kernel: jax.Array, padding: Sides = (0, 0), stride: Sides = (1, 1)) -> jax.Array:
    """(b, h, w, c), (p, q, c, d) -> (b, (h - p) // stride + 1, (w - q) // stride + 1, d), h and w with the padding.

    padding: zeros on either side.
    """
    p, q = kernel.shape[:2]
    if (p, q, padding, stride) == (1, 1, (0, 0), (1, 1)):
        return x @ kernel[0, 0]
    if padding != (0, 0) or not isinstance(x.shape[1], int):  # symbols of `jax.export` are left as they are
        return _convolve(x, kernel, [(n, n) for n in padding], stride)
    y = _convolve(x, kernel, [(0, stride[0]), (0, 0)], stride)
    return y[:, : (x.shape[1] - p) // stride[0] + 1]


def kernel_gradient(x: jax.Array, y: jax.Array, size: Sides, padding: Sides = (0, 0), stride: int = 1) -> jax.Array:
    """The derivative of sum(y * convolve(x, kernel)) by a kernel of that size: (b, h, w, c), (b, h', w', d) -> (p, q,
    c, d)."""
    (p, q), c, (b, height, width, d) = size, x.shape[3], y.shape
    if stride == 1 and c > 4 * d and p > 1:  # what each pixel of the other one meets is the smaller matrix
        wide = (p - 1 - padding[0], q - 1 - padding[1])
        return kernel_gradient(y, x, size, wide)[::-1, ::-1].swapaxes(2, 3)
    x = jnp.pad(x, ((0, 0), *((n, n) for n in padding), (0, 0)))
    most = max(1, min(max(LEAST, STRIP // c), MOST) // (b * width))  # rows of y in a strip
    rows = -(-height // -(-height // most))  # all strips alike
    if x.dtype.itemsize < 4:  # sums of sums would be rounded to half precision
        rows = height
    if stride == 1 and rows == height:
        # Channels in the place of pictures and pictures in that of channels, brought there before the convolution.
        turned, kernel = lax.optimization_barrier((x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)))
        return _convolve(turned, kernel, [(0, 0), (0, 0)], (1, 1)).transpose(1, 2, 0, 3)

    def strip(total: jax.Array, top: jax.Array, rows: int = rows) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, stride * top, stride * (rows - 1) + p, 1)
        given = lax.dynamic_slice_in_dim(y, top, rows, 1).reshape(-1, d)
        beside = jnp.concatenate([part[:, :, v : v + stride * (width - 1) + 1 : stride] for v in range(q)], -1)
        met = [beside[:, u : u + stride * (rows - 1) + 1 : stride].reshape(-1, q * c) for u in range(p)]
        return total + jnp.stack([given.T @ m for m in met])

    whole = height // rows
    total = _repeat(whole, rows, strip, jnp.zeros((p, d, q * c), x.dtype))
    if whole * rows < height:
        total = strip(total, jnp.int32(whole * rows), height - whole * rows)
    return total.reshape(p, d, q, c).transpose(0, 2, 3, 1)


def with_derivatives(of_x_and_kernel: Product, by_x: Product, by_kernel: Product) -> tuple[Product, Product, Product]:
    """y(x, k), linear in both, x(y, k) and k(x, y), its transposes: the three have each other as derivatives."""
    forward, back, across = (jax.custom_vjp(f) for f in (of_x_and_kernel, by_x, by_kernel))
    forward.defvjp(lambda x, k: (forward(x, k), (x, k)), lambda xk, y: (back(y, xk[1]), across(xk[0], y)))
    back.defvjp(lambda y, k: (back(y, k), (y, k)), lambda yk, x: (forward(x, yk[1]), across(x, yk[0])))
    across.defvjp(lambda x, y: (across(x, y), (x, y)), lambda xy, k: (back(xy[1], k), forward(xy[0], k)))
    return forward, back, across


def _convolve(x: jax.Array, kernel: jax.Array, pads: list[Sides], stride: Sides) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, stride, pads, dimension_numbers=_NHWC)


def _repeat(count: int, rows: int, strip: Callable[[jax.Array, jax.Array], jax.Array], begun: jax.Array) -> jax.Array:
    if count == 1:
        return strip(begun, jnp.int32(0))
    return lax.fori_loop(0, count, lambda i, total: strip(total, i * rows), begun)
