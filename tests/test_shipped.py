"""The models that ship: small, without places of the machine that trained them, and they paint."""

import json

import jax
import numpy as np
import pytest
import skimage.data

from ganstyle_jax import cli, data
from ganstyle_jax.features import weights
from ganstyle_jax.forward.painter import Painter
from ganstyle_jax.io import images, pictures
from ganstyle_jax.loop import models
from ganstyle_jax.style import adain, painting

pytestmark = pytest.mark.usefixtures("home", "quick_compile")
LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


@pytest.fixture(scope="module")
def photograph():
    return images.resize(data.to_float(skimage.data.astronaut()), (192, 192))


@pytest.fixture(scope="module")
def night():
    return painting.painting(256)


@pytest.fixture(scope="module")
def style_error():
    """By the compact network, the mean of the relative errors of Gram matrices."""
    network, params = weights.load_for_style("compact")

    @jax.jit
    def grams(picture):
        features = network.apply(params, picture[None], LAYERS).values()
        return [x[0].reshape(-1, x.shape[-1]).T @ x[0].reshape(-1, x.shape[-1]) / x[0, ..., 0].size for x in features]

    def error(picture, style):
        pairs = zip(grams(picture), grams(style), strict=True)
        return float(np.mean([((a - b) ** 2).sum() / (b**2).sum() for a, b in pairs]))

    return error


def test_those_that_are_told_of_are_there_and_small():
    assert list(models.shipped()) == ["adain", "paintings"]
    for path in models.shipped().values():
        assert path.stat().st_size <= 2_000_000
        said = json.dumps(models.described(path))
        assert "/tmp" not in said and "/home" not in said and "/work" not in said


@pytest.mark.parametrize("name", ["starry_night", "the_scream", "shipwreck", "night", "meadow"])
def test_paintings_has_it(name):
    assert name in [path.stem for path in models.load("paintings").cfg.style]


@pytest.mark.parametrize("subject", ["night", "meadow"])
def test_paintings_takes_the_photograph_to_what_it_has_learned(photograph, style_error, subject):
    model = models.load("paintings")
    painter = Painter(model, model.method.module.ApplySettings(style=(subject,)))
    painted, style = painter(photograph[None])[0], painting.painting(512, subject=subject)
    assert style_error(painted, style) < 0.5 * style_error(photograph, style)
    # It is the photograph still: light is where it was.
    luma = [picture @ images.LUMA for picture in (painted, photograph)]
    assert np.corrcoef(*(x.reshape(48, 4, 48, 4).mean((1, 3)).ravel() for x in luma))[0, 1] > 0.3


def test_adain_takes_the_photograph_to_a_style_that_it_never_saw(photograph, night, style_error, tmp_path):
    pictures.write_picture(tmp_path / "night.png", night)
    model = models.load("adain")
    painter = Painter(model, adain.ApplySettings(style=(tmp_path / "night.png",), style_size=204))
    painted = painter(photograph[None])[0]
    assert style_error(painted, night) < 0.5 * style_error(photograph, night)
    luma = [picture @ images.LUMA for picture in (painted, photograph)]
    assert np.corrcoef(*(x.reshape(48, 4, 48, 4).mean((1, 3)).ravel() for x in luma))[0, 1] > 0.3


def test_commands_of_the_readme(photograph, night, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures.write_picture(tmp_path / "photo.jpg", photograph[:64, :72])
    pictures.write_picture(tmp_path / "painting.jpg", night)
    cli.main(["apply", "--model", "paintings", "photo.jpg", "--style", "the_scream", "-o", "painted.png"])
    cli.main(["apply", "--model", "adain", "photo.jpg", "--style", "painting.jpg", "-o", "other.png"])
    for name in ("painted.png", "other.png"):
        assert pictures.read_picture(tmp_path / name).shape == (64, 72, 3)
    assert "paintings applied: painted.png" in capsys.readouterr().out
