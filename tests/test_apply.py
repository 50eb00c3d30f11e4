"""`ganstyle apply`: pictures, folders and films by a model file, on one device and on eight, whole and in strips."""

import dataclasses
import os
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_clip import heard, shoot
from test_tiled_transform import weights

from ganstyle_jax import cli, contract
from ganstyle_jax.commands.apply import kept
from ganstyle_jax.control import Control
from ganstyle_jax.forward import clip, folders
from ganstyle_jax.forward.painter import Painter, Unsuited
from ganstyle_jax.io import films, images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.pictures import read_picture
from ganstyle_jax.loop import models
from ganstyle_jax.style import colours, fast_style

pytestmark = pytest.mark.usefixtures("home")

CFG = fast_style.Config(style=(Path("sea.jpg"), Path("wood.jpg")), width=4, blocks=0)
METHOD = contract.of(fast_style)
SHAPE = (24, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "two.safetensors"
    models.write(path, METHOD, CFG, {"params": weights(fast_style.network(CFG))})
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four of one shape, in folders."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(("one.png", "more/two.png", "more/deep/three.webp", "four.bmp")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 200 + i, (*SHAPE, 3)).astype(np.uint8)).save(path)
    return tmp_path / "photos"


def moving(count: int) -> list[np.ndarray]:
    """A bright square of 12 pixels on a pattern, which goes right by 2 pixels a frame."""
    rows, columns = np.mgrid[:32, :32] / 32
    frames = []
    for i in range(count):
        frame = np.stack([np.sin(9 * rows), np.cos(7 * columns), rows - columns], -1) * 0.5
        frame[8:20, 2 + 2 * i : 14 + 2 * i] = (0.9, 0.2, -0.6)
        frames.append(frame.astype(np.float32))
    return frames


def ganstyle(*args: object) -> int:
    try:
        cli.main([str(arg) for arg in args])
    except SystemExit as error:
        assert isinstance(error.code, int)
        return error.code
    return 0


def refusal(capsys, *args: object) -> str:
    """The one sentence with which the command refuses these arguments."""
    capsys.readouterr()
    assert ganstyle("apply", *args) == 1
    error = capsys.readouterr().err
    lines = [line for line in re.split(r"[\n\r]", error) if "ganstyle: error:" in line]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


class Inverting(Painter):
    """Paints without a network: colours become their opposites."""

    def __init__(self, most: int = 2):
        self.devices, self.most, self.batches = [None], most, []

    def batch_size(self, shape):
        return self.most

    def __call__(self, pictures, advance=lambda share: None):
        self.batches.append(pictures.shape)
        return -pictures


unchanged = lambda result, content: result  # noqa: E731


class Bar:
    def __init__(self, total=None):
        self.count = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, count=1):
        self.count += count


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def test_a_folder_keeps_its_tree_and_each_picture_is_as_if_alone(model, photos, tmp_path, capsys):
    assert ganstyle("apply", model, photos, "-o", tmp_path / "out", "--blend", 1, 3) == 0
    assert re.search(r"two applied: 4 pictures in .*out, [\d.]+ pictures/s", capsys.readouterr().out)
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert made == {"one.png", "more/two.png", "more/deep/three.png", "four.png"}
    network, params = fast_style.network(CFG), weights(fast_style.network(CFG))
    apply = jax.jit(lambda x: network.apply(params, x, np.array([[0.25, 0.75]], np.float32)))
    for source, name in {"one.png": "one.png", "more/deep/three.webp": "more/deep/three.png"}.items():
        expected = apply(read_picture(photos / source)[None])[0]
        found = np.asarray(Image.open(tmp_path / "out" / name)).astype(int)
        assert np.abs(found - images.to_uint8(expected)).max() <= 1  # rounding, of another batch and other devices


