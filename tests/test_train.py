"""The loop: devices, data, resuming, signals, what a run leaves behind. Mostly on `small_wgan`, which compiles fast."""

import dataclasses
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import small_wgan

import ganstyle_jax
from ganstyle_jax import builtin
from ganstyle_jax.control import Advanced, Control, Done, Metrics, Pictures, heeding_signals
from ganstyle_jax.gan import dcgan, r3gan, stylegan2
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import runs
from ganstyle_jax.loop.checkpoints import Checkpoints, digest
from ganstyle_jax.loop.journal import drop_lines_after
from ganstyle_jax.loop.step import SMALLEST_CUT
from ganstyle_jax.loop.train import Loop, check_finite, run

pytestmark = pytest.mark.usefixtures("home", "quick_compile")

WGAN = small_wgan.Config(latent_dim=4, width=8)
DCGAN = dcgan.Config(image_size=16, width=4, latent_dim=8)
STOPPED = 128 + signal.SIGTERM


def train(run_dir, data, method=small_wgan, cfg=WGAN, callback=None, **loop):
    """A short run: 12 steps of 8 pictures on one device unless told otherwise."""
    short = {"steps": 12, "batch_size": 8, "log_every": 4, "sample_every": 12, "checkpoint_every": 4, "devices": 1}
    return run(method, cfg, str(data), Loop(run_dir=run_dir, **(short | loop)), callback)


def method_with(**functions) -> types.ModuleType:
    """`small_wgan` with some functions replaced."""
    module = types.ModuleType("method")
    vars(module).update({k: v for k, v in vars(small_wgan).items() if not k.startswith("__")} | functions)
    module.__file__ = small_wgan.__file__
    return module


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def logged(run_dir: Path) -> list[dict]:
    """The lines of the log's interval, without those of the sample grids."""
    return [line for line in lines(run_dir) if "images_per_second" in line]


def without_speed(metrics: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in metrics]


def stored(run_dir: Path, step: int) -> str:
    """Digest of a stored state, which must be the newest."""
    loaded = ganstyle_jax.load(run_dir)
    assert loaded.step == step
    return digest(loaded.state)


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def farthest(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()) for x, y in pairs)


def command(run_dir: Path, data: Path, method=small_wgan, cfg=WGAN, **loop) -> list[str]:
    """`ganstyle train small_wgan.py`, or a built-in method, with the settings of `train`."""
    short = {"steps": 12, "batch_size": 8, "log_every": 4, "sample_every": 12, "checkpoint_every": 4, "devices": 1}
    fields = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
    flags = short | {name: x for name, x in fields.items() if x != getattr(type(cfg)(), name)} | loop
    args = []
    for name, value in flags.items():
        values = [] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]
        args += [f"--{name.replace('_', '-')}", *values]
    known = method.__name__.split(".")[-1] if method.__name__ in builtin.EVERY.values() else method.__file__
    start = [sys.executable, "-m", "ganstyle_jax", "train", known]
    return [*start, f"--data={data}", f"--run-dir={run_dir}", *args]


PATIENCE = 600  # seconds to compile and more, on a machine that does much else


