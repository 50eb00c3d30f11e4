"""`ganstyle report`: what is in the page, that nothing is fetched, and what a broken run folder says."""

import base64
import fnmatch
import html
import io
import json
import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
import stand_in
from PIL import Image

from ganstyle_jax import cli, contract
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io import images
from ganstyle_jax.io import pictures as picture_files
from ganstyle_jax.io.files import UserError
from ganstyle_jax.look import report
from ganstyle_jax.look.report import drawn, training
from ganstyle_jax.loop import runs, train

pytestmark = pytest.mark.usefixtures("home", "quick_compile")

ROOT = Path(__file__).resolve().parents[1]
VOID = {"meta", "link", "img", "input", "br"}
PROTOCOL = {"features": "inception", "resize": "clean", "real": {"source": "glyphs", "count": 10}, "seed": 0}


class Parsed(HTMLParser):
    """A page that is checked while it is read: every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice: {names}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)

    def all(self, tag, **attributes):
        found = [of for name, of in self.elements if name == tag]
        return [of for of in found if all(of.get(k.replace("_", "-")) == v for k, v in attributes.items())]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def charts(self):
        return {chart["title"]: chart for chart in json.loads(self.scripts[0])}


def checked(path) -> Parsed:
    """The page, after all that must hold for any page: self-contained, sound pictures, labels for everyone."""
    parsed = Parsed(path.read_text(encoding="utf-8"))
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "poster", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"{tag} {name}={value[:80]}"
    style = path.read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {of["href"][1:] for of in parsed.all("a")} <= set(ids)
    for of in parsed.all("img"):
        assert of["alt"] and int(of["width"]) > 0
        head, _, body = of["src"].partition(",")
        with Image.open(io.BytesIO(base64.b64decode(body))) as picture:
            picture.load()
            assert head == f"data:image/{picture.format.lower()};base64"
    for of in parsed.all("input", type="range"):
        assert of["aria-label"] and of["min"] == "0"
    assert parsed.all("html", lang="en") and len(parsed.all("h1")) == 1
    assert len(parsed.scripts) == 2  # the charts and the program
    return parsed


def write_run(folder, lines=None, records=None, grids=(0, 10, 20), method="dcgan", data="glyphs", **config):
    """A run folder by hand, without a checkpoint."""
    (folder / "samples").mkdir(parents=True)
    description = {
        "method": method,
        "config": {"image_size": 16, "channels": 3, "loss": "hinge"} | config,
        "data": data,
    }
    description |= {"loop": {"steps": 20, "batch_size": 8, "seed": 0, "run_dir": str(folder)}}
    description |= {"versions": {"jax": "0.0.1"}, "devices": ["cpu cpu", "cpu cpu"], "processes": 1}
    (folder / "run.json").write_text(json.dumps(description))
    if lines is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if records is not None:
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step in grids:
        images.save_png(folder / "samples" / f"{step:06d}.png", np.full((6, 8, 3), step, np.uint8))
    return folder


def lines_of(run, scale=1.0):
    losses = [scale * 0.123456789, scale * 2.5, scale * 1e-5]
    logged = [{"step": 10 * i, "loss/gen": v, "images_per_second": 5.0} for i, v in enumerate(losses)]
    return [*logged, {"step": 20, "diversity": 0.05, "warning": f"{run} has collapsed"}]


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "one", lines_of("one"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures, home):
    """A true run of four steps."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    cfg = dcgan.Config(image_size=16, width=4, latent_dim=8)
    loop = train.Loop(folder, 4, 8, sample_every=2, log_every=1, checkpoint_every=4, devices=1)
    train.run(dcgan, cfg, str(pictures), loop)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Training runs


