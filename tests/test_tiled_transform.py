"""Large pictures in strips: equal to the whole, whatever the strips and the devices; statistics that lose nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.nn import tiled_transform
from ganstyle_jax.nn.image_transform import ImageTransform

SMALL = ImageTransform(width=4, blocks=1, styles=2)
# (h, w, pixels of a strip): strips that divide the picture and that do not, a last one of 4 rows, one strip, tall, wide
SIZES = [
    (67, 45, 20 * 48),
    *(
        pytest.param(*size, marks=pytest.mark.slow)
        for size in [(64, 48, 16 * 48), (83, 30, 24 * 32), (30, 91, 1), (33, 18, 10_000)]
    ),
]


@functools.lru_cache
def weights(transform, seed=0):
    """Random ones, of which every style has its own scales and shifts, and biases are not 0."""
    shapes = jax.eval_shape(transform.init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, (1 / np.prod(x.shape[:3])) ** 0.5, x.shape).astype(np.float32)
        return (rng.normal(name == "scale", 0.3, x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def picture(h, w, seed=1):
    """A slope with noise on it, so that strips differ in mean and in spread."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(-0.8, 0.8, h)[:, None, None] * np.linspace(0.3, 1, w)[None, :, None]
    return np.clip(slope + rng.normal(0, 0.2, (h, w, 3)), -1, 1).astype(np.float32)


whole = functools.partial(jax.jit, static_argnums=0)(lambda t, params, x, style: t.apply(params, x, style))


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize(("h", "w", "pixels"), SIZES)
def test_strips_equal_the_whole(h, w, pixels, upsampling, x64):
    transform = ImageTransform(width=4, blocks=1, styles=2, upsampling=upsampling)
    params = jax.tree.map(lambda x: x.astype(np.float64), weights(transform))
    image, style = picture(h, w).astype(np.float64), np.array([0.3, 0.7])
    expected = whole(transform, params, image[None], style[None])[0]
    heard = []
    found = tiled_transform.exact(transform, params, image, style, pixels, advance=heard.append)
    assert found.shape == (h, w, 3) and found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert sum(heard) == pytest.approx(1)
    assert len(tiled_transform.Strips(h + -h % 4, w + -w % 4, pixels, None).edges()) > 2 or pixels == 10_000


@pytest.mark.parametrize("output", ["tanh", "clip"])
def test_strips_equal_the_whole_in_float32(output):
    transform = ImageTransform(width=4, blocks=0, output=output)
    image = picture(50, 38)
    expected = whole(transform, weights(transform), image[None], None)[0]
    found = tiled_transform.exact(transform, weights(transform), image, None, 20 * 40)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.9  # the end of the range is reached


def test_eight_devices_equal_one():
    image, style = picture(150, 21), np.array([0.5, 0.5])
    one = tiled_transform.exact(SMALL, weights(SMALL), image, style, 16 * 24)
    eight = tiled_transform.exact(SMALL, weights(SMALL), image, style, 16 * 24, jax.devices())
    np.testing.assert_allclose(eight, one, atol=1e-5)
    arguments = (SMALL, weights(SMALL), image, style, 16 * 24)
    one, eight = (tiled_transform.by_thumbnail(*arguments, devices) for devices in (None, jax.devices()))
    np.testing.assert_allclose(eight, one, atol=1e-5)


def test_a_thumbnail_as_large_as_the_picture_gives_the_whole():
    image, style = picture(99, 34), np.array([0.2, 0.8])
    expected = whole(SMALL, weights(SMALL), image[None], style[None])[0]
    found = tiled_transform.by_thumbnail(SMALL, weights(SMALL), image, style, 16 * 36)
    # To rounding: a picture of 34 columns is padded as the whole is, and the thumbnail is the picture itself.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    smaller = tiled_transform.by_thumbnail(SMALL, weights(SMALL), image, style, 16 * 36, thumbnail=48)
    assert np.abs(smaller - expected).mean() > 1e-3  # noise is gone from the small copy, and with it some variance


def test_reach_is_how_far_a_place_acts():
    """Not less, or seams would show; and not much more, or time would be lost."""
    reach = tiled_transform.reach(SMALL)
    statistics = tiled_transform._statistics(SMALL, weights(SMALL), jnp.asarray(picture(32, 32))[None], None)
    paint = functools.partial(tiled_transform._with_statistics, SMALL, weights(SMALL), statistics)
    image = picture(160, 16)
    other = image.copy()
    other[:64] = -other[:64]
    differs = np.abs(paint(image[None], None) - paint(other[None], None))[0].max((1, 2)) > 1e-6
    assert not differs[64 + reach :].any()
    assert differs[64 + reach - 8 : 64 + reach].any()


def test_moments_lose_nothing_far_from_zero():
    """Where float32 sums of squares would have nothing left: mean 1e4, deviation 1."""
    rng = np.random.default_rng(0)
    rows = rng.normal(1e4, 1, (400, 300, 2)) + np.linspace(0, 5, 400)[:, None, None]
    means = rows.mean(1)
    squares = ((rows - means[:, None]) ** 2).sum(1)
    mean, var = tiled_transform.moments(means, squares.astype(np.float32), 300)
    np.testing.assert_allclose(mean, rows.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(var, rows.var((0, 1)), rtol=1e-6)


def test_what_is_no_picture_for_it():
    for shape in ((15, 40, 3), (40, 15, 3), (40, 40, 1), (40, 40)):
        for paint in (tiled_transform.exact, tiled_transform.by_thumbnail):
            with pytest.raises(ValueError, match="at least 16 pixels on each side, got"):
                paint(SMALL, weights(SMALL), np.zeros(shape))