def wait_for(there_is: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not there_is():
        assert process.poll() is None, f"ended with {process.returncode} before its time"
        assert time.monotonic() < end, f"it has not come within {PATIENCE} s"
        time.sleep(0.02)


def checkpoint_begun(run_dir: Path, step: int) -> bool:
    """Whether a run has written a checkpoint, and is at least about to finish that of this step."""
    folder = run_dir / "checkpoints"
    return bool(Checkpoints(run_dir).steps()) and any(
        path.name.isdigit() and int(path.name) >= step for path in folder.iterdir()
    )


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory, home) -> Path:
    """A run of 12 steps."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(run_dir, pictures)
    return run_dir


# ---------------------------------------------------------------------------------------------------------------------
# A method of one's own


def test_a_method_of_ones_own_is_short():
    assert len(Path(small_wgan.__file__).read_text().splitlines()) < 80


def test_library_call_with_callback(pictures, tmp_path):
    seen = []
    state = train(tmp_path / "run", pictures, callback=lambda step, metrics: seen.append((step, metrics)))
    assert [step for step, _ in seen] == [4, 8, 12]
    assert [metrics for _, metrics in seen] == logged(tmp_path / "run")
    assert {"step", "loss/critic", "loss/gen", "images_per_second"} == set(seen[0][1])
    assert digest(state) == stored(tmp_path / "run", 12)
    clip = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(state["critic"]["params"]))
    assert clip == np.float32(WGAN.clip)  # it has trained: the clipping is at work


def test_run_folder_says_what_the_run_was(undisturbed):
    description = json.loads((undisturbed / "run.json").read_text())
    assert description["method"] == "small_wgan.py"
    assert (undisturbed / "method" / "small_wgan.py").read_bytes() == Path(small_wgan.__file__).read_bytes()
    assert description["config"]["channels"] == 3  # as found in the data
    assert description["loop"]["steps"] == 12 and description["versions"]["jax"] == jax.__version__


def test_callback_that_raises_ends_the_run_and_keeps_its_checkpoints(pictures, tmp_path):
    def callback(step, metrics):
        if step == 8:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(tmp_path / "run", pictures, callback=callback)
    assert ganstyle_jax.load(tmp_path / "run").step == 4
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ---------------------------------------------------------------------------------------------------------------------
# Devices, data, dispatches: the same numbers


@pytest.mark.slow
def test_small_wgan_is_the_same_on_any_devices(pictures, tmp_path):
    cfg = small_wgan.Config(latent_dim=4, width=8, dtype="float64")
    one = train(tmp_path / "one", pictures, cfg=cfg)
    for parallel, devices in (("jit", 8), ("pmap", 8), ("jit", 2)):
        many = train(tmp_path / f"{parallel}{devices}", pictures, cfg=cfg, parallel=parallel, devices=devices)
        assert farthest(one, many) < 1e-10, (parallel, devices)
        for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / f"{parallel}{devices}"), strict=True):
            np.testing.assert_allclose(a["loss/critic"], b["loss/critic"], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_dcgan_does_not_depend_on_where_the_data_is_and_how_steps_are_sent(pictures, tmp_path):
    arguments = {"method": dcgan, "cfg": DCGAN, "steps": 7, "log_every": 7}
    expected = digest(train(tmp_path / "run", pictures, **arguments))
    for loop in ({"steps_per_dispatch": 1}, {"data_on_device": "no", "steps_per_dispatch": 3, "workers": 3}):
        assert digest(train(tmp_path / str(loop), pictures, **arguments, **loop)) == expected, loop


def test_small_wgan_does_not_depend_on_where_the_data_is_and_how_steps_are_sent(pictures, tmp_path, undisturbed):
    expected, metrics = stored(undisturbed, 12), without_speed(logged(undisturbed))
    for loop in ({"data_on_device": "no"}, {"steps_per_dispatch": 1}, {"steps_per_dispatch": 3}):
        run_dir = tmp_path / str(loop)
        assert digest(train(run_dir, pictures, **loop)) == expected, loop
        assert without_speed(logged(run_dir)) == metrics, loop  # sums of whole windows, whatever was sent together


def test_same_seed_same_bits_other_seed_other_bits(pictures, tmp_path, undisturbed):
    assert digest(train(tmp_path / "same", pictures)) == stored(undisturbed, 12)
    other = train(tmp_path / "other", pictures, seed=1)
    one = ganstyle_jax.load(undisturbed).state
    assert all(farthest(one[name]["params"], other[name]["params"]) > 1e-3 for name in ("gen", "critic"))


def test_fewer_pictures_than_a_batch(tmp_path):
    np.savez(tmp_path / "few.npz", images=np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8))
    on_device = train(tmp_path / "a", tmp_path / "few.npz", steps=3)
    assert digest(train(tmp_path / "b", tmp_path / "few.npz", steps=3, data_on_device="no")) == digest(on_device)


# ---------------------------------------------------------------------------------------------------------------------
# What it writes, and when


def test_intervals(pictures, tmp_path):
    train(tmp_path / "run", pictures, steps=13, log_every=4, sample_every=6, checkpoint_every=5)
    assert [line["step"] for line in logged(tmp_path / "run")] == [4, 8, 12, 13]
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [f"{n:06d}.png" for n in (6, 12, 13)]
    assert Checkpoints(tmp_path / "run").steps() == [5, 10, 13]
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


def test_keeps_the_newest_and_every_so_many(pictures, tmp_path):
    train(tmp_path / "run", pictures, steps=10, checkpoint_every=1, keep_checkpoints=2, keep_every=4)
    assert Checkpoints(tmp_path / "run").steps() == [4, 8, 9, 10]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == sorted(f"{step}{end}" for step in (4, 8, 9, 10) for end in ("", ".sha256.json"))


def test_logged_metrics_are_means_since_the_last_line(pictures, tmp_path, undisturbed):
    train(tmp_path / "each", pictures, log_every=1)
    each = [line["loss/critic"] for line in logged(tmp_path / "each")]
    expected = np.mean(np.reshape(each, (3, 4)), axis=1)
    np.testing.assert_allclose([line["loss/critic"] for line in logged(undisturbed)], expected, rtol=1e-12)


def test_sample_grids_show_the_same_latents_every_time(pictures, tmp_path):
    train(tmp_path / "a", pictures, steps=4, sample_every=2)
    train(tmp_path / "b", pictures, steps=2, sample_every=2)
    two, four = (tmp_path / "a" / "samples" / f"{step:06d}.png" for step in (2, 4))
    assert two.read_bytes() == (tmp_path / "b" / "samples" / "000002.png").read_bytes() != four.read_bytes()


def test_lines_of_steps_to_be_done_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4, "a": 1}\n{"step": 4, "warning": "w"}\n{"step": 8}\n{"step": 12}\n{}\n{"st')
    drop_lines_after(path, 8)
    assert path.read_text() == '{"step": 4, "a": 1}\n{"step": 4, "warning": "w"}\n{"step": 8}\n'
    drop_lines_after(tmp_path / "none", 8)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_profile(pictures, tmp_path):
    run_dir = tmp_path / "run"
    train(run_dir, pictures, profile="2:4", steps=6)
    assert list((run_dir / "profile").rglob("*.xplane.pb"))
    # One that begins before the resumed part, and one that ends after the last step.
    train(run_dir, pictures, profile="3:8", steps=10, resume="auto")
    train(tmp_path / "late", pictures, profile="5:100", steps=6)
    assert list((tmp_path / "late" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("profile", ["x", "5", "1:2:3", "4:4", "4:2", "-1:3", "a:b"])
def test_profile_that_is_no_range(profile):
    with pytest.raises(ValueError, match="profile must be two steps such as 100:110") as caught:
        Loop(profile=profile)
    assert repr(profile) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["steps", "batch_size", "steps_per_dispatch", "log_every", "sample_every", "checkpoint_every"]
)
def test_loop_refuses_what_is_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Loop(**{name: 0})


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


# Lazy terms and adjustments of the probability fall among the steps of a test, and so does the cosines' end.
STYLEGAN2 = stylegan2.Config(
    image_size=16,
    preset="small",
    latent_dim=4,
    capacity=64,
    max_channels=4,
    r1_interval=4,
    path_interval=3,
    augment_interval=4,
    augment_speed_images=1000.0,
    augment_p=0.3,
    augment_policy="blit,color",
    mirror=True,
)
R3GAN = r3gan.Config(
    image_size=16,
    width=2,
    latent_dim=4,
    group_size=2,
    schedule_images=200,
    mirror=True,
    augment="color,cutout",
    augment_probability=(0.3, 0.7),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, cfg, devices, kills",
    [(small_wgan, WGAN, 1, 2), (small_wgan, WGAN, 8, 1), (stylegan2, STYLEGAN2, 1, 1), (r3gan, R3GAN, 1, 1)],
    ids=["wgan", "wgan-8-devices", "stylegan2", "r3gan"],
)
def test_killed_at_any_moment_a_run_ends_as_if_undisturbed(pictures, tmp_path, method, cfg, devices, kills):
    """Kills of a process and its resumption, at moments of the training and of the writing of checkpoints.

    Its steps have no end, and where the last kill has come decides how many the whole run has: so none comes too late.
    """
    rng = np.random.default_rng(devices)
    loop = {"log_every": 5, "checkpoint_every": 5, "sample_every": 1000, "devices": devices}
    run_dir = tmp_path / "killed"
    moments = []
    for attempt in range(kills):
        reached = Checkpoints(run_dir).steps()[-1:] or [0]
        endless = command(run_dir, pictures, method, cfg, resume="auto", **loop, steps=1_000_000)
        process = subprocess.Popen(endless, stderr=subprocess.DEVNULL)
        wait_for(functools.partial(checkpoint_begun, run_dir, reached[0] + 5 * (attempt + 1)), process)
        moments.append(float(rng.uniform(0, 0.3)))
        time.sleep(moments[-1])
        process.kill()
        process.wait()
    at = Checkpoints(run_dir).steps()
    end = at[-1] + 15
    expected = train(tmp_path / "expected", pictures, method, cfg, steps=end, **loop)
    state = train(run_dir, pictures, method, cfg, resume="auto", steps=end, **loop)
    assert digest(state) == digest(expected) == stored(run_dir, end), (moments, at)
    assert without_speed(logged(run_dir)) == without_speed(logged(tmp_path / "expected")), (moments, at)
    leftovers = [p.name for p in (run_dir / "checkpoints").iterdir() if not p.name.split(".")[0].isdigit()]
    assert not leftovers and len(list((run_dir / "checkpoints").iterdir())) == 6, (moments, at)


def test_resumed_run_is_the_same_bit_for_bit(pictures, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    train(run_dir, pictures, steps=4)
    train(run_dir, pictures, steps=8, resume="auto")
    state = train(run_dir, pictures, resume="required", steps_per_dispatch=3, data_on_device="no")
    assert digest(state) == stored(undisturbed, 12)
    assert without_speed(logged(run_dir)) == without_speed(logged(undisturbed))


@pytest.mark.parametrize(
    "first, then",
    [(("jit", 8), ("jit", 1)), (("jit", 1), ("jit", 8)), (("pmap", 8), ("jit", 2)), (("jit", 2), ("pmap", 8))],
)
def test_resuming_on_other_devices(pictures, tmp_path, first, then):
    cfg = small_wgan.Config(latent_dim=4, width=8, dtype="float64")
    expected = train(tmp_path / "expected", pictures, cfg=cfg)
    run_dir = tmp_path / "run"
    saved = train(run_dir, pictures, cfg=cfg, steps=8, parallel=first[0], devices=first[1])
    # A run that has nothing left to do gives back what was restored.
    restored = train(run_dir, pictures, cfg=cfg, steps=8, parallel=then[0], devices=then[1], resume="auto")
    assert digest(restored) == digest(saved)
    assert len(jax.tree.leaves(restored)[0].sharding.device_set) == then[1]
    state = train(run_dir, pictures, cfg=cfg, parallel=then[0], devices=then[1], resume="auto")
    assert farthest(state, expected) < 1e-9


def test_sharded_state_gives_the_same_and_is_restored_anywhere(pictures, tmp_path):
    cfg = small_wgan.Config(latent_dim=16, width=64, dtype="float64")
    expected = train(tmp_path / "expected", pictures, cfg=cfg)
    run_dir = tmp_path / "run"
    saved = train(run_dir, pictures, cfg=cfg, steps=8, devices=8, shard_state=True)
    parts = [x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(saved) if x.size >= SMALLEST_CUT]
    assert parts and set(parts) == {1 / 8}
    restored = train(run_dir, pictures, cfg=cfg, steps=8, devices=2, resume="auto")
    assert digest(restored) == digest(saved)
    state = train(run_dir, pictures, cfg=cfg, devices=8, shard_state=True, resume="auto")
    assert farthest(state, expected) < 1e-9


@pytest.mark.slow
def test_state_shared_within_groups_is_the_same(pictures, tmp_path):
    """Two axes: the batch over both, the state over one. Checkpoints know nothing of it."""
    cfg = small_wgan.Config(latent_dim=16, width=64, dtype="float64")
    expected = train(tmp_path / "expected", pictures, cfg=cfg)
    run_dir = tmp_path / "run"
    for shard_devices, steps in ((2, 4), (4, 8), (8, 12)):
        grouped = {"devices": 8, "shard_state": True, "shard_devices": shard_devices, "resume": "auto"}
        state = train(run_dir, pictures, cfg=cfg, steps=steps, **grouped)
        leaves = [x for x in jax.tree.leaves(state) if x.size >= SMALLEST_CUT]
        assert leaves and {x.addressable_shards[0].data.size / x.size for x in leaves} == {1 / shard_devices}
        # Neighbours have different parts, and groups the same ones.
        first = {shard.device.id: shard.index for shard in leaves[0].addressable_shards}
        assert len({str(first[i]) for i in range(shard_devices)}) == shard_devices
        assert first[0] == first[shard_devices % 8]
    assert farthest(state, expected) < 1e-9


def test_finished_run_is_left_as_it_is(pictures, tmp_path, undisturbed, capsys):
    before = snapshot(undisturbed)
    state = train(undisturbed, pictures, resume="auto")
    assert snapshot(undisturbed) == before
    assert digest(state) == stored(undisturbed, 12)
    assert "all 12 steps are done already" in capsys.readouterr().err


def test_newest_checkpoint_damaged_goes_on_from_the_one_before(pictures, tmp_path, undisturbed, caplog):
    run_dir = tmp_path / "run"
    train(run_dir, pictures, steps=8)
    largest = max((run_dir / "checkpoints" / "8").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    state = train(run_dir, pictures, resume="auto")
    assert "checkpoint 8 is damaged" in caplog.text
    assert digest(state) == stored(undisturbed, 12)
    assert without_speed(logged(run_dir)) == without_speed(logged(undisturbed))
    assert Checkpoints(run_dir).steps() == [4, 8, 12]


# ---------------------------------------------------------------------------------------------------------------------
# Signals and threads


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "training"])
def test_sigterm_saves_and_exits_with_143(pictures, tmp_path, moment):
    """At the start: as soon as the run folder is there, before the first step has been compiled."""
    run_dir = tmp_path / "run"
    loop = {"steps": 100_000, "resume": "auto", "checkpoint_every": 100_000, "sample_every": 100_000}
    process = subprocess.Popen(command(run_dir, pictures, **loop), stderr=subprocess.PIPE, text=True)
    wait_for((run_dir / {"start": "run.json", "training": "metrics.jsonl"}[moment]).exists, process)
    time.sleep(0.3)
    process.terminate()
    _, stderr = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in stderr
    steps = Checkpoints(run_dir).steps()
    assert process.returncode == STOPPED, stderr
    if moment == "start" and not steps:  # it came before the first step was under way: there was nothing to save
        assert "SIGTERM received: no step was done yet" in stderr
    else:
        assert len(steps) == 1 and f"SIGTERM received: saved step {steps[0]} in {run_dir}" in stderr
    end = sum(steps) // 4 * 4 + 8
    state = train(run_dir, pictures, steps=end, resume="auto")
    assert digest(state) == digest(train(tmp_path / "undisturbed", pictures, steps=end))
    assert [line["step"] for line in logged(run_dir)] == list(range(4, end + 1, 4))


def test_sigterm_to_a_library_call(pictures, tmp_path, undisturbed, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def callback(step, metrics):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", pictures, callback=callback)
    assert caught.value.code == STOPPED
    assert signal.getsignal(signal.SIGTERM) is before
    saved = Checkpoints(tmp_path / "run").steps()[-1]
    assert f"SIGTERM received: saved step {saved}" in capsys.readouterr().err
    assert digest(train(tmp_path / "run", pictures, resume="auto")) == stored(undisturbed, 12)


def test_a_signal_is_heeded_as_soon_as_there_is_a_run(pictures, tmp_path, monkeypatch, capsys):
    def write(*args, original=runs.write):
        original(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs, "write", write)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody has heeded it"))
    try:
        with pytest.raises(SystemExit) as caught:
            train(tmp_path / "run", pictures)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == STOPPED and (tmp_path / "run" / "run.json").exists()
    assert "SIGTERM received: no step was done yet" in capsys.readouterr().err


def test_run_on_another_thread(pictures, tmp_path, undisturbed):
    results = []
    thread = threading.Thread(target=lambda: results.append(digest(train(tmp_path / "run", pictures))))
    thread.start()
    thread.join()
    assert results == [stored(undisturbed, 12)]


# ---------------------------------------------------------------------------------------------------------------------
# Control and events


def test_events_tell_what_the_run_does_in_order(pictures, tmp_path):
    told = []
    loop = {"run_dir": tmp_path / "run", "steps": 4, "batch_size": 8, "devices": 1, "steps_per_dispatch": 2}
    loop |= {"log_every": 2, "sample_every": 4, "checkpoint_every": 2}
    run(small_wgan, WGAN, str(pictures), Loop(**loop), control=Control([told.append]))
    assert [type(event).__name__ for event in told if not isinstance(event, Advanced)] == [
        *("Metrics", "Saved", "Metrics", "Pictures", "Saved", "Done"),
    ]
    assert [event.done for event in told if isinstance(event, Advanced)][-1] == 4
    (shown,) = (event for event in told if isinstance(event, Pictures))
    assert shown.step == 4 and shown.pictures.shape == (64, 16, 16, 3) and np.abs(shown.pictures).max() <= 1
    assert told[-1] == Done(4, stopped=False)


def test_stop_from_another_thread_saves_and_returns(pictures, tmp_path, undisturbed):
    control, results = Control(), []
    control.listeners.append(lambda event: control.stop() if isinstance(event, Metrics) and event.step == 4 else None)

    def work():
        results.append(run(small_wgan, WGAN, str(pictures), Loop(**loop), control=control))

    loop = {"run_dir": tmp_path / "run", "steps": 12, "batch_size": 8, "devices": 1, "log_every": 4}
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (saved,) = Checkpoints(tmp_path / "run").steps()
    assert 4 <= saved < 12 and digest(results[0]) == stored(tmp_path / "run", saved)
    assert digest(train(tmp_path / "run", pictures, resume="auto", checkpoint_every=12)) == stored(undisturbed, 12)


def test_pause_saves_and_waits_and_goes_on(pictures, tmp_path, undisturbed):
    control, at = Control(), []

    def listen(event):
        if isinstance(event, Metrics) and event.step == 4:
            control.pause()
        if isinstance(event, Advanced):
            at.append(event.done)

    control.listeners.append(listen)
    loop = {"run_dir": tmp_path / "run", "steps": 12, "batch_size": 8, "devices": 1, "log_every": 4}
    loop |= {"steps_per_dispatch": 4, "checkpoint_every": 12}
    thread = threading.Thread(target=run, args=(small_wgan, WGAN, str(pictures), Loop(**loop), None, control))
    thread.start()
    end = time.monotonic() + PATIENCE
    while not Checkpoints(tmp_path / "run").steps():
        assert time.monotonic() < end
        time.sleep(0.05)
    (saved,) = Checkpoints(tmp_path / "run").steps()
    time.sleep(0.7)  # longer than it waits at a time
    assert thread.is_alive() and saved < 12 and max(at) == saved
    control.go_on()
    thread.join()
    assert max(at) == 12 and stored(tmp_path / "run", 12) == stored(undisturbed, 12)


def test_stop_ends_a_pause(pictures, tmp_path):
    control = Control()
    control.pause()
    threading.Timer(0.3, control.stop).start()
    loop = Loop(run_dir=tmp_path / "run", steps=12, batch_size=8, devices=1)
    run(small_wgan, WGAN, str(pictures), loop, control=control)
    assert Checkpoints(tmp_path / "run").steps() == []  # no step was done


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_signals_of_schedulers_and_terminals_save_too(pictures, tmp_path, name):
    def callback(step, metrics):
        if step == 4:
            os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", pictures, callback=callback)
    assert caught.value.code == 128 + getattr(signal, name)
    assert Checkpoints(tmp_path / "run").steps()


def test_what_ignores_a_signal_goes_on_ignoring_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        control = Control()
        with heeding_signals(control):
            os.kill(os.getpid(), signal.SIGHUP)
        assert not control.stopping
    finally:
        signal.signal(signal.SIGHUP, before)


# ---------------------------------------------------------------------------------------------------------------------
# Alarms


def test_loss_that_is_not_finite_is_named_and_never_saved(pictures, tmp_path):
    def train_step(state, batch, key, cfg, axis_name=None):
        new, metrics = small_wgan.train_step(state["wgan"], batch, key, cfg, axis_name)
        step = state["step"] + 1
        poison = jax.numpy.where(step >= 7, np.nan, 0)
        new = jax.tree.map(lambda x: x + poison.astype(x.dtype) if x.dtype == np.float32 else x, new)
        return {"wgan": new, "step": step}, metrics | {"loss/gen": metrics["loss/gen"] + poison}

    method = method_with(
        init=lambda key, cfg: {"wgan": small_wgan.init(key, cfg), "step": jax.numpy.zeros((), np.int32)},
        train_step=train_step,
        generator=lambda state, cfg: state["wgan"]["gen"]["params"],
    )
    with pytest.raises(UserError, match="loss/gen became nan is not finite at step 7") as caught:
        train(tmp_path / "run", pictures, method=method)
    assert "last good checkpoint is step 4" in str(caught.value) and "loss/gen" in str(caught.value)
    assert Checkpoints(tmp_path / "run").steps() == [4]
    assert [line["step"] for line in logged(tmp_path / "run")] == [4]


def test_state_that_is_not_finite_is_never_saved_though_the_losses_are(pictures, tmp_path):
    def train_step(state, batch, key, cfg, axis_name=None):
        new, metrics = small_wgan.train_step(state["wgan"], batch, key, cfg, axis_name)
        average = jax.numpy.where(state["step"] >= 6, np.inf, 0)  # of no consequence to the losses
        return {"wgan": new, "step": state["step"] + 1, "average": average}, metrics

    method = method_with(
        init=lambda key, cfg: {
            "wgan": small_wgan.init(key, cfg),
            "step": jax.numpy.zeros((), np.int32),
            "average": jax.numpy.zeros(()),
        },
        train_step=train_step,
        generator=lambda state, cfg: state["wgan"]["gen"]["params"],
    )
    with pytest.raises(UserError, match="the state is not finite at step 8; the last good checkpoint is step 4"):
        train(tmp_path / "run", pictures, method=method)
    assert Checkpoints(tmp_path / "run").steps() == [4]


def test_sample_that_is_not_finite_though_the_state_is(pictures, tmp_path):
    method = method_with(sample=lambda params, z, cfg: small_wgan.sample(params, z, cfg) * np.nan)
    vars(method)["train_step"] = small_wgan.train_step  # which has its own `sample`
    with pytest.raises(UserError, match="a sample is not finite at step 6; the last good checkpoint is step 4"):
        train(tmp_path / "run", pictures, method=method, sample_every=6)


def test_first_of_the_metrics_that_are_not_finite_is_named(tmp_path):
    metrics = {"a": np.array([1.0, 2.0, np.inf]), "b": np.array([1.0, np.nan, np.nan])}
    with pytest.raises(UserError, match=r"b became nan.* step 12; no checkpoint was saved before"):
        check_finite(metrics, 10, Checkpoints(tmp_path), tmp_path)
    check_finite({"a": np.ones(3)}, 10, Checkpoints(tmp_path), tmp_path)


def alike(difference: float):
    """A `sample` whose pictures differ by `difference` times uniform noise."""

    def sample(params, z, cfg):
        noise = jax.random.uniform(jax.random.key(0), (len(z), 16, 16, 3), minval=-1)
        return difference * noise + 0 * small_wgan.sample(params, z, cfg)

    return sample


def with_accuracy(accuracy: float):
    """A `train_step` that tells of a discriminator's accuracy."""

    def train_step(*args, **kwargs):
        state, metrics = small_wgan.train_step(*args, **kwargs)
        return state, metrics | {"accuracy/real": jax.numpy.full((), accuracy), "accuracy/fake": jax.numpy.ones(())}

    return train_step


