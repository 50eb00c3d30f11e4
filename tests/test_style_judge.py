"""The judge of style pictures: closed forms, the known row of the photograph, and a whole run of one small pair."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from scripts import load_script

from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style.config import fitted_shape

measures = load_script("style_measures")
tables = load_script("style_judge_tables")
script = load_script("style_judge")

TINY = vgg.VGG(((3,), (4,), (4,), (4, 4), (4,)))
PLACES = ("whole", "borders", "middle")


@pytest.fixture(scope="module", params=["VGG", "SqueezeNet"])
def judge(request):
    network = TINY if request.param == "VGG" else vgg.SqueezeNet()
    return measures.Judge("a judge", network, random_params(network))


def random_params(network):
    """As `init` draws them, without compiling it."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))

    def draw(of):
        return (rng.normal(size=of.shape) * (2 / max(1, np.prod(of.shape[:-1]))) ** 0.5).astype(np.float32)

    return jax.tree.map(draw, shapes)


def picture(seed: int, shape: tuple[int, int] = (96, 128)) -> np.ndarray:
    rough = np.random.default_rng(seed).uniform(-1, 1, (12, 16, 3))
    return np.clip(images.resize(rough, shape), -1, 1)


def test_of_the_style_itself_no_style_error_is_left_and_of_the_content_no_content_error(judge):
    content, style = judge.look(picture(0)), judge.look(picture(1))
    as_style = judge.measure(style, content, style)
    assert set(as_style["gram"]["whole"].values()) == {0.0}
    assert as_style["frechet"] < 1e-6 < as_style["cosine"]
    as_content = judge.measure(content, content, style)
    assert as_content["content"] == dict.fromkeys(PLACES, 0.0)
    assert as_content["cosine"] < 1e-6 and min(as_content["gram"]["whole"].values()) > 1e-4
    for found in (as_style, as_content):
        assert found["combined"] == (1 + found["cosine"]) * (1 + found["frechet"])
        assert tuple(found["gram"]) == tuple(found["content"]) == PLACES


def test_errors_of_constant_features_in_closed_form():
    """Features of 3 in the middle and 1 at the border, against 2 everywhere: G is 9, 1 and what lies between."""
    judge = measures.Judge("a judge", TINY, {})
    taps = (*judge.style_taps, judge.content_tap)
    twos = {tap: np.full((32, 48, 1), 2, np.float32) for tap in taps}
    mixed = {tap: np.ones((32, 48, 1), np.float32) for tap in taps}
    for features in mixed.values():
        features[2:-2, 3:-3] = 3  # 1/16 of 32 and of 48
    found = judge.measure(measures.Seen(mixed), measures.Seen(twos), measures.Seen(twos))
    share = 28 * 42 / (32 * 48)
    gram = 9 * share + 1 - share
    expected = {"whole": ((gram - 4) / 4) ** 2, "borders": (3 / 4) ** 2, "middle": (5 / 4) ** 2}
    for place in PLACES:
        assert found["content"][place] == pytest.approx(1 / 4)
        assert found["gram"][place] == pytest.approx(dict.fromkeys(judge.style_taps, expected[place]), rel=1e-5)
    mean, spread = 3 * share + 1 - share, 4 * share * (1 - share)
    assert found["frechet"] == pytest.approx(((mean - 2) ** 2 + spread) / 4, rel=1e-3)
    assert found["cosine"] == pytest.approx(0, abs=1e-6)


def test_parts_are_all_places_once_and_a_small_map_has_no_middle():
    features = np.arange(24 * 32, dtype=np.float32).reshape(24, 32, 1)
    found = measures.parts(features)
    assert len(found["middle"]) == (24 - 2 * 2) * (32 - 2 * 2)  # 24 / 16 is rounded
    assert sorted([*found["borders"][:, 0], *found["middle"][:, 0]]) == list(features.reshape(-1))
    assert [len(x) for x in measures.parts(features[:2, :3]).values()] == [6, 6, 0]


