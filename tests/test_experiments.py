"""Every experiment script takes two tiny steps offline, and the comparisons compare what they say."""

import dataclasses
import json
import os
import runpy
import shutil
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import small_encoder
from scripts import load_script

import ganstyle_jax
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.gan import convert, dcgan, stylegan2
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import runs, train
from ganstyle_jax.loop.train import Loop

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
TINY = ["--image-size=16", "--width=4", "--latent-dim=8", "--batch-size=4", "--steps=2", "--devices=1"]
GREY = dcgan.Config(image_size=32, width=4, latent_dim=100)

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def zipped(pictures, tmp_path_factory) -> Path:
    """The pictures as a zip of PNG files in two folders."""
    folder = tmp_path_factory.mktemp("zipped")
    with np.load(pictures) as file, zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for i, picture in enumerate(file["images"]):
            images.save_png(folder / "picture.png", picture)
            archive.write(folder / "picture.png", f"class{i % 2}/{i:03d}.png")
    (folder / "mine.py").write_text("def means(images):\n    return images.mean((1, 2))\n")
    return folder / "pictures.zip"


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """An .npz of 24 grey pictures of 28 pixels, laid out as mnist.npz is."""
    path = tmp_path_factory.mktemp("digits") / "mnist.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 28, 28), dtype=np.uint8)
    np.savez(path, x_train=pixels, y_train=np.arange(24) % 10)
    return path


@pytest.mark.parametrize("name", ["flowers", "lfw", "cifar10", "celeba"])
def test_script_trains_and_is_safe_to_run_twice(name, zipped, tmp_path, capsys, monkeypatch):
    script = load_script(name)
    path = str(EXPERIMENTS / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, f"--data={zipped}", f"--run-dir={tmp_path}", *TINY])
    runpy.run_path(path, run_name="__main__")
    run = ganstyle_jax.load(tmp_path)
    assert run.step == 2
    changed = {"image_size", "width", "latent_dim", "channels"}
    for field in dataclasses.fields(dcgan.Config):
        if field.name not in changed:  # what makes the experiment is what the script says
            assert getattr(run.cfg, field.name) == getattr(script.CONFIG, field.name), field.name
    assert (tmp_path / "samples" / "000002.png").is_file()
    assert "2 steps done" in capsys.readouterr().err
    if name == "flowers":  # the other scripts are this one with other words
        runpy.run_path(path, run_name="__main__")
        assert "all 2 steps are done already" in capsys.readouterr().err


def test_r3gan_trains_on_classes(quick_compile, zipped, tmp_path, capsys, monkeypatch):
    path, script = str(EXPERIMENTS / "cifar10_r3gan.py"), load_script("cifar10_r3gan")
    tiny = ["--image-size=16", "--width=2", "--blocks=1", "--bfloat16-stages=1", *TINY[2:]]
    monkeypatch.setattr(sys, "argv", [path, f"--data={zipped}", f"--run-dir={tmp_path}", *tiny])
    runpy.run_path(path, run_name="__main__")
    run = ganstyle_jax.load(tmp_path)
    assert run.step == 2 and run.cfg.classes == 2
    asked_for = script.CONFIG.recipe
    for name in ("gamma", "learning_rate", "beta2", "ema_halflife_images", "augment_probability", "schedule_images"):
        assert getattr(run.cfg, name) == getattr(asked_for, name), name
    assert (run.cfg.conditional, run.cfg.mirror, run.cfg.augment_policy) == (True, True, script.CONFIG.augment_policy)
    assert (tmp_path / "samples" / "000002.png").is_file()
    assert "2 steps done" in capsys.readouterr().err


@pytest.mark.slow  # it compiles for half a minute
def test_stylegan2_trains_with_a_presets_settings(quick_compile, zipped, tmp_path, capsys, monkeypatch):
    """By ffhq256.py; afhq.py is this script with other words."""
    path, script = str(EXPERIMENTS / "ffhq256.py"), load_script("ffhq256")
    tiny = ["--image-size=16", "--capacity=32", "--max-channels=2", "--latent-dim=2", *TINY[2:]]
    monkeypatch.setattr(sys, "argv", [path, f"--data={zipped}", f"--run-dir={tmp_path}", *tiny])
    runpy.run_path(path, run_name="__main__")
    run = ganstyle_jax.load(tmp_path)
    assert run.step == 2 and run.cfg.dtype == "bfloat16"
    asked_for = stylegan2.complete(script.CONFIG)
    for name in ("r1", "mapping_layers", "path_length", "style_mixing", "learning_rate", "group", "augment"):
        assert getattr(run.cfg, name) == getattr(asked_for, name), name
    assert "2 steps done" in capsys.readouterr().err


