"""How alike pairs of images are: PSNR, SSIM and MS-SSIM, and by them how diverse generated images are.

Images are (b, h, w, c) in [-1, 1], float32 or float64; uint8 is taken too, and is exact. Everything is computed in
float64 on the host's CPU, whatever the accelerator: SSIM takes differences of nearly equal sums, of which float32 would
keep four digits. Values are numpy float64, one for each pair. Shapes that differ, and images too small for the window,
raise UserError.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax.io.files import UserError

WINDOW = 11  # pixels
SIGMA = 1.5
K1, K2 = 0.01, 0.03
RANGE = 2.0  # of the values of images in [-1, 1]
# Of the scales from fine to coarse, Wang et al. 2003, section 3.2.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_LUMA = np.array([65.481, 128.553, 24.966])  # ITU-R BT.601, of RGB in [0, 1], to 16 ... 235


def psnr(images1: Any, images2: Any) -> np.ndarray:
    """Peak signal-to-noise ratio over all pixels and channels, dB, (b,); inf for equal images."""
    a, b = _pairs(images1, images2, 1)
    return _decibels(((a - b) ** 2).mean(axis=(1, 2, 3)), RANGE)


def psnr_y(images1: Any, images2: Any, border: int = 0) -> np.ndarray:
    """Peak signal-to-noise ratio of the luma, dB, (b,), as papers on super-resolution report it.

    Images have 3 channels. Luma is Y of YCbCr as in MATLAB's rgb2ycbcr, 16 to 235 and not rounded, the peak is 255, and
    `border` pixels on each side are left out, usually as many as the factor of enlargement. Papers take 8-bit images,
    so give uint8, or `images.to_uint8` of floats, for their figures.
    """
    a, b = _luma(images1, images2, border, 1)
    return _decibels(((a - b) ** 2).mean(axis=(1, 2, 3)), 255)


def ssim_y(images1: Any, images2: Any, border: int = 0) -> np.ndarray:
    """Structural similarity of the luma, (b,), as papers on super-resolution report it.

    Images, luma and border as for `psnr_y`; the window as for `ssim`, and a range of 255, so that it equals
    scikit-image's of that luma with data_range=255.
    """
    a, b = (x * (RANGE / 255) - RANGE / 2 for x in _luma(images1, images2, border, WINDOW))
    return _in_float64(lambda a, b: _ssim(a, b)[0], a, b)


def _luma(images1: Any, images2: Any, border: int, least: int) -> list[np.ndarray]:
    """(b, h - 2 border, w - 2 border, 1), of which each side has `least` pixels or more."""
    a, b = _pairs(images1, images2, 2 * border + least)
    if a.shape[3] != 3 or border < 0:
        raise UserError(f"luma is of RGB images with a border of 0 and more, and got {a.shape} and {border}")
    height, width = a.shape[1:3]
    cut = [((x + 1) / 2 @ _LUMA)[:, border : height - border, border : width - border, None] for x in (a, b)]
    return [x + 16 for x in cut]


def _decibels(error: np.ndarray, peak: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)


def ssim(images1: Any, images2: Any) -> np.ndarray:
    """Structural similarity, mean over pixels and channels, (b,) (Wang et al. 2004, eq. 13).

    A Gaussian window of 11 pixels and deviation 1.5, only where it is whole, K1 = 0.01, K2 = 0.03. Luminance is counted
    from black, as for 8-bit images, for which it gives the same: SSIM of values in [-1, 1] as they are would be another
    number. Equals scikit-image's structural_similarity of images + 1 with data_range=2, gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False.
    """
    return _in_float64(lambda a, b: _ssim(a, b)[0], *_pairs(images1, images2, WINDOW))


def scales_of(height: int, width: int) -> int:
    """How many scales MS-SSIM has for images of this size: at most 5, the coarsest no smaller than the window."""
    scales = 0
    while scales < len(MS_SSIM_WEIGHTS) and min(height, width) >> scales >= WINDOW:
        scales += 1
    return scales


def ms_ssim(images1: Any, images2: Any) -> tuple[np.ndarray, int]:
    """Structural similarity at several scales, (b,), and at how many (Wang et al. 2003, eq. 7).

    From scale to scale 2x2 pixels are averaged, a last odd row or column is dropped. Five scales need 176 pixels; with
    fewer (`scales_of`) the finest ones are taken, with weights that are brought to the sum of all five, so that values
    of different numbers of scales cannot be compared. Contrast terms below 0 count as 0. Each scale's mean is taken
    over pixels and channels, as in the evaluation of Karras et al. 2018; others average the channels' results.
    """
    a, b = _pairs(images1, images2, WINDOW)
    scales = scales_of(*a.shape[1:3])
    return _in_float64(functools.partial(_ms_ssim, scales=scales), a, b), scales


def ms_ssim_diversity(images: Any, pairs: int = 10_000, seed: int = 0) -> tuple[float, int]:
    """Mean MS-SSIM of random pairs of images of one set, and at how many scales (Odena et al. 2017, section 4.2).

    images: (n, h, w, c), n at least 2. Pairs are of two different images, drawn independently. The lower, the more
    diverse; 1 where all are the same. Compare with that of the real images, at the same size and number of pairs.
    """
    images = np.asarray(images)
    if images.ndim != 4 or len(images) < 2 or pairs < 1:
        raise UserError(
            f"diversity is of pairs of images (n, h, w, c), n at least 2, and got {images.shape} and {pairs} pairs"
        )
    from tqdm import tqdm

    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(images), pairs)
    second = (first + rng.integers(1, len(images), pairs)) % len(images)
    batch = max(1, min(pairs, 2**22 // images[0].size))
    total, scales = 0.0, 0
    for i in tqdm(range(0, pairs, batch), desc="MS-SSIM", delay=2, leave=False, disable=None):
        values, scales = ms_ssim(images[first[i : i + batch]], images[second[i : i + batch]])
        total += float(values.sum())
    return total / pairs, scales


def _pairs(images1: Any, images2: Any, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64."""
    a, b = np.asarray(images1), np.asarray(images2)
    if a.shape != b.shape or a.ndim != 4:
        raise UserError(
            f"pairs of images need one shape, (b, h, w, c), and these are {a.shape} and {b.shape}: resize or crop them"
        )
    if min(a.shape[1:3]) < least:
        raise UserError(f"the images have {a.shape[1]}x{a.shape[2]} pixels, and {least} on each side are needed")
    a, b = (x / 127.5 - 1 if x.dtype == np.uint8 else x.astype(np.float64) for x in (a, b))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("the images have values that are not finite")
    return a, b