@pytest.mark.slow
def test_photograph_has_the_errors_that_are_known_of_it(data_dir, home):
    """Gram errors of tubingen against starry_night at 288 pixels in VGG-19 of 8 bits."""
    judge = measures.Judge("vgg19", *weights.load_for_style(data_dir / "weights" / "vgg19_8bit.npz"))

    def seen(name):
        found = pictures.read_picture(data_dir / "images" / "inputs" / f"{name}.jpg")
        return judge.look(script.fitted(found, fitted_shape(found.shape, 288)))

    content, style = seen("tubingen"), seen("starry_night")
    found = judge.measure(content, content, style)
    expected = {"relu1_1": 0.262, "relu2_1": 0.444, "relu3_1": 0.576, "relu4_1": 0.575, "relu5_1": 0.921}
    assert found["gram"]["whole"] == pytest.approx(expected, abs=0.02)
    assert found["content"]["whole"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Without a network


def test_colours_that_are_moved_and_spread():
    style = 0.5 * picture(0)
    moved = measures.colours(style + 10 * measures.LEVEL, style)
    assert moved["distance"] == pytest.approx(10 * 3**0.5, rel=1e-4) == moved["mean"]
    assert moved["spread"] == pytest.approx(1, rel=1e-4) and moved["clipped_percent"] == 0
    spread = measures.colours(2 * style, style)
    assert spread["spread"] == pytest.approx(2, rel=1e-4)
    assert measures.colours(style, style)["distance"] < 1e-4
    clipped = style.copy()
    clipped[: len(style) // 4, :, 0] = 1
    assert measures.colours(clipped, style)["clipped_percent"] == pytest.approx(100 / 4 / 3)


def test_octaves_of_known_patterns():
    x, y = np.meshgrid(np.arange(128), np.arange(96))
    grey = np.ones(3)
    board = measures.finest((5 * measures.LEVEL * (-1.0) ** (x + y))[..., None] * grey)
    assert board["luma"] == pytest.approx(5, rel=1e-3) and board["luma_next"] < 0.05
    assert board["chroma"] < 1e-3 and board["alternating_percent"] == pytest.approx(100, abs=0.1)
    wave = measures.finest((5 * measures.LEVEL * np.sin(2 * np.pi * x / 6))[..., None] * grey)
    assert wave["luma_next"] == pytest.approx(5 / 2**0.5, rel=0.01) and wave["luma"] < 0.05
    colour = np.array([1.0, -0.299 / 0.587, 0.0])  # of no brightness
    bands = measures.finest((5 * measures.LEVEL * (-1.0) ** x)[..., None] * colour)
    assert bands["chroma"] == pytest.approx(5 * ((colour**2).sum() / 3) ** 0.5, rel=1e-3)
    assert bands["luma"] < 1e-3 and bands["alternating_percent"] == 0
    assert measures.finest(np.full((32, 32, 3), 0.3))["luma"] == pytest.approx(0, abs=1e-9)


def test_a_pattern_below_what_stands_out_does_not_alternate():
    x = np.arange(64)
    for half, expected in ((2, 0), (2.5, 62 / 64 * 100)):  # the step from one to the next is twice that: 4 and 5 levels
        stripes = np.tile((half * measures.LEVEL * (-1.0) ** x)[:, None, None], (1, 32, 3))
        found = measures.finest(stripes * (1 - 1e-6))["alternating_percent"]
        assert found == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------------------
# Records and tables


def entry(maker: str, error: float, content: str = "a", style: str = "b") -> dict:
    gram = {"relu1_1": error, "relu2_1": 4 * error}
    places = dict.fromkeys(PLACES, error)
    found = {
        "gram": {p: dict(gram) for p in PLACES},
        "content": places,
        "frechet": error,
        "cosine": error,
        "combined": 1.0,
    }
    finest = dict.fromkeys(("luma", "chroma", "luma_next", "chroma_next", "alternating_percent"), error)
    return {
        "maker": maker,
        "content": content,
        "style": style,
        "judges": {"vgg19": found},
        "colours": {"distance": 1.0, "clipped_percent": 0.0},
        "finest": {"result": finest, "content": finest, "style": dict.fromkeys(finest, 2 * error)},
    }


def recorded(*entries: dict) -> dict:
    record = {"size": 64, "judges": {"vgg19": {}}, "makers": {"compact": {}}, "pictures": list(entries)}
    return record | {"summary": tables.summary(record)}


def test_means_over_pairs_are_geometric_and_leave_out_what_is_not_there():
    second = entry("compact", 0.09, style="c")
    second["judges"]["vgg19"]["gram"]["middle"]["relu1_1"] = None
    found = recorded(entry("compact", 0.01), second)["summary"]["compact"]
    assert found["pairs"] == 2
    gram = found["judges"]["vgg19"]["gram"]
    assert gram["whole"] == pytest.approx({"relu1_1": 0.03, "relu2_1": 0.12})
    assert gram["middle"] == pytest.approx({"relu1_1": 0.01, "relu2_1": 0.12})
    assert found["judges"]["vgg19"]["all"]["whole"] == pytest.approx(0.06)
    assert found["finest_over_style"]["luma"] == pytest.approx(0.5)
    assert found["seconds"] is None
    assert tables.geometric_mean([0.0, 1.0]) == 0 and tables.geometric_mean([None]) is None


def test_against_an_earlier_record_only_the_same_pairs_count():
    then = recorded(entry("compact", 0.08), entry("compact", 0.5, style="only then"), entry("published", 1.0))
    now = recorded(entry("new", 0.02), entry("new", 7.0, style="only now"), entry("other", 1.0, style="only now"))
    found = tables.against(now, then)["ratios"]
    assert found == {"new": {"pairs": 1, "vgg19": pytest.approx(dict.fromkeys(found["new"]["vgg19"], 0.25))}}
    assert set(found["new"]["vgg19"]) == {"relu1_1", "relu2_1", "all", "content"}
    text = tables.markdown(now, then)
    assert "| new | 1 | 0.25 | 0.25 | 0.25 | 0.25 |" in text and "| a + only now | new | 7 | 28 | 7 |" in text
    nothing = copy.deepcopy(then)
    nothing["pictures"] = [entry("compact", 1.0, style="elsewhere")]
    assert "no pair in common" in tables.markdown(now, nothing)


def test_what_cannot_be_judged_is_said(data_dir, capsys):
    with pytest.raises(UserError, match=r"a content and a style by turns.*got 1 and 0"):
        script.Settings(pairs=("tubingen",))
    with pytest.raises(UserError, match="nothing to judge"):
        script.Settings(pairs=())
    with pytest.raises(UserError, match=r"no picture nobody: give a file, or one of those in .*tubingen"):
        script.find(data_dir, "nobody")
    with pytest.raises(UserError, match="64 x 64 pixels is not of a content of 128 x 96"):
        script.judged(picture(0, (64, 64)), picture(0), picture(1), None, [])
    judge = measures.Judge("a judge", TINY, random_params(TINY))
    with pytest.raises(UserError, match="a judge judges pictures of 16 pixels a side and more"):
        script.judged(picture(0, (12, 16)), picture(0), picture(1), None, [judge])
    with pytest.raises(UserError, match="compact cannot judge in squeezenet's place: it is a VGG"):
        script.load_judges(script.Settings(network="compact", second="compact"))
    with pytest.raises(SystemExit):
        script.maker("compact --content-weight -1", 64)
    assert "content_weight must be a number that is not negative" in capsys.readouterr().err


def test_makers_are_what_stylize_would_make_with():
    one = script.maker("compact --style-loss wasserstein --content-weight 0.02", 320)
    assert (one.config.size, one.config.style_loss, one.config.content_weight) == (320, "wasserstein", 0.02)
    assert one.settings == dataclasses.replace(script.stylize.Settings(), features="compact")
    assert script.maker("'a folder/student.safetensors' --steps 9", 64).title == "student.safetensors --steps 9"
    assert script.describe("compact")["sha256"] == script.describe(str(weights.COMPACT))["sha256"]


def test_a_picture_is_kept_only_while_it_is_of_the_same(tmp_path, monkeypatch):
    content, style, out = (tmp_path / name for name in ("content.png", "style.png", "1/out.png"))
    for i, path in enumerate((content, style)):
        images.save_png(path, picture(i))
    made = []

    def run(content, styles, config, settings, control):
        made.append(config)
        images.save_png(settings.out, picture(2 + len(made)))
        control.tell(script.Done(7, False))

    monkeypatch.setattr(script.stylize, "run", run)
    one, other = (script.maker(text, 64) for text in ("compact --steps 2", "compact --steps 3"))
    first = script.make(one, content, style, out, keep=True)
    again = script.make(one, content, style, out, keep=True)
    assert len(made) == 1 and (again.picture == first.picture).all()
    assert again.known == first.known and first.known["evaluations"] == 7
    script.make(one, content, style, out, keep=False)
    script.make(other, content, style, out, keep=True)
    images.save_png(style, picture(9))
    script.make(other, content, style, out, keep=True)
    assert [config.steps for config in made] == [2, 2, 3, 3]


def test_a_picture_is_framed_and_cut_as_it_is():
    wide = picture(0, (30, 60))
    assert (script.framed(wide, 60)[15:45] == wide).all() and (script.framed(wide, 60)[:15] == 1).all()
    assert (script.middle(wide, 40) == wide[:, 10:50]).all()


def test_what_others_published_stands_beside_its_own_pair(data_dir):
    settings = script.Settings(data=data_dir)
    inputs = data_dir / "images" / "inputs"
    (found,) = script.entries_of(settings, (), inputs / "tubingen.jpg", inputs / "the_scream.jpg", ())
    assert (found.maker, found.picture.shape) == ("published", (384, 512, 3))
    none = dataclasses.replace(settings, published=False)
    assert not list(script.entries_of(none, (), inputs / "tubingen.jpg", inputs / "the_scream.jpg", ()))
    assert not list(script.entries_of(settings, (), inputs / "tubingen.jpg", inputs / "shipwreck.jpg", ()))


@pytest.mark.slow
def test_a_pair_is_made_judged_and_shown(quick_compile, home, data_dir, tmp_path, capsys):
    """With the real VGG-19 and SqueezeNet, and a picture that is ready."""
    ready = tmp_path / "mine.png"
    images.save_png(ready, picture(3, (48, 64)))
    inputs = data_dir / "images" / "inputs"
    settings = script.Settings(
        data=data_dir,
        pairs=("tubingen", "starry_night"),
        size=64,
        makers=("compact --steps 2",),
        pictures=(inputs / "tubingen.jpg", inputs / "starry_night.jpg", ready),
        published=False,
        out=tmp_path / "out",
        json=tmp_path / "record.json",
    )
    script.main(settings)
    record = json.loads((tmp_path / "record.json").read_text())
    photograph, made, mine = record["pictures"]
    assert [x["maker"] for x in record["pictures"]] == ["the photograph", "compact --steps 2", "mine"]
    assert made["evaluations"] >= 2 and made["seconds"] > 0 and "seconds" not in {**photograph, **mine}
    for name in ("vgg19", "squeezenet"):
        assert photograph["judges"][name]["content"]["whole"] == 0
        errors = [x["judges"][name]["gram"]["whole"] for x in (made, photograph)]
        assert all(0 < errors[0][tap] < 2 * errors[1][tap] for tap in errors[0])
    assert set(record["judges"]["vgg19"]) == {"features", "sha256"} and "cpu" in record["machine"]
    text = (tmp_path / "record.md").read_text()
    assert text in capsys.readouterr().out and "**Judged by squeezenet**" in text
    with Image.open(tmp_path / "out" / "whole.png") as whole, Image.open(tmp_path / "out" / "crops.png") as crops:
        assert whole.size == (4 * 66 - 2, 64 + 20) and crops.size == (4 * 66 - 2, 2 * 66 - 2 + 20)
    script.main(dataclasses.replace(settings, keep=True, against=tmp_path / "record.json"))
    assert "| compact --steps 2 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 |" in capsys.readouterr().out