def test_adain_trains_on_two_sources(zipped, tmp_path, capsys, monkeypatch):
    path, script = str(EXPERIMENTS / "adain.py"), load_script("adain")
    sources = ["--data", f"content={zipped}", f"style={zipped}"]
    tiny = ["--image-size=24", "--crop=16", f"--encoder={small_encoder.path()}", *TINY[3:]]
    monkeypatch.setattr(sys, "argv", [path, *sources, f"--run-dir={tmp_path}", *tiny])
    runpy.run_path(path, run_name="__main__")
    run = ganstyle_jax.load(tmp_path)
    assert run.step == 2 and run.cfg.style_weight == script.CONFIG.style_weight
    assert "2 steps done" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pair(zipped, tmp_path_factory) -> Path:
    """The pictures in two halves, as experiments/split_pair.py sets some of them apart for tests."""
    out = tmp_path_factory.mktemp("pair") / "pair.zip"
    counts = load_script("split_pair").main(Path(f"{zipped}/class0"), Path(f"{zipped}/class1"), out, every=4)
    assert counts == {"trainA": 9, "testA": 3, "trainB": 9, "testB": 3}
    return out


def test_a_pair_is_split_by_names(zipped, pair, tmp_path):
    script = load_script("split_pair")
    with zipfile.ZipFile(zipped) as before, zipfile.ZipFile(pair) as after:
        names = sorted(after.namelist())
        assert names[:4] == ["testA/006.png", "testA/014.png", "testA/022.png", "testB/007.png"]
        assert after.read("testA/006.png") == before.read("class0/006.png")
        before.extractall(tmp_path / "folder")
    script.main(tmp_path / "folder/class0", tmp_path / "folder/class1", tmp_path / "again.zip", every=4)
    assert (tmp_path / "again.zip").read_bytes() == pair.read_bytes()
    with pytest.raises(UserError, match="--every must be at least 2, got 1"):
        script.main(tmp_path, tmp_path, tmp_path / "no.zip", every=1)
    with pytest.raises(UserError, match=r"class0 has 12 pictures, and one of 20 is for tests: give more"):
        script.main(tmp_path / "folder/class0", tmp_path, tmp_path / "no.zip", every=20)
    with pytest.raises(UserError, match=r"nowhere is no folder and no \.zip"):
        script.main(tmp_path / "nowhere", tmp_path, tmp_path / "no.zip")
    assert not (tmp_path / "no.zip").exists()


@pytest.mark.slow
def test_a_translator_trains_and_is_measured_on_test_pictures(quick_compile, pair, tmp_path, capsys, monkeypatch):
    path, script = str(EXPERIMENTS / "cyclegan.py"), load_script("cyclegan")
    tiny = ["--image-size=20", "--crop=16", "--width=2", "--blocks=1", "--discriminator-width=2", "--history=2"]
    tiny += ["--discriminator-halvings=1", "--batch-size=2", "--steps=2", "--devices=1"]
    monkeypatch.setattr(sys, "argv", [path, f"--data={pair}", f"--run-dir={tmp_path / 'run'}", *tiny])
    runpy.run_path(path, run_name="__main__")
    run = ganstyle_jax.load(tmp_path / "run")
    assert run.step == 2 and run.cfg.cycle_weight == script.CONFIG.cycle_weight and run.cfg.total_steps == script.STEPS
    assert run.data == {"a": f"{pair}/trainA", "b": f"{pair}/trainB"}
    judge = load_script("translation_distance")
    network = vgg.VGG(((3,), (5,)))
    weights.write(tmp_path / "tiny.safetensors", network, network.init(jax.random.key(0)))
    settings = judge.Settings(
        (tmp_path / "run",),
        (f"{pair}/test",),
        str(tmp_path / "tiny.safetensors"),
        layers=("relu2_1", "relu1_1"),
        json=tmp_path / "record.json",
    )
    judge.main(settings)
    record = json.loads((tmp_path / "record.json").read_text())
    assert str(tmp_path) not in json.dumps(record["features"]) and record["quoted"] == "relu2_1"
    rows = {row["direction"]: row for row in record["rows"]}
    assert set(rows) == {"a2b", "b2a"}
    for way, row in rows.items():
        assert (row["source_count"], row["target_count"], row["step"], row["side"]) == (3, 3, 2, "ours")
        of = row["layers"]["relu2_1"]
        assert of["reduction"] == pytest.approx(1 - of["translated"] / of["source"]) and of["floor"] > 0
        assert 0 < row["cycle"] < 2 and 0 < row["identity"] < 2 and f"colours/{way}" in row
        assert (tmp_path / "run/translation_distance" / f"000002_{way}.png").is_file()
    assert rows["a2b"]["layers"]["relu1_1"]["source"] == pytest.approx(rows["b2a"]["layers"]["relu1_1"]["source"])
    assert "| run | ours | 2 | a2b | relu2_1 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="give runs, test pictures by --data, and --layers"):
        judge.Settings((), (f"{pair}/test",))


