"""`ganstyle restore`: damaged pictures in, restored pictures and a report out, a sentence for what cannot be."""

import dataclasses
import json
import os
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_report import checked

from ganstyle_jax import cli, restoration
from ganstyle_jax.control import Advanced, Control, Done, Pictures
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge.metrics import similarity
from ganstyle_jax.look import report
from ganstyle_jax.restoration import journal, keeping, program, reading
from ganstyle_jax.restoration.orders import Settings, plan
from ganstyle_jax.restore import deep_image_prior
from ganstyle_jax.restore.deep_image_prior import Config

TINY = {"channels": (4,), "skip": (2,), "depth": 2, "window": 3, "patience": 100, "steps": 12}
QUICK = ["--channels", "4", "--skip", "2", "--depth=2", "--window=3", "--patience=100", "--steps=12"]

pytestmark = pytest.mark.usefixtures("home", "quick_compile")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a picture of 20 x 24 pixels in several states of damage, masks, and pictures that do not fit."""
    folder = tmp_path_factory.mktemp("restore")
    rng = np.random.default_rng(0)
    truth = np.clip(images.resize(rng.uniform(-1, 1, (4, 4, 3)), (24, 20)), -1, 1)
    noisy = np.clip(truth + rng.normal(0, 0.2, truth.shape), -1, 1)
    hole = np.ones((24, 20, 3), np.float32)
    hole[8:14, 5:15] = -1
    written = {"truth": truth, "noisy": noisy, "mask": hole, "inverted": -hole, "black": -np.ones_like(hole)}
    written |= {"white": np.ones_like(hole), "other": np.zeros((20, 24, 3)), "tiny": np.zeros((8, 30, 3))}
    written |= {"large": images.resize(truth, (48, 40)).clip(-1, 1), "many/a": noisy, "many/b": noisy[::-1]}
    written |= {"masks/a": hole, "masks/b": hole[::-1], "twins/a": noisy, "masks2/c": hole}
    for name, picture in written.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pictures.write_picture(folder / f"{name}.png", picture)
    pictures.write_picture(folder / "twins" / "a.jpg", noisy)
    pictures.write_picture(folder / "cut.png", noisy, (hole[..., 0] + 1) / 2)
    Image.fromarray(images.to_uint8(noisy)[..., 0]).save(folder / "grey.png")
    return folder


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(program, "MOST_AT_ONCE", 4)


def ganstyle(*args: object) -> int:
    """Runs the command in this process; its exit status."""
    try:
        cli.main(["restore", *map(str, args), *QUICK])
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lines_of(path: Path) -> list[dict]:
    """Those of a trace or a run folder, without what depends on the clock."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


def stopping_at(step: int, number: int | None = None) -> Control:
    """Stops at the first look at or after a step: by itself, or by a signal."""

    def hear(event):
        if isinstance(event, Advanced) and event.done >= step:
            control.stop() if number is None else os.kill(os.getpid(), number)

    control = Control([hear])
    return control


# ---------------------------------------------------------------------------------------------------------------------
# One picture


