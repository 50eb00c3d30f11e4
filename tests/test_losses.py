"""Losses against numbers worked out by hand, on both sides of zero; penalties against critics with known gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from ganstyle_jax.nn import losses

NAMES = ["non_saturating", "minimax", "least_squares", "hinge", "wasserstein"]
REAL = jnp.array([0.0, 1.0, -1.0, 2.0, -2.0, 0.5])
FAKE = jnp.array([0.0, -1.0, 1.0, -3.0, 0.5, -0.25])
LOGITS = jnp.array([0.0, 1.0, -1.0, 3.0, -2.0])
DISCRIMINATOR_SLOPES = {name: jax.jit(jax.grad(loss, (0, 1))) for name, loss in losses.DISCRIMINATOR.items()}
GENERATOR_SLOPES = {name: jax.jit(jax.grad(loss)) for name, loss in losses.GENERATOR.items()}
logit = st.floats(-20, 20, width=32)


# softplus(0) = 0.6931472, softplus(1) = 1.3132617, softplus(-1) = 0.3132617, softplus(2) = 2.1269280, softplus(-2) =
# 0.1269280, softplus(-3) = 0.0485874, softplus(0.5) = 0.9740770, softplus(-0.5) = 0.4740770,
# softplus(-0.25) = 0.5759394
@pytest.mark.parametrize(
    "name, expected",
    [
        ("non_saturating", [1.3862944, 0.6265234, 2.6265234, 0.1755154, 3.1010050, 1.0500164]),
        ("minimax", [1.3862944, 0.6265234, 2.6265234, 0.1755154, 3.1010050, 1.0500164]),
        ("least_squares", [0.5, 0.5, 2.5, 5.0, 4.625, 0.15625]),
        ("hinge", [2.0, 0.0, 4.0, 0.0, 4.5, 1.25]),
        ("wasserstein", [0.0, -2.0, 2.0, -5.0, 2.5, -0.75]),
    ],
)
def test_discriminator_losses_at_known_logits(name, expected):
    np.testing.assert_allclose(losses.DISCRIMINATOR[name](REAL, FAKE), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("non_saturating", [0.6931472, 0.3132617, 1.3132617, 0.0485874, 2.1269280]),
        ("minimax", [-0.6931472, -1.3132617, -0.3132617, -3.0485874, -0.1269280]),
        ("least_squares", [0.5, 0.0, 2.0, 2.0, 4.5]),
        ("hinge", [0.0, -1.0, 1.0, -3.0, 2.0]),
        ("wasserstein", [0.0, -1.0, 1.0, -3.0, 2.0]),
    ],
)
def test_generator_losses_at_known_logits(name, expected):
    np.testing.assert_allclose(losses.GENERATOR[name](LOGITS), expected, rtol=1e-6, atol=1e-7)


def test_both_tables_offer_the_same_games():
    assert list(losses.DISCRIMINATOR) == list(losses.GENERATOR) == NAMES


@given(real=logit, fake=logit)
def test_the_logistic_losses_are_cross_entropies_of_probabilities(real, fake):
    with jax.enable_x64(True):  # D(x) = 1 / (1 + exp(-x)), as the papers write it; at 20 in float32, 1 - D is 0
        p_real, p_fake = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
        real, fake = jnp.float64(real), jnp.float64(fake)
        disc = -np.log(p_real) - np.log(1 - p_fake)
        np.testing.assert_allclose(losses.discriminator_logistic(real, fake), disc, rtol=1e-6)
        np.testing.assert_allclose(losses.generator_non_saturating(fake), -np.log(p_fake), rtol=1e-6)
        np.testing.assert_allclose(losses.generator_minimax(fake), np.log(1 - p_fake), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_one_value_per_image(name):
    """A loss of a batch is the losses of its images: they do not look at each other."""
    batch = losses.DISCRIMINATOR[name](REAL, FAKE), losses.GENERATOR[name](FAKE)
    for i in range(len(REAL)):
        single = losses.DISCRIMINATOR[name](REAL[i : i + 1], FAKE[i : i + 1]), losses.GENERATOR[name](FAKE[i : i + 1])
        assert single[0].shape == single[1].shape == (1,)
        np.testing.assert_array_equal(single, (batch[0][i : i + 1], batch[1][i : i + 1]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_large_logits_stay_finite(name, dtype):
    logits = jnp.array([1e4, -1e4, 1e4, -1e4], dtype)
    others = jnp.array([1e4, -1e4, -1e4, 1e4], dtype)
    evaluate = jax.jit(jax.value_and_grad(lambda x, y: losses.DISCRIMINATOR[name](x, y).sum(), (0, 1)))
    value, slopes = evaluate(logits, others)
    assert value.dtype == dtype
    assert np.isfinite([value.astype(float), *jnp.ravel(jnp.array(slopes)).astype(float)]).all()
    value, slope = jax.jit(jax.value_and_grad(lambda x: losses.GENERATOR[name](x).sum()))(logits)
    assert value.dtype == dtype
    assert np.isfinite([value.astype(float), *slope.astype(float)]).all()


def test_large_logits_give_the_linear_branches():
    """Sure and wrong costs the logit itself; sure and right costs nothing."""
    sure = jnp.array([1e4, -1e4])
    np.testing.assert_allclose(losses.generator_non_saturating(sure), [0, 1e4])
    np.testing.assert_allclose(losses.generator_minimax(sure), [-1e4, 0])
    np.testing.assert_allclose(losses.discriminator_logistic(sure, -sure), [0, 2e4])
    np.testing.assert_allclose(losses.discriminator_hinge(sure, -sure), [0, 2e4 + 2])


@pytest.mark.parametrize("name", NAMES)
@given(real=st.floats(-10, 0.9375, width=32), fake=st.floats(-0.9375, 10, width=32))
def test_the_discriminator_pushes_real_logits_up_and_fake_ones_down(name, real, fake):
    """Within the range where every loss asks for more: hinge is content beyond +-1, least squares at 1 and 0."""
    fake = max(fake, 0.0625) if name == "least_squares" else fake
    by_real, by_fake = DISCRIMINATOR_SLOPES[name](np.float32(real), np.float32(fake))
    assert by_real < 0 < by_fake


@pytest.mark.parametrize("name", NAMES)
@given(fake=st.floats(-10, 0.9375, width=32))
def test_the_generator_pushes_its_logits_up(name, fake):
    assert GENERATOR_SLOPES[name](np.float32(fake)) < 0


def test_where_losses_are_content():
    hinge = jax.grad(losses.discriminator_hinge, (0, 1))
    assert hinge(1.5, -1.5) == (0, 0)
    assert hinge(0.5, -0.5) == (-1, 1)
    assert jax.grad(losses.discriminator_least_squares, (0, 1))(1.0, 0.0) == (0, 0)
    assert jax.grad(losses.generator_least_squares)(1.0) == 0
    assert jax.grad(losses.generator_least_squares)(3.0) == 2  # and pulls back what overshoots


@given(fake=logit)
def test_minimax_saturates_where_non_saturating_does_not(fake):
    """Slopes -D(G(z)) and -(1 - D(G(z))): the same aim, but a sure discriminator leaves minimax without gradient."""
    with jax.enable_x64(True):
        d = 1 / (1 + np.exp(-fake))
        minimax = GENERATOR_SLOPES["minimax"](np.float64(fake))
        non_saturating = GENERATOR_SLOPES["non_saturating"](np.float64(fake))
    np.testing.assert_allclose(minimax, -d, rtol=1e-12)
    np.testing.assert_allclose(non_saturating, -(1 - d), rtol=1e-6)
    # The two agree only where D(G(z)) = 1/2; a rejected image (logit < 0) moves faster without saturation.
    assert (abs(non_saturating) > abs(minimax)) == (fake < 0) or abs(fake) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_slopes_by_finite_differences(x64, name):
    real, fake = jnp.linspace(-3.3, 2.9, 7), jnp.linspace(2.7, -3.1, 7)  # away from the kinks of the hinge
    check_grads(losses.DISCRIMINATOR[name], (real, fake), order=1)
    check_grads(losses.GENERATOR[name], (fake,), order=1)


# ---------------------------------------------------------------------------------------------------------------------
# Gradient penalties

SHAPE = (4, 3, 5, 2)


def normal(seed, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.zeros(()).dtype)


def linear(weights):
    return lambda images: jnp.einsum("bhwc,hwc->b", images, weights)


def curved(weights, images):
    """A critic whose gradient depends on the image and on the weights."""
    return jnp.tanh(jnp.einsum("bhwc,hwck->bk", images, weights)).sum(-1)


@functools.partial(jax.jit, static_argnums=0)
def of_linear(penalty, weights, *images):
    return penalty(linear(weights), *images)


@pytest.mark.parametrize("penalty", [losses.r1_penalty, losses.r2_penalty])
@given(scale=st.floats(0, 10, width=32), seed=st.integers(0, 9))
def test_r1_and_r2_of_a_linear_critic_are_its_squared_norm(penalty, scale, seed):
    weights = scale * normal(seed, SHAPE[1:])
    expected = np.full(len(normal(0)), np.sum(np.asarray(weights, np.float64) ** 2))
    # A sum of 30 float32 squares, which vanish where the weights are tiny.
    np.testing.assert_allclose(of_linear(penalty, weights, normal(seed + 1)), expected, rtol=1e-5, atol=1e-12)


@given(scale=st.floats(0.0625, 10, width=32), seed=st.integers(0, 9))
def test_gradient_penalty_of_a_linear_critic(scale, seed):
    weights = normal(seed, SHAPE[1:])
    weights = scale * weights / jnp.linalg.norm(weights)  # |w| is the scale
    mix = jnp.linspace(0, 1, 4).reshape(4, 1, 1, 1)
    penalty = of_linear(losses.gradient_penalty, weights, normal(seed + 1), normal(seed + 2), mix)
    # (|w| - 1)^2 cancels near |w| = 1, so the error of |w|, a few float32 ulps, is what counts.
    np.testing.assert_allclose(penalty, np.full(4, (scale - 1) ** 2), rtol=1e-5, atol=1e-5)


def test_penalties_belong_to_single_images():
    """D(x) = |x|^2 / 2 has the gradient x itself."""
    real, fake = normal(1), normal(2)

    def critic(images):
        return 0.5 * jnp.sum(images**2, axis=(1, 2, 3))

    norms = np.linalg.norm(np.asarray(real).reshape(4, -1), axis=1)
    np.testing.assert_allclose(losses.r1_penalty(critic, real), norms**2, rtol=1e-5)
    np.testing.assert_allclose(losses.r2_penalty(critic, real), norms**2, rtol=1e-5)
    mix = jnp.array([1.0, 0.0, 0.25, 0.5]).reshape(4, 1, 1, 1)
    points = [real[0], fake[1], 0.25 * real[2] + 0.75 * fake[2], 0.5 * (real[3] + fake[3])]
    expected = [(np.linalg.norm(np.ravel(point)) - 1) ** 2 for point in points]
    np.testing.assert_allclose(losses.gradient_penalty(critic, real, fake, mix), expected, rtol=1e-5)


def test_penalties_of_a_curved_critic_by_finite_differences(x64):
    weights, real, fake = 0.3 * normal(0, (*SHAPE[1:], 3)), normal(1), normal(2)
    mix = jnp.linspace(0.1, 0.9, 4).reshape(4, 1, 1, 1)

    values = jax.jit(curved)

    def squared_norm(images):
        """|grad D|^2 by central differences, whose error is of the order of step^2."""
        flat, step = np.asarray(images).reshape(4, -1), 1e-5
        total = np.zeros(4)
        for i in range(flat.shape[1]):
            shift = step * np.eye(flat.shape[1])[i]
            ahead, behind = (values(weights, (flat + s).reshape(SHAPE)) for s in (shift, -shift))
            total += ((np.asarray(ahead) - np.asarray(behind)) / (2 * step)) ** 2
        return total

    def critic(images):
        return curved(weights, images)

    r1, r2 = (jax.jit(functools.partial(penalty, critic)) for penalty in (losses.r1_penalty, losses.r2_penalty))
    np.testing.assert_allclose(r1(real), squared_norm(real), rtol=1e-7)
    np.testing.assert_allclose(r2(fake), squared_norm(fake), rtol=1e-7)
    between = mix * real + (1 - mix) * fake
    expected = (np.sqrt(squared_norm(between)) - 1) ** 2
    np.testing.assert_allclose(losses.gradient_penalty(critic, real, fake, mix), expected, rtol=1e-7)


def test_slopes_of_penalties_by_finite_differences(x64):
    """What training uses: the penalty's own gradient, by the weights."""
    real, fake = normal(1), normal(2)
    mix = jnp.linspace(0.1, 0.9, 4).reshape(4, 1, 1, 1)
    weights = (0.3 * normal(0, (*SHAPE[1:], 3)),)
    check_grads(jax.jit(lambda w: losses.r1_penalty(lambda x: curved(w, x), real)), weights, order=1)
    check_grads(jax.jit(lambda w: losses.r2_penalty(lambda x: curved(w, x), fake)), weights, order=1)
    check_grads(jax.jit(lambda w: losses.gradient_penalty(lambda x: curved(w, x), real, fake, mix)), weights, order=1)


def test_gradient_penalty_of_a_constant_critic_is_one_and_has_a_gradient():
    """The square root has no slope at 0, where a critic begins whose last layer is 0."""
    mix = jnp.full((4, 1, 1, 1), 0.5)

    def penalty(weights):
        return losses.gradient_penalty(lambda x: curved(weights, x), normal(1), normal(2), mix)

    weights = jnp.zeros((*SHAPE[1:], 3))
    np.testing.assert_array_equal(penalty(weights), np.ones(4))
    assert np.isfinite(jax.grad(lambda w: penalty(w).sum())(weights)).all()