def test_curves_and_collapse_are_those_of_the_log(run, tmp_path):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "loss/gen": NaN}\n{"step": 40, "loss/g')  # training diverged and was killed
    parsed = checked(report.write([run], tmp_path / "report.html"))
    (series,) = parsed.charts["loss"]["series"]
    assert series["name"] == "gen"
    np.testing.assert_allclose(series["points"], [(0, 0.123456789), (10, 2.5), (20, 1e-5)], rtol=1e-5)
    assert [mark[0] for mark in parsed.charts["loss"]["marks"]] == [20]
    assert "one has collapsed" in parsed.words and parsed.all("div", **{"class": "alarm"})
    assert "hinge" in parsed.words and "0.0.1" in parsed.words and "2 x cpu cpu" in parsed.words


def test_a_slider_through_the_sample_grids(run, tmp_path):
    (run / "samples" / "000015.png").write_bytes(b"no picture")
    parsed = checked(report.write([run], tmp_path / "report.html"))
    (slider,) = parsed.all("input", type="range")
    assert slider["max"] == "2" and slider["value"] == "2"
    shown = parsed.all("img")
    assert [of["alt"] for of in shown] == [f"Samples of one, step {step}" for step in (0, 10, 20)]
    assert [of["data-at"] for of in shown] == ["0", "1", "2"] and ["hidden" in of for of in shown] == [
        True,
        True,
        False,
    ]
    assert "000015.png is no picture that can be read" in parsed.words
    for of, level in zip(shown, (0, 10, 20), strict=True):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(of["src"].partition(",")[2]))).convert("RGB"))
        np.testing.assert_array_equal(picture, np.full((6, 8, 3), level))


def test_many_grids_are_thinned_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "MOST_GRIDS", 3)
    folder = write_run(tmp_path / "run", lines_of("run"), grids=range(0, 100, 10))
    parsed = checked(report.write([folder], tmp_path / "report.html"))
    assert [of["alt"].split("step ")[1] for of in parsed.all("img")] == ["0", "40", "90"]
    assert "7 more grids are in the run folders" in parsed.words


def test_a_true_run_has_a_walk_and_its_neighbours(trained, tmp_path):
    parsed = checked(report.write([trained], tmp_path / "report.html", training_images=24))
    walk, neighbours = ([of for of in parsed.all("img") if word in of["alt"]] for word in ("Walk", "Training image"))
    assert len(walk) == drawn.STOPS * drawn.FRAMES
    assert len(neighbours) == 4 * drawn.SHOWN and len([of for of in parsed.all("img") if of["alt"] == "Sample"]) == 16
    chart = parsed.charts["Share whose nearest is within"]
    assert [series["name"] for series in chart["series"]] == ["samples", "real images"]
    for series in chart["series"]:
        shares = [y for _, y in series["points"]]
        assert shares == sorted(shares) and shares[-1] == 1
    assert "Among 24 training images" in parsed.words and "What to look for" in parsed.words
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    for name in ("disc", "gen"):
        (series,) = [of for of in parsed.charts["loss"]["series"] if of["name"] == name]
        expected = [(line["step"], line[f"loss/{name}"]) for line in logged if f"loss/{name}" in line]
        np.testing.assert_allclose(series["points"], expected, rtol=1e-5)
    assert "Marked is what is not the default" in parsed.words
    # The walk's first frame is drawn from its latents; WebP keeps so small a picture exactly.
    loaded = runs.load(trained)
    stops = loaded.requests(jax.random.key(1), drawn.STOPS * drawn.WALKS)
    grid = images.to_uint8(images.grid(loaded.draw(np.asarray(stops)[: drawn.WALKS]), columns=4))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(walk[0]["src"].partition(",")[2]))).convert("RGB"))
    np.testing.assert_array_equal(shown, np.broadcast_to(grid, shown.shape))


def test_data_that_are_gone(trained, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(trained, folder)
    description = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(description | {"data": "nowhere.zip"}))
    parsed = checked(report.write([folder], tmp_path / "report.html"))
    assert "the training images were not looked through: No file or folder 'nowhere.zip'" in parsed.words
    assert [of for of in parsed.all("img") if "Walk" in of["alt"]]


