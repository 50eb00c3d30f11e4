"""Closed forms and properties of colour matching, and of the three steps around style transfer."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ganstyle_jax.io import images
from ganstyle_jax.style import colours

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(3, 8), st.integers(3, 8), st.just(3))
LEVELS = [x / 127.5 - 1 for x in range(256)]
PICTURES = hnp.arrays(np.float32, SHAPES, elements=st.sampled_from(LEVELS).map(np.float32))


def random_picture(seed: int, shape=(9, 7)) -> np.ndarray:
    """Correlated colours inside [-1, 1] that vary along every colour axis by much more than the rounding to 8 bits."""
    rng = np.random.default_rng(seed)
    rotations, _ = np.linalg.qr(rng.normal(size=(2, 3, 3)))
    colour = rng.uniform(-1, 1, (*shape, 3)) @ rotations[0] @ np.diag(rng.uniform(0.2, 1, 3)) @ rotations[1]
    return (0.9 * colour / np.abs(colour).max()).astype(np.float32)


def moments(picture):
    pixels = np.reshape(picture, (-1, 3)).astype(np.float64)
    centred = pixels - pixels.mean(0)
    return pixels.mean(0), centred.T @ centred / len(pixels)


def luma(picture):
    return 0.299 * picture[..., 0] + 0.587 * picture[..., 1] + 0.114 * picture[..., 2]


@given(SEEDS, SEEDS)
def test_linear_match_has_mean_and_covariance_of_the_reference(seed, other):
    source, reference = random_picture(seed), random_picture(other, (5, 11))
    got = colours.match_linear(source, reference)
    assert got.shape == source.shape and got.dtype == np.float32
    for ours, theirs in zip(moments(got), moments(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # the result is rounded to float32


@given(SEEDS, SEEDS)
def test_linear_match_is_the_identity_on_itself_and_ignores_the_order_of_pixels(seed, other):
    source, reference = random_picture(seed), random_picture(other)
    np.testing.assert_allclose(colours.match_linear(source, source), source, atol=1e-6)
    order = np.random.default_rng(seed).permutation(source[..., 0].size)
    shuffled = source.reshape(-1, 3)[order].reshape(source.shape)
    np.testing.assert_allclose(colours.match_linear(source, shuffled), source, atol=1e-6)
    got = colours.match_linear(shuffled, reference).reshape(-1, 3)
    np.testing.assert_allclose(got, colours.match_linear(source, reference).reshape(-1, 3)[order], atol=1e-6)


@given(SEEDS, SEEDS)
def test_linear_match_is_optimal_transport(seed, other):
    """The mean square way is that between Gaussians, |m - n|^2 + tr(C + D - 2 (C D)^1/2), and CORAL's is no shorter."""
    source, reference = random_picture(seed), random_picture(other)
    (m, c), (n, d) = moments(source), moments(reference)
    way = ((colours.match_linear(source, reference) - source) ** 2).sum(-1).mean()
    roots = np.sqrt(np.linalg.eigvals(c @ d).real)
    np.testing.assert_allclose(way, ((m - n) ** 2).sum() + np.trace(c + d) - 2 * roots.sum(), atol=1e-5)

    def power(matrix, exponent):
        values, axes = np.linalg.eigh(matrix)
        return axes @ np.diag(values**exponent) @ axes.T

    coral = (source - m) @ (power(d, 0.5) @ power(c, -0.5)).T + n
    np.testing.assert_allclose(moments(coral)[1], d, atol=1e-6)
    assert way <= ((coral - source) ** 2).sum(-1).mean() + 1e-5


def test_linear_match_of_uncorrelated_channels_by_hand():
    source = np.array([[[-1, -1, 1], [-1, 1, -1], [1, -1, -1], [1, 1, 1]]], np.float32) / 5
    reference = source[:, ::-1] * [1, 2, 3] + [0.1, 0, -0.3]
    np.testing.assert_allclose(colours.match_linear(source, reference), reference[:, ::-1], atol=1e-6)