def test_a_picture_its_trace_its_run_and_its_report(place, tmp_path, capsys):
    out, run = tmp_path / "out.png", tmp_path / "run"
    args = [f"--truth={place / 'truth.png'}", "--trace", "--save-every=4", f"--run-dir={run}"]
    assert ganstyle(place / "noisy.png", "-o", out, *args) == 0
    said = capsys.readouterr().err
    truth, noisy = (pictures.read_picture(place / f"{name}.png") for name in ("truth", "noisy"))
    before = float(similarity.psnr(noisy[None], truth[None])[0])
    found = re.search(
        rf"^{out}: the picture at step (\d+), where the variance was least, of the 12 that were done, PSNR (\S+) dB "
        rf"after {before:.2f} dB, SSIM 0\.\d{{4}} in \d+ s$",
        said,
        re.M,
    )
    assert found, said
    restored = pictures.read_picture(out)
    assert restored.shape == (24, 20, 3)
    assert float(found[2]) == pytest.approx(float(similarity.psnr(restored[None], truth[None])[0]), abs=0.05)
    assert re.search(r"12/12 .*20x24 loss \d\.\d{5} variance \d\.\d\de-\d\d PSNR \d+\.\d\d dB", said)

    about, *lines = lines_of(tmp_path / "out.jsonl")
    assert about["config"]["channels"] == [4] and about["config"]["learning_rate"] == 0.01
    assert about["loop"]["truth"] == str(place / "truth.png")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line["loss"] > 0 for line in lines)
    assert ["variance" in line for line in lines] == [False] * 2 + [True] * 10  # a window of three
    assert [line["step"] for line in lines if "psnr" in line] == [4, 8, 12]
    assert lines[-1]["psnr_chosen"] == pytest.approx(float(found[2]), abs=0.01)
    assert int(found[1]) == min((line["variance"], line["step"]) for line in lines if "variance" in line)[1]

    assert names_in(tmp_path) == ["out.jsonl", "out.png", "out.steps", "run"]
    assert names_in(run) == ["given.png", "metrics.jsonl", "result.png", "run.json", "steps", "truth.png"]
    assert names_in(tmp_path / "out.steps") == names_in(run / "steps") == ["000004.png", "000008.png", "000012.png"]
    first, *rest = lines_of(run / "metrics.jsonl")
    assert first == {"step": 0, "psnr_given": pytest.approx(before, abs=1e-3)} and rest == lines
    np.testing.assert_array_equal(pictures.read_picture(run / "result.png"), restored)

    parsed = checked(report.write([run], tmp_path / "report.html"))
    alts = [of["alt"] for of in parsed.all("img")]
    assert alts[:2] == ["Given of run", "run restored"] and "Truth of run" in alts and "Result of run" in alts
    assert parsed.all("input", **{"aria-label": "Where the restored picture begins; the arrow keys move it"})
    marks = parsed.charts["Moving variance"]["marks"]
    assert [mark[:2] for mark in marks] == [[int(found[1]), f"the least variance, at step {found[1]}"]]
    assert len(parsed.charts["Loss"]["series"][0]["points"]) == 12
    assert {of["name"] for of in parsed.charts["PSNR, dB"]["series"]} == {"by then", "as it would be chosen"}
    assert json.loads(parsed.all("div", **{"class": "film"})[0]["data-labels"]) == ["4 steps", "8 steps", "12 steps"]
    assert "noisy, denoise" in parsed.words and f"{before:.2f} dB" in parsed.words
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()


def test_the_command_is_the_method(place, tmp_path):
    """A grey picture is one channel, and the result is grey; the file is what the method's functions give."""
    out = tmp_path / "out.png"
    assert ganstyle(place / "grey.png", "-o", out, "--restarts=2", "--seed=3", "--trace") == 0
    cfg = deep_image_prior.preset("denoise", 4, Config(restarts=2, **TINY))
    grey = pictures.read_picture(place / "grey.png")[..., :1]
    state = deep_image_prior.init(jax.random.key(3), grey, cfg)
    while not deep_image_prior.stopped(state):
        state, trace = deep_image_prior.advance(state, grey, cfg, 4)
    wanted = images.to_uint8(deep_image_prior.restored(state, cfg))
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.repeat(wanted, 3, -1))
    last = lines_of(tmp_path / "out.jsonl")[-1]
    np.testing.assert_allclose([last["loss/1"], last["loss/2"]], np.asarray(trace["loss"][-1]), rtol=1e-6)
    assert last["loss"] == pytest.approx((last["loss/1"] + last["loss/2"]) / 2)