def test_eight_devices_equal_one(model, photos):
    pictures = np.stack([read_picture(photos / "one.png"), read_picture(photos / "more/two.png")] * 5)[:9]
    loaded = models.load(model)
    eight, one = Painter(loaded), Painter(loaded, devices=jax.devices()[:1])
    assert len(eight.devices) == 8 and eight.batch_size(SHAPE) == 8 * one.batch_size(SHAPE)
    found = eight(pictures)  # nine, filled up to sixteen
    assert found.shape == pictures.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([one(picture[None]) for picture in pictures]), atol=1e-5)
    np.testing.assert_allclose(eight(pictures[:3]), found[:3], atol=1e-5)  # by the program that is there


def test_strips_and_thumbnails_by_option_and_by_memory(model, photos, tmp_path, monkeypatch, capsys):
    from ganstyle_jax.style import memory

    for large in ("whole", "strips", "thumbnail"):
        assert ganstyle("apply", model, photos / "one.png", f"--large={large}", "-o", tmp_path / f"{large}.png") == 0
    whole, strips = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("whole", "strips"))
    assert np.abs(whole - strips).max() <= 1
    assert (tmp_path / "thumbnail.png").is_file()
    painter, shape = Painter(models.load(model)), (2000, 1000, 3)
    need = 2000 * 1000 * 4 * 4
    for free, way in ((100 * need, "whole"), (4.75 * need, "strips")):  # of layers of 4 channels, and what is beside
        monkeypatch.setattr(memory, "free_on_host", lambda free=free: round(free * 1.25))
        assert painter.way(shape) == way
    monkeypatch.setattr(memory, "free_on_host", lambda: need)
    with pytest.raises(Unsuited, match=r"needs about .* GB of memory in strips, and .* are free: --large thumbnail"):
        painter.way(shape)
    assert Painter(models.load(model), large="whole").way(shape) == "whole"


def test_colours_are_kept(photos):
    content, result = read_picture(photos / "one.png"), read_picture(photos / "four.bmp") * 0.3
    assert kept(result, content, "none") is result
    luma = kept(result, content * 0.5, "luma")
    np.testing.assert_allclose(luma @ images.LUMA, result @ images.LUMA, atol=1e-6)
    coral = kept(result, content * 0.5, "coral")
    np.testing.assert_allclose(coral.mean((0, 1)), content.mean((0, 1)) * 0.5, atol=1e-2)
    histogram = kept(result, content, "histogram")
    shares = np.linspace(0, 1, 9)
    for channel in range(3):
        found, wanted = (np.quantile(x[..., channel], shares) for x in (histogram, content))
        np.testing.assert_allclose(found, wanted, atol=0.02)
    np.testing.assert_array_equal(coral, np.clip(colours.match_linear(result, content * 0.5), -1, 1))


