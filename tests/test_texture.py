"""`ganstyle texture`: pictures of a manner alone, from noise, which repeat if they are asked to."""

import jax
import numpy as np
import pytest

from ganstyle_jax import cli
from ganstyle_jax.control import Control
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import images, pictures
from ganstyle_jax.style import gatys
from ganstyle_jax.stylize import texture as program
from ganstyle_jax.stylize.texture import Texture

TINY = vgg.VGG(((4, 4), (6,), (8,)), padding="reflect")
QUICK = {"size": 32, "layers": ("relu1_1", "relu2_1"), "steps": 8, "smallest": 32, "loss": "gram"}

pytestmark = pytest.mark.usefixtures("home", "quick_compile")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texture")
    weights.write(folder / "tiny.safetensors", TINY, TINY.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    sample = np.clip(images.resize(rng.uniform(-1, 1, (10, 12, 3)) * [0.2, 0.5, 1] + [0.5, 0, -0.2], (40, 48)), -1, 1)
    pictures.write_picture(folder / "sample.png", sample)
    alpha = (np.arange(48) < 24).astype(np.float32) * np.ones((40, 1))
    for name, hidden in (("cut.png", -1), ("other.png", 1)):
        pictures.write_picture(folder / name, np.where(alpha[..., None] > 0, sample, hidden), alpha.astype(np.float32))
    return folder


def make(place, out, sample="sample.png", **settings):
    settings = QUICK | {"features": str(place / "tiny.safetensors"), "out": out} | settings
    return program.run([place / sample], Texture(**settings))


def test_several_are_what_each_is_by_its_own_seed(place, tmp_path):
    assert make(place, tmp_path / "t.tif", count=2, seed=3) == [tmp_path / "t-1.tif", tmp_path / "t-2.tif"]
    made = [pictures.read_picture(tmp_path / f"t-{i}.tif") for i in (1, 2)]
    assert made[0].shape == (32, 32, 3) and np.abs(made[0] - made[1]).mean() > 0.05
    make(place, tmp_path / "alone.tif", seed=4)
    np.testing.assert_allclose(pictures.read_picture(tmp_path / "alone.tif"), made[1], atol=0.02)


def test_its_features_are_the_samples(place, tmp_path):
    make(place, tmp_path / "t.tif", steps=40)
    network, params = weights.load(str(place / "tiny.safetensors"))
    cfg = Texture(**QUICK).config(1.0)
    sample = images.resize(pictures.read_picture(place / "sample.png"), (27, 32))
    targets = gatys.make_targets(network, params, np.zeros((32, 32, 3), np.float32), [sample], cfg)
    noise = pictures.read_picture(tmp_path / "t.tif").reshape(-1, 3)
    noise = np.random.default_rng(0).permutation(noise).reshape(32, 32, 3)
    found = [
        sum(gatys.loss_terms(network, params, image, targets, cfg).values())
        for image in (pictures.read_picture(tmp_path / "t.tif"), noise)
    ]
    assert found[0] < 0.1 * found[1]


def test_what_is_transparent_in_the_sample_does_not_count(place, tmp_path):
    for name in ("cut", "other"):
        make(place, tmp_path / f"{name}.tif", f"{name}.png")
    made = [pictures.read_picture(tmp_path / f"{name}.tif") for name in ("cut", "other")]
    np.testing.assert_array_equal(made[0], made[1])


@pytest.mark.slow
def test_shapes(place, tmp_path, capsys):
    make(place, tmp_path / "a.png", shape=(24, 40), steps=1)
    assert pictures.read_picture(tmp_path / "a.png").shape == (24, 40, 3)
    capsys.readouterr()
    make(place, tmp_path / "b.png", shape=(24, 40), steps=1, tileable=True)
    assert pictures.read_picture(tmp_path / "b.png").shape[:2] in ((32, 48), (32, 32))
    assert "instead of 40 x 24" in capsys.readouterr().err


def test_stopped_it_says_so(place, tmp_path):
    control = Control()
    control.stop()
    settings = Texture(**QUICK | {"features": str(place / "tiny.safetensors"), "out": tmp_path / "t.png"})
    program.run([place / "sample.png"], settings, control)
    assert not (tmp_path / "t.png").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["none.png"], "there is no picture none.png"),
        ([], "no sample is given"),
        (["sample.png", "--count", "0"], "count must be from 1 to 10000, got 0"),
        (["sample.png", "--shape", "0", "5"], "at least 1 x 1"),
        (["sample.png", "-o", "t.xyz"], "ends in .xyz"),
        (["sample.png", "--layers", "relu9_9"], "no layer 'relu9_9'"),
        (["sample.png", "--size", "1"], "too small for these layers"),
        (["sample.png", "-o", "sample.png"], "choose another -o"),
    ],
)
def test_what_is_wrong_is_said(place, monkeypatch, capsys, args, message):
    monkeypatch.chdir(place)
    layers = [] if "--layers" in args else ["--layers", "relu2_1"]
    given = ["texture", *args, *layers, "--features", "tiny.safetensors"]
    with pytest.raises(SystemExit) as ended:
        cli.main(given)
    assert ended.value.code
    said = capsys.readouterr()
    assert message in " ".join((said.err + said.out).split())


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["texture", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--tileable" in said and "ganstyle texture bricks.jpg -o wall.png --tileable" in said