def test_the_command(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli.main(["report", str(trained), "--training-images", "0"])
    assert re.fullmatch(rf"{trained / 'report.html'}: 0\.\d MB\n", capsys.readouterr().out)
    assert "Nearest training images" not in checked(trained / "report.html").words
    cli.main(["report", str(trained), str(write_run(tmp_path / "b")), "--training-images", "0"])
    assert checked(tmp_path / "report.html").all("h1")


# ---------------------------------------------------------------------------------------------------------------------
# Side by side


def test_runs_side_by_side(tmp_path):
    a = write_run(tmp_path / "x" / "a", lines_of("a"), grids=(0, 10))
    b = write_run(tmp_path / "y" / "a", lines_of("b", 2.0), grids=(0, 20), loss="wgan")
    parsed = checked(report.write([a, b], tmp_path / "report.html"))
    series = parsed.charts["loss/gen"]["series"]
    assert [of["name"] for of in series] == ["x/a", "y/a"]  # as much of the paths as tells them apart
    np.testing.assert_allclose(series[1]["points"], [(0, 0.246913578), (10, 5.0), (20, 2e-5)], rtol=1e-5)
    (film,) = parsed.all("div", **{"class": "film"})
    assert json.loads(film["data-labels"]) == ["step 0", "step 10", "step 20"]
    assert [of["data-at"] for of in parsed.all("img")] == ["0", "1", "0", "2"]
    assert len(parsed.all("mark")) == 2  # of the settings the loss alone differs
    assert "settings that all have in common" in parsed.words


def test_evaluations(tmp_path):
    def record(step, fid, **protocol):
        metrics = {"fid": fid, "fid_spread": 0.25, "recall": fid / 100, "other": fid}
        return {"step": step, "metrics": metrics, "protocol": PROTOCOL | protocol}

    a = write_run(tmp_path / "a", lines_of("a"), [record(10, 30.0), record(20, 20.0, seed=1)])
    b = write_run(tmp_path / "b", lines_of("b"), [record(20, 25.0), record(10, 5.0, resize="legacy-torch")])
    text = report.write([a, b], tmp_path / "report.html").read_text()
    parsed = checked(tmp_path / "report.html")
    rows = [re.sub(r"<[^>]+>", "|", row) for row in text.split("<tbody>")[1].split("</tbody>")[0].split("<tr")[1:]]
    assert "fid ↓" in parsed.words and "recall ↑" in parsed.words and "other ↓" not in parsed.words
    assert "fid_spread" not in parsed.words  # beside its metric
    assert ["20 ± 0.25| (best)" in row for row in rows] == [False, True, False, False]  # 5 is of another protocol
    assert ["0.3| (best)" in row for row in rows] == [True, False, False, False]
    assert ["not comparable with A" in row for row in rows] == [False, False, False, True]
    assert parsed.charts["fid"]["series"] == [
        {"name": "a", "place": 0, "points": [[10, 30.0], [20, 20.0]]},
        {"name": "b", "place": 1, "points": [[20, 25.0]]},
    ]
    changed = re.findall(r'<li class="changed"><span>([^<]+)</span><span>([^<]+)</span>', text)
    assert ("resize", "legacy-torch") in changed and ("features", "inception") not in changed


def test_what_explain_left(run, tmp_path):
    (run / "explain").mkdir()
    images.save_png(run / "explain" / "a.png", np.zeros((4, 4, 3), np.uint8))
    shown = [{"file": "a.png", "caption": "Saliency <1>"}, {"file": "../samples/000000.png", "caption": "no"}]
    sections = [
        {"title": "Where it looks", "text": "One.\n\nTwo.", "pictures": shown},
        {"title": "T", "text": "Three."},
    ]
    (run / "explain" / "explain.json").write_text(json.dumps({"sections": sections}))
    parsed = checked(report.write([run], tmp_path / "report.html"))
    assert parsed.all("img", alt="Saliency <1>") and "Where it looks" in parsed.words and "Three." in parsed.words
    assert "lies outside" in parsed.words and not parsed.all("img", alt="no")
    (run / "explain" / "explain.json").write_text("[]")
    parsed = checked(report.write([run], tmp_path / "report.html"))
    assert re.search(r"explain\.json cannot be read .*: run ganstyle explain again", parsed.words)


# ---------------------------------------------------------------------------------------------------------------------
# Style transfer


def test_a_style_run(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, (32, 40, 3))
    for name in ("content", "style", "other"):
        picture_files.write_picture(tmp_path / f"{name}.png", noise if name == "content" else np.roll(noise, 7, 0))
    network = vgg.VGG(((4, 4), (6,)), padding="reflect")
    weights.write(tmp_path / "tiny.safetensors", network, network.init(jax.random.key(0)))
    folder = tmp_path / "run"
    files = [str(tmp_path / f"{name}.png") for name in ("content", "style", "other")]
    settings = [
        "--size=24",
        "--smallest=16",
        "--steps=6",
        "--taper=0",
        "--factor=1.4142",
        "--optimizer=adam",
        "--save-every=2",
    ]
    settings += [
        "--content-layers=relu2_1",
        "--style-layers",
        "relu1_1",
        "relu2_1",
        f"--features={tmp_path}/tiny.safetensors",
    ]
    cli.main(["stylize", *files, "-o", str(tmp_path / "out.png"), "--run-dir", str(folder), *settings])
    parsed = checked(report.write([folder], tmp_path / "report.html"))
    assert [of["alt"] for of in parsed.all("img")][:4] == [
        f"{name} of run" for name in ("Content", "Style 1", "Style 2", "Result")
    ]
    result = np.asarray(Image.open(tmp_path / "out.png"))
    shown = parsed.all("img", alt="Result of run")[0]["src"].partition(",")[2]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")), result)
    layers = {of["name"] for of in parsed.charts["By layer"]["series"]}
    assert layers == {"content/relu2_1", "style/relu1_1", "style/relu2_1"}
    terms = {of["name"]: dict(map(tuple, of["points"])) for of in parsed.charts["Terms of the loss"]["series"]}
    loss = dict(map(tuple, parsed.charts["Loss"]["series"][0]["points"]))
    assert len(terms["style"]) > 1
    for step in terms["style"]:  # the terms are those of this very step
        assert sum(of.get(step, 0) for of in terms.values()) == pytest.approx(loss[step], rel=1e-3)
    labels = json.loads(parsed.all("div", **{"class": "film"})[0]["data-labels"])
    assert labels[-1] == "12 evaluations" and len(labels) >= 2
    assert [mark[1] for mark in parsed.charts["Loss"]["marks"]] == ["from here on 24 x 19 pixels"]
    both = checked(report.write([folder, write_run(tmp_path / "gan", lines_of("gan"))], tmp_path / "both.html"))
    assert both.all("img", alt="Result of run") and both.all("img", alt="Samples of gan, step 0")


def test_a_style_run_that_was_stopped(tmp_path):
    folder = write_run(tmp_path / "run", None, grids=(), method="gatys", data="a.jpg", size=16)
    parsed = checked(report.write([folder], tmp_path / "report.html"))
    assert "There is no result yet." in parsed.words and "No step was done yet." in parsed.words


# ---------------------------------------------------------------------------------------------------------------------
# Hostile and broken


def test_no_name_becomes_a_part_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    lines = [{"step": 1, f"loss/{evil}": 1.0, "warning": evil}]
    record = {"step": 1, "metrics": {evil: 1.0}, "protocol": {evil: evil}}
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>'\"&", lines, [record], data=evil, loss=evil)
    parsed = checked(report.write([folder], tmp_path / "report.html"))
    assert not any("onerror" in attributes for _, attributes in parsed.elements)
    assert {of["src"][:10] for of in parsed.all("img")} == {"data:image"}
    assert evil in parsed.charts["loss"]["series"][0]["name"] and evil in parsed.words
    assert "{{" not in "".join(parsed.text)


def test_braces_in_a_name_are_left_alone(tmp_path):
    folder = write_run(tmp_path / "{{charts}} {{body}}", lines_of("run"))
    parsed = checked(report.write([folder], tmp_path / "report.html"))
    assert "{{charts}} {{body}}" in parsed.words


def test_a_run_with_nothing_but_its_description(tmp_path):
    folder = write_run(tmp_path / "run", None, grids=())
    parsed = checked(report.write([folder], tmp_path / "report.html"))
    assert "Nothing was logged yet." in parsed.words and "holds no sample grids yet" in parsed.words
    assert "nothing can be drawn, because" in parsed.words and "holds no checkpoint yet" in parsed.words


def test_a_style_run_with_damaged_parts(tmp_path):
    lines = [{"step": 1, "loss": 1.0, "size": "x"}, {"step": 10**400, "loss": 2.0}]
    folder = write_run(tmp_path / "run", lines, grids=(), method="gatys", data="a.jpg", size="huge")
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text() + "3\n[1]\nnull\n" + "[" * 9999 + "\n")
    (folder / "steps").mkdir()
    (folder / "steps" / "²³.png").write_bytes(b"")  # digits, but no number
    (folder / "steps" / "000001.png").write_bytes(b"no picture")
    images.save_png(folder / "steps" / "000002.png", np.zeros((6, 8, 3), np.uint8))
    (folder / "content.png").mkdir()
    (folder / "explain").mkdir()
    (folder / "explain" / "explain.json").write_text('{"sections": [3, {"pictures": [7, {"file": "\\u0000"}]}]}')
    parsed = checked(report.write([folder], tmp_path / "report.html"))
    assert "000001.png is no picture that can be read" in parsed.words and "huge pixels" in parsed.words
    assert parsed.all("img", alt="The picture of run, 2 evaluations") and len(parsed.all("img")) == 1
    assert "Left out: there is no picture content.png" in parsed.words and "is no name of a file" in parsed.words


