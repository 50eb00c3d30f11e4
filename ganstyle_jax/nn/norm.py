"""BatchNorm and instance normalisation with PyTorch's conventions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.nn.convolutions import backend
from ganstyle_jax.nn.devices import axis_size, pmean


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with PyTorch's conventions, and a ReLU: (..., c) -> (..., c).

    Differs from `flax.linen.BatchNorm`: the running variance is the unbiased one, as PyTorch keeps it, so that weights
    and statistics move between the two; statistics are taken in at least float32, and the variance in two passes on
    CPUs, elsewhere in one about the running mean.
    Under `jit` the statistics are those of the global batch; under `pmap`, of the global batch if `axis_name` is given.
    """

    dtype: jnp.dtype = jnp.float32  # of the result
    param_dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.1  # weight of the new batch in the running statistics
    epsilon: float = 1e-5
    slope: float = 1.0  # below 0 of what follows: 1 for nothing, 0 for a ReLU, between them for a leaky one
    batches: int = 1  # that lie interleaved, x[i::batches], and are normalised each by itself, in turn

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """train: normalise with the batch's statistics and, where `batch_stats` is mutable, update the running ones."""
        shape = x.shape[-1:]
        scale = self.param("scale", lambda key: 1 + 0.02 * jax.random.normal(key, shape, self.param_dtype))
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            y = (x.astype(self.param_dtype) - running_mean.value) * factor + bias
            return _leaky(y, self.slope).astype(self.dtype)
        apart = x.reshape(-1, self.batches, *x.shape[1:])
        norm, near = (batch_norm, None) if backend() == "cpu" else (lean_batch_norm, running_mean.value)
        y, mean, var = norm(apart, scale, bias, near, self.axis_name, self.epsilon, self.slope)
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            n = axis_size(self.axis_name) * x.size // x.shape[-1] // self.batches
            keep = 1 - self.momentum
            for i in range(self.batches):
                running_mean.value = keep * running_mean.value + self.momentum * mean[i]
                running_var.value = keep * running_var.value + self.momentum * var[i] * (n / max(n - 1, 1))
        return y.reshape(x.shape).astype(self.dtype)


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near: jax.Array | None,
    axis_name: str | None,
    epsilon: float,
    slope: float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(b, n, ..., c) -> the same normalised over all axes but the second and the last, mean (n, c), variance (n, c).

    scale, bias: (c,); slope: of a ReLU that follows, see `BatchNorm`; near: (c,), close to the mean. With it mean and
    variance are taken in one pass, and by how close it is they lose digits; without it in two.
    """
    wide = x.astype(scale.dtype)
    if near is None:
        mean = pmean(_mean(wide), axis_name)
        var = pmean(_mean((wide - _along(mean, x)) ** 2), axis_name)
    else:
        off = wide - lax.stop_gradient(near)
        first, second = pmean(jnp.stack([_mean(off), _mean(off**2)]), axis_name)
        mean, var = first + near, jnp.maximum(second - first**2, 0)
    y = _normalised(x, scale, bias, mean, var, epsilon)
    return _leaky(y, slope).astype(x.dtype), mean, var


def _mean(x: jax.Array) -> jax.Array:
    """(b, n, ..., c) -> (n, c)."""
    return x.mean((0, *range(2, x.ndim - 1)))


def _along(values: jax.Array, x: jax.Array) -> jax.Array:
    """(n, c), so that it broadcasts to x (b, n, ..., c)."""
    return values.reshape(1, values.shape[0], *[1] * (x.ndim - 3), values.shape[1])


def _normalised(x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float) -> jax.Array:
    factor = scale * lax.rsqrt(var + epsilon)
    return (x.astype(scale.dtype) - _along(mean, x)) * _along(factor, x) + bias


def _leaky(y: jax.Array, slope: float) -> jax.Array:
    return y if slope == 1 else jnp.where(y > 0, y, slope * y)


# The same with a derivative that is written out, for GPUs and TPUs, which wait for memory here: each direction goes
# through x twice, for two sums that the devices exchange at once, and for the result. What JAX derives goes through it
# more often, and keeps what came before the ReLU. The price is forward-mode differentiation.

lean_batch_norm = jax.custom_vjp(batch_norm, nondiff_argnums=(4, 5, 6))


def _forward(x: Any, scale: Any, bias: Any, near: Any, axis_name: Any, epsilon: Any, slope: Any = 1.0):
    y, mean, var = lean_batch_norm(x, scale, bias, near, axis_name, epsilon, slope)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(axis_name: str | None, epsilon: float, slope: float, residuals: Any, gradients: Any):
    """With z the normalised x: dx = (dy - mean of dy - z times the mean of dy z) scale / deviation."""
    x, scale, bias, mean, var = residuals
    dy, d_mean, d_var = gradients
    wide, dy = x.astype(scale.dtype), dy.astype(scale.dtype)
    y = _normalised(x, scale, bias, mean, var, epsilon)
    # Said in ways of their own: else where y is positive would be an array, to be written once and read four times.
    positive = (-y < 0, 2 * y > 0, 4 * y > 0)
    dy, again, once_more = (dy if slope == 1 else jnp.where(where, dy, slope * dy) for where in positive)
    inverse = lax.rsqrt(var + epsilon)
    z = (wide - _along(mean, x)) * _along(inverse, x)
    here = jnp.stack([_mean(dy), _mean(again * z)])
    by_bias, by_scale = pmean(here, axis_name)
    dx = (once_more - _along(by_bias, x) - z * _along(by_scale, x)) * _along(scale * inverse, x)
    # What comes from the statistics themselves: nothing, but of second derivatives.
    n = float(x.size // mean.size)
    d_mean, d_var = pmean(jnp.stack([d_mean, d_var]), axis_name)
    dx += (_along(d_mean, x) + 2 * (wide - _along(mean, x)) * _along(d_var, x)) / n
    # Gradients by weights are each device's own, to be averaged with the rest of them.
    own_bias, own_scale = n * here.sum(1)
    return dx.astype(x.dtype), own_scale, own_bias, jnp.zeros_like(scale)


lean_batch_norm.defvjp(_forward, _backward)


def instance_norm(
    x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None, epsilon: float = 1e-5
) -> jax.Array:
    """Each picture's channels to mean shift and deviation scale: (b, h, w, c), (b, c), (b, c) -> (b, h, w, c).

    Scale and shift are of any shape that broadcasts to (b, c), by default 1 and 0.

    Ulyanov et al. 2016 (arXiv:1607.08022), eq. 4: statistics over rows and columns, the variance biased, as PyTorch's
    InstanceNorm2d has it; taken in at least float32 and in two passes.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean((1, 2), keepdims=True)
    var = jnp.mean((wide - mean) ** 2, (1, 2), keepdims=True)
    factor = lax.rsqrt(var + epsilon)
    if scale is not None:
        factor = scale[..., None, None, :] * factor
    x_normal = (wide - mean) * factor
    return (x_normal if shift is None else x_normal + shift[..., None, None, :]).astype(x.dtype)
