"""A batch in parts gives what the whole gives: gradients, what is told of each picture, and whole steps of methods."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_r3gan
import test_stylegan2

from ganstyle_jax.gan import r3gan, stylegan2
from ganstyle_jax.nn import micro_batches

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("parts, group", [(1, 1), (2, 1), (4, 3), (6, 2), (3, 4)])
def test_parts_are_groups_in_turn_and_can_be_joined(parts, group):
    x = jnp.arange(24).reshape(12, 2).repeat(2, 0)  # 24 rows
    divided = micro_batches.divide(x, parts, group)
    assert divided.shape == (parts, 24 // parts, 2)
    np.testing.assert_array_equal(micro_batches.join(divided, group), x)
    groups = np.arange(24).reshape(-1, group)
    for i, part in enumerate(divided):
        np.testing.assert_array_equal(part, x[groups[i::parts].ravel()])


def test_how_many_parts():
    assert micro_batches.count(32, None) == 1
    assert [micro_batches.count(32, most) for most in (64, 32, 31, 16, 12, 1)] == [1, 1, 2, 2, 4, 32]
    assert micro_batches.count(24, 16) == 2  # of 12: equal parts
    assert [micro_batches.count(32, most, 8) for most in (16, 15, 8)] == [2, 4, 4]
    with pytest.raises(ValueError, match=r"micro_batch must be at least 8 here, 8 on each device.*got 7.*32 pictures"):
        micro_batches.count(32, 7, 8)


def linear(params, batch):
    x, y = batch
    return x @ params["w"] + params["b"] - y, {"x": x}


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_gradients_of_means_and_of_all_together(x64, parts):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=3)), "b": jnp.asarray(0.5)}
    batch = jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.normal(size=12))

    def mean(params, batch):
        error, more = linear(params, batch)
        return (error**2).mean(), (error, more)

    expected, gradients = jax.value_and_grad(mean, has_aux=True)(params, batch)
    found = jax.jit(lambda p, b: micro_batches.value_and_grad(mean, p, b, parts, group=2))(params, batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-13), found, (expected, gradients))

    def spread(errors):  # no mean over pictures
        return ((errors - errors.mean()) ** 4).mean() ** 0.25, errors.max()

    expected = jax.grad(lambda params: spread(linear(params, batch)[0])[0])(params)
    largest, more, gradients = micro_batches.value_and_grad_of_all(linear, spread, params, batch, parts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-15), gradients, expected)
    np.testing.assert_allclose(largest, linear(params, batch)[0].max(), rtol=1e-13)
    np.testing.assert_array_equal(more["x"], batch[0])


def assert_same_steps(method, cfg, state, batch, key, **options):
    """A step in parts is the step of the whole, in float64 but for the order of sums, and so are its metrics."""
    step = jax.jit(method.train_step, static_argnames="cfg")
    expected, found = (step(state, batch, key, c) for c in (cfg, dataclasses.replace(cfg, **options)))
    scale = jax.tree.map(lambda x: np.abs(np.asarray(x)).max(initial=1e-3), expected)
    jax.tree.map(lambda a, b, s: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * s), found, expected, scale)
    before = jax.tree.leaves(state.gen.params) + jax.tree.leaves(state.disc.params)
    after = jax.tree.leaves(found[0].gen.params) + jax.tree.leaves(found[0].disc.params)
    assert sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) / 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"micro_batch": 2}, {"remat": True}], ids=["parts", "remat"])
def test_a_step_of_stylegan2_in_parts(x64, options):
    """With all its phases, augmentations, classes and groups of pictures that are compared."""
    cfg, images = test_stylegan2.PARITY, test_stylegan2.pictures(0, 8, test_stylegan2.PARITY)
    batch = {"real": {"image": images, "label": np.arange(8) % 3}}
    assert_same_steps(stylegan2, cfg, test_stylegan2.a_state(cfg), batch, jax.random.key(3), **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"micro_batch": 1}, {"remat": True}], ids=["parts", "remat"])
def test_a_step_of_r3gan_in_parts(x64, options):
    cfg = dataclasses.replace(
        test_r3gan.PARITY, conditional=True, classes=3, augment="color,cutout", augment_policy="geometry,noise"
    )
    state, batch = test_r3gan.filled(cfg), test_r3gan.batch(0, cfg)
    assert_same_steps(r3gan, cfg, state, batch, jax.random.key(3), **options)


def test_an_update_of_r3gan_in_parts(x64):
    cfg = dataclasses.replace(test_r3gan.PARITY, augment="cutout")
    state, key = test_r3gan.filled(cfg), jax.random.key(3)
    now = r3gan.scheduled(jnp.asarray(8.0), cfg) | {"augment_probability": jnp.asarray(0.5)}
    drawn = [r3gan.draw_distortion(jax.random.fold_in(key, i), 4, now, cfg, None) for i in range(2)]
    z = jax.random.normal(key, (4, cfg.recipe.latent_dim), jnp.float64)
    part = r3gan.Part(z, test_r3gan.pictures(0, 4, cfg), None, *drawn)
    found = []
    for micro_batch in (None, 2):
        c = dataclasses.replace(cfg, micro_batch=micro_batch)
        update = jax.jit(lambda gen, disc, part, c=c: r3gan.update_generator(gen, disc, part, now, 0, c, None))
        found.append(update(state.gen, state.disc, part))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), *found)


def test_parts_must_leave_groups_whole():
    cfg = dataclasses.replace(test_stylegan2.TINY, group=4, micro_batch=2)
    batch = {"real": {"image": test_stylegan2.pictures(0, 8)}}
    with pytest.raises(ValueError, match=r"micro_batch must be at least 4 here.*got 2"):
        jax.eval_shape(lambda s: stylegan2.train_step(s, batch, jax.random.key(0), cfg), test_stylegan2.a_state(cfg))
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got 0"):
        stylegan2.Config(micro_batch=0)
