"""When to stop without ground truth: where the variance of the pictures on the way is least (Wang et al. 2023, TMLR;
arXiv:2112.06074).

A network that is fitted to a damaged picture passes the natural one: on the way there the pictures settle, and begin to
move again when the damage is fitted. wmv (their algorithm 1) takes the variance over a window of the last pictures, emv
(algorithm 2) a running one, which needs no window in memory. Where neither has been lower for `patience` steps, the
picture of the lowest is what was sought.

Differs: variances are means over pixels in emv too, where theirs is a sum, which stops at the same step. wmv's is
carried from picture to picture, and taken anew each time that the window has been filled.
"""

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

Stopping = Literal["wmv", "emv", "steps"]


@flax.struct.dataclass
class Watch:
    """What is known of the pictures (h, w, c) so far."""

    window: jax.Array  # (window, h, w, c), the last pictures, step k's at k % window; (0, h, w, c) without wmv
    mean: jax.Array  # (h, w, c), of the window, or the running one
    variance: jax.Array  # (), of the window, or the running one
    lowest: jax.Array  # (), variance
    waited: jax.Array  # () int32, steps since then
    stopped: jax.Array  # () bool
    best: jax.Array  # (h, w, c), what was to be kept at the lowest variance; until there is one, the last
    best_step: jax.Array  # () int32, steps done by then


def begin(picture: jax.Array, stopping: Stopping, window: int) -> Watch:
    """Before the first step. picture: of the shape and type of those to come."""
    zeros, inf = jnp.zeros_like(picture), jnp.array(jnp.inf, picture.dtype)
    kept = window if stopping == "wmv" else 0
    return Watch(
        window=jnp.zeros((kept, *picture.shape), picture.dtype),
        mean=zeros,
        variance=jnp.zeros((), picture.dtype),
        lowest=inf,
        waited=jnp.zeros((), jnp.int32),
        stopped=jnp.zeros((), bool),
        best=zeros,
        best_step=jnp.zeros((), jnp.int32),
    )


def look(
    watch: Watch,
    step: jax.Array,
    picture: jax.Array,
    kept: jax.Array,
    stopping: Stopping,
    window: int,
    patience: int,
    forgetting: float,
) -> tuple[Watch, jax.Array]:
    """After step `step`, from 0, has made a picture; (watch, variance), NaN while there is none.

    kept: the picture that would be returned for this step, such as an average. Nothing changes once it has stopped.
    """
    step = jnp.asarray(step, jnp.int32)
    if stopping == "wmv":
        pictures, mean, variance = _windowed(watch, step, picture)
        known = step >= window - 1
    elif stopping == "emv":
        pictures, (mean, variance) = watch.window, _running(watch, step, picture, forgetting)
        known = step > window  # as their code has it: the first variances mean nothing
    else:
        pictures, mean, variance, known = watch.window, watch.mean, watch.variance, jnp.array(False)
    lower = known & (variance < watch.lowest)
    taken = lower | ~known
    waited = jnp.where(lower | ~known, 0, watch.waited + 1)
    after = Watch(
        window=pictures,  # of a picture that has stopped nobody looks at it again
        mean=mean,
        variance=variance,
        lowest=jnp.where(lower, variance, watch.lowest),
        waited=waited,
        stopped=waited >= patience,
        best=jnp.where(taken, kept, watch.best),
        best_step=jnp.where(taken, step + 1, watch.best_step),
    )

    def unless_stopped(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(watch.stopped, old, new)

    names = ("mean", "variance", "lowest", "waited", "stopped", "best", "best_step")
    frozen = {name: unless_stopped(getattr(after, name), getattr(watch, name)) for name in names}
    return dataclasses.replace(after, **frozen), jnp.where(known & ~watch.stopped, variance, jnp.nan)


def _windowed(watch: Watch, step: jax.Array, picture: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(window, mean, variance) with this picture in the place of the one before the window (their eq. 3)."""
    count = len(watch.window)
    at = step % count
    old = lax.dynamic_index_in_dim(watch.window, at, keepdims=False)
    pictures = lax.dynamic_update_index_in_dim(watch.window, picture, at, 0)
    change = picture - old
    mean = watch.mean + change / count
    # Of n values of which one is replaced, the sum of squared deviations changes by this.
    variance = watch.variance + jnp.mean(change * (picture - mean + old - watch.mean)) / count

    def anew() -> tuple[jax.Array, jax.Array]:
        mean = pictures.mean(0)
        return mean, jnp.mean((pictures - mean) ** 2)

    # Rounding errors of a window are forgotten with it.
    mean, variance = lax.cond(at == count - 1, anew, lambda: (mean, variance))
    return pictures, mean, jnp.maximum(variance, 0)


def _running(watch: Watch, step: jax.Array, picture: jax.Array, forgetting: float) -> tuple[jax.Array, jax.Array]:
    """(mean, variance), theirs of algorithm 2, where the newest picture has the weight `forgetting`."""
    change = picture - watch.mean
    mean = jnp.clip(watch.mean + forgetting * change, 0, 1)
    variance = (1 - forgetting) * (watch.variance + forgetting * jnp.mean(change**2))
    return jnp.where(step == 0, picture, mean), jnp.where(step == 0, 0.0, variance)
