"""Transparency: style comes from and goes to what is opaque, and what is not leaves no trace there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image
from test_pictures import png

from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import colours, gatys
from ganstyle_jax.stylize import opaque
from ganstyle_jax.stylize import program as stylize

TINY = vgg.VGG(((4, 4), (6,), (8,)), padding="reflect")
CFG = gatys.Config(
    size=24, smallest=24, steps=4, content_layers=("relu3_1",), style_layers=("relu1_1", "relu2_1"), optimizer="adam"
)
rng = np.random.default_rng(0)
COLOURS = rng.uniform(-1, 1, (24, 32, 3)).astype(np.float32)
DISC = (np.hypot(*(np.mgrid[:24, :32] - np.array([12, 16])[:, None, None])) < 9).astype(np.float32)

pytestmark = pytest.mark.usefixtures("home", "quick_compile")


@pytest.fixture(scope="module")
def params(quick_compile):
    return TINY.init(jax.random.key(0))


@pytest.fixture(scope="module")
def features(tmp_path_factory, params):
    path = tmp_path_factory.mktemp("opaque") / "tiny.safetensors"
    weights.write(path, TINY, params)
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize(
    "kind", ["8.png", "8.webp", "16.png", "16.tif", "premultiplied.tif", "palette.png", "grey.png"]
)
def test_colours_that_are_not_seen_are_read_as_they_are(tmp_path, kind):
    path, levels = tmp_path / kind, 65535 if "16" in kind or kind.startswith("pre") else 255
    alpha = np.where(DISC > 0, 1, 0.5).astype(np.float32)
    pixels = np.rint(np.dstack([(COLOURS + 1) / 2, alpha]) * levels).astype(np.uint16)
    expected, seen = pixels[..., :3] / (levels / 2) - 1, pixels[..., 3] / levels
    if kind in ("16.png", "16.tif"):
        if kind == "16.png":
            path.write_bytes(png(pixels))
        else:
            pictures.write_picture(path, COLOURS, alpha)
    elif kind == "premultiplied.tif":
        multiplied = pixels.copy()
        multiplied[..., :3] = np.rint(multiplied[..., :3] * seen[..., None])
        tifffile.imwrite(path, multiplied, photometric="rgb", extrasamples=["assocalpha"])
    elif kind == "palette.png":
        index = (DISC > 0).astype(np.uint8)
        picture = Image.fromarray(index, "P")
        picture.putpalette([255, 0, 0, 0, 0, 255])
        picture.save(path, transparency=bytes([128, 255]))
        expected = np.where(DISC[..., None] > 0, [-1, -1, 1.0], [1.0, -1, -1])
    elif kind == "grey.png":
        Image.fromarray(pixels[..., [0, 3]].astype(np.uint8), "LA").save(path)
        expected = np.repeat(expected[..., :1], 3, -1)
    else:
        options = {"lossless": True, "exact": True} if kind == "8.webp" else {}
        Image.fromarray(pixels.astype(np.uint8)).save(path, **options)
    found, found_alpha = pictures.read_with_alpha(path)
    np.testing.assert_allclose(found, expected, atol=2.1 / 65535 if levels > 255 else 1e-6)
    np.testing.assert_allclose(found_alpha, seen, atol=1e-6)
    np.testing.assert_array_equal(found_alpha, pictures.read_alpha(path))


def test_an_opaque_picture_has_no_alpha(tmp_path):
    pictures.write_picture(tmp_path / "x.png", COLOURS, np.ones((24, 32)))
    found, alpha = pictures.read_with_alpha(tmp_path / "x.png")
    assert alpha is None
    np.testing.assert_array_equal(found, pictures.read_picture(tmp_path / "x.png"))


# ---------------------------------------------------------------------------------------------------------------------
# What lies where nothing is seen


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (24, 32), (33, 64)])
def test_filling_keeps_what_is_known_and_stays_among_its_colours(shape):
    picture = rng.uniform(-0.5, 0.9, (*shape, 3)).astype(np.float32)
    known = rng.uniform(size=shape) < 0.1
    known[-1, -1] = True
    filled = opaque.fill(np.where(known[..., None], picture, np.nan), known)
    np.testing.assert_array_equal(filled[known], picture[known])
    assert np.isfinite(filled).all()
    for channel in range(3):
        of = picture[known][:, channel]
        assert of.min() - 1e-5 <= filled[..., channel].min() and filled[..., channel].max() <= of.max() + 1e-5


def test_filling_goes_on_with_the_nearest_colours():
    picture = np.where(np.arange(64)[None, :, None] < 32, [1.0, -1, -1], [-1.0, -1, 1]) * np.ones((64, 1, 1))
    known = np.ones((64, 64), bool)
    known[20:44, 4:20] = known[20:44, 44:60] = False
    filled = opaque.fill(picture, known)
    np.testing.assert_allclose(filled[20:44, 4:20], np.broadcast_to([1, -1, -1], (24, 16, 3)), atol=1e-5)
    np.testing.assert_allclose(filled[20:44, 44:60], np.broadcast_to([-1, -1, 1], (24, 16, 3)), atol=1e-5)


def test_nothing_to_be_seen_is_refused():
    with pytest.raises(UserError, match=r"cut\.png is transparent all over"):
        opaque.filled(COLOURS, np.full((24, 32), 0.01, np.float32), "cut.png")


@pytest.mark.parametrize("how", ["luma", "coral", "histogram"])
def test_colours_are_matched_by_what_is_seen(how):
    style, content = COLOURS, np.flip(COLOURS) * 0.3
    seen = DISC > 0
    expected = colours.prepare_style(style[seen][None], content[seen][None], how)[0]
    for loud in (-1, 1):
        hidden_style = opaque.fill(np.where(seen[..., None], style, loud), seen)
        found = opaque.prepare_style(hidden_style, np.where(seen[..., None], content, loud), how, DISC, DISC)
        np.testing.assert_allclose(found[seen], expected, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Loss


def loss_of(params, content, image, **masks):
    targets = gatys.make_targets(TINY, params, content, [COLOURS, np.flip(COLOURS, 1)], CFG, **masks)
    return gatys.loss_terms(TINY, params, image, targets, CFG)


def test_opaque_everywhere_is_no_alpha_at_all(params):
    image = jnp.asarray(np.flip(COLOURS, 0))
    plain = loss_of(params, COLOURS, image)
    ones = loss_of(params, COLOURS, image, opaque=np.ones((24, 32)))
    for name in plain:
        np.testing.assert_allclose(ones[name], plain[name], rtol=1e-5)


@pytest.mark.parametrize("tile", [0, 16])
def test_what_is_transparent_does_not_count(params, tile):
    """Far from the border: features of what is opaque see a little further."""
    cfg = dataclasses.replace(CFG, tile=tile)
    left = np.repeat((np.arange(96) < 48).astype(np.float32)[None], 32, 0)
    content = rng.uniform(-1, 1, (32, 96, 3)).astype(np.float32)
    image = rng.uniform(-1, 1, (32, 96, 3)).astype(np.float32)
    targets = gatys.make_targets(TINY, params, content, [COLOURS], cfg, opaque=left)

    def loss(image):
        terms = gatys.loss_terms(TINY, params, image, targets, cfg)
        return sum(value for name, value in terms.items() if name.startswith(("content", "style")))

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(image)))
    assert np.abs(gradient[:, 72:]).max() == 0 and np.abs(gradient[:, :48]).min() >= 0
    assert np.abs(gradient[:, :40]).mean() > 1e-6
    changed = image.copy()
    changed[:, 72:] = 0.7
    np.testing.assert_allclose(loss(jnp.asarray(changed)), loss(jnp.asarray(image)), rtol=1e-5)


def test_masks_and_alpha_are_multiplied(params):
    image = jnp.asarray(np.flip(COLOURS, 0))
    masks = [np.full((24, 32), 0.25), np.tile(np.linspace(0, 1, 32), (24, 1))]
    found = loss_of(params, COLOURS, image, content_masks=masks, opaque=DISC)
    expected = loss_of(params, COLOURS, image, content_masks=[mask * DISC for mask in masks])
    for name in found:
        if name.startswith("style"):  # of what is to be seen, by the share of it that each style has
            np.testing.assert_allclose(found[name] * DISC.mean(), expected[name], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def cut(path, hidden, alpha=DISC):
    """COLOURS with another colour where they are not seen."""
    pictures.write_picture(path, np.where(DISC[..., None] > 0, COLOURS, hidden), alpha)
    return path


@pytest.mark.parametrize("how", ["none", "luma", "histogram"])
def test_hidden_colours_leave_no_trace(tmp_path, features, how):
    """Of content and style, whatever lies where nothing is to be seen."""
    made = []
    for hidden in (-1, 1):
        content = cut(tmp_path / f"content{hidden}.png", hidden)
        style = cut(tmp_path / f"style{hidden}.png", [hidden, -hidden, hidden])
        out = tmp_path / f"out{hidden}.tif"
        stylize.run(content, [style], CFG, stylize.Settings(out=out, features=features, preserve_colors=how))
        made.append(pictures.read_with_alpha(out))
    np.testing.assert_array_equal(made[0][0], made[1][0])
    np.testing.assert_array_equal(made[0][1], made[1][1])
    assert made[0][1].min() == 0 and made[0][1].max() == 1


@pytest.mark.slow
def test_a_folder_of_both_kinds(tmp_path, features):
    """Pictures with and without transparency are not made together, and each is what it is by itself."""
    folder = tmp_path / "many"
    folder.mkdir()
    cut(folder / "a.png", 0)
    pictures.write_picture(folder / "b.png", COLOURS)
    cut(folder / "c.png", 1, np.maximum(DISC, 0.5))
    pictures.write_picture(tmp_path / "style.png", np.flip(COLOURS))
    stylize.run(folder, [tmp_path / "style.png"], CFG, stylize.Settings(out=tmp_path / "out", features=features))
    assert [pictures.read_alpha(tmp_path / "out" / f"{name}.png") is None for name in "abc"] == [False, True, False]
    alone = stylize.Settings(out=tmp_path / "c.png", features=features)
    stylize.run(folder / "c.png", [tmp_path / "style.png"], CFG, alone)
    pair = [pictures.read_with_alpha(path)[0] for path in (tmp_path / "c.png", tmp_path / "out" / "c.png")]
    np.testing.assert_allclose(*pair, atol=3 / 127.5)


def test_a_jpeg_is_over_white_and_says_so(tmp_path, features, capsys):
    content, out = cut(tmp_path / "content.png", -1), tmp_path / "out.jpg"
    pictures.write_picture(tmp_path / "style.png", np.flip(COLOURS))
    stylize.run(content, [tmp_path / "style.png"], CFG, stylize.Settings(out=out, features=features))
    assert "over white, since .jpg has no transparency" in capsys.readouterr().err
    made = pictures.read_picture(out)
    assert made[0].mean() > 0.95 and made[:, 0].mean() > 0.95 and made[7:11, 10:14].mean() < 0.8


def test_masks_of_nothing_but_transparency_are_refused(tmp_path, features):
    content = cut(tmp_path / "content.png", 0)
    pictures.write_picture(tmp_path / "opaque.png", COLOURS)
    pictures.write_picture(tmp_path / "mask.png", np.repeat(1 - 2 * DISC[..., None], 3, -1))
    for name, picture in (("content_mask", content), ("style_mask", tmp_path / "opaque.png")):
        settings = stylize.Settings(out=tmp_path / "out.png", features=features, **{name: (tmp_path / "mask.png",)})
        with pytest.raises(UserError, match=r"mask\.png covers only what is transparent in .*content\.png"):
            stylize.run(picture, [content], CFG, settings)