def test_no_page_says_where_files_lie(tmp_path):
    """A report may be shown to anybody: of a path it says no more than the last part."""
    far = tmp_path / "ann" / "private"
    record = {"step": 1, "metrics": {"fid": 1.0}, "protocol": {"real": {"source": f"{far}/set.npz/x_test"}}}
    lines = [{"step": 1, "loss": 1.0, "warning": f"see {far}/log.txt, it has collapsed"}]
    folder = write_run(tmp_path / "gan", lines, [record], data=str(far / "photos"), init_from=str(far / "netG.pth"))
    (folder / "samples" / "000030.png").write_bytes(b"")
    (folder / "explain").mkdir()
    sections = [{"title": "T", "text": f"There is no {far}/a.zip.", "pictures": [{"file": "b.png", "caption": "B"}]}]
    (folder / "explain" / "explain.json").write_text(json.dumps({"sections": sections}))
    style_run = write_run(tmp_path / "style", None, grids=(), method="gatys", data=str(far / "my photo.jpg"))
    parsed = checked(report.write([folder, style_run], tmp_path / "report.html", 10))
    text = (tmp_path / "report.html").read_text()
    assert str(tmp_path) not in text and "private" not in text and str(tmp_path.resolve()) not in text
    for said in ("netG.pth", "set.npz/x_test", "see log.txt", "There is no a.zip.", "my photo", "gan on photos"):
        assert said.replace("gan on", "dcgan on") in parsed.words, said
    other = write_run(tmp_path / "other", lines, data=str(tmp_path / "bob" / "photos"))
    words = checked(report.write([folder, other], tmp_path / "report.html", 0)).words
    assert "private/photos" in words and "bob/photos" in words  # as much as tells them apart


