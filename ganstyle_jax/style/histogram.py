"""Styles as distributions of each channel's values (Risser, Wilmot & Barnes 2017, arXiv:1701.08893, section 4.1).

A Gram matrix can be met with other means and spreads than the style's, which shows as washed-out or blotched places;
the whole distribution of each channel cannot. Each value is compared with the style's value of the same rank: their
mean squared difference is the squared 2-Wasserstein distance of the two distributions, channel by channel.

Differs from the paper: ranks of sorted values, weighted by masks, in the place of histograms of 256 bins.
"""

import jax
import jax.numpy as jnp

from ganstyle_jax.style.similarity import mean_over

LEVELS = 1024  # quantiles that are kept of a style: enough that pictures of any size have the same table


def quantiles(features: jax.Array, weights: jax.Array | None = None, count: int = LEVELS) -> jax.Array:
    """Of each channel, ascending, at the levels (i + 1/2) / count: (..., n, c) of n places -> (..., count, c).

    In at least float32. weights: (..., n) of the places, not negative, by default all equal. Between values it is
    linear; with as many quantiles as places and equal weights they are the sorted values themselves.
    """
    values = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    if weights is None:
        return at_levels(_sorted(values, ascending(values)), count)
    # What weighs nothing comes last and counts as the largest that does weigh, or quantiles would lie on the way to it.
    counts = (weights > 0)[..., None]
    low = jnp.min(values, axis=-2, keepdims=True, where=counts, initial=jnp.inf)
    high = jnp.max(values, axis=-2, keepdims=True, where=counts, initial=-jnp.inf)
    low, high = (jnp.where(jnp.isfinite(x), x, 0) for x in (low, high))
    values = jnp.where(counts, values, 2 * high - low)
    order = ascending(values)
    values = jnp.minimum(_sorted(values, order), high)
    levels = _levels(weights, order, values.dtype)
    wanted = (jnp.arange(count, dtype=values.dtype) + 0.5) / count
    interpolate = jnp.vectorize(lambda x, y: jnp.interp(wanted, x, y), signature="(n),(n)->(m)")
    return jnp.moveaxis(interpolate(jnp.moveaxis(levels, -2, -1), jnp.moveaxis(values, -2, -1)), -1, -2)


def at_levels(table: jax.Array, count: int) -> jax.Array:
    """A table of quantiles (..., m, c), read at `count` levels instead: (..., count, c)."""
    if table.shape[-2] == count:
        return table
    return _read(table, (jnp.arange(count, dtype=table.dtype) + 0.5)[:, None] / count)


def remapped(features: jax.Array, table: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Each channel's values with the style's quantiles in their stead, rank by rank: (..., n, c), without a gradient.

    table: the style's quantiles (..., m, c). weights: (..., n) of the places, by default all equal. Equal values take
    the ranks in the order of their places. This is what Risser et al. call R(O).
    """
    values = jax.lax.stop_gradient(features.astype(jnp.promote_types(features.dtype, jnp.float32)))
    table = jax.lax.stop_gradient(table.astype(values.dtype))
    if weights is None:
        order = ascending(values)
        wanted = jnp.broadcast_to(at_levels(table, values.shape[-2]), values.shape)
    else:
        order = ascending(jnp.where(weights[..., None] > 0, values, 0))
        wanted = _read(table, jax.lax.stop_gradient(_levels(weights, order, values.dtype)))
    return jnp.put_along_axis(jnp.zeros_like(values), order, wanted, axis=-2, inplace=False)


def histogram_error(features: jax.Array, table: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """How far (..., n, c) is from the style's distributions (..., m, c): 0 if equal, 1 for features of zeros, (...).

    Eq. 7 of the paper, divided by the style's mean square. Its gradient is that towards `remapped`, which is held.
    """
    target = remapped(features, table, weights)
    squares = jnp.sum((features.astype(target.dtype) - target) ** 2, axis=-1)
    return mean_over(squares, weights) / mean_square(table)


def mean_square(table: jax.Array) -> jax.Array:
    """Of a style's quantiles (..., m, c), over its places and summed over channels: (...). Never quite 0."""
    return jnp.maximum(jnp.sum(jnp.mean(table**2, axis=-2), axis=-1), 1e-12)


def ascending(values: jax.Array) -> jax.Array:
    """Indices (..., n, c), int32, that sort each channel of (..., n, c); equal values stay in the order of places.

    Values count as equal that differ by less than 2^-23 of their channel's range, 2^-15 of it for 65,536 places and
    2^-11 for a million: value and place go into one whole number, which is sorted 7 times as fast as pairs are on CPUs.
    """
    count = values.shape[-2]
    whole, digits, free = (jnp.int64, 50, 63) if values.dtype == jnp.float64 else (jnp.int32, 23, 31)
    place_bits = max(1, (count - 1).bit_length())
    value_bits = min(digits, free - place_bits)
    values = jnp.swapaxes(values, -2, -1)
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    share = (values - low) / jnp.where(high > low, high - low, 1)
    keys = (share * (2**value_bits - 1)).astype(whole) << place_bits | jnp.arange(count, dtype=whole)
    order = jax.lax.sort(keys, dimension=keys.ndim - 1, is_stable=False) & (2**place_bits - 1)
    return jnp.swapaxes(order, -2, -1).astype(jnp.int32)


def _sorted(values: jax.Array, order: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, order, axis=-2)


def _levels(weights: jax.Array, order: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Where in (0, 1) each sorted value's weight has its middle: weights (..., n), order (..., n, c) -> (..., n, c)."""
    sorted_weights = jnp.take_along_axis(weights.astype(dtype)[..., None], order, axis=-2)
    total = jnp.cumsum(sorted_weights, axis=-2)
    return (total - sorted_weights / 2) / jnp.maximum(total[..., -1:, :], 1e-12)


def _read(table: jax.Array, levels: jax.Array) -> jax.Array:
    """Quantiles (..., m, c) at levels (..., n, c) or (n, 1), linear between two and constant beyond the outermost."""
    last = table.shape[-2] - 1
    at = jnp.clip(levels * (last + 1) - 0.5, 0, last)
    below = jnp.floor(at)
    part = at - below
    index = below.astype(jnp.int32)
    shape = jnp.broadcast_shapes(index.shape[:-1], (*table.shape[:-2], index.shape[-2]))
    index = jnp.broadcast_to(index, (*shape, table.shape[-1]))
    table = jnp.broadcast_to(table, (*shape[:-1], *table.shape[-2:]))
    low = jnp.take_along_axis(table, index, axis=-2)
    high = jnp.take_along_axis(table, jnp.minimum(index + 1, last), axis=-2)
    return low + part * (high - low)