def test_what_is_known_stays(place, tmp_path):
    """White is known: the paper's masks. Without a mask what is transparent is filled in, and the result is opaque."""
    paths = {name: tmp_path / f"{name}.png" for name in ("out", "inverted", "cut", "all")}
    masked = ["--task=inpaint", f"--mask={place / 'mask.png'}"]
    assert ganstyle(place / "noisy.png", "-o", paths["out"], *masked, f"--run-dir={tmp_path / 'run'}") == 0
    inverted = ["--task=inpaint", f"--mask={place / 'inverted.png'}", "--invert-mask"]
    assert ganstyle(place / "noisy.png", "-o", paths["inverted"], *inverted) == 0
    assert ganstyle(place / "cut.png", "-o", paths["cut"], "--task=inpaint") == 0
    assert ganstyle(place / "noisy.png", "-o", paths["all"], *masked, "--no-keep-known") == 0
    given, made = (np.asarray(Image.open(path)) for path in (place / "noisy.png", paths["out"]))
    hidden = np.zeros((24, 20), bool)
    hidden[8:14, 5:15] = True
    np.testing.assert_array_equal(made[~hidden], given[~hidden])
    assert (made[hidden] != given[hidden]).mean() > 0.9
    others = [np.asarray(Image.open(paths[name])) for name in ("inverted", "cut", "all")]
    np.testing.assert_array_equal(others[0], made)
    np.testing.assert_array_equal(others[2][hidden], made[hidden])
    assert (others[2][~hidden] != given[~hidden]).mean() > 0.5
    # Other colours lie below the hole, of which the network sees nothing.
    assert Image.open(paths["cut"]).mode == "RGB"
    np.testing.assert_array_equal(others[1], made)
    known = pictures.read_picture(tmp_path / "run" / "known.png")
    assert np.abs(known[hidden]).max() < 0.01  # grey
    parsed = checked(report.write([tmp_path / "run"], tmp_path / "report.html"))
    assert [of["alt"] for of in parsed.all("img")][:2] == ["What was known of run", "run restored"]
    assert parsed.all("img", alt="Mask of run")


def test_enlarged_and_transparent(place, tmp_path, capsys):
    args = ["--task=super-resolve", "--scale=2", f"--truth={place / 'large.png'}", f"--run-dir={tmp_path / 'run'}"]
    assert ganstyle(place / "cut.png", "-o", tmp_path / "out.png", *args) == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (40, 48) and picture.mode == "RGBA"
        alpha = np.asarray(picture)[..., 3]
    assert alpha[20:24, 14:26].max() < 30 and alpha[:10].min() > 225  # Lanczos rings
    assert re.search(r"PSNR \S+ dB after \S+ dB, SSIM \S+, PSNR of luma \S+ dB", capsys.readouterr().err)
    shown = pictures.read_picture(tmp_path / "run" / "result.png")
    assert pictures.read_alpha(tmp_path / "run" / "result.png") is None and shown[22, 20].min() > 0.7  # over white
    split = checked(report.write([tmp_path / "run"], tmp_path / "report.html")).all("img")[:2]
    assert split[0]["width"] == split[1]["width"]


def test_the_flash_picture_is_what_it_is_made_of(place, tmp_path):
    for name in ("truth", "white"):
        args = ["--task=flash", f"--guide={place / name}.png", "-o", tmp_path / f"{name}.png"]
        cli.main(
            ["restore", str(place / "noisy.png"), *map(str, args), *(word for word in QUICK if word != "--depth=2")]
        )
    assert (tmp_path / "truth.png").read_bytes() != (tmp_path / "white.png").read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Stopped, and gone on with


def go(place, out, control=None, **more):
    settings = Settings(out=out, truth=place / "truth.png", trace=True, run_dir=out.with_suffix(""), **more)
    return restoration.run(place / "noisy.png", Config(**TINY), settings, control)