def test_data_of_several_sources_are_named(tmp_path):
    folder = write_run(tmp_path / "run", lines_of("run"), data={"horses": "a.zip", "zebras": "/far/b.zip"})
    assert (
        "dcgan on horses=a.zip, zebras=b.zip, 16 pixels" in checked(report.write([folder], tmp_path / "r.html")).words
    )


def loaded(module, cfg, **data):
    return stand_in.Loaded(contract.Method(module), cfg, module.init(jax.random.key(0), cfg), data)


def test_a_method_with_titles_labels_and_two_sources(tmp_path, pictures, monkeypatch):
    run = loaded(stand_in.Labelled, stand_in.Config(8), a=str(pictures), b="nowhere")
    monkeypatch.setattr(runs, "load", lambda folder: run)
    folder = write_run(tmp_path / "run", lines_of("run"), grids=(), data={"a": str(pictures), "b": "nowhere"})
    images.save_grid(folder / "samples" / "000010.png", np.zeros((6, 8, 8, 3)), columns=2)
    parsed = checked(report.write([folder], tmp_path / "report.html", 24))
    assert "plain shifted" in parsed.words and parsed.all("div", **{"class": "titles"})
    assert len([of for of in parsed.all("img") if "Walk" in of["alt"]]) == drawn.STOPS * drawn.FRAMES
    assert "Among 24 training images" in parsed.words
    assert drawn.Titles(("a", "b"), (8, 8)).over(2 * (8 + 2 + 8 + 2) - 2) == ("a", "b", "a", "b")


def test_a_method_without_latents_and_without_data(tmp_path, monkeypatch):
    run = loaded(stand_in.Restoring, stand_in.Config())
    monkeypatch.setattr(runs, "load", lambda folder: run)
    folder = write_run(tmp_path / "run", lines_of("run"), data={})
    parsed = checked(report.write([folder], tmp_path / "report.html", 24))
    assert "there is no walk, since what it makes pictures of is no vectors" in parsed.words
    assert not parsed.all("a", href="#nearest-training-images") and "dcgan on none" in parsed.words