@pytest.mark.parametrize(
    "difference, accuracy, alarm", [(0, 0.5, True), (1, 1, False), (0.2, 1, True), (0.2, 0.9, False)]
)
def test_alarm_where_the_generator_has_collapsed(pictures, tmp_path, capsys, difference, accuracy, alarm):
    method = method_with(sample=alike(difference), train_step=with_accuracy(accuracy), watch=dcgan.watch)
    train(tmp_path / "run", pictures, method=method, sample_every=4)
    warnings = [line for line in lines(tmp_path / "run") if "warning" in line]
    assert [line["step"] for line in warnings] == ([4, 8, 12] if alarm else [])
    assert all("the generator has collapsed" in line["warning"] for line in warnings)
    error = capsys.readouterr().err
    assert error.count("the generator has collapsed") == alarm  # said once
    assert ("warning at step 4" in error) == alarm


def test_alarm_says_what_to_try_and_diversity_what_it_means():
    real = {"real": {"image": np.array([-1.0, 1.0]).reshape(2, 1, 1, 1)}}

    def warning(diversity: float, accuracy: float) -> str | None:
        metrics = {"accuracy/real": accuracy, "accuracy/fake": 1.0}
        numbers, said = dcgan.watch(metrics, diversity * real["real"]["image"], real)
        assert abs(numbers["diversity"] - diversity) <= 5e-5  # four digits
        return said

    assert warning(1.0, 1.0) is None and warning(0.11, 0.99) is None
    assert "0.010" in str(warning(0.01, 0.5)) and "--augment" in str(warning(0.01, 0.5))
    assert "1.000" in str(warning(0.39, 1.0))
    assert dcgan.watch({}, 0 * real["real"]["image"], real)[1] is not None  # before the first line of the log
    assert dcgan.diversity(np.ones((4, 2, 2, 1))) == 0
    assert dcgan.diversity(np.array([-1.0, 1.0]).reshape(2, 1, 1, 1)) == 1


