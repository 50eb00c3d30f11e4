"""Augmentations against plain NumPy, with what they drew read off their results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from ganstyle_jax.nn import augment

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(7)


def alone(name):
    """(key, images) to the images of one part of a policy."""
    draw, transform = getattr(augment, f"draw_{name}"), getattr(augment, name)
    return jax.jit(lambda key, x: transform(x, draw(key, x.shape, x.dtype)))


FUNCTIONS = {name: alone(name) for name in ("color", "translation", "cutout")}
diff_augment = jax.jit(augment.diff_augment, static_argnums=2)
ALL = "color,translation,cutout"


def pictures(b, h, w, c, dtype=np.float32):
    """No value is 0, and no two values of a picture are the same."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.1, 1, (b, h, w, c)) * rng.choice([-1, 1], (b, h, w, c))
    return images.astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


def test_color_changes_brightness_saturation_and_contrast_and_nothing_else(x64):
    """Read b, s, c off each result; b moves the mean, c scales grey about the mean, s * c colours about grey."""
    x = pictures(2000, 2, 3, 3, np.float64)
    y = np.asarray(FUNCTIONS["color"](KEY, x))

    def parts(images):
        mean = images.mean((1, 2, 3), keepdims=True)
        grey = images.mean(3, keepdims=True)
        return mean, grey - mean, images - grey

    (mean_x, grey_x, colour_x), (mean_y, grey_y, colour_y) = parts(x), parts(y)
    brightness = (mean_y - mean_x).ravel()
    contrast = (np.sum(grey_x * grey_y, (1, 2, 3)) / np.sum(grey_x**2, (1, 2, 3))).ravel()
    both = (np.sum(colour_x * colour_y, (1, 2, 3)) / np.sum(colour_x**2, (1, 2, 3))).ravel()
    b, c, s = (v[:, None, None, None] for v in (brightness, contrast, both / contrast))
    expected = mean_x + b + c * (grey_x + s * colour_x)
    np.testing.assert_allclose(y, expected, atol=1e-10)
    # Each uniform in its range: mean within 4 standard errors, both ends nearly reached, no two drawn together.
    for values, low, high in ((b, -0.5, 0.5), (s, 0, 2), (c, 0.5, 1.5)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 2000)
    assert np.abs(np.corrcoef([b.ravel(), s.ravel(), c.ravel()]) - np.eye(3)).max() < 4 / np.sqrt(2000)


def test_color_of_grey_pictures_is_grey():
    x = np.repeat(pictures(8, 4, 4, 1), 3, axis=3)
    y = FUNCTIONS["color"](KEY, x)
    np.testing.assert_allclose(y, np.repeat(y[..., :1], 3, axis=3), atol=1e-6)
    single = FUNCTIONS["color"](KEY, x[..., :1])
    np.testing.assert_allclose(single, y[..., :1], atol=1e-6)  # saturation does nothing to one channel


