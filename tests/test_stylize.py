"""`ganstyle stylize`: pictures in, pictures and traces out, and one clear sentence for what cannot be."""

import dataclasses
import functools
import itertools
import json
import os
import re
import signal
import struct
import threading
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ganstyle_jax import cli
from ganstyle_jax.control import Advanced, Control, Done, Pictures
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import images, pictures, video
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import runs
from ganstyle_jax.style import gatys, memory
from ganstyle_jax.stylize import program as stylize
from ganstyle_jax.stylize.film import Film

TINY = vgg.VGG(((4, 4), (6,), (8,)), padding="reflect")
LAYERS = ["--content-layers=relu3_1", "--style-layers", "relu1_1", "relu2_1"]
QUICK = [
    "--size=24",
    "--steps=6",
    "--taper=0",
    "--factor=1.4142",
    *LAYERS,
]  # with --smallest=16 at two sizes, else at one
ADAM = "--optimizer=adam"  # compiles in a fraction of the time
LEVEL = 1 / 127.5  # of 256

pytestmark = pytest.mark.usefixtures("home", "quick_compile")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with networks, pictures, masks, a folder of contents in two shapes and one of styles."""
    folder = tmp_path_factory.mktemp("stylize")
    weights.write(folder / "tiny.safetensors", TINY, TINY.init(jax.random.key(0)))
    squeeze = vgg.SqueezeNet()
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), jax.eval_shape(squeeze.init, jax.random.key(0)))
    weights.write(folder / "squeezenet.safetensors", squeeze, zeros)
    rng = np.random.default_rng(0)
    for name, shape in {
        "content.png": (30, 45),
        "style.jpg": (40, 40),
        "other.png": (20, 50),
        "third.png": (36, 36),
        "many/a.png": (30, 30),
        "many/b.jpg": (45, 30),
        "many/c.tif": (36, 36),
        "paintings/style.png": (40, 40),
        "paintings/other.png": (20, 50),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pictures.write_picture(folder / name, np.clip(images.resize(rng.uniform(-1, 1, (5, 5, 3)), shape), -1, 1))
    left = np.where(np.arange(45) < 22, 1.0, -1.0)
    for name, mask in {"left.png": left, "right.png": -left, "black.png": np.full(45, -1.0)}.items():
        pictures.write_picture(folder / name, np.broadcast_to(mask[:, None], (30, 45, 3)))
    return folder


def ganstyle(place, *args: object, features: str = "tiny.safetensors") -> int:
    """Runs the command in this process; its exit status."""
    try:
        cli.main(["stylize", *map(str, args), *QUICK, f"--features={place / features}"])
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


PATIENCE = 300  # seconds that another thread may take, which may have to compile on a machine that does much else
LONG = dataclasses.replace(gatys.Config(), size=24, smallest=16, steps=5000, taper=0.0, factor=2**0.5, optimizer="adam")


def settings_of(place, **more):
    return stylize.Settings(features=str(place / "tiny.safetensors"), **more)


def long_config(**more):
    return dataclasses.replace(LONG, content_layers=("relu3_1",), style_layers=("relu1_1", "relu2_1"), **more)


def difference(one, other) -> float:
    """Of two picture files, in grey levels."""
    return np.abs(pictures.read_picture(one) - pictures.read_picture(other)).max() / LEVEL


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# One picture


def test_a_picture_its_trace_and_what_lay_between(place, tmp_path, capsys):
    out = tmp_path / "out.png"
    args = ["--smallest=16", "--trace", "--save-every=2", f"--animation={tmp_path / 'out.gif'}"]
    assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, *args) == 0
    with Image.open(out) as picture:
        assert picture.size == (24, 16) and picture.mode == "RGB"
    shown = capsys.readouterr().err
    assert f"{out}: content " in shown
    assert re.search(
        r"100%\|.*\| \d\d:\d\d<\d\d:\d\d, 24x16 loss \d\.\d{4}", shown
    )  # elapsed, remaining, size and loss
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


@pytest.mark.parametrize("how, weight", [("none", 1.0), ("luma", 2.5)])
def test_style_counts_for_more_in_luminance(place, tmp_path, monkeypatch, how, weight):
    """Where a photograph is nearer to a painting to begin with, or little of the style would be seen."""
    made = []
    monkeypatch.setattr(stylize, "make", lambda pieces, network, params, cfg, *rest: made.append(cfg) or [])
    assert (
        ganstyle(
            place, place / "content.png", place / "style.jpg", "-o", tmp_path / "o.png", f"--preserve-colors={how}"
        )
        == 0
    )
    assert made[0].style_weight == weight


def test_luma_keeps_the_colours_in_all_that_is_shown(place, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        pictures, "read_picture", lambda path, *_, real=pictures.read_picture: read.append(path) or real(path)
    )
    filmed = []
    monkeypatch.setattr(video, "write_video", lambda path, frames, fps: filmed.extend(frames))
    args = ["--preserve-colors=luma", "--smallest=16", "--save-every=1", f"--animation={tmp_path / 'out.gif'}"]
    out = tmp_path / "out.png"
    assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, *args) == 0
    assert read.count(place / "content.png") == read.count(place / "style.jpg") == 1  # not again for each step
    monkeypatch.undo()
    content = pictures.read_picture(place / "content.png")
    steps = sorted((tmp_path / "out.steps").glob("*.png"))
    shown = [pictures.read_picture(path) for path in (out, *steps)] + [frame / 127.5 - 1 for frame in filmed[-1:]]
    assert {picture.shape[:2] for picture in shown} == {(11, 17), (16, 24)}
    for picture in shown:
        original = images.resize(content, picture.shape[:2])
        inside = (np.abs(picture) < 0.99).all(-1) & (np.abs(original) < 0.99).all(-1)
        for a, b in ((0, 1), (1, 2)):  # chroma is differences of colours
            change = (picture[..., a] - picture[..., b]) - (original[..., a] - original[..., b])
            assert np.abs(change[inside]).max() < 3 * LEVEL  # two roundings to 8 bits


def test_ctrl_c_leaves_nothing_half_written(place, tmp_path, monkeypatch, capsys):
    def interrupted(journal, event, real=stylize.Journal.hear):
        real(journal, event)
        raise KeyboardInterrupt

    monkeypatch.setattr(stylize.Journal, "hear", interrupted)
    args = ["--smallest=16", "--trace", "--save-every=1", f"--animation={tmp_path / 'out.gif'}"]
    assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", tmp_path / "out.png", *args) == 130
    assert "ganstyle: stopped" in capsys.readouterr().err
    assert names_in(tmp_path) == ["out.steps"]
    assert [pictures.read_picture(path).shape for path in (tmp_path / "out.steps").iterdir()] == [(11, 17, 3)]


def test_the_terms_of_a_trace_are_those_of_its_loss(place, tmp_path):
    """At the beginning of each size and at its end, and nowhere else."""
    out = tmp_path / "out.png"
    assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, ADAM, "--smallest=16", "--trace") == 0
    steps = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert [step["evaluations"] for step in steps] == list(range(1, 13))  # 1 and 7 are the beginnings
    told = [step for step in steps if "terms" in step]
    assert [step["evaluations"] for step in told] == [1, 6, 7, 12]
    for step in told:
        assert step["loss"] == pytest.approx(sum(step["terms"].values()), rel=1e-4)


def test_a_film_does_not_depend_on_the_clock(place, tmp_path, monkeypatch):
    films = []
    monkeypatch.setattr(video, "write_video", lambda path, frames, fps: films.append(list(frames)))
    for name, seconds in {"quick": 1e-3, "slow": 10.0}.items():  # of a dispatch, by the clock
        ticks = itertools.count()
        monkeypatch.setattr(gatys.time, "perf_counter", lambda ticks=ticks, seconds=seconds: seconds * next(ticks))
        settings = settings_of(place, out=tmp_path / f"{name}.png", animation=tmp_path / f"{name}.gif")
        stylize.run(place / "content.png", [place / "style.jpg"], long_config(steps=9), settings)
    # At 2, 4, 6 and 8, and 12, 14, 16 and 18: the tenth evaluation is that of the enlarged picture.
    assert len(films[0]) == len(films[1]) == 8
    np.testing.assert_array_equal(films[0], films[1])


def test_frames_of_a_film_are_put_aside(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    film = Film(tmp_path / "film.gif")
    for frame in frames[:, :, ::-1]:
        film.add(frame)
    np.testing.assert_array_equal(list(film.frames()), frames[:, :, ::-1])
    assert names_in(tmp_path) == []  # the file has no name
    film.write(tmp_path / "film.gif", 10)
    with Image.open(tmp_path / "film.gif") as written:
        assert written.n_frames == 5
    film.close()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
def test_transparency_is_kept(place, tmp_path, suffix):
    """Where the format has it; a JPEG is over white."""
    colours = np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    opaque = np.where(np.arange(45) < 20, 255, 0).astype(np.uint8)
    rgba = np.dstack([colours, np.broadcast_to(opaque, (30, 45))])
    Image.fromarray(rgba).save(tmp_path / "cut.png")
    out = tmp_path / f"out{suffix}"
    assert ganstyle(place, tmp_path / "cut.png", place / "style.jpg", "-o", out, ADAM) == 0
    alpha = pictures.read_alpha(out)
    if suffix == ".jpg":
        assert alpha is None
        return
    assert alpha.shape == (16, 24)
    np.testing.assert_allclose(alpha[:, :9], 1, atol=0.03)  # the border lies at 10.7, and Lanczos rings
    np.testing.assert_allclose(alpha[:, 13:], 0, atol=0.03)
    assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, ADAM) == 0
    assert pictures.read_alpha(out) is None


def test_a_single_evaluation_is_no_step(place, tmp_path, capsys):
    args = ["--trace", f"--animation={tmp_path / 'out.gif'}", "--steps=1", "--smallest=16"]
    cli.main(
        ["stylize", *map(str, (place / "content.png", place / "style.jpg")), "-o", str(tmp_path / "out.png")]
        + ["--size=24", *LAYERS, f"--features={place / 'tiny.safetensors'}", *args]
    )
    assert "no step" in capsys.readouterr().err
    assert names_in(tmp_path) == ["out.gif", "out.json", "out.png"]


@pytest.mark.slow
def test_masks_keep_each_style_to_its_side(place, tmp_path):
    masks = ["--content-mask", place / "left.png", place / "right.png"]
    made = []
    for i, right in enumerate(["other.png", "third.png"]):
        out = tmp_path / f"{i}.tif"
        assert ganstyle(place, place / "content.png", place / "style.jpg", place / right, "-o", out, *masks) == 0
        made.append(pictures.read_picture(out))
    change = np.abs(made[0] - made[1]).mean((0, 2))  # by column
    # The border lies at 12, and features reach beyond it. One step moves both sides, so a little comes across.
    assert change[13:].mean() > 3 * change[:9].mean() and change[:9].max() < 8 * LEVEL


def test_style_masks_and_what_is_begun_with(place, tmp_path):
    """A style of which all counts is as without a mask."""
    pictures.write_picture(tmp_path / "white.png", np.ones((40, 40, 3)))
    pictures.write_picture(
        tmp_path / "half.png", np.broadcast_to(np.where(np.arange(40) < 20, 1.0, -1.0), (3, 40, 40)).T
    )
    init = ["--init-image", place / "third.png", "--smallest=24"]
    for name, args in {"none": [], "white": ["--style-mask", tmp_path / "white.png"]}.items():
        out = tmp_path / f"{name}.tif"
        assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, *init, *args) == 0
    half = ["--style-mask", tmp_path / "half.png", "-o", tmp_path / "half.tif"]
    assert ganstyle(place, place / "content.png", place / "style.jpg", *init, *half) == 0
    assert difference(tmp_path / "none.tif", tmp_path / "white.tif") < 0.1
    assert difference(tmp_path / "none.tif", tmp_path / "half.tif") > 2


# ---------------------------------------------------------------------------------------------------------------------
# Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_picture_beside_the_name_that_was_asked_for(place, tmp_path, capsys, number):
    def interrupt(event, seen=[]):  # noqa: B006
        if isinstance(event, Pictures) and not seen:
            seen.append(event)
            os.kill(os.getpid(), number)

    out, film = tmp_path / "out.jpg", tmp_path / "film.gif"
    settings = settings_of(place, out=out, trace=True, animation=film, run_dir=tmp_path / "run")
    heard = []
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        control = Control([heard.append, interrupt])
        stylize.run(place / "content.png", (place / "style.jpg",), long_config(), settings, control)
    assert caught.value.code == 128 + number and signal.getsignal(number) == before
    assert isinstance(heard[-1], Done) and heard[-1].stopped
    assert names_in(tmp_path) == ["film.stopped.gif", "out.stopped.json", "out.stopped.png", "run"]
    assert pictures.read_picture(tmp_path / "out.stopped.png").shape == (16, 24, 3)
    shown = capsys.readouterr().err
    assert f"{number.name} received: keeping what there is of the picture" in shown
    assert re.search(rf"out.stopped.png: .* after \d+ evaluations in \d+ s, stopped before {out} was done\n", shown)
    trace = json.loads((tmp_path / "out.stopped.json").read_text())
    assert trace["steps"][-1]["evaluations"] < 5000
    assert "result.png" not in names_in(tmp_path / "run")  # it has none
    assert names_in(tmp_path / "run" / "steps")[-1] == f"{trace['steps'][-1]['evaluations']:06d}.png"


def test_a_folder_that_is_stopped_from_another_thread(place, tmp_path, capsys):
    """What is done stays, what is under way is kept, the rest is not begun; and it is no error."""
    seen, asked, made = threading.Event(), threading.Event(), []

    def hear(event):  # and go on when it has been asked to stop, so that it is not done before
        if isinstance(event, Advanced):
            advanced.append(event)
            seen.set()
            assert asked.wait(PATIENCE)

    control, advanced = Control([hear]), []
    settings = settings_of(place, out=tmp_path / "out", parallel="none", batch=1)
    work = functools.partial(
        stylize.run, str(place / "many"), str(place / "style.jpg"), long_config(), settings, control=control
    )
    thread = threading.Thread(target=lambda: made.extend(work()))
    thread.start()
    assert seen.wait(PATIENCE)
    control.stop()
    asked.set()
    thread.join(PATIENCE)
    assert not thread.is_alive() and made == [tmp_path / "out" / "a.stopped.png"]
    assert names_in(tmp_path / "out") == ["a.stopped.png"]
    assert {event.total for event in advanced} == {3 * 2 * 5000} and advanced[-1].done < 2 * 5000


def test_stopped_before_anything_was_done(place, tmp_path, capsys):
    control = Control()
    control.stop()
    out = tmp_path / "out.png"
    settings = settings_of(place, out=out)
    assert stylize.run(place / "content.png", [place / "style.jpg"], long_config(), settings, control) == []
    assert "stopped before its first step" in capsys.readouterr().err and names_in(tmp_path) == []


def test_events_of_many_pictures_are_of_all_of_them(place, tmp_path):
    heard = []
    settings = settings_of(place, out=str(tmp_path / "out"), parallel="none", batch=1)
    cfg = long_config(steps=5, smallest=24)
    made = stylize.run(place / "many", [place / "style.jpg"], cfg, settings, Control([heard.append]))
    assert [path.name for path in made] == ["a.png", "b.png", "c.png"]
    done = [event.done for event in heard if isinstance(event, Advanced)]
    assert done == sorted(done) and done[-1] == 15
    assert heard[-1] == Done(15, False)
    assert [type(event) for event in heard].count(Done) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_pictures_of_all_kinds_at_any_depth(place, tmp_path):
    folder = tmp_path / "in"
    for name in ("a.bmp", "b.PNG", "c.gif", "more/a.jp2", "more/deep/e.avif", ".hidden.png", "more/.cache/f.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), "red").save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    out = folder / "out"
    for _ in range(2):  # results of the first time are no pictures of the second
        assert ganstyle(place, folder, place / "style.jpg", "-o", out, ADAM, "--parallel=none", "--batch=1") == 0
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert found == ["a.png", "b.png", "c.png", "more/a.png", "more/deep/e.png"]


@pytest.mark.slow
def test_folders_of_contents_and_of_styles(place, tmp_path):
    """Four pictures of one shape and two of another, each on a device; every one as it would be by itself."""
    out = tmp_path / "new" / "results"
    assert ganstyle(place, place / "many", place / "paintings", "-o", out, "--trace", ADAM) == 0
    pairs = [f"{content}-{style}" for content in "abc" for style in ("other", "style")]
    assert names_in(out) == sorted(f"{pair}{suffix}" for pair in pairs for suffix in (".json", ".png"))
    for name, shape in {"a-style.png": (24, 24), "b-other.png": (24, 16), "c-style.png": (24, 24)}.items():
        assert pictures.read_picture(out / name).shape[:2] == shape
    alone = tmp_path / "alone.png"
    assert ganstyle(place, place / "many" / "c.tif", place / "paintings" / "style.png", "-o", alone, ADAM) == 0
    assert difference(out / "c-style.png", alone) <= 3
    assert difference(out / "c-style.png", out / "c-other.png") > 10
    trace = json.loads((out / "a-other.json").read_text())
    assert trace["content"].endswith("a.png") and trace["styles"][0].endswith("other.png")


def test_a_folder_on_one_device_in_two_styles(place, tmp_path):
    blend = [place / "style.jpg", place / "other.png", "--style-weights", "3", "1", "--preserve-colors=coral", ADAM]
    assert ganstyle(place, place / "many", *blend, "-o", tmp_path / "results", "--parallel=none", "--batch=2") == 0
    assert names_in(tmp_path / "results") == ["a.png", "b.png", "c.png"]
    alone = tmp_path / "alone.png"
    assert ganstyle(place, place / "many" / "a.png", *blend, "-o", alone) == 0
    assert difference(tmp_path / "results" / "a.png", alone) <= 3


def test_a_picture_that_is_done_waits_for_the_others(tmp_path):
    pieces = [
        stylize.Piece(
            stylize.Order(tmp_path / f"{name}.png", (), tmp_path / f"{name}-out.png"),
            np.zeros((4, 6, 3), np.float32),
            gatys.Job(np.zeros((4, 6, 3)), [np.zeros((4, 6, 3))]),
        )
        for name in "ab"
    ]
    progress = gatys.Progress((4, 6), 5, 0.5, [(3, 0.4), (5, 0.3)], {"tv": 0.3}, 0, np.zeros((4, 6, 3), np.float32))
    waiting = dataclasses.replace(progress, losses=[])
    with stylize.Journal(gatys.Config(size=6), stylize.Settings(save_every=1), pieces) as journal:
        journal.hear(gatys.Stepped(5, {}, (progress, progress)))
        journal.hear(gatys.Stepped(5, {}, (dataclasses.replace(progress, losses=[(7, 0.2)]), waiting)))
        assert "2 pictures 6x4 loss 0.2500" in str(journal.bar)
    assert [[step["evaluations"] for step in trace.steps] for trace in journal.traces] == [[3, 5, 7], [3, 5]]
    assert names_in(tmp_path / "a-out.steps") == ["000005.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(place, tmp_path, capsys):
    (tmp_path / "results").mkdir(mode=0o500)
    assert ganstyle(place, place / "many", place / "style.jpg", "-o", tmp_path / "results") == 1
    assert "you have no right to write to the folder" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# How it is computed


@pytest.mark.slow
def test_rows_and_tiles_change_nothing(place, tmp_path):
    for name, args in {"plain": [ADAM], "rows": [ADAM, "--parallel=rows"], "tiles": [ADAM, "--tile=16"]}.items():
        out = tmp_path / f"{name}.png"
        assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, *args) == 0
    assert difference(tmp_path / "plain.png", tmp_path / "rows.png") <= 2
    assert difference(tmp_path / "plain.png", tmp_path / "tiles.png") <= 2


@pytest.mark.slow
def test_teams_of_devices_share_the_rows_of_a_picture_each(place, tmp_path, capsys):
    """Pictures by rows: two teams of four devices make three pictures of two shapes, each as it would be alone."""
    out = tmp_path / "teams"
    teams = ["--parallel=rows", "--rows=4", "--trace"]
    assert ganstyle(place, place / "many", place / "style.jpg", "-o", out, ADAM, *teams) == 0
    assert names_in(out) == [f"{name}.{suffix}" for name in "abc" for suffix in ("json", "png")]
    assert capsys.readouterr().err.count("after 6 evaluations") == 3
    alone = tmp_path / "alone"
    assert ganstyle(place, place / "many", place / "style.jpg", "-o", alone, ADAM, "--parallel=none", "--trace") == 0
    for name in "abc":
        assert difference(out / f"{name}.png", alone / f"{name}.png") <= 2
        ours, others = (json.loads((folder / f"{name}.json").read_text())["steps"] for folder in (out, alone))
        np.testing.assert_allclose(*([step["loss"] for step in steps] for steps in (ours, others)), rtol=1e-5)


@pytest.mark.slow
def test_rows_of_a_team_give_the_loss_and_gradient_of_one_device(x64):
    """In float64, on devices that are not the first ones."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), TINY.init(jax.random.key(0)))
    network = dataclasses.replace(TINY, dtype="float64", platform="xla")
    cfg = gatys.Config(size=70, content_layers=("relu3_1",), style_layers=("relu1_1", "relu2_1"))
    content, style = (np.random.default_rng(i).uniform(-1, 1, (70, 53, 3)) for i in range(2))
    found = []
    for team in (None, *stylize.teams_of(jax.devices(), 4)):
        mesh = None if team is None else jax.sharding.Mesh(np.asarray(team), ("rows",))
        targets = gatys.make_targets(network, params, content, [style], cfg, mesh=mesh)
        value, gradient, _ = gatys.evaluate(network, params, targets, targets.canvas.put(content[::-1]), cfg)
        assert team is None or gradient.sharding.device_set == set(team)
        found.append((float(value), targets.canvas.crop(gradient)))
    for value, gradient in found[1:]:
        np.testing.assert_allclose(value, found[0][0], rtol=1e-9)
        np.testing.assert_allclose(gradient, found[0][1], rtol=0, atol=1e-9 * np.abs(found[0][1]).max())