def test_work_that_was_stopped_goes_on_bit_for_bit(place, tmp_path, capsys):
    whole, parts = tmp_path / "whole.png", tmp_path / "parts.png"
    heard = []
    assert go(place, whole, Control([heard.append])) == [whole]
    assert heard[-1] == Done(12, False) and [of.done for of in heard if isinstance(of, Advanced)] == [4, 8, 12]
    assert next(of for of in heard if isinstance(of, Pictures)).pictures.shape == (1, 24, 20, 3)
    assert go(place, parts, stopping_at(4)) == [tmp_path / "parts.stopped.png"]
    assert f"stopped before {parts} was done; --resume goes on" in capsys.readouterr().err
    assert not parts.exists() and (tmp_path / "parts.state.safetensors").exists()
    assert names_in(tmp_path / "parts" / "steps") == ["000004.png"]
    assert not (tmp_path / "parts" / "result.png").exists()
    with pytest.raises(UserError, match=r"parts.state.safetensors holds unfinished work: --resume goes on with it"):
        go(place, parts)
    with pytest.raises(SystemExit) as caught:  # once more, by a signal
        go(place, parts, stopping_at(8, signal.SIGINT), resume=True)
    assert caught.value.code == 130
    assert go(place, parts, resume=True) == [parts]
    assert parts.read_bytes() == whole.read_bytes()
    assert lines_of(tmp_path / "parts.jsonl")[1:] == lines_of(tmp_path / "whole.jsonl")[1:]
    assert lines_of(tmp_path / "parts/metrics.jsonl") == lines_of(tmp_path / "whole/metrics.jsonl")
    for name in names_in(tmp_path / "whole" / "steps"):
        found = [(tmp_path / run / "steps" / name).read_bytes() for run in ("whole", "parts")]
        assert found[0] == found[1]
    assert not (tmp_path / "parts.state.safetensors").exists()


def test_after_a_kill_it_goes_on_from_what_was_kept(place, tmp_path, monkeypatch):
    """The run folder may be ahead of what was kept."""
    monkeypatch.setattr(keeping, "EVERY", 0.0)
    monkeypatch.setattr(keeping, "SHARE", 1e9)

    def killed(event):
        if isinstance(event, Advanced) and event.done == 8:
            raise RuntimeError("killed")

    whole, out = tmp_path / "whole.png", tmp_path / "out.png"
    go(place, whole)
    with pytest.raises(RuntimeError, match="killed"):
        go(place, out, Control([killed]))
    assert lines_of(tmp_path / "out/metrics.jsonl")[-1]["step"] == 8  # and what was kept is of step 4
    assert go(place, out, resume=True) == [out]
    assert out.read_bytes() == whole.read_bytes()
    assert lines_of(tmp_path / "out/metrics.jsonl") == lines_of(tmp_path / "whole/metrics.jsonl")


def test_what_was_left_by_other_work_is_not_gone_on_with(place, tmp_path):
    out = tmp_path / "out.png"
    go(place, out, stopping_at(4))
    with pytest.raises(UserError, match=r"was left by other work, with another seed: give what it was made with"):
        go(place, out, resume=True, seed=1)
    settings = Settings(out=out, resume=True)
    with pytest.raises(UserError, match=r"with another picture, learning_rate 0.01 instead of 0.02"):
        restoration.run(place / "truth.png", Config(learning_rate=0.02, **TINY), settings)
    state = tmp_path / "out.state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"is no state that can be gone on from \(.*\): remove it to begin anew"):
        go(place, out, resume=True)


def test_a_pause_keeps_the_work(place, tmp_path, monkeypatch):
    kept = []

    def hear(event):
        if isinstance(event, Advanced) and event.done == 4:
            control.pause()

    def look():
        kept.append((tmp_path / "out.state.safetensors").exists())
        control.go_on()

    control = Control([hear])
    monkeypatch.setattr(control, "wait", look)
    go(place, tmp_path / "out.png", control)
    assert kept == [True] and (tmp_path / "out.png").exists()


def test_stopped_before_the_first_step(place, tmp_path, capsys):
    control = Control()
    control.stop()
    assert go(place, tmp_path / "out.png", control) == []
    assert "stopped before its first step" in capsys.readouterr().err
    assert names_in(tmp_path) == ["out"]