@given(SEEDS)
def test_linear_match_of_constant_pictures_is_the_mean_colour(seed):
    picture, flat = random_picture(seed), np.full((4, 6, 3), [0.1, -0.7, 0.3], np.float32)
    expected = np.broadcast_to(moments(picture)[0], flat.shape)
    np.testing.assert_allclose(colours.match_linear(flat, picture), expected, atol=1e-6)
    np.testing.assert_allclose(
        colours.match_linear(picture, flat), np.broadcast_to(flat[0, 0], picture.shape), atol=1e-6
    )
    np.testing.assert_allclose(colours.match_linear(flat, -flat), -flat, atol=1e-6)


@given(SEEDS, SEEDS)
def test_linear_match_of_a_grey_picture_is_the_regression_on_brightness(seed, other):
    source, reference = random_picture(seed), random_picture(other)
    source = np.repeat(source[..., :1], 3, axis=-1)
    got = colours.match_linear(source, reference).reshape(-1, 3)
    pixels = reference.reshape(-1, 3).astype(np.float64)
    brightness, mean = pixels.mean(1), pixels.mean(0)
    slope = (brightness - brightness.mean()) @ (pixels - mean) / len(pixels) / brightness.var()
    units = (source[..., 0].ravel() - source[..., 0].mean(dtype=np.float64)) / source[..., 0].std(dtype=np.float64)
    np.testing.assert_allclose(got, mean + np.outer(units * brightness.std(), slope), atol=1e-5)


def test_linear_match_does_not_stretch_rounding_to_colour():
    ramp = np.tile(np.linspace(-0.9, 0.9, 1000, dtype=np.float32)[:, None, None], (1, 1, 3))
    speckled = ramp + np.random.default_rng(0).choice([-1, 1], ramp.shape) * np.float32(0.4 / 255)
    got = colours.match_linear(speckled, random_picture(1, (50, 50)))
    np.testing.assert_allclose(got, colours.match_linear(ramp, random_picture(1, (50, 50))), atol=0.01)


@given(PICTURES, SEEDS)
def test_linear_match_of_any_picture_is_finite_and_has_the_mean_of_the_reference(picture, seed):
    for source, reference in ((picture, random_picture(seed)), (random_picture(seed), picture), (picture, picture)):
        got = colours.match_linear(source, reference)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(moments(got)[0], moments(reference)[0], atol=1e-5)


@given(SEEDS, SEEDS)
def test_histogram_match_without_ties_is_a_matter_of_rank(seed, other):
    source, reference = random_picture(seed), random_picture(other)
    expected = np.empty_like(source).reshape(-1, 3)
    for channel in range(3):
        expected[np.argsort(source[..., channel].ravel()), channel] = np.sort(reference[..., channel].ravel())
    np.testing.assert_allclose(colours.match_histograms(source, reference), expected.reshape(source.shape), atol=1e-6)


def test_histogram_match_with_ties_and_other_sizes_by_hand():
    source = np.repeat(np.float32([[0.5, -0.5, 0.5, 0.9]])[..., None], 3, -1)  # quantiles 0.75, 0.25, 0.75, 1
    reference = np.repeat(np.float32([[0.2], [-0.6]])[..., None], 3, -1)  # 0.5 at -0.6, 1 at 0.2
    got = colours.match_histograms(source, reference)
    np.testing.assert_allclose(got[0, :, 1], [-0.2, -0.6, -0.2, 0.2], atol=1e-6)
    np.testing.assert_allclose(colours.match_histograms(np.zeros((2, 2, 3), np.float32), reference), 0.2)


@given(PICTURES, PICTURES)
def test_histogram_match_is_monotone_idempotent_and_keeps_ties(source, reference):
    got = colours.match_histograms(source, reference)
    np.testing.assert_array_equal(colours.match_histograms(source, source), source)
    np.testing.assert_allclose(colours.match_histograms(got, reference), got, atol=1e-6)
    for channel in range(3):
        before, after = source[..., channel].ravel(), got[..., channel].ravel()
        order = np.argsort(before)
        assert (np.diff(after[order]) >= 0).all()
        assert (np.diff(after[order])[np.diff(before[order]) == 0] == 0).all()
        assert after.max() == reference[..., channel].max() and after.min() >= reference[..., channel].min()


