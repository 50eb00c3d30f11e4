"""The command `ganstyle` as people meet it: what it writes, what it prints, and how it refuses.

Most tests call `cli.main` in this process, which is what the installed command does; a few start a new one.
"""

import dataclasses
import errno
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import small_prior
import small_translator
import small_wgan
from PIL import Image

import ganstyle_jax
from ganstyle_jax import builtin, cli, contract
from ganstyle_jax.commands.sample import Sample
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io import files, images
from ganstyle_jax.io.pictures import read_picture
from ganstyle_jax.loop import runs
from ganstyle_jax.loop.checkpoints import Checkpoints, digest
from ganstyle_jax.loop.train import Loop

pytestmark = pytest.mark.usefixtures("home")

TINY = ["--image-size=16", "--width=4", "--latent-dim=8", "--batch-size=8", "--devices=1"]
WGAN = ["train", small_wgan.__file__, "--latent-dim=4", "--width=8", "--batch-size=8", "--devices=1", "--steps=4"]


def ganstyle(*args: object) -> int:
    """Exit status of the command."""
    try:
        cli.main([str(arg) for arg in args])
    except SystemExit as error:
        assert isinstance(error.code, int)
        return error.code
    return 0


def process(*args: object, python: tuple[str, ...] = (), **options) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    command = [sys.executable, *python, "-m", "ganstyle_jax", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


def one_sentence(stderr: str) -> str:
    """The message of the one line that says what went wrong."""
    lines = [line for line in re.split(r"[\n\r]", stderr) if "ganstyle: error:" in line]
    assert len(lines) == 1 and lines[0].startswith("ganstyle: error: "), stderr
    assert "Traceback" not in stderr
    assert stderr.rstrip().endswith(lines[0])  # the last word
    return lines[0].removeprefix("ganstyle: error: ")


def refusal(capsys, *args: object) -> str:
    """The sentence with which the command refuses these arguments."""
    capsys.readouterr()
    assert ganstyle(*args) == 1
    return one_sentence(capsys.readouterr().err)


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory, home) -> Path:
    """A DCGAN of four steps on grey pictures."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    run = ["train", "dcgan", f"--data={pictures}", f"--run-dir={run_dir}", "--channels=1", "--steps=4", *TINY]
    assert ganstyle(*run, "--log-every=2", "--checkpoint-every=2", "--generator-learning-rate=0.01") == 0
    return run_dir


@pytest.fixture(scope="module")
def wgan(pictures, tmp_path_factory, home) -> Path:
    """A run of a method of one's own, whose file is gone."""
    folder = tmp_path_factory.mktemp("wgan")
    method = shutil.copy(small_wgan.__file__, folder / "my_wgan.py")
    assert ganstyle("train", method, f"--data={pictures}", f"--run-dir={folder / 'run'}", *WGAN[2:]) == 0
    Path(method).unlink()
    return folder / "run"


# ---------------------------------------------------------------------------------------------------------------------
# Help


def test_help_is_there_at_once():
    """In shares of what importing JAX takes, in the processor's time: seconds depend on the machine and its other work.

    The least of up to five tries of each.
    """
    commands = {
        "import": ("-c", "import jax"),
        "help": ("-m", "ganstyle_jax", "--help"),
        "train": ("-m", "ganstyle_jax", "train", "dcgan", "--help"),
    }
    least = dict.fromkeys(commands, math.inf)
    for _ in range(5):
        for name, command in commands.items():
            child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            assert child.returncode == 0
            least[name] = min(least[name], usage.ru_utime + usage.ru_stime)
        shares = {name: took / least["import"] for name, took in least.items()}
        if shares["help"] < 0.4 and 0.9 < shares["train"] < 2.5:
            break
    # Help of a method imports JAX: the measure tells them apart.
    assert shares["help"] < 0.4 and 0.9 < shares["train"] < 2.5, least


def test_help_does_not_import_jax():
    result = process("--help", python=("-X", "importtime"))
    modules = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "tyro" in modules and "ganstyle_jax.cli" in modules
    assert not modules & {"jax", "flax", "optax", "orbax", "numpy", "PIL", "tensorflow", "matplotlib"}
    for command in ("quickstart", "train", "sample", "convert", "data"):
        assert command in result.stdout


def test_help_of_a_method_names_every_setting(capsys):
    assert ganstyle("train", "dcgan", "--help") == 0
    text = capsys.readouterr().out
    for field in (*dataclasses.fields(Loop), *dataclasses.fields(dcgan.Config)):
        assert f"--{field.name.replace('_', '-')} " in text or f"--{field.name.replace('_', '-')}," in text, field.name
    assert ganstyle("train", small_wgan.__file__, "--help") == 0
    assert "--critic-steps" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["sample", "--help"], ["data", "prepare", "--help"]])
def test_help_of_the_commands(args, capsys):
    assert ganstyle(*args) == 0
    assert "usage: ganstyle" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.slow