def test_distances_of_translations_are_those_of_their_features():
    """Nothing done: no reduction; the target itself: all of it. Of 8 bits, as a saved picture has them."""
    script = load_script("translation_distance")
    network = vgg.VGG(((3,),))
    judge = dataclasses.replace(
        script.networks.feature_network("compact:relu1_1", "none"),
        params=network.init(jax.random.key(0)),
        function=lambda params, images: (images.mean((1, 2)), None),
        dim=3,
    )
    rng = np.random.default_rng(0)
    source, target = (rng.uniform(low, low + 1, (12, 4, 4, 3)).astype(np.float32) for low in (-1, 0))
    nothing = script.distances(judge, source, source, target, None)
    assert nothing["reduction"] == pytest.approx(0, abs=1e-9) and nothing["floor"] is None
    everything = script.distances(judge, source, target + 0.001, target, source)  # less than half a level of 8 bits
    assert everything["reduction"] > 0.999 and everything["floor"] == pytest.approx(everything["source"])
    means = [np.round((x + 1) * 127.5).mean((1, 2)) / 127.5 - 1 for x in (source, target)]
    apart = np.sum((means[0].mean(0) - means[1].mean(0)) ** 2)
    assert nothing["source"] == pytest.approx(apart, rel=0.2)  # most of it is between the means


DESCRIBED = ["mnist", "flowers", "lfw", "cifar10", "cifar10_r3gan", "celeba", "ffhq256", "afhq", "adain", "cyclegan"]
DESCRIBED += ["conditional_glyphs", "stacked_mnist", "gans_at_64", "half_precision"]


@pytest.mark.parametrize("name", DESCRIBED)
def test_docstring_says_what_a_reader_needs(name):
    doc = load_script(name).__doc__ or ""
    for part in ("Paper: ", "Data: ", "Hardware and time: ", "Expected: ", "Command: python experiments/"):
        assert f"\n{part}" in doc


@pytest.fixture(scope="module")
def mnist_runs(home, digits, tmp_path_factory) -> Path:
    """The folder that experiments/mnist.py leaves after two steps with two seeds."""
    folder = tmp_path_factory.mktemp("mnist")
    loop = Loop(folder, steps=2, batch_size=4, checkpoint_every=1, devices=1)
    load_script("mnist").main(str(digits), seeds=(0, 1), measure_at=(), loop=loop, config=GREY)
    return folder


@pytest.mark.slow
def test_mnist_trains_one_run_for_each_seed(mnist_runs):
    runs = [ganstyle_jax.load(mnist_runs / f"seed{seed}") for seed in (0, 1)]
    assert [run.step for run in runs] == [2, 2]
    weights = [np.asarray(run.state.gen.params["project"]) for run in runs]
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


@pytest.mark.slow
def test_load_reads_the_step_that_is_asked_for(mnist_runs):
    first, last = ganstyle_jax.load(mnist_runs / "seed0", step=1), ganstyle_jax.load(mnist_runs / "seed0")
    assert (first.step, int(first.state.step), last.step) == (1, 1, 2)
    with pytest.raises(UserError, match=r"no checkpoint of step 7: it has 1, 2"):
        ganstyle_jax.load(mnist_runs / "seed0", step=7)


@pytest.mark.slow
def test_mnist_measures(mnist_runs, digits, data_dir, capsys):
    loop = Loop(mnist_runs, steps=2, batch_size=4, checkpoint_every=1, devices=1, resume="auto")
    load_script("mnist").main(
        str(digits), seeds=(0,), measure_at=(1, 2), samples=64, reference=data_dir, loop=loop, config=GREY
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": LeNet-FD ")[0] for line in lines] == ["seed 0, step 1", "seed 0, step 2"]
    # Noise is far from digits, and the training images are near, see experiments/lenet_fd.py.
    assert all(float(line.split("LeNet-FD ")[1].split()[0]) > 100 and "images 1.27)" in line for line in lines)


@pytest.mark.slow
def test_mnist_comparison_of_a_run_with_itself_gives_one(mnist_runs, data_dir, tmp_path):
    script = load_script("bench/mnist")
    for seed in (0, 1):  # our own last weights, as if PyTorch had trained them
        convert.export_run(mnist_runs / f"seed{seed}", tmp_path, "pth", averaged=False)
        (tmp_path / "netG.pth").rename(tmp_path / f"netG_{seed}_2.pth")
    settings = script.Settings(
        ours=(mnist_runs / "seed0", mnist_runs / "seed1"),
        torch=tmp_path,
        steps=(2,),
        samples=100,
        reference=data_dir,
        json=tmp_path / "record.json",
    )
    script.main(settings)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["seeds"] == {"ours": [0, 1], "torch": [0, 1]}
    (at,) = record["summary"]
    assert at["ratio"] == pytest.approx(1, abs=1e-9)  # the same weights by two ways
    for statistics in ("standing", "running"):
        ours, theirs = (at["means"][f"{side}, last, {statistics}"] for side in ("ours", "torch"))
        assert ours["lenet_fd_of_seeds"] == pytest.approx(theirs["lenet_fd_of_seeds"])
    # The four variants are four generators.
    values = {name: numbers["lenet_fd"] for name, numbers in at["means"].items() if name.startswith("ours")}
    assert len(set(values.values())) == 4
    assert at["default_ratio"] == values["ours, average, standing"] / values["ours, last, standing"]
    with pytest.raises(UserError, match=r"holds no netG_SEED_3\.pth"):  # before anything is measured
        script.main(dataclasses.replace(settings, steps=(2, 3)))