# ---------------------------------------------------------------------------------------------------------------------
# What is compiled


def _in_float64(function: Callable[[jax.Array, jax.Array], jax.Array], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of images counted from black, in [0, 2]."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out; a GPU has float64 too
        host = None
    with jax.enable_x64(True), jax.default_device(host):
        return np.asarray(function(jnp.asarray(a + 1), jnp.asarray(b + 1)))


@jax.jit
def _ssim(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means of similarity, and of its part for contrast and structure, (b,) and (b,)."""
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    maps = jnp.stack([a, b, a**2 + b**2, a * b])
    for axis in (2, 3):
        maps = _filter(maps, axis)
    mean_a, mean_b, squares, product = maps
    covariance, variances = product - mean_a * mean_b, squares - mean_a**2 - mean_b**2
    structure = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * structure).mean((1, 2, 3)), structure.mean((1, 2, 3))


def _filter(x: jax.Array, axis: int) -> jax.Array:
    """The window along one axis, where it is whole. Sums of shifted arrays: XLA's convolutions are slow in float64."""
    away = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(away**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    size = x.shape[axis] - WINDOW + 1
    parts = (w * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i, w in enumerate(weights.tolist()))
    return jax.lax.optimization_barrier(functools.reduce(jnp.add, parts))


@functools.partial(jax.jit, static_argnames="scales")
def _ms_ssim(a: jax.Array, b: jax.Array, scales: int) -> jax.Array:
    weights = np.array(MS_SSIM_WEIGHTS[:scales])
    weights *= sum(MS_SSIM_WEIGHTS) / weights.sum()
    value = jnp.ones(len(a), a.dtype)
    for i, weight in enumerate(weights.tolist()):
        whole, structure = _ssim(a, b)
        value *= jnp.maximum(whole if i == scales - 1 else structure, 0) ** weight
        a, b = _halve(a), _halve(b)
    return value


def _halve(x: jax.Array) -> jax.Array:
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
