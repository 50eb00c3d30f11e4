"""`ganstyle stylize` of films: frames and sound in and out, frame after frame, and going on after any end."""

import dataclasses
import os
import re
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax import cli
from ganstyle_jax.control import Advanced, Control, Pictures
from ganstyle_jax.data.fitting import to_float
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import films, images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import flow, gatys
from ganstyle_jax.stylize import Settings, clip, frames

TINY = vgg.VGG(((4, 4), (6,), (8,)), padding="reflect")
LAYERS = {"content_layers": ("relu3_1",), "style_layers": ("relu1_1", "relu2_1")}
CONFIG = gatys.Config(size=32, smallest=16, factor=2, steps=3, taper=0.0, optimizer="adam", **LAYERS)
FLAGS = ["--size=32", "--smallest=16", "--factor=2", "--steps=3", "--taper=0", "--optimizer=adam", "--frame-steps=2",
         "--content-layers=relu3_1", "--style-layers", "relu1_1", "relu2_1"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("home", "quick_compile")


def tone(seconds: float, rate: int) -> np.ndarray:
    """(2, n) float32: 440 and 550 Hz."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * np.array([[440], [550]]) * t)).astype(np.float32)


def shoot(path, shots, starts=None, sound="aac", rate=48000, kind=None, delay=0, **codec):
    """Writes a film of pictures (h, w, 3) at those milliseconds, by default at 25 a second, with a tone beside it."""
    starts = [40 * i for i in range(len(shots))] if starts is None else starts
    with av.open(str(path), "w", format=kind) as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "10"})
        video.height, video.width, video.pix_fmt = *shots[0].shape[:2], "yuv420p"
        for name, value in (codec | {"time_base": Fraction(1, 1000)}).items():
            setattr(video.codec_context, name, value)
        track = None if sound is None else container.add_stream(sound, rate=rate, layout="stereo")
        for shot, start in zip(shots, starts, strict=True):
            frame = av.VideoFrame.from_ndarray(images.to_uint8(shot), format="rgb24")
            frame.pts, frame.time_base, frame.duration = start + delay, Fraction(1, 1000), 40
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if track is not None:
            wave, place = tone((starts[-1] + 40) / 1000, rate), delay * rate // 1000
            made = av.AudioResampler(
                track.codec_context.format, "stereo", rate, frame_size=track.codec_context.frame_size or 1024
            )
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
            for part in (*made.resample(frame), *made.resample(None)):
                container.mux(track.encode(part))
            container.mux(track.encode())
    return path


def heard(path) -> tuple[str, np.ndarray]:
    """The codec of a film's sound, and its samples (2, n)."""
    with av.open(str(path)) as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
        name = container.streams.audio[0].codec_context.name
    parts = [part if len(part) == 2 else part.reshape(-1, 2).T for part in parts]
    samples = np.concatenate(parts, axis=1)
    return name, samples / 32768 if samples.dtype == np.int16 else samples


def moving(count=6, h=24, w=32, seed=0) -> list[np.ndarray]:
    return load_script("video_flicker").drawn(count, h, w, seed=seed).frames


def copied(path, of) -> list[str]:
    """A film written again as it is; what is wrong with it."""
    film, damage = films.read_film(of), []
    films.write_film(path, film, ((frame.pixels, frame.span) for frame in film.frames(damage)))
    return damage


def times(path) -> list[float]:
    film = films.read_film(path)
    return [round(float(frame.span[0] * film.tick), 6) for frame in film.frames()]


# ---------------------------------------------------------------------------------------------------------------------
# Streams


UNEVEN = [0, 40, 80, 140, 180, 260, 300, 333]


@pytest.mark.parametrize("suffix", films.WRITTEN)
def test_pictures_times_and_sound_come_out_as_they_went_in(tmp_path, suffix):
    shots = moving(len(UNEVEN), 23, 31)
    shots = [np.pad(shot, ((0, 1), (0, 1), (0, 0)), mode="edge") for shot in shots]
    source, out = shoot(tmp_path / "a.mkv", shots, UNEVEN, "libopus"), tmp_path / f"out{suffix}"
    film = films.read_film(source)
    assert film.shape == (24, 32) and film.sounds == 1
    assert copied(out, source) == []
    assert times(out) == [start / 1000 for start in UNEVEN] == times(source)
    got = [frame.pixels for frame in films.read_film(out).frames()]
    assert max(np.abs(one - shot).mean() for one, shot in zip(got, shots, strict=True)) < 0.06  # colour is halved
    again = tmp_path / f"again{suffix}"
    copied(again, source)
    assert abs(again.stat().st_size - out.stat().st_size) < 64  # x264 is not always the same to the bit


@pytest.mark.parametrize(
    "name, sound, out, kept",
    [
        ("a.mp4", "aac", "out.mp4", True),
        ("a.mov", "pcm_s16le", "out.mov", True),
        ("a.mov", "pcm_s16le", "out.mp4", False),  # which players do not look for there
        ("a.mkv", "libopus", "out.mov", False),
        ("a.mkv", "flac", "out.mkv", True),
        ("a.ts", "aac", "out.mp4", True),
    ],
)
def test_sound_is_kept_or_becomes_aac(tmp_path, name, sound, out, kept):
    source = shoot(tmp_path / name, moving(6), sound=sound, kind="mpegts" if name.endswith(".ts") else None, delay=400)
    assert copied(tmp_path / out, source) == []
    (before, wave), (after, got) = heard(source), heard(tmp_path / out)
    assert after == (before if kept else "aac")
    if kept:
        np.testing.assert_array_equal(got, wave)
    else:  # the same tone, at the same time within what a codec puts before it
        n = 4096
        spectrum = np.abs(np.fft.rfft(got[:, 2048 : 2048 + n] * np.hanning(n)))
        np.testing.assert_allclose(spectrum.argmax(-1) * 48000 / n, [440, 550], atol=48000 / n)
        assert abs(got.shape[1] - wave.shape[1]) < 2048
    with av.open(str(tmp_path / out)) as container:
        starts = [float(stream.start_time * stream.time_base) for stream in container.streams]
    assert abs(starts[0] - starts[1]) < 0.05


def test_several_tracks_of_sound_and_none(tmp_path):
    one = shoot(tmp_path / "one.mp4", moving(4))
    with av.open(str(one)) as source, av.open(str(tmp_path / "two.mkv"), "w") as out:
        tracks = [source.streams.video[0], source.streams.audio[0], source.streams.audio[0]]
        mine = [out.add_stream_from_template(track) for track in tracks]
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = mine[packet.stream.index]
                out.mux(packet)
    assert films.read_film(tmp_path / "two.mkv").sounds == 2
    copied(tmp_path / "out.mkv", tmp_path / "two.mkv")
    assert films.read_film(tmp_path / "out.mkv").sounds == 2
    silent = shoot(tmp_path / "silent.mp4", moving(4), sound=None)
    copied(tmp_path / "out.mp4", silent)
    assert films.read_film(tmp_path / "out.mp4").sounds == 0


def test_a_telephone_held_upright(tmp_path):
    path = shoot(tmp_path / "a.mp4", moving(3), sound=None)
    content = path.read_bytes()
    at = content.index(b"tkhd") + 44  # the matrix of the track, here a quarter turn clockwise
    turn = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 24 << 16, 0, 1 << 30)
    path.write_bytes(content[:at] + turn + content[at + 36 :])
    assert films.read_film(path).shape == (32, 24)
    copied(tmp_path / "out.mp4", path)
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.height, frame.width, frame.rotation) == (32, 24, 0)
    shown = [next(films.read_film(file).frames()).pixels for file in (path, tmp_path / "out.mp4")]
    assert np.abs(shown[0] - shown[1]).mean() < 0.05


