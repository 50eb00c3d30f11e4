"""BatchNorm and instance normalisation with PyTorch's conventions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.nn.devices import axis_size, pmean


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with PyTorch's conventions, (..., c) -> (..., c).

    Differs from `flax.linen.BatchNorm`: the running variance is the unbiased one, as PyTorch keeps it, so that weights
    and statistics move between the two; statistics are taken in at least float32 and the variance in two passes.
    Under `jit` the statistics are those of the global batch; under `pmap`, of the global batch if `axis_name` is given.
    """

    dtype: jnp.dtype = jnp.float32  # of the result
    param_dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.1  # weight of the new batch in the running statistics
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """train: normalise with the batch's statistics and, where `batch_stats` is mutable, update the running ones."""
        shape = x.shape[-1:]
        scale = self.param("scale", lambda key: 1 + 0.02 * jax.random.normal(key, shape, self.param_dtype))
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        wide = x.astype(self.param_dtype)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = pmean(wide.mean(axes), self.axis_name)
            var = pmean(jnp.mean((wide - mean) ** 2, axes), self.axis_name)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                n = axis_size(self.axis_name) * x.size // x.shape[-1]
                keep = 1 - self.momentum
                running_mean.value = keep * running_mean.value + self.momentum * mean
                running_var.value = keep * running_var.value + self.momentum * var * (n / max(n - 1, 1))
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.epsilon)
        return ((wide - mean) * factor + bias).astype(self.dtype)


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
