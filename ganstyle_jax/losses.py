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


# ---------------------------------------------------------------------------------------------------------------------
# Style transfer: of one image's features (h, w, c), each a scalar


def gram_matrix(features: jax.Array) -> jax.Array:
    """Correlations of channels, (..., h, w, c) -> (..., c, c), in at least float32 (Gatys et al. 2016, eq. 3).

    Differs: divided by h * w, so that it does not change with the size of the image.
    """
    h, w = features.shape[-3:-1]
    precision = jnp.promote_types(features.dtype, jnp.float32)
    return jnp.einsum("...hwc,...hwd->...cd", features, features, preferred_element_type=precision) / (h * w)


def relative_error(found: jax.Array, target: jax.Array) -> jax.Array:
    """Squared difference over the squares of the target, both summed: 0 if equal, 1 for nothing at all.

    Finite for a target of zeros too, such as the features of a black picture may be.
    """
    found, target = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (found, target))
    return jnp.sum((found - target) ** 2) / jnp.maximum(jnp.sum(target**2), 1e-12)


def wasserstein(mean: jax.Array, covariance: jax.Array, target_mean: jax.Array, target_factor: jax.Array) -> jax.Array:
    """Squared 2-Wasserstein distance of two Gaussians, of means (c,) and covariances (c, c), a scalar.

    |m - m'|^2 + tr C + tr C' - 2 tr (C'^1/2 C C'^1/2)^1/2 (Dowson & Landau 1982). The second covariance is given by a
    factor F with F F^T = C', see `factor`: F^T C F has the eigenvalues of the matrix in the brackets.
    """
    cross = trace_sqrt(target_factor.T @ covariance @ target_factor)
    return jnp.sum((mean - target_mean) ** 2) + jnp.trace(covariance) + jnp.sum(target_factor**2) - 2 * cross


def factor(covariance: jax.Array) -> jax.Array:
    """F with F F^T = C, (c, c) -> (c, c), for a covariance that need not be regular."""
    values, axes = jnp.linalg.eigh(covariance)
    return axes * jnp.sqrt(jnp.maximum(values, 0))


@jax.custom_jvp
def trace_sqrt(matrix: jax.Array) -> jax.Array:
    """tr M^1/2 of a symmetric matrix without negative eigenvalues, (c, c) -> ()."""
    return jnp.sum(jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(matrix), 0)))


@trace_sqrt.defjvp
def _trace_sqrt_jvp(primals, tangents):
    # d tr f(M) = tr f'(M) dM: unlike the derivative of the eigenvalues one by one it does not mind equal ones. That of
    # the square root is infinite at 0, so eigenvalues below rounding count as rounding.
    (matrix,), (tangent,) = primals, tangents
    values, axes = jnp.linalg.eigh(matrix)
    values = jnp.maximum(values, 0)
    floor = jnp.finfo(matrix.dtype).eps * jnp.maximum(values[-1], 1e-30)
    slope = axes * (0.5 / jnp.sqrt(jnp.maximum(values, floor))) @ axes.T
    return jnp.sum(jnp.sqrt(values)), jnp.sum(slope * tangent)


def total_variation(image: jax.Array, extent: tuple[int, int] | None = None) -> jax.Array:
    """Mean squared difference of neighbouring pixels, down and across, (h, w, c) -> ().

    extent: (rows, columns) that count, by default all.
    Mahendran & Vedaldi 2015 (arXiv:1412.0035), section 3.2 with beta = 2, as a mean instead of a sum.
    """
    total = jnp.zeros((), image.dtype)
    height, width = extent or image.shape[:2]
    for axis, (rows, columns) in enumerate([(height - 1, width), (height, width - 1)]):
        # Shifted and masked rather than cut, so that rows which lie on different devices stay where they are.
        places = [(0, 0, 0)] * 3
        places[axis] = (-1, 1, 0)
        difference = jax.lax.pad(image, jnp.zeros((), image.dtype), places) - image
        row, column = (jax.lax.broadcasted_iota(jnp.int32, image.shape, i) for i in (0, 1))
        difference = jnp.where((row < rows) & (column < columns), difference, 0)
        total += jnp.sum(difference**2) / max(rows * columns * image.shape[2], 1)
    return total
