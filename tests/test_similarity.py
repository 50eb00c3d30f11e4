"""PSNR and SSIM against scikit-image, MS-SSIM against PyTorch, and what both must do."""

import numpy as np
import pytest
from skimage import color, data, metrics

from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import similarity

MEASURES = (
    similarity.psnr,
    similarity.psnr_y,
    similarity.ssim,
    similarity.ssim_y,
    lambda *x: similarity.ms_ssim(*x)[0],
)


def pairs(height=64, width=80, channels=3, seed=0, noise=0.2):
    """A photograph's crops and noisy ones, (2, h, w, c) in [-1, 1]; one pair also shifted in brightness."""
    rng = np.random.default_rng(seed)
    photo = data.astronaut()[..., :channels] / 127.5 - 1
    a = np.stack([photo[y : y + height, x : x + width] for y, x in ((0, 100), (150, 180))])
    b = a + noise * rng.normal(size=a.shape)
    b[1] = 0.5 * b[1] + 0.3
    return np.clip(a, -1, 1), np.clip(b, -1, 1)


SIZES = [(64, 80, 3), (11, 11, 3), (12, 33, 1)]


@pytest.mark.parametrize("height, width, channels", SIZES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_psnr_and_ssim_equal_scikit_image(height, width, channels, dtype):
    a, b = pairs(height, width, channels)
    if dtype is np.uint8:
        a, b = (np.round(127.5 * (x + 1)).astype(np.uint8) for x in (a, b))
        full = 255
    else:
        a, b, full = a.astype(dtype), b.astype(dtype), 2
    wide = [x.astype(np.float64) + (full == 2) for x in (a, b)]  # from black up
    expected = [metrics.peak_signal_noise_ratio(x, y, data_range=full) for x, y in zip(*wide, strict=True)]
    np.testing.assert_allclose(similarity.psnr(a, b), expected, rtol=1e-9)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": full}
    expected = [metrics.structural_similarity(x, y, channel_axis=2, **options) for x, y in zip(*wide, strict=True)]
    np.testing.assert_allclose(similarity.ssim(a, b), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("border", [0, 4])
def test_luma_equals_scikit_image(border):
    a, b = pairs()
    crop = slice(border, -border or None)
    expected = [
        metrics.peak_signal_noise_ratio(*(color.rgb2ycbcr((z + 1) / 2)[crop, crop, 0] for z in pair), data_range=255)
        for pair in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(similarity.psnr_y(a, b, border), expected, rtol=1e-6)


@pytest.mark.parametrize("border", [0, 4])
def test_similarity_of_luma_equals_scikit_image(border):
    a, b = pairs()
    crop = slice(border, -border or None)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [
        metrics.structural_similarity(*(color.rgb2ycbcr((z + 1) / 2)[crop, crop, 0] for z in pair), **options)
        for pair in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(similarity.ssim_y(a, b, border), expected, rtol=1e-6)


def test_known_values_of_luma_within_a_border():
    grey = np.zeros((1, 24, 24, 3))
    other = grey + 0.2  # a tenth of the range, of which luma has 219 of 255
    other[:, :4], other[:, -4:], other[:, :, :4], other[:, :, -4:] = 1, 1, 1, 1
    assert similarity.psnr_y(grey, other, 4) == pytest.approx(20 * np.log10(255 / 21.9), rel=1e-9)
    x, y, c1 = 16 + 219 * 0.5, 16 + 219 * 0.6, (0.01 * 255) ** 2  # flat: luminance alone
    assert similarity.ssim_y(grey, other, 4) == pytest.approx((2 * x * y + c1) / (x * x + y * y + c1), rel=1e-9)
    assert similarity.ssim_y(grey, other, 3) < 0.99 * similarity.ssim_y(grey, other, 4)
    with pytest.raises(UserError, match=r"24x24 pixels, and 25 on each side are needed"):
        similarity.ssim_y(grey, other, 7)


def test_known_values():
    a = np.zeros((1, 16, 16, 3))
    assert similarity.psnr(a, a + 0.2) == pytest.approx(20)  # a tenth of the range
    assert np.isinf(similarity.psnr(a, a)).all() and similarity.ssim(a, a) == 1
    # Flat images have no structure: luminance alone, (2 m1 m2 + C1) / (m1^2 + m2^2 + C1), from black up.
    assert similarity.ssim(a - 0.5, a - 0.9)[0] == pytest.approx((0.1 + 4e-4) / (0.26 + 4e-4), rel=1e-9)
    # A red error of a tenth changes the luma by 6.5481 of 255.
    red = a + np.array([0.2, 0, 0])
    assert similarity.psnr_y(a, red) == pytest.approx(20 * np.log10(255 / 6.5481), rel=1e-9)


def test_symmetry_and_no_dependence_on_the_batch():
    a, b = pairs()
    for function in MEASURES:
        values = function(a, b)
        assert values.shape == (2,) and values.dtype == np.float64
        np.testing.assert_allclose(function(b, a), values, rtol=1e-12)
        np.testing.assert_allclose(function(a[1:], b[1:]), values[1:], rtol=1e-12)
        np.testing.assert_allclose(function(a[:, ::-1], b[:, ::-1]), values, rtol=1e-9)  # upside down


def torch_ms_ssim(torch, a, b, scales):
    """Convolutions with the whole window, averages by PyTorch's pooling."""
    functional = torch.nn.functional
    away = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(away**2) / 4.5)
    window = torch.outer(line, line)
    window = (window / window.sum())[None, None]
    weights = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333], dtype=torch.float64)
    weights = weights[:scales] / weights[:scales].sum() * weights.sum()
    a, b = (torch.tensor(x).permute(0, 3, 1, 2) + 1 for x in (a, b))
    result = 1.0
    for i in range(scales):

        def blur(x):
            return functional.conv2d(x.flatten(0, 1)[:, None], window).unflatten(0, x.shape[:2])[:, :, 0]

        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
        value = (2 * cov + 0.06**2) / (var_a + var_b + 0.06**2)
        if i == scales - 1:
            value = value * (2 * mean_a * mean_b + 0.02**2) / (mean_a**2 + mean_b**2 + 0.02**2)
        result = result * value.mean((1, 2, 3)).clamp(min=0) ** weights[i]
        a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
    return result.numpy()


@pytest.mark.parametrize(
    "height, width, scales",
    [(11, 30, 1), (22, 22, 2), (47, 64, 3), (99, 88, 4), (176, 177, 5)],
)
def test_ms_ssim_equals_torch(torch, height, width, scales):
    a, b = pairs(height, width)
    values, found = similarity.ms_ssim(a, b)
    assert found == scales == similarity.scales_of(height, width)
    np.testing.assert_allclose(values, torch_ms_ssim(torch, a, b, scales), rtol=1e-9)
    if scales == 1:
        np.testing.assert_allclose(values, np.maximum(similarity.ssim(a, b), 0) ** 1.0001, rtol=1e-9)


def test_8_bit_images_and_their_floats_are_alike():
    a, b = (np.round(127.5 * (x + 1)).astype(np.uint8) for x in pairs())
    for function in MEASURES:
        np.testing.assert_allclose(function(a / 127.5 - 1, b / 127.5 - 1), function(a, b), rtol=1e-12)


def test_ms_ssim_of_opposites_is_0_and_not_nan():
    a = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 1))
    assert similarity.ms_ssim(a, -a)[0] == 0 and similarity.ms_ssim(a, a)[0] == pytest.approx(1)