def test_what_one_team_raises_ends_the_others():
    ended = threading.Event()

    def fails(stop):
        raise UserError("this one")

    def goes_on(stop):
        assert stop.wait(PATIENCE)
        ended.set()
        raise RuntimeError("not this one")

    with pytest.raises(UserError, match="this one"):
        stylize.side_by_side([goes_on, fails, goes_on])
    assert ended.is_set()


def test_all_ways_to_compute_at_once(place, tmp_path):
    ways = ["--precision=bfloat16", "--pooling=average", "--remat", "--optimizer=adam", "--averaging=0.5"]
    ways += ["--style-loss=wasserstein", "--init=style", "--trace"]
    for name, args in {"zero": [], "one": ["--seed=1"]}.items():
        out = tmp_path / f"{name}.png"
        assert ganstyle(place, place / "content.png", place / "style.jpg", "-o", out, *ways, *args) == 0
    trace = json.loads((tmp_path / "zero.json").read_text())
    assert trace["config"] | {"optimizer": "adam", "style_loss": "wasserstein", "averaging": 0.5} == trace["config"]
    assert difference(tmp_path / "zero.png", tmp_path / "one.png") > 10  # the noise that it begins with
    losses = [step["loss"] for step in trace["steps"]]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_the_network_is_computed_as_asked(place):
    asked = stylize.Settings(
        features=str(place / "tiny.safetensors"), precision="bfloat16", pooling="average", remat=True
    )
    cfg = gatys.Config(content_layers=("relu3_1",), style_layers=("relu1_1",))
    network, _ = stylize.load_network(cfg, asked)
    assert network == dataclasses.replace(TINY, dtype="bfloat16", pooling="average", remat=True)
    network, _ = stylize.load_network(cfg, stylize.Settings(features=asked.features, parallel="rows"))
    assert network == dataclasses.replace(TINY, platform="xla")