# ---------------------------------------------------------------------------------------------------------------------
# Several


def test_a_folder_with_a_mask_for_each(place, tmp_path, capsys):
    many, args = place / "many", ["--task=inpaint", f"--mask={place / 'masks'}"]
    assert ganstyle(many, "-o", tmp_path / "out", *args, f"--run-dir={tmp_path / 'runs'}") == 0
    assert names_in(tmp_path / "out") == ["a.png", "b.png"] and names_in(tmp_path / "runs") == ["a", "b"]
    assert ganstyle(many / "b.png", "-o", tmp_path / "b.png", "--task=inpaint", f"--mask={place / 'masks/b.png'}") == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "out" / "b.png").read_bytes()
    parsed = checked(report.write([tmp_path / "runs" / "a", tmp_path / "runs" / "b"], tmp_path / "report.html"))
    assert {of["name"] for of in parsed.charts["Moving variance"]["series"]} == {"a", "b"}
    assert parsed.all("img", alt="b restored")


def test_what_is_done_of_a_folder_is_not_done_again(place, tmp_path, capsys):
    out = tmp_path / "out"
    settings = Settings(out=out)
    first = []

    def hear(event):  # in the second picture
        if isinstance(event, Advanced):
            first.append(event.done)
            if len(first) > 3:
                control.stop()

    control = Control([hear])
    assert restoration.run(place / "many", Config(**TINY), settings, control) == [out / "a.png", out / "b.stopped.png"]
    again = dataclasses.replace(settings, resume=True)
    capsys.readouterr()
    assert restoration.run(place / "many", Config(**TINY), again) == [out / "a.png", out / "b.png"]
    assert f"{out / 'a.png'}: was done before" in capsys.readouterr().err
    assert names_in(out) == ["a.png", "b.png", "b.stopped.png"]


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be

BAD = {
    "the task inpaint needs --mask: a picture that is white where": ["noisy.png", "--task=inpaint"],
    r"other.png has 24 x 20 pixels: a mask must have as many as its picture \S*noisy.png, 20 x 24": [
        *("noisy.png", "--task=inpaint", "--mask=other.png")
    ],
    "black.png is black all over, so that nothing is known: paint white what is to stay": [
        *("noisy.png", "--task=text", "--mask=black.png")
    ],
    "white.png is white all over, so that there is nothing to do: paint black what is to be filled in": [
        *("noisy.png", "--task=inpaint", "--mask=white.png")
    ],
    "white.png is white all over, so that nothing is known: paint black": [
        *("noisy.png", "--task=inpaint", "--mask=white.png", "--invert-mask")
    ],
    "--mask is for the tasks inpaint, text, region, hole, sparse, not for denoise": ["noisy.png", "--mask=mask.png"],
    "--invert-mask belongs to --mask": ["cut.png", "--task=inpaint", "--invert-mask"],
    r"--truth \S*truth.png has 20 x 24 pixels, and must have 40 x 48, 2 times those of": [
        *("noisy.png", "--task=super-resolve", "--scale=2", "--truth=truth.png")
    ],
    r"--truth \S*large.png has 40 x 48 pixels, and must have 20 x 24, as \S*noisy.png has": [
        *("noisy.png", "--truth=large.png")
    ],
    "tiny.png has 30 x 8 pixels; at least 16 x 16 are needed": ["tiny.png"],
    "the task flash needs --guide": ["noisy.png", "--task=flash"],
    "--guide is for the task flash, not for denoise": ["noisy.png", "--guide=truth.png"],
    r"--guide \S*other.png has 24 x 20 pixels": ["noisy.png", "--task=flash", "--guide=other.png"],
    "there is no picture \\S*nothing.png and no \\S*none.png": ["nothing.png", "--truth=none.png"],
    "no picture is given": [],
    "--save-every must be at least 1, got 0": ["noisy.png", "--save-every=0"],
    "--seed must be from 0 to 4294967295, got -1": ["noisy.png", "--seed=-1"],
    "for several pictures -o must name a folder": ["many", "-o", "OUT/x.png"],
    "must hold one picture of the name a, got none": ["many", "-o", "OUT/d", "--task=inpaint", "--mask=masks2"],
    r"twins/a.jpg and \S*twins/a.png would both become": ["twins", "-o", "OUT/d"],
    "would be written over one of the given pictures": ["noisy.png", "-o", "noisy.png"],
    "ends in .bmp, and its format follows from it": ["noisy.png", "-o", "OUT/x.bmp"],
}