@given(PICTURES, SEEDS)
def test_colours_of_content_keep_luma_and_chroma(picture, seed):
    content = random_picture(seed, picture.shape[:2])
    got = colours.with_colours_of(picture, content)
    assert got.shape == picture.shape and got.dtype == np.float32 and np.abs(got).max() <= 1
    inside = np.abs(got).max(-1) < 1
    np.testing.assert_allclose(luma(got)[inside], luma(picture)[inside], atol=1e-6)
    for channel in (0, 2):  # Cr and Cb, but for constant factors
        chroma, expected = got[..., channel] - luma(got), content[..., channel] - luma(content)
        np.testing.assert_allclose(chroma[inside], expected[inside], atol=1e-6)
    np.testing.assert_allclose(colours.with_colours_of(content, content), content, atol=1e-6)


def test_colours_of_content_of_another_size():
    picture, content = random_picture(0, (6, 8)), random_picture(1, (13, 9))
    got = colours.with_colours_of(picture, content)
    np.testing.assert_array_equal(got, colours.with_colours_of(picture, images.resize(content, (6, 8))))


def test_luma_weights_are_those_of_pillow():
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    got = (colours.grey(picture / 127.5 - 1) + 1) * 127.5
    assert (np.ptp(got, axis=-1) == 0).all()
    np.testing.assert_allclose(got[..., 0], np.asarray(Image.fromarray(picture).convert("L"), float), atol=0.51)


@pytest.mark.parametrize("how", get_args(colours.How))
def test_three_steps(how):
    style, content = random_picture(0, (30, 20)), random_picture(1, (16, 24))
    prepared = colours.prepare_style(style, content, how)
    shown = colours.prepare_content(content, how)
    result = colours.finish(shown, content, how)
    for got, of in ((prepared, style), (shown, content), (result, content)):
        assert got.shape == of.shape and got.dtype == np.float32 and np.abs(got).max() <= 1
    np.testing.assert_allclose(result, content, atol=1e-6)  # had the optimisation changed nothing
    if how == "none":
        np.testing.assert_array_equal(prepared, style)
    if how == "coral":
        np.testing.assert_allclose(prepared, np.clip(colours.match_linear(style, content), -1, 1))
    if how == "histogram":
        np.testing.assert_allclose(prepared, colours.match_histograms(style, content))
    if how == "luma":
        ours, theirs = luma(style.astype(np.float64)), luma(content.astype(np.float64))
        expected = theirs.std() / ours.std() * (ours - ours.mean()) + theirs.mean()
        np.testing.assert_allclose(prepared, np.repeat(np.clip(expected, -1, 1)[..., None], 3, -1), atol=1e-6)
        np.testing.assert_allclose(shown, np.repeat(theirs[..., None], 3, -1), atol=1e-6)


def test_luma_of_a_constant_style_is_the_mean_luma():
    content = random_picture(1)
    got = colours.prepare_style(np.full((3, 3, 3), 0.5, np.float32), content, "luma")
    np.testing.assert_allclose(got, luma(content).mean(), atol=1e-6)


def test_jax_arrays_are_accepted_and_arguments_are_not_changed():
    import jax.numpy as jnp

    style, content = random_picture(0), random_picture(1)
    before = style.copy(), content.copy()
    for how in get_args(colours.How):
        ours = colours.prepare_style(jnp.asarray(style), jnp.asarray(content), how)
        np.testing.assert_array_equal(ours, colours.prepare_style(style, content, how))
    np.testing.assert_array_equal((style, content), before)


def test_errors_name_what_was_received_and_what_is_accepted():
    picture = random_picture(0)
    for call in (colours.prepare_style, colours.finish):
        with pytest.raises(ValueError, match="one of none, luma, coral, histogram, got 'lab'"):
            call(picture, picture, "lab")
    with pytest.raises(ValueError, match="one of none, luma, coral, histogram, got None"):
        colours.prepare_content(picture, None)
    with pytest.raises(ValueError, match=r"source must be a picture of shape \(h, w, 3\), got shape \(9, 7\)"):
        colours.match_linear(picture[..., 0], picture)
    with pytest.raises(ValueError, match=r"reference must be .* got shape \(0, 7, 3\)"):
        colours.match_histograms(picture, picture[:0])
    with pytest.raises(ValueError, match=r"content must hold floats in \[-1, 1\], got dtype uint8"):
        colours.with_colours_of(picture, np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="picture must hold finite numbers, got 189 that are not"):
        colours.grey(picture * np.nan)