def test_diversity():
    a, _ = pairs(32, 32, noise=0)
    same = np.repeat(a[:1], 5, axis=0)
    assert similarity.ms_ssim_diversity(same, 20) == (pytest.approx(1), 2)
    # Of two images every pair is of the two, whatever is drawn.
    between, _ = similarity.ms_ssim_diversity(a, 7)
    assert between == pytest.approx(similarity.ms_ssim(a[:1], a[1:])[0][0], rel=1e-9)
    # Half and half of ten: 5 of the 9 others differ.
    half = np.repeat(a, 5, axis=0)
    mean, _ = similarity.ms_ssim_diversity(half, 1300)
    assert mean == pytest.approx((4 + 5 * between) / 9, abs=0.05)
    assert similarity.ms_ssim_diversity(half, 1300)[0] == mean
    assert similarity.ms_ssim_diversity(half, 1300, seed=1)[0] != mean


def test_refusals():
    a, b = pairs()
    with pytest.raises(
        UserError, match=r"one shape, \(b, h, w, c\), and these are \(2, 64, 80, 3\) and \(2, 63, 80, 3\)"
    ):
        similarity.psnr(a, b[:, 1:])
    with pytest.raises(UserError, match="64x10 pixels, and 11 on each side are needed"):
        similarity.ssim(a[:, :, :10], b[:, :, :10])
    with pytest.raises(UserError, match="and 11 on each side"):
        similarity.ms_ssim(a[:, :9], b[:, :9])
    with pytest.raises(UserError, match="and 65 on each side"):
        similarity.psnr_y(a, b, 32)
    with pytest.raises(UserError, match="luma is of RGB"):
        similarity.psnr_y(a[..., :1], b[..., :1])
    with pytest.raises(UserError, match="not finite"):
        similarity.ssim(a, b * np.nan)
    with pytest.raises(UserError, match="n at least 2"):
        similarity.ms_ssim_diversity(a[:1])