def test_glyphs_on_demand_are_read(tmp_path, capsys):
    """Two tiny steps: noise is read as anything, and real glyphs as what they are."""
    script = load_script("conditional_glyphs")
    loop = Loop(tmp_path, batch_size=4, devices=1, checkpoint_every=1, keep_every=1, sample_every=1, resume="auto")
    cfg = dataclasses.replace(script.CONFIG, image_size=16, width=2, latent_dim=4)
    small = {"glyphs": 20, "measure_at": (1, 2), "of_each": 20, "loop": loop, "config": cfg}
    record = script.main("glyphs:digits", json=tmp_path / "record.json", **small)
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert [(row["step"], row["samples"]) for row in record["rows"]] == [(1, 200), (2, 200)]
    assert record["real"]["as_asked"] > 0.9 > 0.5 > record["rows"][1]["as_asked"]
    assert list(record["real"]["by_class"]) == list(record["rows"][0]["by_class"]) == list("0123456789")
    assert 0 < record["rows"][1]["variety"] < 1 and (tmp_path / "seed0/classes_000002.png").is_file()
    assert "read as asked for" in capsys.readouterr().out
    # One picture for each class has no variety, and is read rightly all the same.
    source = script.data.open_source("glyphs:digits", 32)
    examples = [source[i] for i in range(60)]
    first = {int(x["label"]): x["image"] for x in reversed(examples)}
    pictures, labels = np.stack([first[k] for k in range(10)] * 2), np.tile(np.arange(10), 2)
    found = script.counted(pictures, labels, "0123456789")
    assert found["variety"] == 0 and found["as_asked"] == 1 and min(found["by_class"].values()) == 1


@pytest.mark.slow
def test_gans_are_compared_for_as_long(tmp_path, capsys):
    """One dispatch of the quickest, judged by real pictures that are smooth, which are near to each other."""
    script = load_script("gans_at_64")
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (40, 1, 1, 3)) + rng.integers(-9, 10, (40, 64, 64, 3))
    np.savez(tmp_path / "smooth.npz", images=np.clip(colours, 0, 255).astype(np.uint8))
    small = {"batch_size": 2, "minutes": 0.0, "samples": 12, "real": 24, "seeds": (0,), "methods": ("dcgan",)}
    of = (f"smooth={tmp_path / 'smooth.npz'}",)
    settings = script.Settings(of, "compact:relu2_1", tmp_path / "runs", json=tmp_path / "record.json", **small)
    record = script.main(settings)
    (row,) = record["rows"]
    assert (row["data"], row["method"], row["images"]) == ("smooth", "dcgan", 2 * row["steps"])
    assert row["fid"] > record["real"]["smooth"]["floor"]["fid"] > 0
    assert (tmp_path / "runs/smooth/dcgan/seed0/samples.png").is_file()
    assert script.main(settings)["rows"] == record["rows"]  # not repeated
    assert "| smooth | dcgan (1 seeds) | " in capsys.readouterr().out
    for wrong, message in (({"data": ("a.zip",)}, "NAME=SOURCE..., got 'a.zip'"), ({"methods": ("vae",)}, "got 'vae'")):
        with pytest.raises(ValueError, match=message):
            script.Settings(**{"data": of} | wrong)


@pytest.mark.slow
def test_half_precision_is_followed(tmp_path, capsys):
    script = load_script("half_precision")
    cfg = dataclasses.replace(script.CONFIG, image_size=16, latent_dim=4, capacity=64, max_channels=4, augment="none")
    small = {"glyphs": 20, "steps": 2, "measure_every": 1, "batch_size": 2, "samples": 20, "config": cfg}
    record = script.main(tmp_path / "runs", json=tmp_path / "record.json", **small)
    assert [(row["dtype"], row["step"]) for row in record["rows"]] == [
        ("float32", 1),
        ("float32", 2),
        ("bfloat16", 1),
        ("bfloat16", 2),
    ]
    one, half = record["rows"][0], record["rows"][2]  # the same pictures and draws, in fewer digits
    assert half["mean"]["loss/gen"] != one["mean"]["loss/gen"] == pytest.approx(half["mean"]["loss/gen"], rel=0.05)
    assert all(0 < row["largest"] <= 256 and np.isfinite(row["fid"]) for row in record["rows"])
    assert "| 2 | bfloat16 |" in capsys.readouterr().out