def test_what_fits_only_in_tiles_is_made_in_tiles(place, tmp_path, monkeypatch, capsys):
    """And less memory than that is refused with advice, before anything is made."""
    cfg = gatys.Config(
        size=300, steps=2, taper=0.0, content_layers=("relu3_1",), style_layers=("relu1_1",), optimizer="adam"
    )
    whole = memory.needed(TINY, cfg, (200, 300))
    args = [str(place / "content.png"), str(place / "style.jpg"), f"--features={place / 'tiny.safetensors'}"]
    args += [
        "--steps=2",
        "--taper=0",
        "--content-layers=relu3_1",
        "--style-layers",
        "relu1_1",
        "-o",
        str(tmp_path / "out.png"),
    ]
    monkeypatch.setattr(memory, "available", lambda devices: whole - 1)
    cli.main(["stylize", *args, "--size=300", "--smallest=300", "--optimizer=adam", "--trace"])
    assert "300 x 200 pixels do not fit into memory in one piece: made in tiles of 256" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text())["config"]["tile"] == 256
    assert pictures.read_picture(tmp_path / "out.png").shape == (200, 300, 3)
    (tmp_path / "out.png").unlink()
    with pytest.raises(SystemExit, match="1"):
        cli.main(["stylize", *args, "--size=6000"])
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        r"6000 x 4000 pixels need about [\d.]+ GB of memory in tiles of 256, and [\d.]+ GB are free", message
    )
    assert re.search(r"--size \d+ fits", message)
    assert names_in(tmp_path) == ["out.json"]


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


