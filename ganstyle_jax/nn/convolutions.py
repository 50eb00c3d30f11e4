"""Convolutions and pooling that are fast on every platform, also where XLA's own are slow.

Images are (b, h, w, c). Kernels are stored as PyTorch's are up to the order of axes, (4, 4, in, out) here, so that
weights move between the two by a transposition.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.nn import cpu
from ganstyle_jax.nn.devices import by_device

_NHWC = ("NHWC", "HWIO", "NHWC")


# ---------------------------------------------------------------------------------------------------------------------
# The two convolutions of a DCGAN: 4x4 kernels, stride 2, padding 1, halving and doubling the picture
#
# With kernel k (4, 4, c, d), `halve` is linear in x, `double` is its transpose, and `kernel_gradient` is the derivative
# of either with respect to k. Each one's derivatives are the other two, so the three are closed under differentiation:
# they are written once as plain forward computations, and `custom_vjp` says how they hang together. XLA would
# differentiate them itself, but on its CPU backend what it makes is slow: convolutions of a dilated input take a
# general path, and gradients of convolutions inside `while` and `scan` a naive loop, 10 to 100 times slower.
# The price: forward-mode differentiation (`jvp`, `jacfwd`) raises. Use `platform="xla"` for it.


def halve(x: jax.Array, kernel: jax.Array, platform: str = "auto") -> jax.Array:
    """4x4 convolution of stride 2 and padding 1: (b, h, w, c), (4, 4, c, d) -> (b, h/2, w/2, d); h and w even.

    y[i, j] = sum over p, q of x[2i + p - 1, 2j + q - 1] k[p, q]; torch's Conv2d(c, d, 4, 2, 1, bias=False).
    platform: "cpu", "xla" (what XLA makes of the plain convolution), or "auto": the fastest on the platform.
    """
    return _rounded(_cpu_halve, x, kernel) if on_cpu(platform) else _halve(x, kernel)


def double(x: jax.Array, kernel: jax.Array, platform: str = "auto") -> jax.Array:
    """The transpose of `halve`: (b, h, w, c), (4, 4, c, d) -> (b, 2h, 2w, d).

    y[2i + p - 1, 2j + q - 1] += x[i, j] k[p, q]; torch's ConvTranspose2d(c, d, 4, 2, 1, bias=False).
    """
    if on_cpu(platform):
        return _rounded(_cpu_double, x, kernel)
    return _gpu_double(x, kernel) if platform == "auto" and backend() == "gpu" else _double(x, kernel)


def on_cpu(platform: str) -> bool:
    if platform not in ("auto", "cpu", "xla"):
        raise ValueError(f"platform must be 'auto', 'cpu' or 'xla', got {platform!r}")
    return platform == "cpu" or (platform == "auto" and backend() == "cpu")


def backend() -> str:
    """What is compiled for: "cpu", "gpu" or "tpu"."""
    return _target.get() or jax.default_backend()


_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(backend: str) -> Iterator[None]:
    """Within it, "auto" means what it would mean on that backend: to compile for devices that are not here."""
    token = _target.set(backend)
    try:
        yield
    finally:
        _target.reset(token)


def _rounded(operation: Callable, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Of numbers of 16 bits: computed in float32, which CPUs are faster in, and rounded once."""
    if x.dtype.itemsize >= 4:
        return operation(x, kernel)
    return operation(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)


def _halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_NHWC)


def _double(x: jax.Array, kernel: jax.Array) -> jax.Array:
    flipped = kernel[::-1, ::-1]  # XLA convolves without flipping; a transposed convolution is a flipped one
    return lax.conv_general_dilated(x, flipped, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_NHWC)


# On GPUs cuDNN has an operation for the gradient by the kernel, to which XLA brings `halve`'s alone: what it makes of
# `double`'s is a convolution of maps that were transposed, batch and channels exchanged, and moves each of them twice.
# But `double`'s is `halve`'s with x and y exchanged.