@pytest.mark.slow
def test_stacked_mnist_counts_modes(data_dir, tmp_path, capsys):
    """Two tiny steps of each method that is there, resumed and not repeated; all modes of real digits are found."""
    script = load_script("stacked_mnist")
    small = {"pictures": 2_000, "samples": 60, "width": 2, "batch_size": 4, "steps": 2, "measure_every": 1}
    settings = script.Settings(
        tmp_path / "runs", data_dir, ("dcgan", "dcgan, conditional"), (0,), json=tmp_path / "record.json", **small
    )
    record = script.main(settings)
    assert [(row["method"], row["seed"], row["steps"]) for row in record["rows"]] == [
        ("dcgan", 0, 2),
        ("dcgan, conditional", 0, 2),
    ]
    for row in record["rows"]:
        assert [point["step"] for point in row["curve"]] == [1, 2] and 1 <= row["modes"] <= 60
        assert np.log(1000 / row["modes"]) - 0.01 <= row["kl"] <= np.log(1000) + 0.01
    assert record["real"]["found"] > 50 and record["real"]["read_rightly"] > 0.9
    assert "| PacDCGAN2, published | | 1,000 | 0.06 |" in capsys.readouterr().out
    again = script.main(settings)
    assert again["rows"] == record["rows"] == json.loads((tmp_path / "record.json").read_text())["rows"]
    with pytest.raises(ValueError, match=r"methods must be of dcgan, .*, got 'vae'"):
        script.Settings(methods=("vae",))


def test_stacks_of_digits_are_what_they_say(digits, tmp_path):
    script = load_script("stacked_mnist")
    (tmp_path / "datasets").mkdir()
    shutil.copy(digits, tmp_path / "datasets" / "mnist.npz")
    with np.load(digits) as file, np.load(script.stacked(tmp_path / "a.npz", tmp_path, "x_train", 60)) as made:
        places = {image.tobytes(): i for i, image in enumerate(file["x_train"])}
        stacks = np.moveaxis(made["images"], -1, 1)  # (60, 3, 28, 28)
        found = np.array([[places[channel.tobytes()] for channel in stack] for stack in stacks])
        np.testing.assert_array_equal(made["labels"], (file["y_train"][found] * [100, 10, 1]).sum(1))
        for channel in found.T:  # each digit of 24 twice or three times, and no two channels alike
            assert set(np.bincount(channel, minlength=24)) == {2, 3}
        assert len({tuple(channel) for channel in found.T}) == 3
    first = (tmp_path / "a.npz").read_bytes()
    assert script.stacked(tmp_path / "b.npz", tmp_path, "x_train", 60).read_bytes() == first


@pytest.mark.slow
def test_a_thousand_modes_of_test_digits_are_found(data_dir, tmp_path):
    """What a perfect generator would have; and the LeNet says here what it says in lenet_fd.py."""
    script = load_script("stacked_mnist")
    found = script.of_real(script.Settings(tmp_path, data_dir))
    assert found["found"] == 1000 and found["read_rightly"] > 0.97
    # By chance alone it is 0.019; of test digits some are rarer than others, and some are misread.
    assert found["kl_by_chance"] < found["kl_of_labels"] < found["kl"] < 0.028
    images_of_test = script.lenet_fd.real_images("x_test", data_dir)[:900]
    stacks = np.concatenate(np.split(images_of_test, 3), -1)
    expected = script.lenet_fd.classify(images_of_test).probabilities.argmax(1).reshape(3, 300).T
    np.testing.assert_array_equal(script.digits(stacks, data_dir), expected)


def test_mnist_in_pytorch(torch, digits, tmp_path):
    script = load_script("bench/train_torch")
    threads = torch.get_num_threads()
    settings = script.Settings(
        str(digits), tmp_path, seeds=(0, 1), save_at=(1, 2), image_size=16, width=4, batch_size=4, threads=1
    )
    script.main(settings)
    script.main(dataclasses.replace(settings, out=tmp_path / "average", seeds=(0,), ema_halflife_images=4))
    torch.set_num_threads(threads)
    averages, last = (
        [convert.read_file(tmp_path / "average" / f"{name}_0_{step}.pth") for step in (1, 2)]
        for name in ("averageG", "netG")
    )
    for name in ("main.0.weight", "main.1.bias"):  # a half-life of one batch
        assert np.allclose(averages[1][name], (averages[0][name] + last[1][name]) / 2, rtol=0, atol=1e-7)
    found = {path.name: convert.read_file(path) for path in tmp_path.glob("*.pth")}
    assert set(found) == {f"netG_{seed}_{step}.pth" for seed in (0, 1) for step in (1, 2)}
    kind, cfg = convert.config_of(found["netG_0_2.pth"])
    assert (kind, cfg.image_size, cfg.width, cfg.channels, cfg.latent_dim) == ("generator", 16, 4, 1, 100)
    kernels = {name: state["main.0.weight"] for name, state in found.items()}
    # Adam's steps are about as long as its learning rate; seeds differ by far more.
    moved = np.abs(kernels["netG_0_2.pth"] - kernels["netG_0_1.pth"]).max()
    assert 1e-5 < moved < 1e-3 < np.abs(kernels["netG_0_2.pth"] - kernels["netG_1_2.pth"]).max()
    assert set(json.loads((tmp_path / "train.json").read_text())["seconds"]) == {"0", "1"}