def test_own_file_trains_resumes_and_samples_in_new_processes(pictures, tmp_path):
    (tmp_path / "work").mkdir()
    shutil.copy(small_wgan.__file__, tmp_path / "work" / "my_wgan.py")
    train = ["train", "./my_wgan.py", f"--data={pictures}", "--run-dir=out", "--steps=5", *WGAN[2:-1]]
    first = process(*train, cwd=tmp_path / "work")
    assert first.returncode == 0, first.stderr
    assert "5 steps done" in first.stderr and "first training step after" in first.stderr
    again = process(*train, "--resume=auto", "--steps=9", "--log-every=3", cwd=tmp_path / "work")
    assert again.returncode == 0 and "resuming out at step 5" in again.stderr, again.stderr
    (tmp_path / "work" / "my_wgan.py").unlink()
    shutil.move(tmp_path / "work" / "out", tmp_path / "moved")
    sample = process("sample", tmp_path / "moved", "--count=5", f"--out={tmp_path / 'five.npz'}")
    assert sample.returncode == 0, sample.stderr
    assert "5 pictures of step 9" in sample.stdout
    expected = ganstyle_jax.load(tmp_path / "moved").sample(jax.random.key(0), 5)
    np.testing.assert_array_equal(np.load(tmp_path / "five.npz")["images"], images.to_uint8(expected))


def test_load_of_a_method_whose_file_is_gone(wgan):
    run = ganstyle_jax.load(wgan)
    pictures = run.sample(jax.random.key(1), 5)
    assert pictures.shape == (5, 16, 16, 3) and pictures.dtype == np.float32 and np.abs(pictures).max() <= 1
    # More of them begin with the same, to a rounding error; another key gives others.
    np.testing.assert_allclose(run.sample(jax.random.key(1), 70)[:5], pictures, atol=1e-6)
    assert np.abs(run.sample(jax.random.key(2), 5) - pictures).max() > 0.1


def test_load_of_a_certain_step(trained):
    assert ganstyle_jax.load(trained).step == 4
    assert ganstyle_jax.load(trained, step=2).step == 2
    assert ganstyle_jax.load(trained, batch_norm="running").cfg.batch_norm == "running"


def test_config_with_tuples_is_read_back(pictures, tmp_path):
    text = Path(small_wgan.__file__).read_text()
    text = text.replace("width: int = 32", "widths: tuple[int, ...] = (8, 16)").replace("cfg.width", "cfg.widths[0]")
    (tmp_path / "tuples.py").write_text(text)
    run = ["train", tmp_path / "tuples.py", f"--data={pictures}", f"--run-dir={tmp_path / 'run'}", "--batch-size=8"]
    assert ganstyle(*run, "--steps=1", "--devices=1") == 0
    assert ganstyle_jax.load(tmp_path / "run").sample(jax.random.key(0), 2).shape == (2, 16, 16, 3)


@pytest.mark.slow
def test_dry_run_counts_and_writes_nothing(trained, pictures, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run = ["train", "dcgan", f"--data={pictures}", f"--run-dir={run_dir}", "--channels=1", "--steps=4", *TINY]
    assert ganstyle(*run, "--generator-learning-rate=0.01", "--dry-run") == 0
    text = capsys.readouterr().out
    state = dcgan.init(jax.random.key(0), dcgan.Config(16, channels=1, width=4, latent_dim=8))
    for name, network in (("gen", state.gen), ("disc", state.disc)):
        count = sum(leaf.size for leaf in jax.tree.leaves(network.params))
        assert f"parameters of {name}: {count:,}\n" in text
    settings = json.loads(text[: text.index("\n}") + 2])
    assert settings["config"]["width"] == 4 and settings["config"]["channels"] == 1
    assert settings["loop"]["batch_size"] == 8 and settings["method"] == "dcgan" and settings["data"] == str(pictures)
    memory = re.search(r"memory of each device: ([\d,.]+) MiB", text)
    assert memory and 0 < float(memory[1].replace(",", "")) < 1000
    flops = re.search(r"FLOPs of a step on each device: ([\d,.]+) G", text)
    # At least the generator's two convolutions on 8 pictures, forward, and 2 x 4 taps for each pixel.
    least = 8 * 2 * 4 * (8 * 8 * 8 * 4 + 16 * 16 * 4 * 1) / 1e9
    assert flops and least < float(flops[1].replace(",", "")) < 100 * least
    assert not run_dir.exists()


def test_same_seed_same_bits(trained, pictures, tmp_path):
    run_dir = tmp_path / "again"
    run = ["train", "dcgan", f"--data={pictures}", f"--run-dir={run_dir}", "--channels=1", "--steps=4", *TINY]
    assert ganstyle(*run, "--generator-learning-rate=0.01") == 0
    assert digest(ganstyle_jax.load(run_dir).state) == digest(ganstyle_jax.load(trained).state)


def test_finished_run_again(wgan, pictures, capsys):
    before = snapshot(wgan)
    method = wgan / "method" / "my_wgan.py"
    run = ["train", method, f"--data={pictures}", f"--run-dir={wgan}", *WGAN[2:]]
    assert ganstyle(*run, "--resume=auto") == 0
    assert "all 4 steps are done already" in capsys.readouterr().err
    assert snapshot(wgan) == before


def test_deterministic_asks_xla_for_it(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", before := os.environ["XLA_FLAGS"])
    # In time for the first use of a device: before the devices are counted, which ends this run.
    message = refusal(capsys, *WGAN, f"--data={pictures}", f"--run-dir={tmp_path}", "--deterministic", "--devices=9")
    assert "that are here" in message
    assert os.environ["XLA_FLAGS"] == before + " --xla_gpu_deterministic_ops=true"


def test_run_folder_by_default_has_the_methods_name(pictures, tmp_path, monkeypatch):
    shutil.copy(small_wgan.__file__, tmp_path / "my_wgan.py")
    monkeypatch.chdir(tmp_path)
    assert ganstyle("train", "my_wgan.py", f"--data={pictures}", *WGAN[2:]) == 0
    assert (tmp_path / "runs" / "my_wgan" / "run.json").exists()


@pytest.mark.slow
def test_quickstart(tmp_path, capsys):
    run_dir = tmp_path / "quick"
    assert ganstyle("quickstart", "--steps=4", "--size=48", f"--run-dir={run_dir}") == 0
    text = capsys.readouterr().out
    painted = Image.open(run_dir / "painted.png")  # the photograph and each style, 512 pixels wide, in a row
    assert f"Look at {run_dir / 'painted.png'}" in text and painted.width > 4 * 512 > 2 * painted.height
    assert f"Look at {run_dir / 'stylized.png'}" in text and Image.open(run_dir / "stylized.png").size == (48, 48)
    grid = run_dir / "samples" / "000004.png"
    assert f"Look at {grid}" in text and Image.open(grid).size == (8 * 34 - 2, 8 * 34 - 2)
    assert f"ganstyle sample {run_dir}" in text
    # The commands that it recommends work.
    assert ganstyle("sample", run_dir, "--interpolate", f"--out={tmp_path / 'walk'}", "--stops=2", "--frames=2") == 0
    assert ganstyle("quickstart", "--steps=4", f"--run-dir={run_dir}") == 0
    assert "all 4 steps are done already" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def test_samples_as_one_grid_a_folder_and_an_array(trained, tmp_path, capsys):
    expected = images.to_uint8(ganstyle_jax.load(trained).sample(jax.random.key(3), 7))
    for out in ("grid.png", "folder", "array.npz"):
        assert ganstyle("sample", trained, "--count=7", "--seed=3", f"--out={tmp_path / out}") == 0
        assert f"7 pictures of step 4 in {tmp_path / out}" in capsys.readouterr().out
    array = np.load(tmp_path / "array.npz")["images"]
    assert array.dtype == np.uint8 and array.shape == (7, 16, 16, 1)
    np.testing.assert_array_equal(array, expected)
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == [f"{i:06d}.png" for i in range(7)]
    for name, picture in zip(names, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "folder" / name)), picture[..., 0])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), images.grid(expected)[..., 0])


