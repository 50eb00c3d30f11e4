"""`ganstyle stylize`: pictures in, pictures and traces out, and one clear sentence for what cannot be."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from ganstyle_jax import cli, images, pictures, vgg, weights

TINY = vgg.VGG(((4, 4), (6,), (8,)), padding="reflect")
QUICK = ["--size=24", "--steps=6", "--smallest=16", "--content-layers=relu3_1", "--style-layers", "relu1_1", "relu2_1"]

pytestmark = pytest.mark.usefixtures("home", "quick_compile")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small network, a content picture, two styles and a folder of two contents."""
    folder = tmp_path_factory.mktemp("stylize")
    weights.write(folder / "tiny.safetensors", TINY, TINY.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    (folder / "many").mkdir()
    for name, shape in {
        "content.png": (30, 45),
        "style.jpg": (40, 40),
        "other.png": (20, 50),
        "many/a.png": (30, 30),
    }.items():
        picture = np.clip(images.resize(rng.uniform(-1, 1, (5, 5, 3)), shape), -1, 1)
        pictures.write_picture(folder / name, picture)
    Image.open(folder / "content.png").rotate(90, expand=True).save(folder / "many" / "b.jpg")
    return folder


def ganstyle(place, *args: object) -> int:
    try:
        cli.main(["stylize", *map(str, args), *QUICK, f"--features={place / 'tiny.safetensors'}"])
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def test_a_picture_its_trace_and_what_lay_between(place, tmp_path, capsys):
    out = tmp_path / "out.png"
    args = ["--trace", "--save-every=2", f"--animation={tmp_path / 'out.gif'}"]
    assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, *args) == 0
    with Image.open(out) as picture:
        assert picture.size == (24, 16) and picture.mode == "RGB"
    assert f"{out}: " in capsys.readouterr().err
    trace = json.loads((tmp_path / "out.json").read_text())
    assert trace["config"]["size"] == 24 and trace["settings"]["features"].endswith("tiny.safetensors")
    evaluations = [step["evaluations"] for step in trace["steps"]]
    assert evaluations == sorted(evaluations) and evaluations[-1] >= 12  # 6 at each of two sizes
    assert trace["steps"][0]["size"] == [17, 11] and trace["steps"][-1]["size"] == [24, 16]
    last = trace["steps"][-1]
    assert last["loss"] == pytest.approx(sum(last["terms"].values()), rel=1e-3)
    assert last["seconds"] > 0 and last["memory_mib"] > 0
    assert sorted((tmp_path / "out.steps").glob("*.png"))
    with Image.open(tmp_path / "out.gif") as film:
        assert film.size == (24, 16)


def test_a_folder_of_contents_and_two_styles(place, tmp_path):
    out = tmp_path / "results"
    styles = [place / "style.jpg", place / "other.png", "--style-weights", "3", "1"]
    assert ganstyle(place, place / "many", *styles, "-o", out, "--factor=2") == 0
    sizes = {}
    for path in sorted(out.iterdir()):
        with Image.open(path) as picture:
            sizes[path.name] = picture.size
    assert sizes == {"a.png": (24, 24), "b.png": (16, 24)}


def test_luma_keeps_the_colours(place, tmp_path):
    out = tmp_path / "out.png"
    assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, "--preserve-colors=luma") == 0
    result = pictures.read_picture(out)
    content = images.resize(pictures.read_picture(place / "content.png"), result.shape[:2])
    inside = (np.abs(result) < 0.99).all(-1) & (np.abs(content) < 0.99).all(-1)
    for a, b in ((0, 1), (1, 2)):  # chroma is differences of colours
        difference = (result[..., a] - result[..., b]) - (content[..., a] - content[..., b])
        assert np.abs(difference[inside]).max() < 3 / 127.5  # two roundings to 8 bits


@pytest.mark.parametrize(
    "args, message",
    [
        (["content.png"], "no style is given: name at least one picture after"),
        (["none.png", "style.jpg"], "none.png"),
        (["content.png", "none.jpg"], "none.jpg"),
        (["content.png", "style.jpg", "--style-weights", "1", "2"], "--style-weights has 2 values for 1 styles"),
        (["content.png", "style.jpg", "-o", "missing/out.png"], "there is no folder"),
        (["content.png", "style.jpg", "-o", "out.bmp"], "its format follows from it: use .png"),
        (["content.png", "style.jpg", "--content-layers=relu9_1"], "the network has no layer 'relu9_1'"),
        (["content.png", "style.jpg", "--features=vgg19"], "run `ganstyle weights fetch vgg19`"),
        (["content.png", "style.jpg", "--features=content.png"], "content.png"),
    ],
)
def test_refusals(place, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    known = {path.name for path in place.iterdir()}
    args = [
        str(place / arg) if arg in known else arg.replace("=content.png", f"={place / 'content.png'}") for arg in args
    ]
    options = [] if any("--features" in arg for arg in args) else [f"--features={place / 'tiny.safetensors'}"]
    layers = [] if any("--content-layers" in arg for arg in args) else ["--content-layers=relu3_1"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["stylize", *args, *options, *layers, "--size=24", "--style-layers", "relu1_1"])
    assert caught.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("ganstyle: error: ") and message in lines[-1]
    assert list(tmp_path.iterdir()) == []