@pytest.mark.slow
def test_training_in_pytorch_begins_and_draws_as_ours_does(torch, digits, mnist_runs, tmp_path):
    script = load_script("bench/train_torch")
    cfg, loop = (runs.read(mnist_runs / "seed1")[part] for part in ("config", "loop"))
    same = ("image_size", "width", "ema_halflife_images")
    sizes = {name: cfg[name] for name in same} | {"batch_size": loop["batch_size"]}
    threads = torch.get_num_threads()
    script.main(script.Settings(str(digits), tmp_path, seeds=(1,), save_at=(2,), paired=True, threads=1, **sizes))
    torch.set_num_threads(threads)
    state = runs.load(mnist_runs / "seed1").state
    for name, ours in {"netG": state.gen.params, "averageG": state.ema}.items():
        theirs = convert.load([tmp_path / f"{name}_1_2.pth"]).state.gen.params
        for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(ours), strict=True):
            # Adam's first steps are as long for a gradient of rounding's size as for any, in either direction.
            assert np.median(np.abs(a - b)) < 1e-7


@pytest.mark.slow
def test_losses_are_compared_with_each_other_and_with_pytorch(torch, digits, data_dir, tmp_path):
    losses, torch_training = load_script("losses"), load_script("bench/train_torch")
    sizes = {"width": 4, "batch_size": 4}
    chosen = losses.Settings(
        mnist=str(digits),
        mnist_test=str(digits),
        glyphs=40,
        folder=tmp_path,
        seeds=(0, 1),
        losses=("non_saturating",),
        steps=2,
        **sizes,
        count=32,
        devices=1,
        reference=data_dir,
        json=tmp_path / "record.json",
    )
    losses.glyphs(tmp_path / "glyphs.npz", chosen.kind, chosen.glyphs)
    threads = torch.get_num_threads()
    for name, source in (("glyphs", tmp_path / "glyphs.npz"), ("mnist", digits)):
        out = tmp_path / name / "torch"
        torch_training.main(torch_training.Settings(str(source), out, (0, 1), (2,), 32, threads=1, **sizes))
    torch.set_num_threads(threads)
    rows = losses.main(chosen)["rows"]
    sides = [
        (data, side, seed)
        for data in ("glyphs", "mnist")
        for side in ("ours", "ours, last weights", "PyTorch")
        for seed in (0, 1)
    ]
    assert sorted((row["data"], row["side"], row["seed"]) for row in rows) == sorted(sides)
    for row in rows:
        assert (
            set(losses.SHOWN[row["data"]]) <= set(row["metrics"]) and row["metrics"]["kid"] > 0.01
        )  # two steps are few
    table = losses.table(rows, "glyphs").splitlines()
    assert len(table) == 5 and table[-1].startswith("| non_saturating, PyTorch |")


def test_cost_of_an_evaluation(zipped, tmp_path):
    script = load_script("evaluation_cost")
    script.main(script.Settings(str(zipped), (8, 16), f"{zipped.parent}/mine.py:means", json=tmp_path / "record.json"))
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert [row["images"] for row in rows] == [8, 16]
    assert all(0 < row["metrics_seconds"] < row["seconds"] and 0.05 < row["peak_gb"] < 8 for row in rows)