def test_alarm_of_a_batch_of_one_compares_with_the_spread_of_the_data(pictures, tmp_path):
    method = method_with(sample=alike(1.0), train_step=with_accuracy(1.0), watch=dcgan.watch)
    train(tmp_path / "run", pictures, method=method, sample_every=4, batch_size=1, steps=4)
    watched = [line for line in lines(tmp_path / "run") if "diversity" in line]
    assert len(watched) == 1 and "warning" not in watched[0] and 0.5 < watched[0]["diversity"] < 4


# ---------------------------------------------------------------------------------------------------------------------
# Beginning with another run's weights


def test_init_from_takes_the_weights_and_nothing_else(pictures, tmp_path, undisturbed):
    before = snapshot(undisturbed)
    first = train(tmp_path / "new", pictures, steps=1, init_from=undisturbed, cfg=WGAN_AT_REST)
    old = ganstyle_jax.load(undisturbed).state
    fresh = small_wgan.init(jax.random.key(0), small_wgan.Config(channels=3, latent_dim=4, width=8))
    assert digest(first["gen"]["params"]) == digest(old["gen"]["params"])  # learning rate 0: as they were at step 0
    assert farthest(first["critic"]["params"], old["critic"]["params"]) == 0
    # RMSprop's mean of squares after one step is a tenth of its square; had the old one gone on, it could not have
    # fallen below nine tenths.
    means = (jax.tree.leaves(state["gen"]["opt_state"]) for state in (first, old))
    assert all((np.asarray(a) < 0.9 * np.asarray(b)).mean() > 0.5 for a, b in zip(*means, strict=True))
    assert jax.tree.structure(first) == jax.tree.structure(fresh)
    assert [line["step"] for line in logged(tmp_path / "new")] == [1]
    assert snapshot(undisturbed) == before