def test_a_folder_with_other_pictures_is_refused(trained, tmp_path, capsys):
    """Those of an earlier, larger sample would be taken for this one's."""
    out = tmp_path / "folder"
    assert ganstyle("sample", trained, "--count=3", f"--out={out}") == 0
    assert "holds 1 other pictures, such as 000002.png" in refusal(
        capsys, "sample", trained, "--count=2", f"--out={out}"
    )
    assert ganstyle("sample", trained, "--count=3", "--seed=1", f"--out={out}") == 0
    capsys.readouterr()
    assert ganstyle("sample", trained, "--count=2", f"--out={tmp_path / 'a.png'}") == 0
    assert ganstyle("sample", trained, "--count=2", f"--out={tmp_path / 'a.png'}") == 0
    assert capsys.readouterr().err.count(f"{tmp_path / 'a.png'} is replaced") == 1


def test_seeds_of_samples(trained, tmp_path):
    for name, seed in (("a", 1), ("same", 1), ("other", 2)):
        assert ganstyle("sample", trained, "--count=3", f"--seed={seed}", f"--out={tmp_path / name}.npz") == 0
    a, same, other = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("a", "same", "other"))
    np.testing.assert_array_equal(a, same)
    assert (a != other).any(axis=(1, 2, 3)).all()


def test_batch_norm_of_samples(trained, tmp_path):
    found = {}
    for mode in ("standing", "running", "batch"):
        out = tmp_path / f"{mode}.npz"
        assert ganstyle("sample", trained, "--count=64", f"--batch-norm={mode}", f"--out={out}") == 0
        found[mode] = np.load(out)["images"].astype(float)
        expected = ganstyle_jax.load(trained, batch_norm=mode).sample(jax.random.key(0), 64)
        np.testing.assert_array_equal(found[mode], images.to_uint8(expected))
    assert ganstyle("sample", trained, f"--out={tmp_path / 'default.npz'}") == 0  # as trained
    np.testing.assert_array_equal(np.load(tmp_path / "default.npz")["images"], found["standing"])
    # Four steps are too few for running statistics; those taken anew are near those of the batch.
    far = {mode: np.abs(found[mode] - found["batch"]).mean() for mode in ("standing", "running")}
    assert far["standing"] < far["running"]


def test_batch_norm_of_a_method_that_has_none(wgan, tmp_path, capsys):
    message = refusal(capsys, "sample", wgan, "--batch-norm=batch", f"--out={tmp_path / 'a.png'}")
    assert "has no setting batch_norm" in message