@pytest.mark.slow
def test_cifar_against_itself_is_no_worse(torch, zipped, tmp_path, home):
    script = load_script("bench/cifar")
    cfg = dcgan.Config(image_size=32, width=4)
    for seed in (0, 1):
        loop = Loop(tmp_path / "ours" / f"seed{seed}", steps=2, batch_size=4, seed=seed, checkpoint_every=1, devices=1)
        train.run(dcgan, cfg, str(zipped), loop)
        for name in ("averageG", "netG"):  # as if PyTorch had trained them
            convert.export_run(loop.run_dir, tmp_path / "torch", "pth", averaged=name == "averageG")
            (tmp_path / "torch" / "netG.pth").rename(tmp_path / "torch" / f"{name}_{seed}_2.pth")
    folders = (tmp_path / "ours", tmp_path / "torch")
    record = script.main(
        script.Settings(str(zipped), *folders, (0, 1), (2,), (2,), 16, 16, "compact", tmp_path / "record.json")
    )
    assert list(record["summary"]) == [f"{m} of {w} weights" for w in ("average", "last") for m in ("kid", "fid")]
    for found in record["summary"].values():
        assert found["ratio"] == pytest.approx(1) and found["upper_bound_of_reference"] == pytest.approx(0, abs=1e-6)
    # Two steps have moved the last weights, and their average by far less.
    assert record["rows"][0]["kid"] != record["rows"][2]["kid"]
    rows = [
        {"weights": "last", "side": side, "seed": seed, "step": 1, "kid": kid}
        for side, seed, kid in [
            ("ours", 0, 1.1),
            ("torch", 0, 1.0),
            ("ours", 1, 0.9),
            ("torch", 1, 1.0),
            ("ours", 2, 1.3),
            ("torch", 2, 1.0),
        ]
    ]
    by_hand = script.summary(rows, (0, 1, 2), "last", "kid")
    # Differences 0.1, -0.1, 0.3: mean 0.1, deviation 0.2; Student's t of 2 degrees of freedom, one-sided 95 %: 2.91999.
    assert by_hand["mean_difference"] == pytest.approx(0.1)
    assert by_hand["upper_bound"] == pytest.approx(0.1 + 2.919986 * 0.2 / 3**0.5)