def test_pictures_of_one_shape_are_painted_together_and_damage_is_told_at_the_end(tmp_path):
    for i in range(5):
        Image.new("RGB", (20, 16 + 2 * (i == 2)), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    places = folders.placed([tmp_path], tmp_path / "out")
    painter, failed, bar = Inverting(), [], Bar()
    assert folders.paint_all(places, painter, unchanged, Control(), failed, bar.update) == 4
    assert painter.batches == [(2, 16, 20, 3), (1, 18, 20, 3), (1, 16, 20, 3)]
    assert len(failed) == 1 and "3.png is not a picture" in failed[0]
    assert np.asarray(Image.open(tmp_path / "out" / "4.png"))[0, 0].tolist() == [251, 255, 255]
    control = Control()
    control.stop(signal.SIGTERM)
    other = {file: tmp_path / "other" / place.name for file, place in places.items()}
    assert folders.paint_all(other, painter, unchanged, control, [], bar.update) == 0
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Films


def test_a_film_comes_out_with_its_times_and_its_sound(model, tmp_path, capsys):
    source = shoot(tmp_path / "in.mp4", moving(5), starts=[0, 40, 120, 160, 200])
    assert ganstyle("apply", model, source, "-o", tmp_path / "out.mp4", "--preserve-colors=luma") == 0
    assert re.search(r"two applied: .*out.mp4, 5 frames, [\d.]+ frames/s", capsys.readouterr().out)
    given, made = films.read_film(source), films.read_film(tmp_path / "out.mp4")
    assert [frame.span[0] for frame in made.frames()] == [frame.span[0] for frame in given.frames()]
    np.testing.assert_array_equal(heard(tmp_path / "out.mp4")[1], heard(source)[1])
    loaded = models.load(model)
    for frame, found in zip(given.frames(), made.frames(), strict=True):
        requests = METHOD.requests_of(frame.pixels[None], CFG)
        expected = kept(np.asarray(loaded.draw(requests)["result"][0]), frame.pixels, "luma")
        assert np.abs(found.pixels - expected).mean() < 0.1  # what H.264 loses of such noise, and of its colours most


def test_smoothing_holds_what_stays_and_lets_new_scenes_be():
    pytest.importorskip("cv2")
    content, rng = moving(1)[0], np.random.default_rng(0)
    previous, result = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    assert clip.smoothed(result, content, None, 0.6) is result
    still = clip.smoothed(result, content, (content, previous), 0.6)
    np.testing.assert_allclose(still, 0.6 * previous + 0.4 * result, atol=1e-5)
    assert clip.smoothed(result, -content, (content, previous), 0.6) is result
    # Twice as large, as of a network that enlarges.
    large = rng.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    still = clip.smoothed(large[0], content, (content, large[1]), 0.5)
    assert np.abs(still - large.mean(0)).mean() < 1e-3


def test_smoothing_moves_what_moves_and_flickers_less(tmp_path):
    pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    source = shoot(tmp_path / "in.mp4", moving(6), sound=None)

    class Flickering(Inverting):
        def __call__(self, pictures, advance=lambda share: None):
            return np.clip(pictures + rng.normal(0, 0.3, (len(pictures), 1, 1, 3)), -1, 1).astype(np.float32)

    changes = {}
    for smooth in (0.0, 0.8):
        rng = np.random.default_rng(0)
        out = tmp_path / f"{smooth}.mp4"
        assert clip.paint(source, out, Flickering(4), unchanged, smooth, Control(), Bar) == (6, [])
        pixels = np.stack([frame.pixels for frame in films.read_film(out).frames()])
        changes[smooth] = np.abs(np.diff(pixels[:, 24:], axis=0)).mean()  # below the square all stands still
    assert changes[0.8] < 0.5 * changes[0.0]


def test_a_film_that_is_stopped_or_fails_leaves_nothing(tmp_path):
    source, out = shoot(tmp_path / "in.mp4", moving(6), sound=None), tmp_path / "made" / "out.mp4"
    out.parent.mkdir()

    class Failing(Inverting):
        def __call__(self, pictures, advance=lambda share: None):
            if len(self.batches) == 2:
                raise Unsuited("needs more memory than there is")
            return super().__call__(pictures)

    with pytest.raises(UserError, match=r"in.mp4 of 32 x 32 pixels needs more memory"):
        clip.paint(source, out, Failing(), unchanged, 0.0, Control(), Bar)
    with pytest.raises(ZeroDivisionError):  # and not that the film cannot be read
        clip.paint(source, out, Inverting(), lambda *_: 1 / 0, 0.0, Control(), Bar)
    control = Control()

    class Stopping(Inverting):
        def __call__(self, pictures, advance=lambda share: None):
            control.stop(signal.SIGTERM)
            return super().__call__(pictures)

    assert clip.paint(source, out, Stopping(), unchanged, 0.0, control, Bar) == (2, [])
    assert list(out.parent.iterdir()) == []


def test_a_signal_ends_the_command_and_leaves_no_part_of_a_film(model, tmp_path, monkeypatch, capsys):
    source = shoot(tmp_path / "in.mp4", moving(6), sound=None)
    (tmp_path / "made").mkdir()

    def paint(self, pictures, advance=None):
        os.kill(os.getpid(), signal.SIGTERM)
        return -pictures

    monkeypatch.setattr(Painter, "__call__", paint)
    monkeypatch.setattr(Painter, "batch_size", lambda *_: 2)
    assert ganstyle("apply", model, source, "-o", tmp_path / "made" / "out.mp4") == 128 + signal.SIGTERM
    assert "stopped after 2 frames" in capsys.readouterr().err
    assert list((tmp_path / "made").iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Models and refusals


def test_a_model_that_ships_is_named_by_flag_or_first(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "SHIPPED", model.parent)
    assert ganstyle("apply", "--model", "two", photos / "one.png", "-o", tmp_path / "a.png", "--blend", 0, 1) == 0
    assert ganstyle("apply", "two", photos / "one.png", "--blend", 0, 1, "-o", tmp_path / "b.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "come with the package are two" in refusal(capsys, "--model=three", photos / "one.png")


def test_help_lists_what_the_method_has_besides(model, capsys):
    assert ganstyle("apply", model, "--help") == 0
    assert "--blend" in capsys.readouterr().out
    assert ganstyle("apply", "--help") == 0
    said = capsys.readouterr().out
    assert "--smooth" in said and "--blend" not in said


def test_a_method_may_keep_colours_itself(model, photos, tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class ApplySettings:
        preserve_colors: str = "mine"

    seen = []

    def requests_of(pictures, cfg, settings):
        seen.append(settings)
        return {"content": pictures, "style": np.eye(2, dtype=np.float32)[:1]}

    monkeypatch.setattr(fast_style, "ApplySettings", ApplySettings)
    monkeypatch.setattr(fast_style, "requests_of", requests_of)
    photo, out = photos / "one.png", tmp_path / "a.png"
    assert ganstyle("apply", model, photo, "-o", out, "--preserve-colors=so") == 0
    assert seen == [ApplySettings("so")]


def test_refusals(model, photos, tmp_path, capsys):
    photo, out = photos / "one.png", tmp_path / "out.mp4"
    (tmp_path / "film.mp4").write_text("no film")
    assert "film.mp4 cannot be read as a video" in refusal(capsys, model, tmp_path / "film.mp4", "-o", out)
    assert not out.exists()
    message = refusal(capsys, model, tmp_path / "film.mp4", photo, "-o", out)
    assert "films are painted one by one: give it alone" in message
    assert "ends in .png" in refusal(capsys, model, tmp_path / "film.mp4", "-o", tmp_path / "out.png")
    assert "there is no film" in refusal(capsys, model, tmp_path / "none.mp4", "-o", out)
    assert "--smooth is for films" in refusal(capsys, model, photo, "--smooth=0.5", "-o", tmp_path / "a.png")
    assert "--smooth must be from 0 to below 1, got 1" in refusal(capsys, model, photo, "--smooth=1")
    assert "--devices must be from 1 to the 8" in refusal(capsys, model, photo, "--devices=9")
    assert "give a run folder or a model" in refusal(capsys)
    assert "after --model" in refusal(capsys, "--model", model)
    assert "--blend must be 1 to 2 numbers" in refusal(capsys, model, photo, "--blend", 1, 2, 3)
    assert "--step is of a run folder" in refusal(capsys, model, photo, "--step=3")
    Image.new("RGB", (15, 40)).save(tmp_path / "narrow.png")
    message = refusal(capsys, model, tmp_path / "narrow.png", "-o", tmp_path / "a.png")
    assert "narrow.png of 15 x 40 pixels cannot be taken: an image must have at least 16 pixels" in message
    Image.new("RGB", (16, 16)).save(tmp_path / "one.jpg")
    assert "several inputs would become" in refusal(capsys, model, photo, tmp_path / "one.jpg", "-o", tmp_path / "both")
    assert not (tmp_path / "both").exists() and not (tmp_path / "a.png").exists()


def test_a_model_that_lacks_weights_is_of_another_version(photos, tmp_path, capsys):
    params = {name: part for name, part in weights(fast_style.network(CFG)).items() if name != "up2"}
    models.write(tmp_path / "old.safetensors", METHOD, CFG, {"params": params})
    message = refusal(capsys, tmp_path / "old.safetensors", photos / "one.png", "-o", tmp_path / "a.png")
    assert "lacks the weights 'up2', as a model of another version does" in message