def test_walk_passes_its_stops_and_returns(trained, tmp_path):
    out = tmp_path / "walk"
    assert ganstyle("sample", trained, "--interpolate", "--stops=3", "--frames=5", "--seed=2", f"--out={out}") == 0
    run = ganstyle_jax.load(trained)
    stops = run.requests(jax.random.key(2), 3)
    at_stops = images.to_uint8(run.decode(stops))[..., 0]
    with Image.open(out / "walk.gif") as gif:
        shown = []  # a frame that equals the one before is stored as a longer one
        for i in range(gif.n_frames):
            gif.seek(i)
            shown += [np.asarray(gif.convert("L"))] * round(gif.info["duration"] / 50)
    assert len(shown) == 15
    strip = np.asarray(Image.open(out / "strip.png"))
    cells = [strip[r * 18 : r * 18 + 16, c * 18 : c * 18 + 16] for r in range(3) for c in range(5)]
    assert strip.shape == (3 * 18 - 2, 5 * 18 - 2)
    for i in range(3):
        assert np.abs(at_stops[i].astype(int) - cells[5 * i]).max() <= 1  # one batch of 3, one of 15
    np.testing.assert_array_equal(shown, cells)
    # Between two stops the pictures are others, and the last is on its way back to the first.
    assert (cells[2] != cells[0]).any() and (cells[2] != cells[5]).any()
    assert np.abs(cells[14].astype(int) - cells[0]).mean() < np.abs(cells[14].astype(int) - cells[10]).mean()


@pytest.mark.parametrize(
    "args, message",
    [
        (["--count=0"], "--count must be at least 1, got 0"),
        (["--out=a.jpg"], "--out must end in .png or .npz or be a folder, got a.jpg"),
        (["--interpolate", "--out=a.png"], "--interpolate writes two files: --out must be a folder, got a.png"),
        (["--interpolate", "--stops=1"], "--stops must be at least 2, got 1"),
        (["--interpolate", "--fps=51"], "--fps must be from 1 to 50, got 51"),
        (["--interpolate", "--fps=0"], "--fps must be from 1 to 50, got 0"),
        (["--frames=-1"], "--frames must be at least 1, got -1"),
        (["--seed=99999999999999999999"], "--seed must be"),
        (["--step=7"], "no checkpoint of step 7: it has "),
    ],
)
def test_samples_refused(trained, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, "sample", trained, *args)
    assert list(tmp_path.iterdir()) == []


def test_samples_of_what_is_no_run(tmp_path, trained, capsys):
    assert "is not a run folder: it holds no run.json" in refusal(capsys, "sample", tmp_path)
    assert "is not a run folder" in refusal(capsys, "sample", tmp_path / "none")
    shutil.copy(trained / "run.json", tmp_path)
    assert "holds no checkpoint yet" in refusal(capsys, "sample", tmp_path)


OTHER_VERSION = '{"method": "dcgan", "config": {"no_such": 1}, "data": "", "loop": {}}'


@pytest.mark.parametrize("text", ["{", "{}", "[]", OTHER_VERSION])
def test_samples_of_a_damaged_description(tmp_path, capsys, text):
    (tmp_path / "run.json").write_text(text)
    assert str(tmp_path) in refusal(capsys, "sample", tmp_path)


def test_samples_from_damaged_checkpoints(trained, tmp_path, capsys):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    for step in (2, 4):
        next((run_dir / "checkpoints" / str(step)).rglob("manifest.ocdbt")).write_bytes(b"")
    assert "all checkpoints" in refusal(capsys, "sample", run_dir, f"--out={tmp_path / 'a.png'}")
    assert not (tmp_path / "a.png").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Refusals before training, which leave nothing behind


@pytest.fixture
def own_methods(tmp_path) -> Path:
    """A folder of method files that are not methods."""
    folder = tmp_path / "methods"
    folder.mkdir()
    text = Path(small_wgan.__file__).read_text()
    (folder / "no_requests.py").write_text(text.replace("requests = lambda key", "draw = lambda key"))
    (folder / "empty.py").write_text("")
    return folder