def _gpu_kernel_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
    """(b, h, w, c), (b, h/2, w/2, d) -> (4, 4, c, d), as `_fast_kernel_gradient`."""
    kernel = jax.ShapeDtypeStruct((4, 4, x.shape[3], y.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _halve(x, kernel), kernel)(y)[0]


_gpu_double = jax.custom_vjp(_double)
_gpu_double.defvjp(
    lambda x, k: (_gpu_double(x, k), (x, k)),
    lambda xk, y: (_halve(y, _swap(xk[1])), _swap(_gpu_kernel_gradient(y, xk[0]))),
)


# On CPUs there are two ways, by the number of channels of the larger picture. Both work on cells of 2x2 pixels, between
# which `halve` is a 2x2 convolution of stride 1: k[2u + r, 2v + s] meets pixel (r, s) of cell (i + u, j + v).
#
# Pictures, and what has few channels or an odd number of cells: plain convolutions and matrix products of cells.


def _fast_halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    if _in_nine_products(x):
        return _pull_map([a @ b for a, b in zip(_of_cells(x), _of_kernel(kernel), strict=True)], x, kernel.shape[3])
    return _halve(x, kernel)


def _fast_double(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_double` without dilation."""
    b, h, w, d = x.shape
    c = kernel.shape[3]
    large = jax.ShapeDtypeStruct((b, 2 * h, 2 * w, c), x.dtype)
    if _in_nine_products(large):
        parts = zip(_of_map(x), _of_kernel(_swap(kernel)), strict=True)
        return _pull_cells([a @ b.T for a, b in parts], large.shape)
    # The four pixels of each cell at once, k[2u + r, 2v + s] bringing x[i - u, j - v].
    kernel = kernel.reshape(2, 2, 2, 2, d, c).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, d, 4 * c)
    pads = ((1, 1), (1, 1))
    cells = lax.conv_general_dilated(x, kernel[::-1, ::-1], (1, 1), pads, dimension_numbers=_NHWC)
    pixels = cells.reshape(b, h + 1, w + 1, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(b, 2 * h + 2, 2 * w + 2, c)[:, 1:-1, 1:-1]


def _fast_kernel_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
    """(b, h, w, c), (b, h/2, w/2, d) -> (4, 4, c, d): k[p, q] sums x[2i + p - 1, 2j + q - 1] y[i, j]^T over b, i, j."""
    b, h, w, c = x.shape
    d = y.shape[3]
    if _in_nine_products(x):
        return _pull_kernel([a.T @ b for a, b in zip(_of_cells(x), _of_map(y), strict=True)], c)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(b, h // 2 + 1, 2, w // 2 + 1, 2, c)
    cells = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2 + 1, w // 2 + 1, 4 * c)
    y = y.reshape(-1, d)
    taps = [cells[:, u : u + h // 2, v : v + w // 2].reshape(-1, 4 * c).T @ y for u in (0, 1) for v in (0, 1)]
    return _kernel_of_taps(taps, c)


def _kernel_of_taps(taps: list[jax.Array], c: int) -> jax.Array:
    """Four (4c, d), for cells (u, v) = (0, 0), (0, 1), (1, 0), (1, 1) -> (4, 4, c, d)."""
    d = taps[0].shape[1]
    return jnp.stack(taps).reshape(2, 2, 2, 2, c, d).transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, c, d)


# Many channels: nine products of matrices in the place of sixteen. In one dimension, for two neighbouring values of the
# map Y, with cells X and kernel K (Karatsuba's multiplication of polynomials, which is Winograd's F(2, 2)):
#
#     X0 K0 Y0 + X1 K1 Y0 + X1 K0 Y1 + X2 K1 Y1 = (X0 - X1) K0 Y0 + X1 (K0 + K1) (Y0 + Y1) + (X2 - X1) K1 Y1
#
# In two dimensions tiles of 3x3 cells, 2x2 taps and 2x2 values become nine matrices each, by `_of_cells`, `_of_kernel`
# and `_of_map`. The sum over all tiles is <y, halve(x, k)>; so each of the three operations multiplies two of the
# three and maps the products back by the transpose of the third, `_pull_cells`, `_pull_kernel` or `_pull_map`. The maps
# only add and subtract: rounding errors stay those of the products. They cost as much for any number of channels on the
# other side, so that all this pays where there are many.


def _in_nine_products(x: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """x: the larger picture."""
    return x.shape[1] % 4 == x.shape[2] % 4 == 0 and x.shape[3] >= 32


def _of_cells(x: jax.Array) -> list[jax.Array]:
    """(b, h, w, c) -> nine (b * h/4 * w/4, 4c), of X0 - X1, X1 and X2 - X1 in both dimensions."""
    b, h, w, c = x.shape
    m, n = h // 4, w // 4
    x = jnp.pad(x, ((0, 0), (1, 3), (1, 3), (0, 0)))
    x = x.reshape(b, m + 1, 2, 2, n + 1, 2, 2, c)  # in both dimensions tile, cell, pixel; the last tile's first cell
    first, second, third = x[:, :m, 0], x[:, :m, 1], x[:, 1:, 0]  # (b, m, 2, n + 1, 2, 2, c)
    nine = []
    for row in (first - second, second, third - second):
        first, second, third = row[:, :, :, :n, 0], row[:, :, :, :n, 1], row[:, :, :, 1:, 0]  # (b, m, 2, n, 2, c)
        nine += [first - second, second, third - second]
    return [part.transpose(0, 1, 3, 2, 4, 5).reshape(b * m * n, 4 * c) for part in nine]


def _pull_cells(nine: list[jax.Array], shape: tuple[int, int, int, int]) -> jax.Array:
    """The transpose of `_of_cells` for pictures of that shape: tiles share the cells at their edges, which add up."""
    b, h, w, c = shape
    m, n = h // 4, w // 4

    def join(first: jax.Array, second: jax.Array, third: jax.Array, axis: int) -> jax.Array:
        """(.., tiles, ..) -> (.., tiles + 1, 2, ..): cells 2t and 2t + 1."""
        before, after = ([(0, 0)] * first.ndim for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        even = jnp.pad(first, after) + jnp.pad(third, before)
        return jnp.stack([even, jnp.pad(second - first - third, after)], axis + 1)

    parts = [part.reshape(b, m, n, 2, 2, c) for part in nine]
    rows = [join(*parts[p : p + 3], axis=2) for p in (0, 3, 6)]  # (b, m, n + 1, 2, 2, 2, c)
    x = join(*rows, axis=1).transpose(0, 1, 2, 5, 3, 4, 6, 7)  # in both dimensions tile, cell, pixel
    return x.reshape(b, h + 4, w + 4, c)[:, 1 : h + 1, 1 : w + 1]


def _of_kernel(kernel: jax.Array) -> list[jax.Array]:
    """(4, 4, c, d) -> nine (4c, d), of K0, K0 + K1 and K1 in both dimensions."""
    c, d = kernel.shape[2:]
    k = kernel.reshape(2, 2, 2, 2, c, d).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, d)
    return [part for row in (k[0], k[0] + k[1], k[1]) for part in (row[0], row[0] + row[1], row[1])]


def _pull_kernel(nine: list[jax.Array], c: int) -> jax.Array:
    """The transpose of `_of_kernel`, for c channels."""
    rows = [(nine[p] + nine[p + 1], nine[p + 1] + nine[p + 2]) for p in (0, 3, 6)]
    taps = [above + below for above, below in zip(rows[0] + rows[1], rows[1] + rows[2], strict=True)]
    return _kernel_of_taps(taps, c)


def _of_map(y: jax.Array) -> list[jax.Array]:
    """(b, h/2, w/2, d) -> nine (b * h/4 * w/4, d), of Y0, Y0 + Y1 and Y1 in both dimensions."""
    b, h, w, d = y.shape
    y = y.reshape(b, h // 2, 2, w // 2, 2, d)
    rows = [row.reshape(-1, 2, d) for row in (y[:, :, 0], y[:, :, 0] + y[:, :, 1], y[:, :, 1])]
    return [part for row in rows for part in (row[:, 0], row[:, 0] + row[:, 1], row[:, 1])]


def _pull_map(nine: list[jax.Array], x: jax.Array, d: int) -> jax.Array:
    """The transpose of `_of_map`, for the map to which x is halved."""
    b, m, n = x.shape[0], x.shape[1] // 4, x.shape[2] // 4
    parts = [part.reshape(b, m, n, d) for part in nine]
    rows = [jnp.stack([parts[p] + parts[p + 1], parts[p + 1] + parts[p + 2]], 3) for p in (0, 3, 6)]
    return jnp.stack([rows[0] + rows[1], rows[1] + rows[2]], 2).reshape(b, 2 * m, 2 * n, d)


def _swap(kernel: jax.Array) -> jax.Array:
    return kernel.swapaxes(2, 3)


_cpu_halve = jax.custom_vjp(_fast_halve)
_cpu_double = jax.custom_vjp(_fast_double)
_cpu_kernel_gradient = jax.custom_vjp(_fast_kernel_gradient)
_cpu_halve.defvjp(
    lambda x, k: (_cpu_halve(x, k), (x, k)),
    lambda xk, y: (_cpu_double(y, _swap(xk[1])), _cpu_kernel_gradient(xk[0], y)),
)
_cpu_double.defvjp(
    lambda x, k: (_cpu_double(x, k), (x, k)),
    lambda xk, y: (_cpu_halve(y, _swap(xk[1])), _swap(_cpu_kernel_gradient(y, xk[0]))),
)
_cpu_kernel_gradient.defvjp(
    lambda x, y: (_cpu_kernel_gradient(x, y), (x, y)),
    lambda xy, k: (_cpu_double(xy[1], _swap(k)), _cpu_halve(xy[0], k)),
)


# ---------------------------------------------------------------------------------------------------------------------
# The convolution and the pooling of feature networks
#
# The same idea for stride 1: the gradient by the input is itself a convolution, written out so that XLA's CPU backend
# takes its fast path inside loops too.


def conv(x: jax.Array, kernel: jax.Array, platform: str = "auto") -> jax.Array:
    """Convolution of stride 1 that keeps the size, zeros around: (b, h, w, c), (p, p, c, d) -> (b, h, w, d); p is odd.

    y[i, j] = sum over u, v of x[i + u - p // 2, j + v - p // 2] k[u, v]; torch's Conv2d(c, d, p, padding="same",
    bias=False). platform: as for `halve`.
    """
    return _rounded(_cpu_conv, x, kernel) if on_cpu(platform) else _conv(x, kernel)


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)


def _flip(kernel: jax.Array) -> jax.Array:
    """With this kernel `conv` is its own transpose."""
    return _swap(kernel[::-1, ::-1])


def _conv_kernel_gradient(x: jax.Array, y: jax.Array, size: int) -> jax.Array:
    """(b, h, w, c), (b, h, w, d) -> (size, size, c, d)."""
    return cpu.kernel_gradient(x, y, (size, size), (size // 2, size // 2))


FEW = 4  # channels, such as a picture's, which fill no vector


def _conv_of_few(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_conv` of few channels: (b, h, w, c), (p, p, c, d) -> (b, h, w, d).

    The p rows that a place sees lie beside each other as p c channels, which are convolved along the other axis alone:
    on CPUs faster than the convolution of a few channels, and its transpose by far.
    """
    size, half, h = len(kernel), len(kernel) // 2, x.shape[1]
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0), (0, 0)))
    rows = jnp.concatenate([padded[:, u : u + h] for u in range(size)], -1)
    return _conv(rows, _beside(kernel))


def _beside(kernel: jax.Array) -> jax.Array:
    """The rows of a kernel (p, p, c, d) as channels, (1, p, p c, d)."""
    size, _, c, d = kernel.shape
    return kernel.transpose(1, 0, 2, 3).reshape(1, size, size * c, d)


def _conv_to_few(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_conv_of_few` transposed: (b, h, w, d), (p, p, c, d) -> (b, h, w, c)."""
    (b, h, w, _), (size, _, c, _) = y.shape, kernel.shape
    sent = _conv(y, _flip(_beside(kernel))).reshape(b, h, w, size, c)  # by each place to the same column of its rows
    half = size // 2
    total = jnp.zeros((b, h + 2 * half, w, c), y.dtype)
    for u in range(size):
        total += jnp.pad(sent[:, :, :, u], ((0, 0), (u, 2 * half - u), (0, 0), (0, 0)))
    return total[:, half : half + h]


def _conv_gradient(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """Of `conv` by its input."""
    return _conv_to_few(y, kernel) if _has_few(kernel) else _cpu_conv(y, _flip(kernel))


def _has_few(kernel: jax.Array) -> bool:
    size, _, c, d = kernel.shape
    return size > 1 and c <= FEW < d


def _conv_forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _conv_of_few(x, kernel) if _has_few(kernel) else _conv(x, kernel)


_cpu_conv = jax.custom_vjp(_conv_forward)
_cpu_conv_kernel_gradient = jax.custom_vjp(_conv_kernel_gradient, nondiff_argnums=(2,))
_cpu_conv.defvjp(
    lambda x, k: (_cpu_conv(x, k), (x, k)),
    lambda xk, y: (_conv_gradient(y, xk[1]), _cpu_conv_kernel_gradient(xk[0], y, len(xk[1]))),
)
_cpu_conv_kernel_gradient.defvjp(
    lambda x, y, size: (_cpu_conv_kernel_gradient(x, y, size), (x, y)),
    lambda size, xy, k: (_cpu_conv(xy[1], _flip(k)), _cpu_conv(xy[0], k)),
)


# ---------------------------------------------------------------------------------------------------------------------
# The same convolution within groups of channels
#
# XLA's CPU backend has only a naive loop for it, and a slower one for its gradient by the kernel: 5 and 0.5 GFLOP/s on
# two cores. So it is made of plain convolutions, of as many groups at once as fill the vectors, with zeros between
# groups in the kernel; its gradient by the kernel of one group at a time, which has nothing to throw away.

FILLED = 32  # channels from which a convolution is fast
MOST_PARTS = 16  # that a convolution is made of: more take long to compile


def grouped_conv(x: jax.Array, kernel: jax.Array, groups: int, platform: str = "auto") -> jax.Array:
    """`conv` within each of the groups of channels: (b, h, w, c), (p, p, c / groups, d) -> (b, h, w, d).

    torch's Conv2d(c, d, p, padding="same", groups=groups, bias=False). platform: as for `halve`.
    """
    if groups == 1:
        return conv(x, kernel, platform)
    if on_cpu(platform):
        return _rounded(_cpu_grouped(groups, len(kernel))[0], x, kernel)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC, feature_group_count=groups)

    return by_device(convolve)(x, kernel)  # else XLA would not cut the batch


@functools.cache
def _cpu_grouped(groups: int, size: int) -> tuple[cpu.Product, cpu.Product, cpu.Product]:
    """The convolution by kernels of that size and its transposes, by the input and by the kernel: each other's
    derivatives."""

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        together = min(groups, max(-(-FILLED // kernel.shape[2]), -(-groups // MOST_PARTS)))
        together = next(n for n in range(together, 0, -1) if groups % n == 0)
        kernels = [_apart(part, together) for part in jnp.split(kernel, groups // together, 3)]
        parts = zip(jnp.split(x, groups // together, 3), kernels, strict=True)
        return jnp.concatenate([_conv(part, kernel) for part, kernel in parts], 3)

    def by_x(y: jax.Array, kernel: jax.Array) -> jax.Array:
        flipped = kernel[::-1, ::-1].reshape(size, size, kernel.shape[2], groups, -1).transpose(0, 1, 4, 3, 2)
        return forward(y, flipped.reshape(size, size, flipped.shape[2], -1))

    def by_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
        pairs = zip(jnp.split(x, groups, 3), jnp.split(y, groups, 3), strict=True)
        return jnp.concatenate([_conv_kernel_gradient(part, given, size) for part, given in pairs], 3)

    return cpu.with_derivatives(forward, by_x, by_kernel)


def _apart(kernel: jax.Array, groups: int) -> jax.Array:
    """The kernel (p, p, c, d) of groups as that of a plain convolution, (p, p, groups * c, d), zeros between them."""
    d, nothing = kernel.shape[3] // groups, jnp.zeros_like(kernel)
    channel = jnp.arange(kernel.shape[3]) // d
    return jnp.concatenate([jnp.where(channel == i, kernel, nothing) for i in range(groups)], 2)


# ---------------------------------------------------------------------------------------------------------------------
# The same convolution with fewer multiplications (Winograd's F(2x2, 3x3): Lavin & Gray 2016, CVPR; arXiv:1509.09308)
#
# Each 4x4 window of x, and the kernel, are mapped to 16 numbers; their products, summed over channels by 16 matrix
# products, are mapped back to 2x2 values: 16 multiplications where the convolution has 36. The maps cost as much for
# any number of channels on the other side, so that it pays where there are many. Its rounding errors are no larger.


def winograd_kernel(kernel: jax.Array) -> jax.Array:
    """(3, 3, c, d) -> (4, 4, c, d), what `winograd` takes in its place."""
    g = jnp.asarray([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], kernel.dtype)
    return jnp.einsum("pu,qv,uvcd->pqcd", g, g, kernel, precision="highest")


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv` by a kernel that `winograd_kernel` has mapped: (b, h, w, c), (4, 4, c, d) -> (b, h, w, d)."""
    return _winograd(x, kernel)


def _winograd_sums(x: jax.Array, product: Callable[[jax.Array, int, int], jax.Array]) -> jax.Array:
    """product: of the number at (p, q) of each window, (b, h', w', c), and of the kernel, to (b, h', w', d)."""
    b, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    rows = _to_four(*(x[:, p : p + h : 2] for p in range(4)))  # from window to window it is 2 pixels
    windows = [_to_four(*(row[:, :, q : q + w : 2] for q in range(4))) for row in rows]
    products = [[product(windows[p][q], p, q) for p in range(4)] for q in range(4)]
    columns = zip(*(_to_two(*column) for column in products), strict=True)
    values = [jnp.stack(_to_two(*column), axis=3) for column in columns]
    y = jnp.stack(values, axis=2)  # (b, h', 2, w', 2, d)
    return y.reshape(b, h + h % 2, w + w % 2, -1)[:, :h, :w]


def _to_four(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a - c, b + c, c - b, b - d


def _to_two(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a + b + c, b - c - d


def _plain_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _winograd_sums(x, lambda window, p, q: window @ kernel[p, q])


def _winograd_backward(residuals: tuple[jax.Array, jax.Array], y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # By the flipped kernel, which is mapped to the same numbers in another order.
    flip = (3, 1, 2, 0)
    gradient = _winograd_sums(y, lambda window, p, q: jnp.einsum("bhwd,cd->bhwc", window, kernel[flip[p], flip[q]]))
    return gradient, jax.vjp(functools.partial(_plain_winograd, x), kernel)[1](y)[0]


_winograd = jax.custom_vjp(_plain_winograd)
_winograd.defvjp(lambda x, kernel: (_winograd(x, kernel), (x, kernel)), _winograd_backward)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Largest of each 2x2 pixels: (b, h, w, c) -> (b, h // 2, w // 2, c); a last odd row or column is dropped.

    The gradient goes to the first of equal values in reading order, as PyTorch's does. It is made of comparisons and
    not of XLA's select-and-scatter, which is slow on CPUs and, on GPUs, not available where results must be
    deterministic.
    """
    return functools.reduce(jnp.maximum, windows(x, 2))


def windows(x: jax.Array, size: int) -> list[jax.Array]:
    """The pixels of each window of that size and stride 2, in reading order: size * size times (b, h', w', c)."""
    h, w = ((side - size) // 2 * 2 + 1 for side in x.shape[1:3])
    return [x[:, i : i + h : 2, j : j + w : 2] for i in range(size) for j in range(size)]


def _max_pool_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    x, y = residuals
    b, h, w, c = y.shape
    taken, parts = jnp.zeros(y.shape, bool), []
    for part in windows(x, 2):
        first = (part == y) & ~taken
        taken |= first
        parts.append(jnp.where(first, gradient, 0))
    pixels = jnp.stack(parts, axis=3).reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)
    return (jnp.pad(pixels, ((0, 0), (0, x.shape[1] - 2 * h), (0, x.shape[2] - 2 * w), (0, 0))),)


max_pool.defvjp(lambda x: ((y := max_pool(x)), (x, y)), _max_pool_backward)
