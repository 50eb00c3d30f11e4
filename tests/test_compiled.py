"""What is compiled sooner is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.nn import compiled, layers


def smooth(x: jax.Array, times: int) -> jax.Array:
    for _ in range(times):
        x = jnp.tanh(0.5 * x + 0.25 * (jnp.roll(x, 1, 0) + jnp.roll(x, -1, 0)))
    return x


def test_same_numbers_and_compiled_once():
    soon = compiled.soon(smooth, static_argnames="times")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 16)), jnp.float32)
    # To roundings: what is fused with what decides how often a product and a sum are rounded together.
    np.testing.assert_allclose(soon(x, times=5), smooth(x, times=5), atol=1e-6)
    soon(x, times=5)
    assert soon._cache_size() == 1
    assert soon.__name__ == "smooth"


def test_the_choice_is_made_where_the_compiler_has_one_and_for_cpus_alone(monkeypatch):
    asked = []

    def jit(function, compiler_options=None, **options):
        def call(*args, **kwargs):
            asked.append(compiler_options)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(jax, "jit", jit)
    soon = compiled.soon(smooth, static_argnames="times")
    monkeypatch.setattr(compiled, "_has_choice", lambda: True)
    soon(jnp.ones(4), times=1)
    with layers.compiling_for("tpu"):  # for devices that are not here
        soon(jnp.ones(4), times=1)
    monkeypatch.setattr(compiled, "_has_choice", lambda: False)
    soon(jnp.ones(4), times=1)
    assert [bool(options) for options in asked] == [True, False, False]


def test_what_is_compiled_ahead_is_the_same_and_is_not_traced_again():
    traced = []

    def double(x, y):
        traced.append(x.shape)
        return 2 * x + y

    like = jax.ShapeDtypeStruct((3,), jnp.float32)
    ahead = compiled.Ahead(jax.jit(double), like, like)
    for _ in range(2):
        np.testing.assert_array_equal(ahead(np.ones(3, np.float32), jnp.ones(3)), [3, 3, 3])
    assert len(traced) == 1
    assert ahead.lower(like, like).as_text()


def test_what_is_compiled_ahead_computes_as_precisely_as_it_is_told():
    """JAX's contexts are a thread's own."""
    like = np.zeros(3)
    wide = compiled.Ahead(jax.jit(lambda x: x / 3), like, within=lambda: jax.enable_x64(True))
    with jax.enable_x64(True):
        assert wide(like).dtype == np.float64


def test_errors_of_the_compiler_come_where_it_is_called():
    def wrong(x):
        raise ValueError("no such step")

    ahead = compiled.Ahead(jax.jit(wrong), np.zeros(3))
    with pytest.raises(ValueError, match="no such step"):
        ahead(np.zeros(3))