WGAN_AT_REST = small_wgan.Config(latent_dim=4, width=8, learning_rate=0.0)


def test_init_from_another_network(pictures, tmp_path, undisturbed):
    with pytest.raises(UserError, match="are those of another network than"):
        train(tmp_path / "run", pictures, cfg=small_wgan.Config(latent_dim=4, width=9), init_from=undisturbed)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Refusals, which leave everything as it was


REFUSALS = {
    "holds a run": ({}, "already holds a run: choose another --run-dir, or --resume auto"),
    "other settings": ({"resume": "auto", "batch_size": 16}, "holds another run: batch_size was 8 and is 16"),
    "other seed": ({"resume": "auto", "seed": 5}, "holds another run: seed was 0 and is 5"),
    "other config": ({"resume": "auto", "cfg": small_wgan.Config(width=9)}, "width was 8 and is 9"),
    "other method": ({"resume": "auto", "method": dcgan, "cfg": DCGAN}, "method was 'small_wgan.py' and is 'dcgan'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_to_mix_runs(name, pictures, undisturbed):
    arguments, message = REFUSALS[name]
    before = snapshot(undisturbed)
    with pytest.raises(UserError) as caught:
        train(undisturbed, pictures, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert snapshot(undisturbed) == before


@pytest.mark.parametrize(
    "loop, message",
    [
        ({"resume": "required"}, "holds no run to resume"),
        ({"batch_size": 12, "devices": 8}, "--batch-size 12 cannot be divided among 8 devices"),
        ({"devices": 9}, "--devices must be from 1 to the 8 that are here, got 9"),
        ({"devices": 0}, "--devices must be from 1 to the 8 that are here, got 0"),
        ({"shard_devices": 2}, "shard_devices belongs to shard_state, got 2 without it"),
        (
            {"shard_state": True, "shard_devices": 3, "devices": 8},
            "--shard-devices 3 must divide the number of devices, 8",
        ),
        ({"init_from": Path("nowhere")}, "nowhere is not a run folder"),
        ({"workers": 0}, "workers must be a number of threads from 1 up, got 0"),
        ({"seed": 2**70}, "seed"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refusals_leave_no_run_folder(pictures, tmp_path, loop, message):
    with pytest.raises((UserError, ValueError)) as caught:
        train(tmp_path / "run", pictures, **loop)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_unlimited_set_cannot_live_on_the_device(tmp_path):
    with pytest.raises(UserError, match="is unlimited and cannot live on the device"):
        train(tmp_path / "run", "glyphs", data_on_device="yes")
    assert not (tmp_path / "run").exists()


def test_method_without_a_function(pictures, tmp_path):
    method = method_with()
    del method.requests, method.sample
    with pytest.raises(UserError, match="lacks requests, sample"):
        train(tmp_path / "run", pictures, method=method)


def test_out_of_memory_is_one_sentence(pictures, tmp_path, monkeypatch):
    def advance(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")

    advance.lower = advance
    monkeypatch.setattr("ganstyle_jax.loop.train.make_advance", functools.partial(lambda *_: advance))
    with pytest.raises(UserError, match="out of memory: lower --batch-size"):
        train(tmp_path / "run", pictures)