def png_of(width: int, height: int) -> bytes:
    """A PNG file that promises so many pixels, and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    )


@pytest.fixture(scope="module")
def bad(place):
    """Files with something wrong, beside the good ones."""
    whole = (place / "style.jpg").read_bytes()
    (place / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (place / "huge.png").write_bytes(png_of(30_000, 20_000))
    Image.new("RGB", (1, 1)).save(place / "pixel.png")
    pictures.write_picture(place / "thin.png", np.zeros((2, 60, 3)))
    (place / "weights.txt").write_text("not weights")
    for folder, files in {"twins": ["a.png", "a.tif"], "empty": [], "spoilt": ["a.png"]}.items():
        (place / folder).mkdir()
        for file in files:
            pictures.write_picture(place / folder / file, np.zeros((20, 20, 3)))
    (place / "spoilt" / "b.jpg").write_bytes(whole[: len(whole) // 2])
    return place


PAIR = ["content.png", "style.jpg"]


@pytest.mark.parametrize(
    "args, message",
    [
        # files
        (["content.png"], "no style is given: name at least one picture after"),
        (["none.png", "style.jpg"], "there is no picture .*none.png"),
        (["content.png", "none.jpg"], "there is no picture .*none.jpg"),
        (["none.png", "none.jpg"], "there is no picture .*none.png and no .*none.jpg"),
        (["cut.jpg", "style.jpg"], "cut.jpg cannot be read as a picture: Truncated"),
        (["content.png", "cut.jpg"], "cut.jpg cannot be read as a picture"),
        (["pixel.png", "style.jpg"], "pixel.png has 1 x 1 pixels; at least 2 x 2 are needed"),
        (["content.png", "pixel.png"], "pixel.png has 1 x 1 pixels"),
        (["huge.png", "style.jpg"], r"huge.png has 600000000 pixels; at most \d+ are read"),
        (["weights.txt", "style.jpg"], "weights.txt is not a picture that can be read"),
        (["thin.png", "style.jpg"], "thin.png at --size 24: an image of 24 x 1 pixels is too small"),
        ([*PAIR, "--init-image", "none.png"], "there is no picture .*none.png"),
        # where to
        ([*PAIR, "-o", "missing/out.png"], "there is no folder"),
        ([*PAIR, "-o", "out.bmp"], "its format follows from it: use .png"),
        ([*PAIR, "-o", "many"], "many is a folder; give the name of a file"),
        ([*PAIR, "-o", "content.png"], "content.png would be written over one of the given pictures"),
        ([*PAIR, "-o", "out.webp", "--size=20000"], "out.webp cannot have 20000 pixels a side, only 16383"),
        ([*PAIR, "--animation", "film.avi"], "film.avi ends in .avi"),
        # folders
        (["many", "style.jpg"], "for a folder of pictures -o must name a folder, got stylized.png"),
        (["many", "style.jpg", "-o", "weights.txt"], "weights.txt is a file"),
        (["many", "style.jpg", "-o", "weights.txt/results"], "where .*weights.txt is a file"),
        (["many", "style.jpg", "-o", "many"], "many/a.png would be written over one of the given pictures"),
        (["twins", "style.jpg", "-o", "out"], "twins/a.png with .*twins/a.tif with .*would both become out/a.png"),
        (["empty", "style.jpg", "-o", "out"], "no pictures in .*empty: accepted are .jpg"),
        (["spoilt", "style.jpg", "-o", "out"], "spoilt/b.jpg cannot be read as a picture"),
        (["content.png", "paintings", "style.jpg", "-o", "out"], "a folder of styles must be the only STYLE"),
        (["many", "style.jpg", "-o", "out", "--animation", "film.gif"], "--animation is for a single picture"),
        (["many", "style.jpg", "-o", "out", "--content-mask", "left.png"], "--content-mask is for a single picture"),
        (["content.png", "paintings", "-o", "out", "--style-mask", "left.png"], "--style-mask is for a single picture"),
        # masks
        ([*PAIR, "--content-mask", "style.jpg"], "style.jpg has 40 x 40 .* its picture .*content.png, 45 x 30"),
        ([*PAIR, "--style-mask", "left.png"], "left.png has 45 x 30 .* its picture .*style.jpg, 40 x 40"),
        ([*PAIR, "--content-mask", "black.png"], "black.png is black all over"),
        ([*PAIR, "--content-mask", "left.png", "right.png"], "--content-mask must be .* there are 1, got 2"),
        ([*PAIR, "--content-mask", "none.png"], "there is no picture .*none.png"),
        # numbers
        ([*PAIR, "--style-weights", "1", "2"], "--style-weights must be .* there are 1, got 2"),
        ([*PAIR, "--style-layers-of", "fine", "coarse"], "--style-layers-of must be .* there are 1, got 2"),
        (
            [*PAIR, "--style-layers-of", "coarse"],
            "--style-layers-of coarse: each style layer needs a style .* has none",
        ),
        (
            [*PAIR, "style.jpg", "--style-loss=patches", "--style-weights", "1", "2"],
            "patches each place takes what is nearest of all styles, .* got the weights 1 2",
        ),
        ([*PAIR, "--style-weights", "0"], "--style-weights must be 0 or more, one of them more, got 0"),
        ([*PAIR, "--style-weights", "nan"], "--style-weights must be 0 or more, one of them more, got nan"),
        ([*PAIR, "--batch=0"], "--batch must be at least 1, got 0"),
        ([*PAIR, "--save-every=0"], "--save-every must be at least 1, got 0"),
        ([*PAIR, "--seed=-1"], "--seed must be from 0 to 4294967295, got -1"),
        # features
        (
            [*PAIR, "--content-layers=relu9_1"],
            "does not fit --content-layers relu9_1 .* no layer 'relu9_1'; it has conv1_1",
        ),
        ([*PAIR, "--features=squeezenet.safetensors"], "squeezenet.safetensors does not fit .* it has conv1, relu1"),
        ([*PAIR, "--features=vgg19"], "run `ganstyle weights fetch vgg19`"),
        ([*PAIR, "--features=vgg91"], "there are no weights vgg91: give a file or one of"),
        ([*PAIR, "--features=none.safetensors"], "there are no weights .*none.safetensors"),
        ([*PAIR, "--features=weights.txt"], "weights.txt"),
        ([*PAIR, "--features=content.png"], "content.png"),
        ([*PAIR, "--rows=4"], "--rows belongs to --parallel rows, got 4 with --parallel pictures"),
        ([*PAIR, "--parallel=rows", "--rows=3"], "--rows must be at least 2 and divide the 8 devices, got 3"),
        ([*PAIR, "--parallel=rows", "--rows=1"], "--rows must be at least 2 and divide the 8 devices, got 1"),
        ([*PAIR, "--tile=16", "--parallel=rows"], "on one device or into rows on several, not both"),
    ],
    ids=lambda x: None if isinstance(x, str) else " ".join(x),
)
def test_refusals(bad, tmp_path, monkeypatch, capsys, args, message):
    """One sentence, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in bad.rglob("*")}
    given = []
    for arg in args:
        option, equals, value = arg.rpartition("=")
        known = value.split("/")[0] in names_in(bad)
        given.append(f"{option}{equals}{bad / value if known else value}")
    if not any("--features" in arg for arg in args):
        given.append(f"--features={bad / 'tiny.safetensors'}")
    if not any("--content-layers" in arg for arg in args):
        given.append("--content-layers=relu3_1")
    if not any("--size" in arg for arg in args):
        given.append("--size=24")
    with pytest.raises(SystemExit) as caught:
        cli.main(["stylize", *given, "--style-layers", "relu1_1"])
    assert caught.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ganstyle: error: ") and re.search(message, lines[0])
    assert names_in(tmp_path) == [] and {path: path.stat().st_mtime_ns for path in bad.rglob("*")} == before