@pytest.mark.parametrize("sentence", BAD, ids=lambda text: re.sub(r"\W+", " ", text)[:40])
def test_bad_input_is_one_sentence(place, tmp_path, capsys, sentence):
    def path(word):
        name, equals, value = word.partition("=")
        if equals and name in ("--mask", "--guide", "--truth"):
            return f"{name}={place / value}"
        if word.startswith("OUT"):
            return str(tmp_path / word[4:])
        return str(place / word) if re.fullmatch(r"\w+\.png|many|twins", word) else word

    args = [*map(path, BAD[sentence])]
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        cli.main(["restore", *(args if "-o" in args else [*args, "-o", str(tmp_path / "o.png")]), *QUICK])
    error = capsys.readouterr().err
    (said,) = [line for line in error.splitlines() if line.startswith("ganstyle: error:")]
    assert caught.value.code == 1 and re.search(sentence, said), error
    assert sorted(place.rglob("*")) == before and not any(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--task=super-resolve", "--scale=3"], "scale must be one of 2, 4, 8, got 3"),
        (["--steps=0"], "steps must be at least 1, got 0"),
        (["--task=paint"], "invalid choice 'paint'"),
    ],
)
def test_bad_settings_are_told_by_the_parser(place, tmp_path, capsys, args, sentence):
    with pytest.raises(SystemExit) as caught:
        cli.main(["restore", str(place / "noisy.png"), "-o", str(tmp_path / "o.png"), *args])
    assert caught.value.code == 2 and sentence in " ".join(capsys.readouterr().err.split())


def test_what_is_there_is_not_replaced(place, tmp_path):
    out = tmp_path / "out.png"
    (tmp_path / "out.jsonl").write_text("mine\n")
    cfg = Config(**TINY)
    with pytest.raises(UserError, match=r"out.jsonl is there already and is no trace: choose another -o"):
        plan([place / "noisy.png"], cfg, Settings(out=out, trace=True))
    assert plan([place / "noisy.png"], cfg, Settings(out=out, trace=True, overwrite=True))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="run already holds a run: choose another --run-dir"):
        plan([place / "noisy.png"], cfg, Settings(out=out, run_dir=tmp_path / "run"))
    assert plan([place / "noisy.png"], cfg, Settings(out=out, run_dir=tmp_path / "run", resume=True))  # not done
    (tmp_path / "run" / "result.png").touch()
    with pytest.raises(UserError, match="run already holds a run: choose another --run-dir"):
        plan([place / "noisy.png"], cfg, Settings(out=out, run_dir=tmp_path / "run", resume=True))
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(UserError, match=r"run holds result.png already: choose another --run-dir"):
        plan([place / "noisy.png"], cfg, Settings(out=out, run_dir=tmp_path / "run"))


def test_a_picture_that_memory_cannot_hold(place, tmp_path, monkeypatch):
    cfg = deep_image_prior.preset("denoise")
    assert program.least_memory((512, 512), cfg) > 100 * 512 * 512 * 3 * 4  # of the window alone
    emv = dataclasses.replace(cfg, stopping="emv")
    assert program.least_memory((512, 512), emv) < 1e9
    monkeypatch.setattr(program.memory, "available", lambda devices: 1 << 16)
    with pytest.raises(UserError, match=r"noisy.png: to restore 20 x 24 pixels takes .* GB of memory at the"):
        restoration.run(place / "noisy.png", cfg, Settings(out=tmp_path / "out.png"))