@pytest.mark.slow
def test_kills_sees_a_flipped_bit_and_a_lost_file(mnist_runs, tmp_path):
    script = load_script("kills")
    shutil.copytree(mnist_runs / "seed0", tmp_path / "run")
    assert script.check_sums(tmp_path / "run") == {1: True, 2: True}
    largest = max((tmp_path / "run/checkpoints/1").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    os.unlink(max((tmp_path / "run/checkpoints/2").rglob("_METADATA")))
    assert script.check_sums(tmp_path / "run") == {1: False, 2: False}


@pytest.mark.slow
def test_kills_at_a_tiny_size(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles faster
    script = load_script("kills")
    # The moment of this seed comes after 14 of the steps: a busy machine may be late with it.
    small = {"kills": 1, "seed": 32, "steps": 200, "width": 4, "batch_size": 4}
    record = script.main(script.Settings(**small, json=tmp_path / "kills.json"))
    assert (record["kills"], record["damaged"], record["lost"], record["equal"]) == (1, 0, 0, True)
    assert json.loads((tmp_path / "kills.json").read_text())["sha256_killed"] == record["sha256_undisturbed"]


@pytest.mark.slow
def test_weak_scaling_of_training_is_counted(quick_compile, tmp_path, capsys):
    script = load_script("weak_scaling")
    work = ("dcgan jit", "dcgan shard-state", "dcgan pmap")
    small = {"batch": 8, "image_size": 16, "width": 16, "tpu": False, "json": tmp_path / "weak_scaling.json"}
    record = script.main(script.Settings(counts=(2, 8), work=work, **small))
    assert json.loads((tmp_path / "weak_scaling.json").read_text())["results"] == record["results"]
    assert "| dcgan pmap | cpu | 8 |" in capsys.readouterr().out
    weights = jax.eval_shape(lambda: dcgan.init(jax.random.key(0), dcgan.Config(16, channels=3, width=16)))
    gradients = 4 * sum(x.size for x in jax.tree.leaves((weights.gen.params, weights.disc.params)))
    for name in work:
        two, eight = (of for of in record["results"] if of["work"] == name)
        assert (two["devices"], eight["devices"]) == (2, 8)
        # As much work and memory on each of eight as on each of two, but for draws of the whole batch.
        assert two["flops"] == pytest.approx(eight["flops"], rel=0.15)
        assert two["temporary_bytes"] == pytest.approx(eight["temporary_bytes"], rel=0.15)
        kept = 2 / 8 if name == "dcgan shard-state" else 1  # small arrays are not cut
        assert eight["state_and_data_bytes"] / two["state_and_data_bytes"] == pytest.approx(kept, abs=0.15)
        # Gradients are exchanged once, with some statistics and metrics, and no more of it among more devices.
        assert gradients <= eight["collectives"].pop("all-reduce")["bytes"] < 1.2 * gradients
        two["collectives"].pop("all-reduce")
        # Weights in parts are fetched once for all that is computed with them in an update; nothing else is exchanged.
        if name == "dcgan shard-state":
            assert 0.5 * gradients < eight["collectives"].pop("all-gather")["bytes"] < 2 * gradients
        assert not eight["collectives"]
    with pytest.raises(UserError, match="--counts must be from 1 to 8, got"):
        script.main(script.Settings(counts=(9,), tpu=False, json=None))


# ---------------------------------------------------------------------------------------------------------------------
# Style transfer


@pytest.mark.slow
def test_distillation_takes_two_steps_and_goes_on(quick_compile, data_dir, pictures, tmp_path):
    script = load_script("distill_vgg")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "weights").symlink_to(data_dir / "weights")
    with np.load(pictures) as file:
        for name in ("pacs_photo_art_160px.zip", "imagenet_sample_1000_256px.zip"):
            with zipfile.ZipFile(tmp_path / "datasets" / name, "w") as archive:
                for i, picture in enumerate(file["images"]):
                    images.save_png(tmp_path / "picture.png", picture)
                    archive.write(tmp_path / "picture.png", f"photo/{i:03d}.png")
    small = {"crop": 32, "pool": 4, "batch_size": 2, "moves": 1, "examples": 1, "derivatives": 1, "fitted": 8}
    settings = script.Settings(data=tmp_path, run_dir=tmp_path / "run", steps=2, json=tmp_path / "record.json", **small)
    script.main(settings)
    network, params = weights.read(tmp_path / "run" / "compact.safetensors")
    assert network == vgg.COMPACT
    first = np.asarray(params["conv1_1"]["kernel"])
    record = json.loads((tmp_path / "record.json").read_text())
    assert set(record["held_out_relative_errors"]) == {*script.TAPS, *(f"gram {tap}" for tap in script.STYLE)}
    script.main(dataclasses.replace(settings, steps=4))
    longer = np.asarray(weights.read(tmp_path / "run" / "compact.safetensors")[1]["conv1_1"]["kernel"])
    assert np.abs(longer - first).max() > 1e-5


def test_first_weights_of_a_student_as_large_as_its_teacher_say_what_it_says(monkeypatch):
    script = load_script("distill_vgg")
    teacher = vgg.VGG(((5,), (6,)), first_padding="reflect")
    params = jax.tree.map(lambda x: 0.3 + x, teacher.init(jax.random.key(0)))
    taps = ("relu1_1", "relu2_1")
    monkeypatch.setattr(script, "STYLE", taps)
    monkeypatch.setattr(script, "TAPS", taps)
    monkeypatch.setattr(script, "STUDENT", dataclasses.replace(teacher, heads=((5,), (4,))))
    images = jax.random.uniform(jax.random.key(1), (16, 16, 16, 3), minval=-1)
    components, student = script.first_weights(teacher, params, images)
    found = script.STUDENT.apply(student, images, taps)
    for tap, features in teacher.apply(params, images, taps).items():
        expected = features @ components[tap]
        # Ridge regression holds the weights back by some 1e-4 of what they explain, layer by layer.
        np.testing.assert_allclose(found[tap], expected, atol=0.02 * float(np.abs(expected).max()), err_msg=tap)
        # All components together have a mean square of one; the first four of six have nearly as much.
        assert 0.9 < float(np.mean(np.sum(expected**2, -1))) / features.shape[-1] <= 1 + 1e-4


@pytest.mark.slow
def test_optimizers_of_style_transfer_are_compared(quick_compile, torch, tmp_path, capsys):
    script = load_script("bench/gatys_optimizers")
    network = vgg.VGG(((3,), (3,), (3,), (3,), (3,)), padding="reflect")
    weights.write(tmp_path / "tiny.safetensors", network, network.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        images.save_png(tmp_path / name, np.clip(images.resize(rng.uniform(-1, 1, (6, 6, 3)), (40, 48)), -1, 1))
    script.main(
        script.Settings(
            pictures=tmp_path,
            features=str(tmp_path / "tiny.safetensors"),
            pairs=("a.png", "b.png"),
            size=32,
            evaluations=(2, 12),
            histories=(5,),
            rates=(0.02,),
            json=tmp_path / "record.json",
        )
    )
    record = json.loads((tmp_path / "record.json").read_text())
    best = record["pairs"]["a.png b.png"]
    assert set(best) == {"ours", "torch, history 5", "adam, rate 0.02"}
    assert all(early >= late > 0 for early, late in best.values())
    assert record["ratio"]["torch"][1] == pytest.approx(best["ours"][1] / best["torch, history 5"][1], abs=1e-4)
    assert str(tmp_path) not in record["features"]
    assert "ours over the best of torch" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_of_large_pictures_is_measured(quick_compile, tmp_path):
    script = load_script("large_pictures")
    script.main(script.Settings(sizes=(96,), tile=32, rows_size=128, devices=(1, 2), json=tmp_path / "record.json"))
    record = json.loads((tmp_path / "record.json").read_text())
    whole, tiles = record["compact"]["96 whole"], record["compact"]["96 tiles"]
    assert whole["loss"] == pytest.approx(tiles["loss"], rel=1e-4)
    assert whole["process_mb"] >= whole["before_mb"] > 0 and whole["seconds"] > 0
    assert record["rows"]["vgg19 2"]["temporary_mb"] < record["rows"]["vgg19 1"]["temporary_mb"]
