"""Pictures that repeat without a seam: nothing in their making knows where they begin."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax.features import image_layers, vgg, weights
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn import layers
from ganstyle_jax.style import gatys
from ganstyle_jax.style.losses import total_variation
from ganstyle_jax.stylize import program as stylize

TINY = vgg.VGG(((4, 4), (6,), (8,), (8,), (8,)), padding="reflect")
NETWORKS = {"vgg": (TINY, gatys.STYLE_LAYERS), "squeezenet": (vgg.SqueezeNet(), ("relu1", "fire3", "fire5"))}
rng = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("quick_compile")


def config(taps, **changed):
    return gatys.Config(**{"content_layers": taps[-2:-1], "style_layers": taps, "tileable": True, "size": 64} | changed)


@functools.cache
def params_of(name):
    return NETWORKS[name][0].init(jax.random.key(0))


def noise(*shape):
    return rng.uniform(-1, 1, shape)


# ---------------------------------------------------------------------------------------------------------------------
# The parts


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_features_of_a_repeated_image_are_repeated(x64, name, pooling):
    network, taps = NETWORKS[name]
    network = dataclasses.replace(network, dtype="float64", pooling=pooling).seamless()
    params = jax.tree.map(lambda x: x.astype(np.float64), params_of(name))
    image = noise(1, 32, 48, 3)
    apply = jax.jit(functools.partial(network.apply, taps=taps))
    once, twice = apply(params, image), apply(params, np.tile(image, (1, 2, 2, 1)))
    for tap in taps:
        assert once[tap].shape[1:3] == (32 // network.stride(tap), 48 // network.stride(tap))
        np.testing.assert_allclose(twice[tap], np.tile(once[tap], (1, 2, 2, 1)), rtol=1e-10, atol=1e-10)


def test_circular_convolution_by_winograd():
    x, kernel = noise(1, 8, 12, 4).astype(np.float32), noise(3, 3, 4, 5).astype(np.float32)
    plain = {"kernel": jnp.asarray(kernel), "bias": jnp.ones(5)}
    mapped = {"winograd": layers.winograd_kernel(plain["kernel"]), "bias": jnp.ones(5)}
    expected = sum(np.roll(x, (1 - i, 1 - j), (1, 2)) @ kernel[i, j] for i in range(3) for j in range(3))
    for params in (plain, mapped):
        found = image_layers.convolve(jnp.asarray(x), params, "circular")
        np.testing.assert_allclose(found, expected + 1, atol=1e-4)


def test_circular_padding_asks_for_the_whole_image():
    with pytest.raises(ValueError, match="in one piece"):
        image_layers.convolve(jnp.ones((1, 8, 8, 3)), {"kernel": jnp.ones((3, 3, 3, 1)), "bias": jnp.zeros(1)},
                              "circular", extent=(8, 7))  # fmt: skip


@pytest.mark.parametrize("old, new", [((16, 24), (32, 48)), ((48, 32), (24, 16)), ((40, 40), (60, 100))])
def test_resizing_goes_round(old, new):
    """A shift before is a shift after."""
    image, resized = noise(*old, 3), functools.partial(images.resize, shape=new)
    shift = [2 * before // math.gcd(before, after) for before, after in zip(old, new, strict=True)]
    moved = [places * after // before for places, before, after in zip(shift, old, new, strict=True)]
    found = resized(np.roll(image, shift, (0, 1)), wrap=True)
    np.testing.assert_allclose(found, np.roll(resized(image, wrap=True), moved, (0, 1)), atol=1e-5)
    inside = np.s_[new[0] // 4 : -new[0] // 4, new[1] // 4 : -new[1] // 4]
    np.testing.assert_allclose(resized(image, wrap=True)[inside], resized(image)[inside], atol=1e-5)


def test_total_variation_goes_round():
    image = noise(5, 7, 3)
    expected = sum(np.mean((np.roll(image, -1, axis) - image) ** 2) for axis in (0, 1))
    np.testing.assert_allclose(total_variation(jnp.asarray(image, jnp.float32), circular=True), expected, rtol=1e-5)


def test_sides_are_multiples_of_the_strides():
    cfg = config(gatys.STYLE_LAYERS, size=300, smallest=100, factor=2**0.5)
    assert gatys.shapes_of((100, 200), cfg, TINY) == [(48, 112), (80, 144), (112, 208), (144, 304)]
    assert gatys.shapes_of((100, 200), dataclasses.replace(cfg, tileable=False), TINY)[-1] == (150, 300)


# ---------------------------------------------------------------------------------------------------------------------
# The whole


@pytest.mark.parametrize(
    "name, style_loss, optimizer",
    [("vgg", "gram", "lbfgs"), ("vgg", "wasserstein", "adam"), ("squeezenet", "gram", "adam")],
)
def test_loss_and_gradient_move_with_the_image(x64, name, style_loss, optimizer):
    """By the largest stride, in all variables."""
    network, taps = NETWORKS[name]
    if style_loss == "wasserstein":
        taps = taps[:2]  # of which no channel is dead, or roots of eigenvalues that are 0 would be compared
    network = dataclasses.replace(network, dtype="float64")
    params = jax.tree.map(lambda x: x.astype(np.float64), params_of(name))
    cfg = config(taps, style_loss=style_loss, optimizer=optimizer)
    content, style, image = noise(32, 48, 3), noise(40, 40, 3), noise(32, 48, 3) * 1.2

    def at(places):
        def move(x):
            return np.roll(x, places, (0, 1))

        targets = gatys.make_targets(network, params, move(content), [style], cfg)
        value, gradient, _ = gatys.evaluate(network, params, targets, jnp.asarray(move(image)), cfg)
        return value, gradient

    (value, gradient), (moved, moved_gradient) = at((0, 0)), at((16, 32))
    np.testing.assert_allclose(moved, value, rtol=1e-10)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(moved_gradient / scale, np.roll(gradient, (16, 32), (0, 1)) / scale, atol=1e-10)


def steps_across(picture):
    """Root mean square of the differences of neighbours: across the seams, and elsewhere."""
    across, down = (np.roll(picture, -1, axis) - picture for axis in (1, 0))
    seam = np.concatenate([across[:, -1], down[-1]])
    inside = np.concatenate([across[:, :-1].reshape(-1, 3), down[:-1].reshape(-1, 3)])
    return (seam**2).mean() ** 0.5, (inside**2).mean() ** 0.5


def test_there_is_no_seam(home, tmp_path):
    """Of a texture from noise, against one made without."""
    weights.write(tmp_path / "tiny.safetensors", TINY, params_of("vgg"))
    style = np.clip(images.resize(noise(8, 8, 3), (64, 64)), -1, 1)
    pictures.write_picture(tmp_path / "style.png", style)
    ratios = {}
    for tileable in (True, False):
        cfg = config(gatys.STYLE_LAYERS[:3], tileable=tileable, steps=100, smallest=64, optimizer="adam", init="style")
        cfg = dataclasses.replace(cfg, content_layers=())
        out = tmp_path / f"{tileable}.tif"
        settings = stylize.Settings(out=out, features=str(tmp_path / "tiny.safetensors"))
        stylize.run(tmp_path / "style.png", [tmp_path / "style.png"], cfg, settings)
        seam, inside = steps_across(pictures.read_picture(out))
        ratios[tileable] = seam / inside
    assert 0.8 < ratios[True] < 1.25 and ratios[False] > 1.5


@pytest.mark.parametrize("wrong", ["tiles", "rows"])
def test_what_cannot_be_seamless_is_refused(home, tmp_path, wrong):
    if wrong == "tiles":
        with pytest.raises(ValueError, match="in one piece, not in tiles"):
            config(gatys.STYLE_LAYERS, tile=32)
        return
    weights.write(tmp_path / "tiny.safetensors", TINY, params_of("vgg"))
    pictures.write_picture(tmp_path / "x.png", noise(32, 32, 3))
    settings = stylize.Settings(out=tmp_path / "o.png", features=str(tmp_path / "tiny.safetensors"), parallel="rows")
    with pytest.raises(UserError, match="in one piece, not in tiles or rows"):
        stylize.run(tmp_path / "x.png", [tmp_path / "x.png"], config(gatys.STYLE_LAYERS), settings)


# ---------------------------------------------------------------------------------------------------------------------
# Other borders


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
def test_borders_are_those_that_are_asked_for(home, tmp_path, name, padding):
    network = dataclasses.replace(NETWORKS[name][0], padding="zeros")
    if name == "vgg":
        network = dataclasses.replace(network, first_padding="reflect")
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), jax.eval_shape(network.init, jax.random.key(0)))
    weights.write(tmp_path / "net.safetensors", network, zeros)
    cfg = gatys.Config(content_layers=NETWORKS[name][1][:1], style_layers=NETWORKS[name][1][:1])
    settings = stylize.Settings(features=str(tmp_path / "net.safetensors"), padding=padding)
    found = stylize.load_network(cfg, settings)[0]
    assert found.padding == padding and getattr(found, "first_padding", None) is None
    unchanged = stylize.load_network(cfg, dataclasses.replace(settings, padding=None))[0]
    assert unchanged.padding == "zeros" and getattr(unchanged, "first_padding", "reflect") == "reflect"
