"""Work on a picture that was ended, by a signal or by kill -9, and is gone on with: the same bytes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ganstyle_jax import stylize
from ganstyle_jax.control import Advanced, Control
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.io import images, pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.style import gatys
from ganstyle_jax.stylize import resume

CFG = gatys.Config(
    size=24,
    smallest=16,
    steps=40,
    taper=0.0,
    factor=2**0.5,
    content_layers=("relu2_1",),
    style_layers=("relu1_1", "relu2_1"),
    optimizer="adam",
)

pytestmark = pytest.mark.usefixtures("home", "quick_compile")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    for name, shape in {
        "content.png": (18, 24),
        "style.png": (24, 24),
        "many/a.png": (18, 24),
        "many/b.png": (24, 20),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pictures.write_picture(folder / name, np.clip(images.resize(rng.uniform(-1, 1, (5, 5, 3)), shape), -1, 1))
    network = vgg.VGG(((4,), (6,)), padding="reflect")
    weights.write(folder / "tiny.safetensors", network, jax.device_get(network.init(jax.random.key(0))))
    return folder


def make(place, out, cfg=CFG, control=None, content="content.png", style="style.png", **settings):
    asked = stylize.Settings(out=out, features=str(place / "tiny.safetensors"), resume=True, **settings)
    return stylize.run(place / content, place / style, cfg, asked, control)


def stopping(after: float) -> Control:
    """Stops the work as soon as so much of it is done."""

    def hear(event):
        if isinstance(event, Advanced) and event.done >= after * event.total:
            control.stop()

    control = Control([hear])
    return control


@pytest.fixture(scope="module")
def whole(place) -> bytes:
    make(place, place / "whole.png", trace=True)
    assert not resume.path_of(stylize.orders.Order(place, (), place / "whole.png")).exists()
    return (place / "whole.png").read_bytes()


@pytest.fixture
def begun(place, whole, tmp_path) -> Path:
    """The name of a picture that was stopped, whose state is left."""
    out = tmp_path / "out.png"
    assert make(place, out, control=stopping(0.1), save_every=8, trace=True) == [tmp_path / "out.stopped.png"]
    assert (tmp_path / "out.state.safetensors").exists() and not out.exists()
    return out


def test_stopped_and_gone_on_with_it_is_the_same(place, whole, begun, capsys):
    assert make(place, begun, control=stopping(0.6), save_every=8, trace=True) == [begun.with_name("out.stopped.png")]
    assert make(place, begun, save_every=8, trace=True) == [begun]
    assert begun.read_bytes() == whole
    assert not begun.with_name("out.state.safetensors").exists()
    told, expected = (stylize_trace(out) for out in (begun, place / "whole.png"))
    assert told == expected  # of all evaluations, also those before
    assert "after 80 evaluations" in capsys.readouterr().err


def stylize_trace(out: Path) -> list[tuple[int, float]]:
    return [(step["evaluations"], step["loss"]) for step in json.loads(out.with_suffix(".json").read_text())["steps"]]


def test_the_state_of_other_work_is_refused(place, begun):
    changes = {
        "another content picture": {"content": "style.png"},
        "other style pictures": {"style": "content.png"},
        "another seed": {"seed": 1},
        "content_weight 0.05 instead of 0.5": {"cfg": dataclasses.replace(CFG, content_weight=0.5)},
        "size 24 instead of 25, .*": {"cfg": dataclasses.replace(CFG, size=25), "allow_changes": True},
        "averaging 0.0 instead of 0.5": {"cfg": dataclasses.replace(CFG, averaging=0.5), "allow_changes": True},
    }
    for message, changed in changes.items():
        message = f"out.state.safetensors was left by other work, with {message.split(',')[0]}"
        with pytest.raises(UserError, match=message):
            make(place, begun, **changed)
    kept = begun.with_name("out.state.safetensors")
    arrays, metadata = load_file(kept), safe_open(kept, "numpy").metadata()
    save_file(arrays | {"at.x": arrays["at.x"][:3]}, wrong := begun.with_name("wrong"), metadata)
    for spoilt in (kept.read_bytes()[:500], b"", b"{}", wrong.read_bytes()):
        kept.write_bytes(spoilt)
        with pytest.raises(UserError, match=r"is no state that can be gone on from .*: remove it to begin anew"):
            make(place, begun)
    kept.unlink()


def test_other_weights_where_they_are_allowed(place, whole, begun):
    other = dataclasses.replace(CFG, content_weight=5.0, steps=50)
    assert make(place, begun, other, allow_changes=True) == [begun]
    assert begun.read_bytes() != whole


def test_of_a_folder_what_is_done_is_not_made_again(place, tmp_path, capsys):
    out = tmp_path / "out"
    made = make(place, out, control=stopping(0.6), content="many", save_every=8)
    assert [path.name for path in made] == ["a.png", "b.stopped.png"]
    assert sorted(path.name for path in out.glob("*.safetensors")) == ["a.state.safetensors", "b.state.safetensors"]
    before = (out / "a.png").stat().st_mtime_ns
    assert [path.name for path in make(place, out, content="many", save_every=8)] == ["a.png", "b.png"]
    assert (out / "a.png").stat().st_mtime_ns == before and "a.png: was done before" in capsys.readouterr().err
    assert not list(out.glob("*.safetensors"))


def test_what_does_not_go_with_it(place, tmp_path):
    for settings, message in (
        ({"run_dir": tmp_path / "run"}, "--resume cannot go on with --run-dir"),
        ({"animation": tmp_path / "a.gif"}, "--resume cannot go on with --animation"),
    ):
        with pytest.raises(UserError, match=message):
            make(place, tmp_path / "out.png", **settings)
    asked = stylize.Settings(out=tmp_path / "out.png", allow_changes=True)
    with pytest.raises(UserError, match="--allow-changes belongs to --resume"):
        stylize.run(place / "content.png", place / "style.png", CFG, asked)


@pytest.mark.slow
def test_killed_in_the_middle_and_gone_on_with_it_is_the_same(place, home, tmp_path):
    """kill -9, in a process of its own, where nothing can be tidied up."""
    cfg = dataclasses.replace(CFG, steps=500, optimizer="lbfgs")
    out, alone = tmp_path / "out.png", tmp_path / "alone.png"
    script = f"""
