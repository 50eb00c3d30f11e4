"""Pictures halved and doubled through the filter [1, 3, 3, 1], by themselves and together with a 3x3 convolution.

Karras et al. 2020 (arXiv:1912.04958), after Zhang 2019 (arXiv:1904.11486): what is left out, or put between pixels,
goes through a low-pass filter first, so that a network does not depend on which pixels have even numbers. All of it is
linear, keeps the mean of a picture, takes zeros around it, and can be differentiated as often as one likes.

On CPUs the convolution of stride 2, its transpose and its derivative by the kernel are written out, each the derivative
of the others, because XLA's own are slow there (see `nn.cpu`); the filter is a sum of shifted pictures everywhere.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.nn import cpu
from ganstyle_jax.nn.convolutions import backend, on_cpu

_NHWC = ("NHWC", "HWIO", "NHWC")
SIDES = (1, 2)  # axes of rows and columns


def reduce(x: jax.Array) -> jax.Array:
    """Filtered and halved: (b, h, w, c) -> (b, h/2, w/2, c), h and w even.

    y[i] = (x[2i - 1] + 3 x[2i] + 3 x[2i + 1] + x[2i + 2]) / 8, in both dimensions.
    """
    for axis in SIDES:
        even, odd = (lax.slice_in_dim(x, first, None, 2, axis) for first in (0, 1))
        x = (_shifted(odd, -1, axis) + 3 * (even + odd) + _shifted(even, 1, axis)) / 8
    return x


def enlarge(x: jax.Array) -> jax.Array:
    """Doubled and filtered: (b, h, w, c) -> (b, 2h, 2w, c).

    y[2i] = (x[i - 1] + 3 x[i]) / 4 and y[2i + 1] = (3 x[i] + x[i + 1]) / 4, in both dimensions.
    """
    for axis in SIDES:
        parts = [(_shifted(x, -1, axis) + 3 * x) / 4, (3 * x + _shifted(x, 1, axis)) / 4]
        shape = [2 * n if i == axis else n for i, n in enumerate(x.shape)]
        x = jnp.stack(parts, axis + 1).reshape(shape)
    return x


def _shifted(x: jax.Array, by: int, axis: int) -> jax.Array:
    """y[i] = x[i + by], and 0 where there is none; by: 1 or -1."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, 1) if by > 0 else (1, 0)
    n = x.shape[axis]
    return (
        lax.slice_in_dim(jnp.pad(x, pads), 1, n + 1, axis=axis)
        if by > 0
        else lax.slice_in_dim(jnp.pad(x, pads), 0, n, axis=axis)
    )


def blur(x: jax.Array, padding: int, gain: float = 1.0) -> jax.Array:
    """Filtered with zeros around: (b, h, w, c) -> (b, h + 2 padding - 3, w + 2 padding - 3, c).

    The filter is three sums of two neighbours, (1 + z)^3, in each dimension.
    """
    x = jnp.pad(x * (gain / 64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for axis in SIDES:
        for _ in range(3):
            n = x.shape[axis]
            x = lax.slice_in_dim(x, 0, n - 1, axis=axis) + lax.slice_in_dim(x, 1, n, axis=axis)
    return x


def convolve_and_halve(x: jax.Array, kernel: jax.Array, platform: str = "auto") -> jax.Array:
    """Filtered, then convolved with stride 2: (b, h, w, c), (3, 3, c, d) -> (b, h/2, w/2, d), h and w even.

    platform: as for `layers.halve`.
    """
    x = blur(x, 2)
    if on_cpu(platform):
        return _rounded(_cpu_down, x, kernel)
    return _gpu_down(x, kernel) if platform == "auto" and backend() == "gpu" else _down(x, kernel)


def double_and_convolve(x: jax.Array, kernel: jax.Array, platform: str = "auto") -> jax.Array:
    """Convolved with the transpose of stride 2, then filtered: (b, h, w, c), (3, 3, c, d) -> (b, 2h, 2w, d).

    Before the filter y[2i + u, 2j + v] += x[i, j] k[u, v]; torch's conv_transpose2d. Four times the filter's gain makes
    up for the zeros between pixels.
    """
    kernel = kernel.swapaxes(2, 3)  # of `down`, whose transpose this is
    if on_cpu(platform):
        y = _rounded(_cpu_up, x, kernel)
    else:
        y = (_gpu_up if platform == "auto" and backend() == "gpu" else _up)(x, kernel)
    return blur(y, 1, gain=4.0)


def _rounded(operation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Of numbers of 16 bits: computed in float32, which CPUs are faster in, and rounded once."""
    if x.dtype.itemsize >= 4:
        return operation(x, kernel)
    return operation(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)


def _down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(b, 2h + 1, 2w + 1, c), (3, 3, c, d) -> (b, h, w, d)."""
    return lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=_NHWC)


def _up(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """The transpose of `_down`: (b, h, w, d), (3, 3, c, d) -> (b, 2h + 1, 2w + 1, c)."""
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    pads = ((2, 2), (2, 2))
    return lax.conv_general_dilated(y, turned, (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=_NHWC)


def _by_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    """The derivative of sum(y * _down(x, kernel)) by the kernel: (3, 3, c, d)."""
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], y.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _down(x, kernel), kernel)(y)[0]


# On GPUs cuDNN has an operation for each of the three, to which XLA brings them from these forms, and not `_up`'s own
# derivative by the kernel.
_gpu_down, _gpu_up, _ = cpu.with_derivatives(_down, _up, _by_kernel)


def _fast_up(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """Pixels of even and of odd rows and columns meet each their own part of the kernel: four convolutions."""
    (b, h, w, _), c = y.shape, kernel.shape[2]

    def part(r: int, s: int) -> jax.Array:
        taps = kernel[r::2, s::2]
        p, q = taps.shape[:2]
        found = cpu.convolve(y, taps[::-1, ::-1].swapaxes(2, 3), (p - 1, q - 1))
        return jnp.pad(found, ((0, 0), (0, 2 - p), (0, 2 - q), (0, 0)))

    rows = [jnp.stack([part(r, 0), part(r, 1)], 3) for r in (0, 1)]  # (b, h + 1, w + 1, 2, c)
    return jnp.stack(rows, 2).reshape(b, 2 * h + 2, 2 * w + 2, c)[:, :-1, :-1]


def _fast_down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return cpu.convolve(x, kernel, stride=(2, 2))


def _fast_by_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    return cpu.kernel_gradient(x, y, (3, 3), stride=2)


_cpu_down, _cpu_up, _ = cpu.with_derivatives(_fast_down, _fast_up, _fast_by_kernel)
