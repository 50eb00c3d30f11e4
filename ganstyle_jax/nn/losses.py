"""Adversarial losses and gradient penalties: pure functions, one value per image; the caller takes the mean.

Logits are the discriminator's output before any sigmoid. All are written with `softplus`, because a sigmoid followed
by a logarithm overflows as soon as the discriminator is sure: log(sigmoid(x)) = -softplus(-x).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def discriminator_logistic(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """-log D(x) - log(1 - D(G(z))), (b,) and (b,) -> (b,) (Goodfellow et al. 2014, eq. 1, negated).

    The discriminator's side of both the minimax and the non-saturating game.
    """
    return jax.nn.softplus(-real_logits) + jax.nn.softplus(fake_logits)


def generator_minimax(fake_logits: jax.Array) -> jax.Array:
    """log(1 - D(G(z))), (b,) -> (b,) (Goodfellow et al. 2014, eq. 1). Its gradient vanishes where D is sure."""
    return -jax.nn.softplus(fake_logits)


def generator_non_saturating(fake_logits: jax.Array) -> jax.Array:
    """-log D(G(z)), (b,) -> (b,) (Goodfellow et al. 2014, section 3)."""
    return jax.nn.softplus(-fake_logits)


def discriminator_least_squares(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """(D(x) - 1)^2 / 2 + D(G(z))^2 / 2, (b,) and (b,) -> (b,) (Mao et al. 2017, eq. 9)."""
    return 0.5 * (real_logits - 1) ** 2 + 0.5 * fake_logits**2


def generator_least_squares(fake_logits: jax.Array) -> jax.Array:
    """(D(G(z)) - 1)^2 / 2, (b,) -> (b,) (Mao et al. 2017, eq. 9)."""
    return 0.5 * (fake_logits - 1) ** 2


def discriminator_hinge(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))), (b,) and (b,) -> (b,) (Lim & Ye 2017, eq. 3)."""
    return jax.nn.relu(1 - real_logits) + jax.nn.relu(1 + fake_logits)


def discriminator_wasserstein(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """D(G(z)) - D(x), (b,) and (b,) -> (b,) (Arjovsky et al. 2017, eq. 2, negated)."""
    return fake_logits - real_logits


def relativistic(logits: jax.Array, others: jax.Array) -> jax.Array:
    """-log sigmoid(logits - others), (b,) and (b,) -> (b,) (Jolicoeur-Martineau 2019, arXiv:1807.00734, eq. 2 and 3).

    With real pictures' logits and those of generated ones the discriminator's side, exchanged the generator's: each
    picture is compared with one of the other kind.
    """
    return jax.nn.softplus(others - logits)


def generator_wasserstein(fake_logits: jax.Array) -> jax.Array:
    """-D(G(z)), (b,) -> (b,): the generator's side of the Wasserstein and of the hinge game."""
    return -fake_logits


DISCRIMINATOR = {
    "non_saturating": discriminator_logistic,
    "minimax": discriminator_logistic,
    "least_squares": discriminator_least_squares,
    "hinge": discriminator_hinge,
    "wasserstein": discriminator_wasserstein,
}
GENERATOR = {
    "non_saturating": generator_non_saturating,
    "minimax": generator_minimax,
    "least_squares": generator_least_squares,
    "hinge": generator_wasserstein,
    "wasserstein": generator_wasserstein,
}


def squared_gradient_norm(critic: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """|grad D(x)|^2 for each image, (b, h, w, c) -> (b,); `critic` maps images to (b,) logits.

    One backward pass of the summed logits: exact where an image's logit depends on that image alone. BatchNorm
    couples the images of a batch, and the gradient then includes what an image does to its neighbours' logits.
    """
    gradient = jax.grad(lambda x: critic(x).sum())(images)
    return jnp.sum(gradient**2, axis=(1, 2, 3))


def r1_penalty(critic: Callable[[jax.Array], jax.Array], real: jax.Array) -> jax.Array:
    """|grad D(x)|^2 on real images, (b, h, w, c) -> (b,) (Mescheder et al. 2018, eq. 9, without its gamma / 2)."""
    return squared_gradient_norm(critic, real)


def r2_penalty(critic: Callable[[jax.Array], jax.Array], fake: jax.Array) -> jax.Array:
    """|grad D(G(z))|^2 on generated images, (b, h, w, c) -> (b,) (Mescheder et al. 2018, eq. 10, without gamma / 2)."""
    return squared_gradient_norm(critic, fake)


def gradient_penalty(
    critic: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array, mix: jax.Array
) -> jax.Array:
    """(|grad D(x')| - 1)^2 at x' = mix * real + (1 - mix) * fake (Gulrajani et al. 2017, eq. 3, without lambda).

    real, fake: (b, h, w, c); mix: (b, 1, 1, 1) uniform in [0, 1]. Returns (b,).
    """
    squared = squared_gradient_norm(critic, mix * real + (1 - mix) * fake)
    # sqrt has no derivative at 0, where a new critic may well be: step round it, inside and outside.
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return (norm - 1) ** 2