def test_a_mask_that_hides_most_is_asked_about(place, capsys):
    cfg = deep_image_prior.preset("inpaint", 4, Config(task="inpaint", **TINY))
    settings = Settings(mask=place / "inverted.png")
    (order,) = plan([place / "noisy.png"], cfg, settings)
    piece = reading.read(order, cfg, settings)
    assert piece.mask.mean() == pytest.approx(60 / 480)
    reading.hint(piece, cfg)
    assert (
        "88% of it is to be filled in; if the mask is the wrong way round, see --invert-mask" in capsys.readouterr().err
    )
    reading.hint(piece, dataclasses.replace(cfg, task="sparse"))
    assert not capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_told_with_its_step(place):
    cfg = deep_image_prior.preset("denoise", 4, Config(restarts=2, **TINY))
    (order,) = plan([place / "noisy.png"], cfg, Settings())
    piece = reading.read(order, cfg, Settings())
    with journal.Journal(piece, cfg, Settings()) as told:
        told.begin()
        nan = float("nan")
        trace = {"loss": [[1.0, 1.0], [1.0, nan], [nan, nan]], "variance": [[0.1, 0.2], [0.1, nan], [nan, nan]]}
        trace = {name: np.array(values) for name, values in trace.items()}
        trace["stopped"] = np.array([[False, True], [False, True], [False, True]])
        state = deep_image_prior.State(*[np.int32(3)] + [None] * (len(dataclasses.fields(deep_image_prior.State)) - 1))
        with pytest.raises(UserError, match=r"loss of .*noisy.png is not finite at step 3: choose a smaller"):
            told.note(trace, state)
        # The second network had stopped at the first step, and is no longer counted.
        assert [line["loss"] for line in told.lines] == [1.0, 1.0] and "loss/2" not in told.lines[1]


def test_the_steps_that_were_chosen():
    lines = [{"step": 1}, {"step": 2, "variance/1": 0.3, "variance/2": 0.1}]
    lines += [{"step": 3, "variance/1": 0.1, "variance/2": 0.2}, {"step": 4, "variance/1": 0.1}]
    assert journal.chosen_steps(lines, Config(restarts=2)) == [3, 2]
    assert journal.chosen_steps(lines, Config()) == [0]


# ---------------------------------------------------------------------------------------------------------------------
# Help, and runs that are not whole


def test_help_tells_of_masks_and_of_the_task(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    said = {}
    for task in ("denoise", "super-resolve"):
        with pytest.raises(SystemExit):
            cli.main(["restore", f"--task={task}", "--help"])
        said[task] = capsys.readouterr().out
    assert "white where the picture is known and black where it is to be filled in" in " ".join(said["denoise"].split())
    assert "--averaging 0.99" in said["denoise"] and "--averaging 0.0 " in said["super-resolve"]


def test_a_run_that_is_not_whole(tmp_path, capsys):
    description = {"method": "deep-image-prior", "config": {"task": 3, "scale": "x"}, "data": "a.jpg", "loop": {}}
    (tmp_path / "run" / "steps").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps(description))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": "x", "variance": [1]}\n3\n')
    (tmp_path / "run" / "given.png").write_bytes(b"no picture")
    (tmp_path / "run" / "steps" / "000001.png").write_bytes(b"")
    words = checked(report.write([tmp_path / "run"], tmp_path / "report.html")).words
    assert "There is no result yet." in words and "No step was done yet." in words
    assert "given.png is no picture that can be read" in words
    with pytest.raises(SystemExit):
        cli.main(["explain", str(tmp_path / "run")])
    assert "holds a restored picture, of which there is nothing to explain" in capsys.readouterr().err
