"""Averages of weights over training."""

import jax
import jax.numpy as jnp

RAMP = 0.05  # of the images seen, which the half-life is at most


def ema(average, params, halflife_images: float, batch_size: int, seen: jax.Array | None = None):
    """Exponential moving average of a tree of weights, its half-life in images so that it survives a change of batch.

    A half-life of 0 returns `params` (Karras et al. 2018, section 3; half-life as in Karras et al. 2020's code). seen:
    images of all steps by now, these among them, () of any number type: the half-life is at most a twentieth of them,
    so that the first weights are soon forgotten (Karras et al. 2020's ramp-up).
    """
    if halflife_images <= 0:
        decay = 0.0
    elif seen is None:
        decay = 0.5 ** (batch_size / halflife_images)
    else:
        decay = 0.5 ** (batch_size / jnp.minimum(halflife_images, RAMP * seen))
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