REFUSALS = {
    "missing folder": (["dcgan", "--data=no/such/folder"], "No file or folder 'no/such/folder'"),
    "empty folder": (["dcgan", "--data=."], "No images in"),
    "text file": (["dcgan", "--data=notes.txt"], "Cannot read images from 'notes.txt'"),
    "unknown method": (["gan", "--data=glyphs"], "or a Python file such as ./my_gan.py, got 'gan'"),
    "no such method file": (["gan.py", "--data=glyphs"], "there is no file gan.py"),
    "method without a function": (["methods/no_requests.py", "--data=glyphs"], "no_requests.py lacks requests"),
    "empty method": (["methods/empty.py", "--data=glyphs"], "lacks Config, sources, init, train_step, requests"),
    "indivisible": (["dcgan", "--data=glyphs", "--batch-size=12", "--devices=8"], "cannot be divided among 8 devices"),
    "too many devices": (["dcgan", "--data=glyphs", "--devices=9"], "--devices must be from 1 to the 8 that are here"),
    "nothing to resume": (["dcgan", "--data=glyphs", "--resume=required"], "holds no run to resume"),
    "no run to begin with": ([small_wgan.__file__, "--data=glyphs", "--init-from=gone"], "gone is not a run folder"),
    "unlimited": (["dcgan", "--data=glyphs", "--data-on-device=yes", *TINY], "is unlimited and cannot live on"),
    "glyphs misspelt": (["dcgan", "--data=glyphs:gray2"], "glyphs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_training_refused(name, own_methods, tmp_path, monkeypatch, capsys):
    args, message = REFUSALS[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no pictures")
    monkeypatch.chdir(tmp_path / "empty" if name == "empty folder" else tmp_path)
    found = refusal(capsys, "train", *args, f"--run-dir={tmp_path / 'run'}")
    assert message in found
    assert not (tmp_path / "run").exists() and not list(tmp_path.rglob("runs"))


@pytest.mark.parametrize(
    "args, message",
    [
        (["--image-size=17"], "image_size must be a power of two from 16 to 256, got 17: take 32"),
        (["--image-size=512"], "image_size must be a power of two from 16 to 256, got 512: take 256"),
        (["--profile=fast"], "profile must be two steps such as 100:110, got 'fast'"),
        (["--steps=0"], "steps must be at least 1, got 0"),
        (["--augment=blur"], "blur"),
        (["--loss=hinges"], "hinge"),
        (["--no-such=1"], "--no-such"),
        (["--keep-checkpoints=0"], "keep_checkpoints must be at least 1"),
    ],
)
def test_settings_refused(args, message, tmp_path, capsys):
    """By the dataclasses, which the command line shows in a box and exits with 2."""
    assert ganstyle("train", "dcgan", "--data=glyphs", f"--run-dir={tmp_path / 'run'}", *args) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.replace("│", " ").split()) and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_no_data_given(tmp_path, capsys):
    message = refusal(capsys, "train", "dcgan", f"--run-dir={tmp_path / 'run'}")
    assert "give --data SOURCE, got none" in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize("args", [[], ["paint"], ["train"], ["sample"], ["data"]])
def test_commands_refused(args, capsys):
    assert ganstyle(*args) == 2
    assert "usage: ganstyle" in (error := capsys.readouterr().err) or "ganstyle" in error


def test_unknown_tfds_name_is_refused_in_time(tmp_path, capsys, monkeypatch, asked_of_the_network):
    """Without a look at the network, which may take minutes."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    message = refusal(capsys, "train", "dcgan", "--data=tfds:mnits", f"--run-dir={tmp_path / 'run'}")
    assert "TFDS knows no set 'mnits': did you mean" in message and "mnist" in message
    assert asked_of_the_network == []
    assert list(tmp_path.iterdir()) == []


def test_tfds_set_that_is_not_prepared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    message = refusal(capsys, "train", "dcgan", "--data=tfds:mnist", f"--run-dir={tmp_path / 'run'}")
    assert "ganstyle data prepare mnist" in message


def test_prepare_where_there_is_no_tensorflow_or_no_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as where it is not installed
    message = refusal(capsys, "data", "prepare", "mnist", f"--data-dir={tmp_path / 'tfds'}")
    assert "needs TensorFlow" in message or "needs a network" in message
    monkeypatch.setattr("ganstyle_jax.data.tfds._require_network", lambda *_: None)
    message = refusal(capsys, "data", "prepare", "mnist", f"--data-dir={tmp_path / 'tfds'}")
    assert "needs TensorFlow" in message and "pip install -e '.[tfds-prepare]'" in message
    assert not (tmp_path / "tfds").exists()


def test_run_folder_that_holds_another_run(trained, pictures, capsys):
    before = snapshot(trained)
    same = ["train", "dcgan", f"--data={pictures}", f"--run-dir={trained}", "--channels=1", "--steps=8", *TINY]
    same.append("--generator-learning-rate=0.01")
    assert "already holds a run" in refusal(capsys, *same)
    message = refusal(capsys, *same, "--resume=auto", "--r1=5", "--seed=1")
    assert "holds another run: r1 was 0.0 and is 5.0; seed was 0 and is 1" in message
    assert "data was" in refusal(capsys, *same[:2], "--data=glyphs", *same[3:], "--resume=auto")
    assert snapshot(trained) == before


def test_checkpoint_of_another_config(trained, pictures, tmp_path, capsys):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    description = json.loads((run_dir / "run.json").read_text())
    description["config"]["width"] = 8
    (run_dir / "run.json").write_text(json.dumps(description))
    before = snapshot(run_dir)
    same = ["train", "dcgan", f"--data={pictures}", f"--run-dir={run_dir}", "--channels=1", "--steps=8", *TINY]
    message = refusal(capsys, *same, "--generator-learning-rate=0.01", "--width=8", "--resume=auto")
    assert "checkpoint 4 belongs to another config" in message
    assert snapshot(run_dir) == before


def test_all_checkpoints_damaged(wgan, pictures, tmp_path, capsys):
    run_dir = shutil.copytree(wgan, tmp_path / "run")
    next((run_dir / "checkpoints" / "4").rglob("manifest.ocdbt")).write_bytes(b"")
    run = ["train", wgan / "method" / "my_wgan.py", f"--data={pictures}", f"--run-dir={run_dir}", *WGAN[2:]]
    message = refusal(capsys, *run, "--resume=auto", "--steps=8")
    assert "all checkpoints" in message and "are damaged (steps 4)" in message


def test_run_folder_that_cannot_be_made(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    message = refusal(capsys, *WGAN, f"--data={pictures}", f"--run-dir={tmp_path / 'file' / 'run'}")
    assert "the run folder" in message and "cannot be written" in message
    assert (tmp_path / "file").read_text() == ""


def fill(disk: Path, free_kib: int) -> None:
    room = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - free_kib * 1024))


@pytest.mark.parametrize("free_kib", [0, 20])
def test_full_disk(pictures, small_disk, free_kib, capsys):
    """No room for run.json; for the log."""
    fill(small_disk, free_kib)
    run = [*WGAN, f"--data={pictures}", f"--run-dir={small_disk / 'run'}", "--steps=300", "--log-every=1"]
    message = refusal(capsys, *run)
    assert "No space left" in message and str(small_disk / "run") in message
    # With room again, the same command goes on.
    (small_disk / "ballast").unlink()
    assert ganstyle(*run, "--resume=auto", "--log-every=100") == 0


@pytest.mark.slow
def test_full_disk_at_a_checkpoint(pictures, small_disk):
    fill(small_disk, 600)
    run_dir = small_disk / "run"
    result = process(*WGAN, f"--data={pictures}", f"--run-dir={run_dir}", "--width=512", "--checkpoint-every=3")
    assert result.returncode == 1, result.stderr
    message = one_sentence(result.stderr)
    assert f"checkpoint 3 could not be written to {run_dir / 'checkpoints'} (the disk is full)" in message
    assert Checkpoints(run_dir).steps() == [] and list((run_dir / "checkpoints").iterdir()) == []


def test_loss_that_is_not_finite(pictures, tmp_path, capsys):
    text = Path(small_wgan.__file__).read_text()
    text = text.replace('"loss/gen": g_loss}', '"loss/gen": jnp.log(0.5 - batch["real"]["image"].mean() * 0 - 1)}')
    (tmp_path / "method.py").write_text(text)
    run = ["train", tmp_path / "method.py", f"--data={pictures}", f"--run-dir={tmp_path / 'run'}", *WGAN[2:]]
    message = refusal(capsys, *run)
    assert "loss/gen became nan" in message and "at step 1;" in message and "no checkpoint was saved before" in message
    assert Checkpoints(tmp_path / "run").steps() == []


def test_errors_of_the_system_have_a_name(monkeypatch, capsys):
    def sample(command):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/quota/file")

    monkeypatch.setitem(cli.RUN, Sample, sample)
    assert "/quota/file cannot be written: Disk quota exceeded" in refusal(capsys, "sample", "run")


# ---------------------------------------------------------------------------------------------------------------------
# Weights from and to PyTorch


@pytest.fixture
def netG_netD(torch, tmp_path):  # noqa: N802  (the names of the files)
    import torch_dcgan

    torch.manual_seed(0)
    networks = torch_dcgan.Generator(16, 3, 8, 4), torch_dcgan.Discriminator(16, 3, 4)
    for network, name in zip(networks, ("netG", "netD"), strict=True):
        torch_dcgan.initialise(network)
        for key, buffer in network.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    return networks


def test_convert_from_pytorch_and_back(torch, netG_netD, tmp_path, capsys):  # noqa: N803
    run_dir = tmp_path / "run"
    assert ganstyle("convert", tmp_path / "netD.pth", tmp_path / "netG.pth", f"--out={run_dir}") == 0
    assert str(run_dir) in capsys.readouterr().out
    run = ganstyle_jax.load(run_dir)
    z = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    with torch.no_grad():
        expected = netG_netD[0].eval()(torch.from_numpy(z)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(run.decode(z), expected, atol=1e-5)  # float32, sums in another order
    assert ganstyle("sample", run_dir, "--count=3", f"--out={tmp_path / 'a.png'}") == 0

    for file_format in ("pth", "safetensors"):
        assert ganstyle("convert", run_dir, f"--out={tmp_path / 'back'}", f"--format={file_format}") == 0
        for network, name in zip(netG_netD, ("netG", "netD"), strict=True):
            path = tmp_path / "back" / f"{name}.{file_format}"
            if file_format == "pth":
                state = torch.load(path, weights_only=True)
            else:
                from safetensors.torch import load_file

                state = load_file(path)
            network.load_state_dict(state, strict=True)
            for key, value in torch.load(tmp_path / f"{name}.pth").items():
                assert torch.equal(state[key], value), (path, key)


@pytest.mark.slow
def test_begin_with_weights_from_pytorch(netG_netD, pictures, tmp_path):  # noqa: N803
    assert ganstyle("convert", tmp_path / "netG.pth", f"--out={tmp_path / 'imported'}") == 0
    run = ["train", "dcgan", f"--data={pictures}", f"--run-dir={tmp_path / 'run'}", *TINY, "--steps=1"]
    rates = ["--generator-learning-rate=0", "--discriminator-learning-rate=0"]
    assert ganstyle(*run, *rates, f"--init-from={tmp_path / 'imported'}") == 0
    old, new = (ganstyle_jax.load(tmp_path / name).state for name in ("imported", "run"))
    assert digest(new.gen.params) == digest(old.gen.params) and int(new.step) == 1


def test_convert_refuses_code(tmp_path, capsys):
    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    for name, protocol in (("netG.pth", 2), ("other.pth", 4)):
        (tmp_path / name).write_bytes(pickle.dumps({"main.0.weight": Harm()}, protocol))
        assert str(tmp_path / name) in refusal(capsys, "convert", tmp_path / name, f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "harm").exists() and not (tmp_path / "run").exists()


def test_convert_refuses(trained, wgan, tmp_path, capsys):
    (tmp_path / "netG.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    out = f"--out={tmp_path / 'run'}"
    assert "there is no file" in refusal(capsys, "convert", tmp_path / "netG.pth", out)
    assert "not a sound .safetensors file" in refusal(capsys, "convert", tmp_path / "netG.safetensors", out)
    assert "only runs of dcgan can be converted" in refusal(capsys, "convert", wgan, out)
    assert "is not a run folder" in refusal(capsys, "convert", tmp_path, out)
    assert ganstyle("convert", trained, f"--out={tmp_path / 'weights'}") == 0
    weights = tmp_path / "weights"
    assert "holds no generator" in refusal(capsys, "convert", weights / "netD.pth", out)
    assert "holds a second generator" in refusal(capsys, "convert", weights / "netG.pth", weights / "netG.pth", out)
    assert "already holds a run" in refusal(capsys, "convert", weights / "netG.pth", f"--out={trained}")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Several sources, and pictures of the user's own


@pytest.fixture(scope="module")
def translator(pictures, tmp_path_factory, home):
    run_dir = tmp_path_factory.mktemp("translator") / "run"
    arguments = ["train", small_translator.__file__, "--data", f"a={pictures}", f"b={pictures}", "--width=2"]
    assert ganstyle(*arguments, f"--run-dir={run_dir}", "--steps=2", "--batch-size=4", "--devices=1") == 0
    return run_dir


def test_several_sources_are_named_in_the_run_and_shown_in_columns(translator, pictures):
    description = json.loads((translator / "run.json").read_text())
    assert description["data"] == {"a": str(pictures), "b": str(pictures)} and set(description["data_identity"]) == {
        *"ab"
    }
    with Image.open(translator / "samples" / "000002.png") as grid:
        assert grid.width == 3 * 5 * 66 - 2 and grid.height > 13 * 66  # 5 requests in a row, each with its 3 pictures


def test_apply_to_a_picture_and_to_a_folder(translator, tmp_path, capsys):
    photos = tmp_path / "photos"
    for name, shape in {"one.png": (24, 20), "more/two.jpg": (16, 16)}.items():
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)).save(photos / name)
    assert ganstyle("apply", translator, photos / "one.png", "-o", tmp_path / "made.png") == 0
    assert Image.open(tmp_path / "made.png").size == (20, 24)  # convolutions take any size
    assert ganstyle("apply", translator, photos, "-o", tmp_path / "out") == 0
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert made == ["more/two.png", "one.png"]
    assert (tmp_path / "out" / "one.png").read_bytes() == (tmp_path / "made.png").read_bytes()
    run = ganstyle_jax.load(translator)
    expected = run.draw(run.method.module.requests_of(read_picture(photos / "one.png")[None], run.cfg), 1)["to b"][0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "made.png")), images.to_uint8(expected))
    assert ganstyle("apply", translator, photos / "one.png", "--title=back", "-o", tmp_path / "back.png") == 0
    assert (tmp_path / "back.png").read_bytes() != (tmp_path / "made.png").read_bytes()
    capsys.readouterr()
    assert "titles a, to b, back, and none with 'b'" in refusal(
        capsys, "apply", translator, photos / "one.png", "--title=b", "-o", tmp_path / "b.png"
    )
    assert "would overwrite an input" in refusal(
        capsys, "apply", translator, photos / "one.png", "-o", photos / "one.png"
    )
    assert "there is no" in refusal(capsys, "apply", translator, tmp_path / "none.png")
    assert not (tmp_path / "b.png").exists()


def test_apply_goes_on_after_a_picture_that_cannot_be_taken(translator, tmp_path, capsys, monkeypatch):
    for name, side in {"a.png": 16, "b.png": 15, "c.png": 16}.items():
        Image.new("RGB", (side, 16)).save(tmp_path / name)
    run = ganstyle_jax.load(translator)

    def requests_of(pictures, cfg):
        if pictures.shape[2] % 2:
            raise TypeError("add got incompatible shapes for broadcasting")
        return pictures

    monkeypatch.setattr(run.method.module, "requests_of", requests_of)
    monkeypatch.setattr(runs, "load", lambda *_: run)
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    message = refusal(capsys, "apply", translator, *files, "-o", tmp_path / "out")
    assert "b.png of 15 x 16 pixels cannot be taken: add got incompatible shapes" in message
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert "give pictures, or folders of them" in refusal(capsys, "apply", translator)


def test_a_field_that_is_a_flag_of_the_loop(tmp_path, capsys):
    text = Path(small_wgan.__file__).read_text().replace("width: int = 32", "width: int = 32\n    steps: int = 1")
    (tmp_path / "mine.py").write_text(text)
    message = refusal(capsys, "train", tmp_path / "mine.py", "--data=glyphs")
    assert "has the field steps, which is a flag of ganstyle train itself" in message


def test_apply_of_a_method_that_needs_no_pictures(wgan, tmp_path, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    message = refusal(capsys, "apply", wgan, tmp_path / "a.png", "-o", tmp_path / "b.png")
    assert "makes pictures out of nothing" in message and "ganstyle sample" in message


def test_interpolate_where_requests_are_pictures(translator, tmp_path, capsys):
    message = refusal(capsys, "sample", translator, "--interpolate", f"--out={tmp_path / 'walk'}")
    assert "walks between latents" in message


def test_a_method_without_data(tmp_path, capsys):
    arguments = [
        "train",
        small_prior.__file__,
        "--width=2",
        "--steps=2",
        "--devices=1",
        f"--run-dir={tmp_path / 'run'}",
    ]
    assert ganstyle(*arguments) == 0
    assert ganstyle("sample", tmp_path / "run", "--count=2", f"--out={tmp_path / 'two.png'}") == 0
    assert "learns from no pictures" in refusal(capsys, "evaluate", tmp_path / "run")
    message = refusal(capsys, *arguments[:-1], f"--run-dir={tmp_path / 'other'}", "--data=glyphs")
    assert "needs no data" in message and not (tmp_path / "other").exists()


def test_version(capsys):
    assert ganstyle("--version") == 0
    assert capsys.readouterr().out == f"ganstyle_jax {ganstyle_jax.__version__}\n"


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_methods_have_names_and_names_have_methods():
    for name in builtin.EVERY:
        module = contract.module_of(name)
        assert module.__name__ == builtin.EVERY[name]
        if contract.trains(name):
            assert contract.of(module).name == name == contract.find(name).name
        else:
            assert not hasattr(module, "train_step")


def test_installed_command_is_this_one():
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="ganstyle")
    assert entry.load() is cli.main


def test_cache_folder(monkeypatch, tmp_path):
    assert files.cache_dir() == Path(os.environ["GANSTYLE_HOME"])
    monkeypatch.delenv("GANSTYLE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_dir() == tmp_path / "ganstyle_jax"


# ---------------------------------------------------------------------------------------------------------------------
# Weights of feature networks


def test_weights_from_file_to_network(tmp_path, monkeypatch, capsys, data_dir):
    from ganstyle_jax.features import weights

    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path))
    file = data_dir / "weights/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert ganstyle("weights", "import", file) == 0
    assert ganstyle("weights", "import", file, "--name=mine") == 0
    capsys.readouterr()
    assert ganstyle("weights", "list") == 0
    listed = capsys.readouterr().out
    assert re.search(r"^squeezenet-keras +here +3 MB .*MIT\n +https://\S+$", listed, re.MULTILINE)
    assert re.search(r"^vgg19 +- +575 MB .*BSD-3-Clause\n +https://\S+vgg19-dcbb9e9d.pth$", listed, re.MULTILINE)
    assert re.search(rf"^mine +here +imported\n +{re.escape(str(file))}$", listed, re.MULTILINE)
    assert weights.load("squeezenet-keras")[0] == weights.load("mine")[0]
    assert ganstyle("weights", "verify") == 0
    assert capsys.readouterr().out == "mine is sound\nsqueezenet-keras is sound\n"
    (tmp_path / "weights/mine.safetensors").write_bytes(b"")
    assert "mine has changed since it was written: fetch or import it again" in refusal(capsys, "weights", "verify")


def test_weights_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path))
    assert "takes a NAME" in refusal(capsys, "weights", "fetch")
    assert "takes a FILE" in refusal(capsys, "weights", "import")
    assert "takes nothing" in refusal(capsys, "weights", "verify", "vgg19")
    assert "--name belongs to" in refusal(capsys, "weights", "fetch", "vgg19", "--name=mine")
    assert "under the name vgg20; there are vgg19, vgg16" in refusal(capsys, "weights", "fetch", "vgg20")
    assert "No such file" in refusal(capsys, "weights", "import", tmp_path / "vgg.pth")
    (tmp_path / "vgg.pth").write_text("<html>")
    assert "is a web page" in refusal(capsys, "weights", "import", tmp_path / "vgg.pth", "--name=vgg19")


def test_weights_without_a_network(tmp_path):
    """One sentence. A proxy that is not there stands for no network.

    How long a silence is waited for is tested with the downloads.
    """
    proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    environment = os.environ | proxies | {"GANSTYLE_HOME": str(tmp_path), "no_proxy": "", "NO_PROXY": ""}
    done = process("weights", "fetch", "vgg19", env=environment)
    assert done.returncode == 1
    said = one_sentence(done.stderr)
    assert "fetch https://download.pytorch.org/models/vgg19-dcbb9e9d.pth by hand" in said
    assert "`ganstyle weights import vgg19-dcbb9e9d.pth --name vgg19`" in said


def test_bench_hands_over_to_the_script(monkeypatch, tmp_path):
    from ganstyle_jax.commands import bench

    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(bench.runpy, "run_path", lambda path, run_name: asked.append([path, run_name, *sys.argv[1:]]))
    cli.main(["bench", "--parts", "step", "--json=mine.json"])
    cli.main(["bench"])
    markdown = ["--markdown", f"{tmp_path}/bench.md"]
    assert asked[0] == [str(bench.SCRIPT), "__main__", "--parts", "step", "--json=mine.json", *markdown]
    assert asked[1] == [str(bench.SCRIPT), "__main__", "--json", f"{tmp_path}/bench.json", *markdown]
    assert bench.SCRIPT.exists()


def test_bench_of_an_installed_package_needs_a_clone(monkeypatch, capsys, tmp_path):
    from ganstyle_jax.commands import bench

    monkeypatch.setattr(bench, "SCRIPT", tmp_path / "missing.py")
    with pytest.raises(SystemExit):
        cli.main(["bench"])
    assert "is in the repository and not in the installed package: clone it" in capsys.readouterr().err
