"""The content picture's colours in style transfer (Gatys et al. 2016, arXiv:1606.05897), in NumPy.

    style = prepare_style(style, content, how)
    picture = gatys.stylize(key, prepare_content(content, how), [style], cfg, network, params)
    picture = finish(picture, content, how)

how is one of
- "none": the colours are the style's;
- "luma": only luminance is stylised, the content's chroma is put back (the paper's "Luminance-only transfer");
- "coral": the style first gets the content's mean colour and covariance (the paper's "Color histogram matching");
- "histogram": the style first gets the content's histogram in each channel.

Pictures are (h, w, 3), float in [-1, 1], RGB, of any size; jax arrays are accepted, results are float32.
Raises ValueError for other shapes, for other integers, whose range is unknown, and for values that are not finite.

Differs from the paper: its two linear maps are the Cholesky and the Image Analogies one, `match_linear` has a third;
"luma" gives the network a grey picture in three channels, which the optimisation may tint, and drops the tint at the
end, where the paper optimises one channel. "histogram" is not in the paper.
"""

from typing import Any, Literal, get_args

import numpy as np

from ganstyle_jax.io import images
from ganstyle_jax.io.images import LUMA  # Y of YIQ, YUV and YCbCr
from ganstyle_jax.style import inputs

How = Literal["none", "luma", "coral", "histogram"]

# How much more style is to count for "luma". In grey, of the same mean and contrast, a photograph and a painting are
# nearer than in their colours: their style loss is 0.4 of that, in the median of 20 pairs. With the same weights the
# content would win, and little of the style be seen.
LUMA_STYLE = 2.5
NOISE = 1 / 255  # half a step of 8 bits


def prepare_style(style: Any, content: Any, how: How) -> np.ndarray:
    """The style picture as the optimisation is to see it, clipped to [-1, 1] unless `how` is "none".

    For "luma" it is grey, of the content's mean and deviation: L' = sigma_c / sigma_s (L - mu_s) + mu_c. The paper does
    that where the two luminance histograms differ much, here it is always done.
    """
    match _accepted(how):
        case "luma":
            matched = match_linear(grey(style), grey(content))  # of grey pictures just that formula
        case "coral":
            matched = match_linear(style, content)
        case "histogram":
            matched = match_histograms(style, content)
        case "none":
            return _checked(style, "style")
    return np.clip(matched, -1, 1)


def prepare_content(content: Any, how: How) -> np.ndarray:
    """The content picture as the optimisation is to see it: grey for "luma", else as it is."""
    return grey(content) if _accepted(how) == "luma" else _checked(content, "content")


def finish(picture: Any, content: Any, how: How) -> np.ndarray:
    """The optimised picture with the content's chroma for "luma", else as it is."""
    return with_colours_of(picture, content) if _accepted(how) == "luma" else _checked(picture, "picture")


def grey(picture: Any) -> np.ndarray:
    """The luma in three equal channels."""
    luma = _checked(picture, "picture") @ LUMA
    return np.repeat(luma[..., None], 3, axis=-1).astype(np.float32)


def with_colours_of(picture: Any, content: Any) -> np.ndarray:
    """The luma of `picture` and the chroma of `content`, which is resized where the two differ in size.

    The paper takes luma and chroma apart in YIQ. The chroma of YIQ, YUV and YCbCr is a linear function of R - Y and
    B - Y, so that in all three to exchange the luma is to add the same number to R, G and B, as is done here. Colours
    outside [-1, 1] are clipped, which changes their luma and chroma.
    """
    picture, content = _checked(picture, "picture"), _checked(content, "content")
    content = images.resize(content, picture.shape[:2])
    return np.clip(content + ((picture - content) @ LUMA)[..., None], -1, 1).astype(np.float32)


def match_linear(source: Any, reference: Any) -> np.ndarray:
    """An affine map of the source's colours that gives them the reference's mean and covariance; not clipped.

    Of all such maps the one that moves colours least in mean square, which is the optimal transport between Gaussians
    (Olkin & Pukelsheim 1982; for colours Pitié & Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping").
    Differs from CORAL (Sun et al. 2016, arXiv:1511.05547) and Image Analogies, C_r^1/2 C_s^-1/2, by a rotation in
    between. Where the source lacks a colour axis, as grey pictures do, the covariance cannot be reached: then each
    grey becomes the reference's mean colour at that brightness by linear regression, and a constant picture the
    reference's mean colour. An axis with a deviation below half a step of 8 bits counts as lacking.
    """
    source, reference = _checked(source, "source"), _checked(reference, "reference")
    x, y = source.reshape(-1, 3).astype(np.float64), reference.reshape(-1, 3).astype(np.float64)
    # Rounding to 8 bits is not colour, and stretched to the reference's deviation it would be coloured noise.
    source_cov = _power(np.cov(x.T, ddof=0), 1, floor=NOISE**2)
    root = _power(np.cov(y.T, ddof=0), 1 / 2)
    # The usual formula has C_s^1/2 outside and C_r inside. The same for regular C_s, it would leave grey sources grey.
    inner = root @ source_cov @ root
    transport = root @ _power(inner, -1 / 2, floor=1e-12 * np.trace(inner)) @ root
    matched = (x - x.mean(0)) @ transport + y.mean(0)  # transport is symmetric
    return matched.reshape(source.shape).astype(np.float32)


def _power(matrix: np.ndarray, exponent: float, floor: float = 0.0) -> np.ndarray:
    """Power of a symmetric matrix; eigenvalues up to `floor` become 0, whatever the exponent."""
    values, axes = np.linalg.eigh(matrix)
    kept = values > floor
    return axes[:, kept] * values[kept] ** exponent @ axes[:, kept].T


def match_histograms(source: Any, reference: Any) -> np.ndarray:
    """Histogram specification (Gonzalez & Woods, Digital Image Processing, section 3.3), each channel by itself.

    A value becomes the reference's at the same quantile, with linear interpolation between the reference's values as
    in scikit-image's match_histograms. Equal values stay equal and have the quantile of the last of them, so that a
    constant picture becomes the reference's maximum.
    """
    source, reference = _checked(source, "source"), _checked(reference, "reference")
    matched = np.empty_like(source)
    for channel in range(3):
        _, index, counts = np.unique(source[..., channel], return_inverse=True, return_counts=True)
        values, value_counts = np.unique(reference[..., channel], return_counts=True)
        quantiles = np.cumsum(counts) / counts.sum()
        value_quantiles = np.cumsum(value_counts) / value_counts.sum()
        matched[..., channel] = np.interp(quantiles, value_quantiles, values)[index].reshape(source.shape[:2])
    return matched


def _checked(picture: Any, name: str) -> np.ndarray:
    return inputs.picture(picture, name, slack=np.inf)  # what one map gives, the next takes, clipped or not


def _accepted(how: How) -> How:
    if how not in get_args(How):
        raise ValueError(f"colours are kept by one of {', '.join(get_args(How))}, got {how!r}")
    return how
