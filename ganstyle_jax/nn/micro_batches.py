"""A batch in parts that are computed one after the other, where the whole of it does not fit: the same gradients.

Each part is so many whole groups of neighbours, taken from the batch at equal distances: where devices share the batch,
each of them has as much of every part, and no picture leaves its device. All random numbers are drawn for the whole
batch before, so that a picture sees the same ones in whatever part it is. What differs is the order of sums.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ganstyle_jax.nn import devices

Function = Callable[[Any, Any], tuple[jax.Array, Any]]  # (params, batch) -> (result, more of each picture (b, ...))


def count(b: int, micro_batch: int | None, group: int = 1, axis_name: str | None = None) -> int:
    """In how many parts b pictures are computed so that a part of the global batch has at most `micro_batch`.

    b: this device's pictures; group: of so many neighbours a part has all or none. ValueError where no part has so few.
    """
    if micro_batch is None:
        return 1
    most = micro_batch // devices.axis_size(axis_name)
    fitting = [n for n in range(1, b // group + 1) if b % (n * group) == 0 and b // n <= most]
    if not fitting:
        least = group * devices.axis_size(axis_name)
        raise ValueError(
            f"micro_batch must be at least {least} here, {group} on each device which belong together, got "
            f"{micro_batch}, and they must divide a device's {b} pictures"
        )
    return fitting[0]


def value_and_grad(loss: Function, params: Any, batch: Any, parts: int = 1, group: int = 1) -> tuple[Any, Any]:
    """((value, more), gradients) of a loss that is a mean over pictures, as of `jax.value_and_grad(has_aux=True)`.

    batch: arrays (b, ...) in a tree.
    """
    function = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return function(params, batch)

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        (value, more), gradients = function(params, part)
        return jax.tree.map(jnp.add, total, (value, gradients)), more

    divided = jax.tree.map(lambda x: divide(x, parts, group), batch)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), divided)
    (value, _), _ = jax.eval_shape(function, params, first)
    zeros = jnp.zeros(value.shape, value.dtype), jax.tree.map(jnp.zeros_like, params)
    total, more = lax.scan(add, zeros, divided)
    value, gradients = jax.tree.map(lambda x: x / parts, total)
    return (value, jax.tree.map(lambda x: join(x, group), more)), gradients


def value_and_grad_of_all(
    outputs: Function, loss: Callable[[jax.Array], tuple[jax.Array, Any]], params: Any, batch: Any, parts: int = 1
) -> tuple[Any, Any, Any]:
    """(loss's auxiliary value, more, gradients) of a loss of all pictures' outputs (b, ...) together.

    In parts the outputs are computed twice: first for the loss, and then with the gradient that it has by each.
    """
    if parts == 1:
        found, pull_back, more = jax.vjp(lambda params: outputs(params, batch), params, has_aux=True)
        by_output, value = jax.grad(loss, has_aux=True)(found)
        return value, more, pull_back(by_output)[0]
    found, more = lax.map(lambda part: outputs(params, part), jax.tree.map(lambda x: divide(x, parts), batch))
    by_output, value = jax.grad(loss, has_aux=True)(join(found))

    def product(params: Any, part: Any) -> tuple[jax.Array, None]:
        batch, by_output = part
        return parts * jnp.sum(outputs(params, batch)[0] * by_output), None

    _, gradients = value_and_grad(product, params, (batch, by_output), parts)
    return value, jax.tree.map(join, more), gradients


def divide(x: jax.Array, parts: int, group: int = 1) -> jax.Array:
    """(b, ...) to (parts, b / parts, ...): groups in turn to the first part, the second, and so on."""
    b, *rest = x.shape
    return x.reshape(b // (parts * group), parts, group, *rest).swapaxes(0, 1).reshape(parts, b // parts, *rest)


def join(x: jax.Array, group: int = 1) -> jax.Array:
    """Undoes `divide`."""
    parts, b, *rest = x.shape
    return x.reshape(parts, b // group, group, *rest).swapaxes(0, 1).reshape(parts * b, *rest)