@pytest.mark.parametrize("h, w", [(16, 16), (8, 24)])
def test_translation_moves_by_whole_pixels_and_fills_with_zeros(h, w):
    x = pictures(600, h, w, 2)
    y = np.asarray(FUNCTIONS["translation"](KEY, x))
    found = []
    for before, after in zip(x, y, strict=True):
        matches = []
        for dy in range(-(h // 8), h // 8 + 1):
            for dx in range(-(w // 8), w // 8 + 1):
                moved = np.zeros_like(before)  # row r shows row r + dy
                rows, columns = slice(max(0, -dy), min(h, h - dy)), slice(max(0, -dx), min(w, w - dx))
                moved[rows, columns] = before[max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)]
                if np.array_equal(moved, after):
                    matches.append((dy, dx))
        assert len(matches) == 1, "not the picture itself, shifted by at most an eighth"
        found += matches
    shifts, counts = np.unique(found, axis=0, return_counts=True)
    cells = (2 * (h // 8) + 1) * (2 * (w // 8) + 1)
    assert len(shifts) == cells  # every shift occurs, none twice as often as another should
    assert counts.max() < 600 / cells + 5 * np.sqrt(600 / cells)


@pytest.mark.parametrize("h, w", [(16, 16), (8, 24)])
def test_cutout_blanks_a_quarter_where_the_edges_do_not_cut_it(h, w):
    x = pictures(400, h, w, 2)
    y = np.asarray(FUNCTIONS["cutout"](KEY, x))
    blank = (y == 0).all(-1)
    np.testing.assert_array_equal(y, np.where(blank[..., None], 0, x))  # the rest is untouched
    whole, corners = 0, set()
    for mask in blank:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one rectangle
        assert mask.sum() == len(rows) * len(columns)
        # Half as high and wide as the picture, unless it ends at an edge.
        for span, size in ((rows, h), (columns, w)):
            assert len(span) == size // 2 or (len(span) < size // 2 and (span[0] == 0 or span[-1] == size - 1))
            assert len(span) >= size // 4 - 1  # its centre lies in the picture
        whole += mask.sum() == h * w // 4
        corners.add((rows[0], columns[0]))
    assert whole > 400 / 8  # about a quarter of them
    assert len(corners) > 40


def test_instance_noise():
    x = pictures(64, 16, 16, 3)
    noise = (augment.instance_noise(KEY, x, jnp.float32(0.25)) - x).ravel()
    n = noise.size
    assert abs(noise.mean()) < 4 * 0.25 / np.sqrt(n)
    assert abs(noise.std() - 0.25) < 4 * 0.25 / np.sqrt(2 * n)
    assert (np.unique(noise).size > 0.9 * n) and abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 4 / np.sqrt(n)
    np.testing.assert_array_equal(augment.instance_noise(KEY, x, jnp.float32(0)), x)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@pytest.mark.parametrize("name", ["translation", "cutout"])
def test_gradients_of_moving_and_blanking_are_their_transposes(x64, name):
    """Both are linear in the picture: <f(x), g> = <x, gradient>, and f(x + y) = f(x) + f(y)."""
    x, other, g = (np.random.default_rng(i).normal(size=(5, 16, 8, 3)) for i in range(3))
    y, pull_back = jax.vjp(lambda x: FUNCTIONS[name](KEY, x), x)
    np.testing.assert_allclose(np.vdot(y, g), np.vdot(x, pull_back(g)[0]), rtol=1e-12)
    np.testing.assert_allclose(FUNCTIONS[name](KEY, x + other), y + FUNCTIONS[name](KEY, other), atol=1e-14)


@pytest.mark.parametrize("policy", ["color", ALL])
def test_gradients_by_finite_differences(x64, policy):
    x = pictures(2, 8, 8, 3, np.float64)
    check_grads(lambda x: jnp.tanh(diff_augment(KEY, x, policy)), (x,), order=1, modes=["rev"])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(diff_augment(KEY, x, policy))))(x)
    assert np.abs(gradient).max((1, 2, 3)).min() > 0  # reaches every picture


# ---------------------------------------------------------------------------------------------------------------------
# Randomness, devices, policies


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", ALL])
def test_the_key_decides_and_every_picture_has_its_own_draw(policy):
    x = np.repeat(pictures(1, 16, 16, 3), 16, axis=0)
    y = diff_augment(KEY, x, policy)
    assert y.shape == x.shape and y.dtype == jnp.float32
    np.testing.assert_array_equal(y, diff_augment(KEY, x, policy))
    assert not np.array_equal(y, diff_augment(jax.random.key(8), x, policy))
    assert len({np.asarray(picture).tobytes() for picture in y}) > 8


def test_a_policy_is_its_parts_in_turn_with_their_own_keys():
    x = pictures(4, 16, 16, 3)

    @jax.jit
    def in_turn(x):
        for i, name in enumerate(("cutout", "color", "translation")):
            x = FUNCTIONS[name](jax.random.fold_in(KEY, i), x)
        return x

    np.testing.assert_array_equal(diff_augment(KEY, x, "cutout,color,translation"), in_turn(x))
    assert augment.diff_augment(KEY, x, "") is x


def test_devices_draw_what_one_would():
    devices = jax.devices()[:8]
    x = pictures(16, 16, 16, 3)

    def everything(x, axis_name=None):
        y = augment.diff_augment(KEY, x, ALL, axis_name)
        return augment.instance_noise(KEY, y, 0.1, axis_name)

    expected = jax.jit(everything)(x)
    sharded = jax.device_put(x, NamedSharding(Mesh(np.array(devices), ("batch",)), PartitionSpec("batch")))
    mapped = jax.pmap(lambda x: everything(x, "batch"), axis_name="batch", devices=devices)(x.reshape(8, 2, 16, 16, 3))
    # Rounded in another order in places, no more: another draw would be off by 0.1 and up.
    np.testing.assert_allclose(jax.jit(everything)(sharded), expected, atol=1e-6)
    np.testing.assert_allclose(mapped.reshape(x.shape), expected, atol=1e-6)


def test_policies():
    assert augment.check_policy("") == ()
    assert augment.check_policy("cutout,color") == ("cutout", "color")
    assert augment.check_policy(ALL) == augment.POLICIES == tuple(FUNCTIONS)


@pytest.mark.parametrize("policy, part", [("colour", "colour"), ("color,flip", "flip"), ("color, cutout", " cutout")])
def test_unknown_policies_are_named(policy, part):
    with pytest.raises(ValueError, match=f"list of color, translation, cutout, got '{part}'"):
        augment.check_policy(policy)
    with pytest.raises(ValueError, match=f"got '{part}'"):
        augment.diff_augment(KEY, pictures(1, 8, 8, 3), policy)