def test_a_method_that_fails_leaves_a_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load", lambda folder: 1 // 0)
    words = checked(report.write([run], tmp_path / "report.html")).words
    assert "one: nothing can be drawn, because integer division or modulo by zero." in words


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda run: shutil.rmtree(run), "there is no run folder"),
        (lambda run: (run / "run.json").unlink(), "holds no run.json"),
        (lambda run: (run / "run.json").write_text("{"), "run.json cannot be read"),
        (lambda run: (run / "run.json").write_text('{"method": "dcgan"}'), "does not describe a run"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00"), "metrics.jsonl cannot be read"),
        (lambda run: (run / "evaluations.jsonl").write_bytes(b"\xff"), "evaluations.jsonl cannot be read"),
    ],
)
def test_a_broken_run_folder(run, tmp_path, break_it, said):
    break_it(run)
    with pytest.raises(UserError, match=said):
        report.write([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_bad_arguments(run, tmp_path):
    with pytest.raises(UserError, match=r"--out must end in \.html, got .*report\.pdf"):
        report.write([run], tmp_path / "report.pdf")
    with pytest.raises(UserError, match="a run is given twice"):
        report.write([run, run], tmp_path / "report.html")
    with pytest.raises(UserError, match="--training-images must be 0 or more, got -1"):
        report.write([run], tmp_path / "report.html", -1)
    with pytest.raises(UserError, match="no run is given"):
        report.write([], tmp_path / "report.html")


def test_the_template_ships_with_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    templates = [path.relative_to(ROOT / "ganstyle_jax") for path in (ROOT / "ganstyle_jax").rglob("*.html")]
    assert templates and {path.parent.name for path in templates} == {"templates"}
    for path in templates:  # of a package, which a folder without __init__.py is not for setuptools
        room, inside = path.parts[0], str(path.relative_to(path.parts[0]))
        assert any(fnmatch.fnmatch(inside, pattern) for pattern in settings[f"ganstyle_jax.{room}"])


# ---------------------------------------------------------------------------------------------------------------------
# In a browser

PROBE = """
<script>
const failed = [];
addEventListener("error", event => failed.push(event.message || "a resource"), true);
addEventListener("load", async () => {
  while (!document.querySelector(".chart path")) await new Promise(done => setTimeout(done, 50));
  const seen = () => [...document.querySelectorAll(".film img")].filter(x => x.checkVisibility()).map(x => x.alt);
  const slider = document.querySelector(".film input"), plot = document.querySelector(".chart .plot svg");
  const told = {first: seen()};
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  told.moved = seen();
  told.said = document.querySelector(".film output").textContent;
  told.line = plot.querySelector("path").getAttribute("d");
  plot.dispatchEvent(new KeyboardEvent("keydown", {key: "Home"}));
  told.read = [".chart output", ".legend b"].map(x => document.querySelector(x).textContent);
  document.querySelector(".chart input").click();
  told.logarithmic = plot.querySelector("path").getAttribute("d");
  told.wide = [innerWidth, document.documentElement.scrollWidth];
  told.fetched = performance.getEntriesByType("resource").map(x => x.name).filter(x => !x.startsWith("data:"));
  told.ground = getComputedStyle(document.body).backgroundColor;
  told.failed = failed;
  parent.postMessage(JSON.stringify(told), "*");
});
</script>
"""

# The window of a browser without a screen is never narrower than 500 pixels, a frame in it may be.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><pre id="found"></pre>
<script>addEventListener("message", event => { document.getElementById("found").textContent = event.data; });</script>
<iframe src="probe.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium, in which the report is looked at")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_in_a_browser(browser, tmp_path, width, scheme):
    record = {"step": 10, "metrics": {f"metric_{i}": 1 / 3 for i in range(12)}, "protocol": PROTOCOL}
    a = write_run(tmp_path / "a", lines_of("a"), [record, record | {"step": 20}])
    b = write_run(tmp_path / "b", lines_of("b"), loss="a_loss_with_a_name_that_is_so_long_that_it_does_not_fit" * 3)
    text = report.write([a, b], tmp_path / "report.html").read_text()
    (tmp_path / "probe.html").write_text(text.replace("<head>", "<head>" + PROBE))
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    options += [f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}", "--enable-logging=stderr"]
    options += ["--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom"]
    page = tmp_path / "frame.html"
    ran = subprocess.run([browser, *options, f"file://{page}"], capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in ran.stderr
    told = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', ran.stdout)[1]))
    assert told["failed"] == [] and told["fetched"] == []
    assert told["first"] == ["Samples of a, step 20", "Samples of b, step 20"]
    assert told["moved"] == ["Samples of a, step 0", "Samples of b, step 0"] and told["said"] == "step 0"
    assert told["line"].startswith("M") and told["line"] != told["logarithmic"]
    assert told["read"] == ["step 10", "0.3333"]
    assert told["wide"][0] == width >= told["wide"][1]
    assert (sum(map(int, re.findall(r"\d+", told["ground"]))) < 200) == (scheme == "dark")