import sys
import time
from ganstyle_jax.commands import flags
from ganstyle_jax import stylize
from ganstyle_jax.control import Advanced, Control
from ganstyle_jax.stylize import resume
flags.use_cache()
resume.EVERY = 0.0
from ganstyle_jax.style import gatys
cfg = gatys.{cfg!r}
settings = stylize.Settings(out=sys.argv[1], features={str(place / "tiny.safetensors")!r}, resume=True)
left = int(sys.argv[2])


def hear(event):  # who is to be killed must not be done before: it goes so far, and there waits for it
    global left
    left -= isinstance(event, Advanced)
    while left < 0:
        time.sleep(1)


stylize.run({str(place / "content.png")!r}, {str(place / "style.png")!r}, cfg, settings, Control([hear]))
"""
    command = [sys.executable, "-c", script]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, str(alone), str(10**6)], check=True, env=environment, capture_output=True)
    kept = out.with_name("out.state.safetensors")
    for _ in range(2):
        before, until = kept.stat().st_mtime_ns if kept.exists() else 0, time.monotonic() + 600
        child = subprocess.Popen([*command, str(out), "6"], env=environment, stderr=subprocess.DEVNULL)
        while child.poll() is None and (not kept.exists() or kept.stat().st_mtime_ns == before):
            assert time.monotonic() < until
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not out.exists()
    subprocess.run([*command, str(out), str(10**6)], check=True, env=environment, capture_output=True)
    assert out.read_bytes() == alone.read_bytes()
