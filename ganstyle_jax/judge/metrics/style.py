"""What is measured of stylised pictures: ArtFID and the content feature structural distance, CFSD."""

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ganstyle_jax.features.vgg import Network, Params
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics.distances import Gaussian, fid_infinity, frechet_distance, gaussian

CFSD_TAP = "relu3_1"
_ROWS = 256  # of the self-similarity at a time


@dataclasses.dataclass(frozen=True)
class ArtFid:
    """ArtFID, its parts, and what it must not be compared without; `dataclasses.asdict` is its record."""

    art_fid: float
    lpips: float  # mean over the pairs of content and result
    fid: float  # of the results to the styles; the intercept where `infinity`
    infinity: bool  # whether `fid` is FID-infinity
    fid_error: float | None  # standard error of the intercept
    pairs: int
    unique_styles: int


def art_fid(
    lpips: Any, styles: Gaussian, results: Any, style_of: Sequence[Hashable], infinity: bool = False, seed: int = 0
) -> ArtFid:
    """(1 + LPIPS) (1 + FID) (Wright & Ommer 2022, section 3.3).

    lpips: (n,), of each result to its content picture. styles: statistics of the pictures of style. results: features
    (n, d) of the results. style_of: which style each result has, by any name; how many there are stands in the record,
    since n results of a few styles are compared with a distribution of hardly any spread: 40 styles have covariances of
    rank 39, and the numbers of papers that use 40 hold for those 40 only. infinity: FID-infinity in place of FID, which
    needs more than 5,000 results; the common script calls plain FID of 800 by that name (see `fid_infinity`).

    The features are those of an InceptionV3 that was trained on paintings and LPIPS is that of AlexNet, for figures to
    be comparable with the paper's. Raises UserError.
    """
    lpips = np.asarray(lpips, np.float64)
    results = np.asarray(results)
    if lpips.ndim != 1 or not len(lpips) == len(results) == len(style_of):
        raise UserError(
            f"ArtFID takes one LPIPS, one row of features and one style for each result, and got {lpips.shape},"
            f" {results.shape} and {len(style_of)}"
        )
    if not (np.isfinite(lpips).all() and (lpips >= 0).all()):
        raise UserError("ArtFID takes values of LPIPS, finite and at least 0, and some are not")
    if infinity:
        fid, error = fid_infinity(styles, results, seed)
    else:
        fid, error = frechet_distance(styles, gaussian(results)), None
    content = float(lpips.mean())
    return ArtFid((1 + content) * (1 + fid), content, fid, infinity, error, len(lpips), len(set(style_of)))


def cfsd(network: Network, params: Params, contents: Any, results: Any) -> jax.Array:
    """Content feature structural distance (Chung et al. 2024, arXiv:2312.09008, section 4.1), (b,) float32.

    contents, results: pictures (b, h, w, 3) in [-1, 1] of one shape. network: VGG-19 of torchvision; another with a tap
    relu3_1 gives other numbers. Each position's features, over the number of channels, are multiplied with those of
    every position, and the softmax of these products says what it is like. The distance is the sum over positions of
    KL(content || result): as the authors' evaluation with a batch of 1 has it, and not the mean, so that it grows with
    the number of pixels. Comparable at one size only, theirs is 512 pixels. Raises UserError.

    Differs: KL is summed in a form without cancellation, since the softmax is nearly uniform, and in float32 the
    difference of its logarithms keeps hardly two digits. Memory is linear in the number of pixels.
    """
    contents, results = jnp.asarray(contents), jnp.asarray(results)
    if contents.shape != results.shape or contents.ndim != 4 or contents.shape[3] != 3:
        raise UserError(
            f"CFSD compares pictures of one shape (b, h, w, 3), and these are {contents.shape} and {results.shape}:"
            " resize or crop them before"
        )
    try:
        network.check((CFSD_TAP,))
    except ValueError as error:
        raise UserError(f"CFSD takes VGG-19, and {error}: run `ganstyle weights fetch vgg19`") from error
    if min(contents.shape[1:3]) < (needed := network.smallest_side((CFSD_TAP,))):
        raise UserError(f"CFSD takes pictures of {needed} pixels and more, and these are {contents.shape[1:3]}")
    with jax.default_matmul_precision("highest"):
        return _cfsd(network, params, contents, results)


def _features(network: Network, params: Params, images: jax.Array) -> jax.Array:
    features = network.apply(params, images, (CFSD_TAP,))[CFSD_TAP].astype(jnp.float32)
    return features.reshape(len(images), -1, features.shape[-1]) / features.shape[-1]


@functools.partial(jax.jit, static_argnums=0)
def _cfsd(network: Network, params: Params, contents: jax.Array, results: jax.Array) -> jax.Array:
    return lax.map(
        lambda pair: self_similarity_divergence(*pair),
        (_features(network, params, contents), _features(network, params, results)),
    )


def self_similarity_divergence(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum over rows i of KL(softmax_j(a_i . a_j) || softmax_j(b_i . b_j)), for a, b (n, c); a scalar.

    With t the first softmax and u the difference of the products less its mean under t, KL is log(mean of exp(u) under
    t). Where u is small that is log(1 + mean of (exp(u) - 1 - u)), whose terms are all at least 0.
    """
    n = len(a)
    rows = -(-n // _ROWS)
    starts = jnp.minimum(jnp.arange(rows) * _ROWS, max(n - _ROWS, 0))  # the last block may overlap the one before
    size = min(n, _ROWS)

    def block(start: jax.Array, first: jax.Array) -> jax.Array:
        of_a = lax.dynamic_slice_in_dim(a, start, size) @ a.T
        of_b = lax.dynamic_slice_in_dim(b, start, size) @ b.T
        log_share = jax.nn.log_softmax(of_a, axis=1)
        share, u = jnp.exp(log_share), of_b - of_a
        u = u - (share * u).sum(axis=1, keepdims=True)
        small = jnp.log1p((share * _exp_remainder(jnp.clip(u, -1, 1))).sum(axis=1))
        large = jax.nn.logsumexp(log_share + u, axis=1)
        divergences = jnp.where(jnp.abs(u).max(axis=1) < 1, small, jnp.maximum(large, 0))
        return jnp.where(start + jnp.arange(size) >= first, divergences, 0).sum()

    return lax.map(lambda of: block(*of), (starts, jnp.arange(rows) * _ROWS)).sum()


def _exp_remainder(u: jax.Array) -> jax.Array:
    """exp(u) - 1 - u, to a few roundings of itself."""
    series = u**2 / 2 * (1 + u / 3 * (1 + u / 4 * (1 + u / 5 * (1 + u / 6))))
    return jnp.where(jnp.abs(u) < 0.1, series, jnp.expm1(u) - u)
