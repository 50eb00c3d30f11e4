"""The line search that evaluates at one place of its program is optax's, step for step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ganstyle_jax.style import line_search

SCALES = jnp.asarray([1.0, 30.0, 400.0, 5.0])


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def with_a_cliff(x):  # NaN beyond it, as features are that overflow
    return jnp.where(jnp.max(jnp.abs(x)) > 2.5, jnp.nan, jnp.sum(SCALES * x**2) + jnp.sum(jnp.sin(5 * x)))


def run(search, function, steps):
    solver = optax.lbfgs(memory_size=5, linesearch=search)

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(function)(x)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=function)
        return optax.apply_updates(x, updates), state

    x = jnp.asarray([-1.2, 1.0, 2.0, -0.7])
    state, seen = solver.init(x), []
    for _ in range(steps):
        x, state = step(x, state)
        last = state[-1]
        seen.append((x, last.value, last.grad, last.info.num_linesearch_steps, last.info.decrease_error))
    return seen


@pytest.mark.parametrize("most", [2, 15])  # with 2 it often fails
@pytest.mark.parametrize("function", [rosenbrock, with_a_cliff])
def test_it_is_optaxs(x64, function, most):
    usual = optax.scale_by_zoom_linesearch(max_linesearch_steps=most, initial_guess_strategy="one")
    assert line_search.zoom_linesearch is not None
    expected, found = run(usual, function, 12), run(line_search.zoom(most), function, 12)
    counts = [int(step[3]) for step in expected]
    assert counts == [int(step[3]) for step in found] and max(counts) > 1
    for one, other in zip(expected, found, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_allclose(y, x, rtol=1e-7, atol=1e-9)


def test_the_loss_is_written_into_the_program_once():
    def function(x):
        return jnp.sum(jnp.cos(x))

    def text(search):
        x = jnp.zeros(4)
        state = search.init(x)
        how = {"value": jnp.zeros(()), "grad": x, "value_fn": function}
        return str(jax.make_jaxpr(lambda x: search.update(x, state, x, **how))(x))

    usual = optax.scale_by_zoom_linesearch(max_linesearch_steps=9, initial_guess_strategy="one")
    assert text(usual).count(" cos ") == 2 and text(line_search.zoom(9)).count(" cos ") == 1
