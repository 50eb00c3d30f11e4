"""optax's line search with the strong Wolfe conditions, whose program evaluates the loss at one place, not at two.

optax writes the evaluation into either branch, that which looks for an interval and that which zooms into it, and XLA
compiles a network's features and their gradient for each. Here a step of its search is asked first at which point it
wants the loss, and then told: with the compact network the program of a size takes 4.0 to 4.5 s of a processor to
compile in the place of 5.1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

try:  # the steps of the search are not in its public interface; without them the search is as optax has it
    from optax._src.linesearch import zoom_linesearch  # pyright: ignore[reportPrivateImportUsage]
except ImportError:
    zoom_linesearch: Any = None


def zoom(max_steps: int) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_zoom_linesearch`, whose first guess is always 1."""
    # 1 is the length of a quasi-Newton step; after a failed search the last one would be 0.
    usual: Any = optax.scale_by_zoom_linesearch(max_linesearch_steps=max_steps, initial_guess_strategy="one")
    if zoom_linesearch is None:
        return usual
    begin, step, going = zoom_linesearch(max_linesearch_steps=max_steps)

    def search_along(updates, state, params, *, value, grad, value_fn, **_):
        def step_once(search):
            # Told that the gradient is the point itself, a step leaves the point that it asked for as its gradient.
            # What it would fall back to after too many steps, where that has no length, is this point too.
            none = search._replace(safe_stepsize=jnp.zeros_like(search.safe_stepsize))
            asked = step(none, value_and_grad_fn=lambda x: (jnp.zeros_like(search.value), x), fn_kwargs={}).grad
            found = jax.value_and_grad(value_fn)(asked)
            return step(search, value_and_grad_fn=lambda x: found, fn_kwargs={})

        first = begin(updates, params, value=value, grad=grad, initial_guess_strategy="one")
        last = jax.lax.while_loop(going, step_once, first)
        info = state.info._replace(
            num_linesearch_steps=last.count, decrease_error=last.decrease_error, curvature_error=last.curvature_error
        )
        new = state._replace(learning_rate=last.stepsize, value=last.value, grad=last.grad, info=info)
        new = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), new, state)
        return jax.tree.map(lambda x: last.stepsize * x, updates), new

    update: Any = search_along
    return optax.GradientTransformationExtraArgs(usual.init, update)