def test_no_file_is_lost(place, tmp_path, capsys):
    """Neither what is given nor what is there already, unless stylize itself has left it."""
    pair = [tmp_path / "content.png", tmp_path / "style.gif"]
    for path in pair:
        Image.new("RGB", (32, 32), "red").save(path)
    steps, run_dir = tmp_path / "out.steps", tmp_path / "run"
    for folder in (steps, run_dir):
        folder.mkdir()
        Image.new("RGB", (32, 32), "red").save(folder / "content.png")
    (tmp_path / "package.json").write_text('{"steps": []}')
    (tmp_path / "holiday.mp4").write_bytes(b"a film")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "again.stopped.png")
    out = ["-o", tmp_path / "out.png"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for args, message in {
        "film over style": ([*out, f"--animation={pair[1]}"], "style.gif would be written over one of the given"),
        "film over film": ([*out, f"--animation={tmp_path / 'holiday.mp4'}"], "holiday.mp4 is there already"),
        "trace": (["-o", tmp_path / "package.png", "--trace"], "package.json is there already and is no trace"),
        "steps": ([*out, "--save-every=1", "--init-image", steps / "content.png"], "out.steps .* holds one of those"),
        "run": ([*out, f"--run-dir={run_dir}"], "run holds content.png already: choose another --run-dir"),
        "stopped": (
            ["-o", tmp_path / "again.png", "--init-image", tmp_path / "again.stopped.png"],
            "again.stopped.png would be written over",
        ),
    }.values():
        assert ganstyle(place, *pair, *args) == 1
        assert re.search(message, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    args = ["-o", tmp_path / "package.png", "--trace", f"--animation={tmp_path / 'holiday.gif'}", ADAM]
    (tmp_path / "holiday.gif").write_bytes(b"a film")
    assert ganstyle(place, *pair, *args, "--overwrite") == 0
    assert "replaced" not in capsys.readouterr().err
    args.remove(f"--animation={tmp_path / 'holiday.gif'}")
    assert ganstyle(place, *pair, *args) == 0  # a trace of its own is no other's
    assert "package.png: " in (shown := capsys.readouterr().err) and "; the old file is replaced" in shown


@pytest.mark.parametrize("name", ["out", "animation", "run_dir", "init_image"])
def test_paths_may_be_text(name):
    assert getattr(stylize.Settings(**{name: "some/where.gif"}), name) == Path("some/where.gif")


def test_masks_may_be_text_and_files_too():
    settings = stylize.Settings(content_mask="a.png", style_mask=["b.png", Path("c.png")])
    assert settings.content_mask == (Path("a.png"),) and settings.style_mask == (Path("b.png"), Path("c.png"))
    with pytest.raises(UserError, match="there is no picture /nonexistent and no /n"):
        stylize.run("/nonexistent", "/n", gatys.Config(), stylize.Settings())


def test_only_a_network_like_vgg_can_be_cut(place, tmp_path, capsys):
    args = ["stylize", *(str(place / name) for name in PAIR), f"--features={place / 'squeezenet.safetensors'}"]
    args += ["--size=64", "--content-layers=fire5", "--style-layers", "relu1", "fire2", "-o", str(tmp_path / "out.png")]
    for cut in ("--tile=32", "--parallel=rows"):
        with pytest.raises(SystemExit):
            cli.main([*args, cut])
        assert "only a network laid out like VGG" in capsys.readouterr().err


def test_no_larger_picture_is_read_than_memory_can_hold(place, monkeypatch):
    monkeypatch.setattr(memory, "free_on_host", lambda: 1000 * stylize.READING)
    with pytest.raises(UserError, match="has 1350 pixels; at most 1000 are read with 4e-05 GB of free memory, make"):
        stylize.read_picture(place / "content.png")
    assert stylize.read_picture(place / "many" / "a.png").shape == (30, 30, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Run folders


def test_a_run_folder_holds_all_there_is_to_know(place, tmp_path, capsys):
    folder, out = tmp_path / "run", tmp_path / "out.jpg"
    styles = [place / "style.jpg", place / "other.png"]
    args = ["--smallest=16", f"--run-dir={folder}", "--save-every=3", "--preserve-colors=luma", ADAM, "--trace"]
    assert ganstyle(place, place / "content.png", *styles, "-o", out, *args) == 0
    assert names_in(folder) == [
        *("content.png", "metrics.jsonl", "result.png", "run.json", "steps", "style-1.png", "style-2.png")
    ]
    described = runs.read(folder)
    assert described["method"] == "gatys" and described["data"] == str(place / "content.png")
    assert described["loop"]["styles"] == list(map(str, styles)) and described["config"]["size"] == 24
    assert described["versions"]["jax"] and described["devices"]
    content = images.resize(pictures.read_picture(place / "content.png"), (16, 24))
    assert np.abs(pictures.read_picture(folder / "content.png") - np.clip(content, -1, 1)).max() < LEVEL
    assert pictures.read_picture(folder / "style-2.png").shape[:2] == (10, 24)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = json.loads(out.with_suffix(".json").read_text())["steps"]
    assert [(line["step"], line["loss"]) for line in lines] == [(step["evaluations"], step["loss"]) for step in steps]
    told = [line for line in lines if "tv" in line]
    assert len(told) > 1
    for line in told:  # of this very step, not of the beginning of the size
        terms = [value for name, value in line.items() if name.split("/")[0] in ("content", "style", "tv", "range")]
        assert sum(terms) == pytest.approx(line["loss"], rel=1e-4)
    kept = sorted((folder / "steps").iterdir())
    assert kept[-1].name == "000012.png" and difference(kept[-1], folder / "result.png") < 1.01
    with pytest.raises(UserError, match=r"holds a picture that was optimised \(gatys\), and no network to draw from"):
        runs.load(folder)
    assert ganstyle(place, place / "content.png", styles[0], "-o", out, f"--run-dir={folder}") == 1
    assert f"{folder} already holds a run: choose another --run-dir" in capsys.readouterr().err


def test_a_run_folder_is_for_one_picture(place, tmp_path, capsys):
    args = ["-o", tmp_path / "out", f"--run-dir={tmp_path / 'run'}"]
    assert ganstyle(place, place / "many", place / "style.jpg", *args) == 1
    assert "--run-dir is for a single picture, not for a folder of them" in capsys.readouterr().err
    assert names_in(tmp_path) == []