def test_pixels_that_are_not_square_stay_so(tmp_path):
    wide = shoot(tmp_path / "a.mp4", moving(2), sound=None, sample_aspect_ratio=Fraction(4, 3))
    copied(tmp_path / "out.mp4", wide)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mjpeg"])
def test_avi_has_no_times_of_its_own(tmp_path, codec):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i, shot in enumerate(moving(8)):
            frame = av.VideoFrame.from_ndarray(images.to_uint8(shot), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    copied(tmp_path / "out.mp4", tmp_path / "a.avi")
    steps = np.diff(times(tmp_path / "out.mp4"))
    assert len(steps) == 7 and (steps > 0).all() and np.median(steps) == pytest.approx(0.04)


def test_damage_in_the_middle_costs_only_what_it_hit(tmp_path):
    """As players have it; and it is said."""
    whole = shoot(tmp_path / "a.ts", moving(40), sound=None, kind="mpegts", gop_size=5)
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2 // 188 * 188
    for i in range(middle, middle + 20 * 188, 188):
        content[i + 8 : i + 188] = bytes(180)
    whole.write_bytes(content)
    damage: list[str] = []
    got = list(films.read_film(whole).frames(damage))
    assert 20 <= len(got) <= 40 and np.diff([frame.span[0] for frame in got]).min() > 0
    cut = shoot(tmp_path / "b.mp4", moving(40), sound=None, gop_size=5)
    copied(tmp_path / "front.mp4", cut)  # whose index comes first
    content = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "front.mp4").write_bytes(content[: len(content) * 6 // 10])
    damage = copied(tmp_path / "out.mp4", tmp_path / "front.mp4")
    assert any(
        re.search(r"ends after \d\.\d\d of 1\.60 s|cannot be read further|could not be decoded", x) for x in damage
    )
    assert 4 < len(times(tmp_path / "out.mp4")) < 40


# ---------------------------------------------------------------------------------------------------------------------
# Frame after frame


@dataclasses.dataclass
class Stub:
    """Paints nothing, and notes what it is given to begin with. Stops instead of painting frame number `stops`."""

    control: Control
    stops: int = 0
    started: list = dataclasses.field(default_factory=list)

    def __call__(self, content, start):
        if len(self.started) + 1 == self.stops:
            self.control.stop()
            return None
        self.started.append(start)
        return np.clip(content + 0.1, -1, 1) if start is None else np.clip(start.previous + 1 / 127.5, -1, 1)


def painted(film, folder, stub, resume=False, shape=(24, 32)):
    """`clip.paint_all` into a folder; the times and the pictures that are there now."""
    with frames.opened(folder, {"config": 1}, resume, stub.control.stop) as kept:
        spans = clip.paint_all(film, shape, stub, kept, stub.control, [])
        return spans, [kept.read(number) for number in range(1, kept.painted + 1)]


@pytest.fixture(scope="module")
def two_scenes(tmp_path_factory):
    """A film of four frames and, after a cut, three more."""
    path = tmp_path_factory.mktemp("films") / "scenes.mp4"
    return films.read_film(shoot(path, moving(4) + moving(3, seed=1), sound=None))


def test_a_new_scene_begins_anew_and_the_rest_with_the_frame_before(two_scenes, tmp_path):
    told = []
    stub = Stub(Control([told.append]))
    spans, made = painted(two_scenes, tmp_path / "frames", stub)
    assert [start is None for start in stub.started] == [True, False, False, False, True, False, False]
    assert len(spans) == len(made) == 7 and made[0].dtype == np.uint8
    shots = [np.clip(images.resize(frame.pixels, (24, 32)), -1, 1) for frame in two_scenes.frames()]
    for i in (1, 5):  # the result before, moved along the flow, where it is trusted
        back, forth = flow.flow(shots[i], shots[i - 1]), flow.flow(shots[i - 1], shots[i])
        np.testing.assert_array_equal(stub.started[i].previous, flow.warp(made[i - 1] / np.float32(127.5) - 1, back))
        np.testing.assert_array_equal(stub.started[i].trusted, flow.trusted(back, forth))
    assert [event.done for event in told if isinstance(event, Advanced)] == [1, 2, 3, 4, 5, 6, 7]
    assert all(event.total == 7 for event in told if isinstance(event, Advanced))
    assert [event.pictures.shape for event in told if isinstance(event, Pictures)] == [(1, 24, 32, 3)] * 7


@pytest.mark.parametrize("stops", [1, 2, 5, 7])
def test_stopped_anywhere_it_goes_on_the_same(two_scenes, tmp_path, stops):
    _, whole = painted(two_scenes, tmp_path / "whole", Stub(Control()))
    spans, before = painted(two_scenes, tmp_path / "frames", Stub(Control(), stops))
    assert spans is None and len(before) == stops - 1
    assert (tmp_path / "frames").exists() == (stops > 1)  # nothing is left of nothing
    rest = Stub(Control())
    spans, made = painted(two_scenes, tmp_path / "frames", rest, resume=True)
    assert len(spans) == 7 and len(rest.started) == 7 - len(before)
    np.testing.assert_array_equal(made, whole)


def test_a_folder_of_frames_is_only_for_its_own_film(two_scenes, tmp_path):
    folder = tmp_path / "frames"
    painted(two_scenes, folder, Stub(Control(), 4))
    before = sorted(folder.iterdir())

    def entered(description, resume=True):
        with frames.opened(folder, description, resume, None) as kept:
            return kept.painted

    assert entered({"config": 1}) == 3
    for description, resume, words in (
        ({"config": 1}, False, r"holds 3 frames of an earlier try: --resume goes on with them"),
        ({"config": 2}, True, r"something else \(config was 1 and is 2\)"),
        ({"config": 1, "film": "0" * 64}, True, r"film was None and is 0000"),
    ):
        with pytest.raises(UserError, match=words):
            entered(description, resume)
    assert sorted(folder.iterdir()) == before
    (folder / "film.json").write_text("[1]")
    with pytest.raises(UserError, match="does not describe a film"):
        entered({"config": 1})
    (folder / "film.json").unlink()
    with pytest.raises(UserError, match=r"holds 000001.png, 000002.png, 000003.png, but no film.json"):
        entered({"config": 1})


def test_a_damaged_frame_is_told_and_a_gap_is_painted_again(two_scenes, tmp_path):
    folder = tmp_path / "frames"
    _, whole = painted(two_scenes, folder, Stub(Control()))
    (folder / "000003.png").unlink()
    rest = Stub(Control())
    _, made = painted(two_scenes, folder, rest, resume=True)
    np.testing.assert_array_equal(made, whole)
    (folder / "000007.png").write_bytes(b"half")
    with pytest.raises(UserError, match=r"000007\.png cannot be read: remove it, and --resume paints it"):
        painted(two_scenes, folder, Stub(Control()), resume=True)


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network, a film with sound, a painting, and files that are no films."""
    folder = tmp_path_factory.mktemp("place")
    weights.write(folder / "tiny.safetensors", TINY, TINY.init(jax.random.key(0)))
    noise = np.random.default_rng(0).uniform(-1, 1, (5, 5, 3))
    pictures.write_picture(folder / "style.png", np.clip(images.resize(noise, (40, 40)), -1, 1))
    pictures.write_picture(folder / "mask.png", np.ones((40, 40, 3)))
    shoot(folder / "film.mp4", moving(5, 36, 48))
    (folder / "text.mp4").write_text("hello")
    (folder / "styles").mkdir()
    whole = (folder / "film.mp4").read_bytes()
    (folder / "index.mp4").write_bytes(whole[:40])
    return folder


def ganstyle(place, *args: object) -> int:
    """Runs the command in this process; its exit status."""
    try:
        cli.main(["stylize", *map(str, args), *FLAGS, f"--features={place / 'tiny.safetensors'}"])
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def settings_of(place, out, **more):
    return Settings(features=str(place / "tiny.safetensors"), out=out, frame_steps=2, **more)


@pytest.mark.slow
def test_a_film_is_painted_with_its_sound(place, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert ganstyle(place, place / "film.mp4", place / "style.png", "-o", out, "--keep-frames") == 0
    film, source = films.read_film(out), films.read_film(place / "film.mp4")
    assert film.shape == (24, 32) and len(times(out)) == 5 and times(out) == times(place / "film.mp4")
    np.testing.assert_array_equal(heard(out)[1], heard(place / "film.mp4")[1])
    assert sorted(path.name for path in (tmp_path / "out.frames").iterdir()) == [
        *(f"{number:06d}.png" for number in range(1, 6)),
        "film.json",
    ]
    made = frames.Frames(tmp_path / "out.frames", 5)
    painted_frames = np.stack([to_float(made.read(number)) for number in range(1, 6)])
    for number, picture in enumerate((frame.pixels for frame in film.frames()), start=1):
        assert np.abs(picture - to_float(made.read(number))).mean() < 0.08
        shot = np.clip(images.resize(list(source.frames())[number - 1].pixels, (24, 32)), -1, 1)
        assert np.abs(picture - shot).mean() > 0.05
    said = capsys.readouterr().err
    assert f"{out}: 5 frames, 5 of them painted now, 1 of these from the beginning" in said
    assert "5/5" in said and "frame" in said

    # what was killed while it wrote the film paints nothing again, and writes it of the same frames
    assert ganstyle(place, place / "film.mp4", place / "style.png", "-o", out, "--resume") == 0
    assert times(out) == times(place / "film.mp4") and not (tmp_path / "out.frames").exists()
    again = [frame.pixels for frame in films.read_film(out).frames()]
    assert np.abs(np.stack(again) - painted_frames).mean() < 0.08  # x264 is not always the same to the bit
    assert "0 of them painted now" in (said := capsys.readouterr().err) and "the old file is replaced" in said


def kept_bytes(folder) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


def test_a_stopped_film_goes_on_bit_for_bit(place, tmp_path, capsys):
    files = place / "film.mp4", place / "style.png"
    assert ganstyle(place, *files, "-o", tmp_path / "whole.mp4", "--keep-frames") == 0

    def hear(event):
        if isinstance(event, Pictures) and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "out.mp4"
    with pytest.raises(SystemExit) as ended:
        clip.run(*files, CONFIG, settings_of(place, out), Control([hear]))
    assert ended.value.code == 128 + signal.SIGTERM and not out.exists()
    assert "stopped after 2 frames" in capsys.readouterr().err
    assert ganstyle(place, *files, "-o", out) == 1
    assert "--resume goes on" in capsys.readouterr().err
    assert ganstyle(place, *files, "-o", out, "--resume", "--content-weight=0.5") == 1
    assert "content_weight was 0.05 and is 0.5" in capsys.readouterr().err
    assert ganstyle(place, *files, "-o", out, "--resume", "--keep-frames") == 0
    assert "3 of them painted now" in capsys.readouterr().err
    assert kept_bytes(tmp_path / "out.frames") == kept_bytes(tmp_path / "whole.frames")
    assert ganstyle(place, *files, "-o", out, "--resume") == 0  # the folder goes when it is not to be kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "whole.frames", "whole.mp4"]


@pytest.mark.slow
def test_killed_in_mid_work_a_film_is_as_if_undisturbed(place, tmp_path):
    files = place / "film.mp4", place / "style.png"
    command = [sys.executable, "-m", "ganstyle_jax", "stylize", *map(str, files), *FLAGS, "--keep-frames"]
    command += [f"--features={place / 'tiny.safetensors'}"]
    subprocess.run([*command, "-o", str(tmp_path / "whole.mp4")], check=True, stderr=subprocess.DEVNULL)
    for number in (1, 3):
        process = subprocess.Popen([*command, "-o", str(tmp_path / "out.mp4"), "--resume"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not (tmp_path / "out.frames" / f"{number:06d}.png").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait()
    subprocess.run([*command, "-o", str(tmp_path / "out.mp4"), "--resume"], check=True, stderr=subprocess.DEVNULL)
    assert kept_bytes(tmp_path / "out.frames") == kept_bytes(tmp_path / "whole.frames")
    assert times(tmp_path / "out.mp4") == times(tmp_path / "whole.mp4")


def test_luma_keeps_the_colours_of_every_frame(place, tmp_path):
    out = tmp_path / "out.mp4"
    assert (
        ganstyle(place, place / "film.mp4", place / "style.png", "-o", out, "--preserve-colors=luma", "--keep-frames")
        == 0
    )
    made = frames.Frames(tmp_path / "out.frames", 5)
    for number, frame in enumerate(films.read_film(place / "film.mp4").frames(), start=1):
        shot, picture = np.clip(images.resize(frame.pixels, (24, 32)), -1, 1), to_float(made.read(number))
        inside = (np.abs(picture) < 0.99).all(-1)  # elsewhere it was clipped
        chroma = (picture - picture @ images.LUMA[:, None]) - (shot - shot @ images.LUMA[:, None])
        assert inside.mean() > 0.3 and np.abs(chroma[inside]).max() < 2 / 127.5


@pytest.mark.parametrize(
    "files, more, words",
    [
        (["text.mp4", "style.png"], [], "cannot be read as a video"),
        (["index.mp4", "style.png"], [], "no frames|cannot be read as a video"),
        (["none.mp4", "style.png"], [], "there is no file .*none.mp4"),
        (["film.mp4"], [], "no style is given|required"),
        (["film.mp4", "film.mp4"], [], "is a film: films are painted one by one"),
        (["film.mp4", "styles"], [], "is a folder: name pictures"),
        (["film.mp4", "style.png"], ["-o", "OUT/out.png"], r"ends in \.png.*use \.mp4, \.m4v, \.mov or \.mkv"),
        (["film.mp4", "style.png"], ["-o", "OUT/no/out.mp4"], "no folder"),
        (["film.mp4", "style.png"], ["--animation", "OUT/a.gif"], "--animation is for a picture, and .* is a film"),
        (["film.mp4", "style.png"], ["--trace"], "--trace is for a picture"),
        (["film.mp4", "style.png"], ["--run-dir", "OUT/run"], "--run-dir is for a picture"),
        (["film.mp4", "style.png"], ["--content-mask", "mask.png"], "--content-mask is for a picture"),
        (["film.mp4", "style.png"], ["--parallel", "rows"], "frames are made one after the other"),
        (["film.mp4", "style.png"], ["--frame-steps", "0"], "--frame-steps must be at least 1, got 0"),
        (["film.mp4", "style.png"], ["--style-weights", "1", "2"], "--style-weights must be given once for each style"),
        (["film.mp4", "style.png"], ["-o", "film.mp4"], "would be written over one of the given files"),
        (["film.mp4", "style.png"], ["--size=2"], "too small"),
    ],
)
def test_what_cannot_be_is_one_sentence(place, tmp_path, capsys, monkeypatch, files, more, words):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    more = [text.replace("OUT", str(tmp_path)) for text in more]
    more = [*(["-o", tmp_path / "out.mp4"] if "-o" not in more else []), *more]
    flags = [flag for flag in FLAGS if not any(str(one).startswith(flag.split("=")[0]) for one in more)]
    monkeypatch.setattr(sys.modules[__name__], "FLAGS", flags)
    assert ganstyle(place, *files, *more) != 0
    said = capsys.readouterr().err
    assert re.search(words, said) and "Traceback" not in said
    assert not list(tmp_path.iterdir()) and sorted(place.iterdir()) == before


def test_without_opencv_a_film_is_refused_in_a_sentence(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert ganstyle(place, place / "film.mp4", place / "style.png", "-o", tmp_path / "out.mp4") == 1
    assert "pip install opencv-python-headless" in capsys.readouterr().err


def test_a_gif_is_a_picture_unless_a_film_is_to_be_made():
    assert not clip.is_film(Path("a.gif"), Path("out.png")) and clip.is_film(Path("a.gif"), Path("out.mp4"))
    assert not clip.is_film(Path("a.jpg"), Path("out.mp4")) and clip.is_film(Path("A.MOV"), Path("out.png"))
