"""A conditional run from data to pictures: names of classes, samples of some of them, distances class by class."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_cli import TINY, ganstyle, refusal

import ganstyle_jax
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import classes, evaluate
from ganstyle_jax.judge.metrics import distances
from ganstyle_jax.judge.seen import Seen
from ganstyle_jax.look import walks
from ganstyle_jax.loop import models

pytestmark = pytest.mark.usefixtures("home")
NAMES = ("7", "cat", "owl")  # the first is the number of none of them


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A folder of folders: 20 pictures of each class, brighter by class."""
    folder = tmp_path_factory.mktemp("animals")
    rng = np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        (folder / name).mkdir()
        for i in range(20):
            image = rng.integers(60 * k, 60 * k + 80, (16, 16, 3)).astype(np.uint8)
            images.save_png(folder / name / f"{i:02d}.png", image)
    return folder


@pytest.fixture(scope="module")
def run_dir(home, animals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "animals"
    assert (
        ganstyle("train", "dcgan", f"--data={animals}", f"--run-dir={folder}", *TINY, "--steps=4", "--conditional") == 0
    )
    return folder


@pytest.fixture(scope="module")
def plain(home, animals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain"
    assert ganstyle("train", "dcgan", f"--data={animals}", f"--run-dir={folder}", *TINY, "--steps=1") == 0
    return folder


def test_the_names_of_classes_are_kept_in_the_run_and_in_model_files(run_dir, plain, tmp_path):
    described = json.loads((run_dir / "run.json").read_text())
    assert described["label_names"] == {"real": list(NAMES)} and described["config"]["classes"] == 3
    assert "label_names" not in json.loads((plain / "run.json").read_text())
    run = ganstyle_jax.load(run_dir)
    assert run.label_names == NAMES and run.cfg.classes == 3
    assert ganstyle("export", run_dir, "--format=safetensors", f"--out={tmp_path / 'm.safetensors'}") == 0
    model = models.read(tmp_path / "m.safetensors")
    assert model.label_names == NAMES == models.load(run_dir).label_names
    assert "| Classes | 7, cat, owl |" in (tmp_path / "m.safetensors.md").read_text()
    requests = run.requests(jax.random.key(0), 5)
    np.testing.assert_allclose(model.draw(requests), run.draw(requests), atol=1e-5)


def test_samples_of_some_classes(run_dir, tmp_path):
    run = ganstyle_jax.load(run_dir)
    latents = run.requests(jax.random.key(2), 64)["latents"]
    for words, labels in ((["owl"], [2, 2, 2, 2, 2]), (["1", "7"], [1, 0, 1, 0, 1]), ([], [0, 1, 2, 0, 1])):
        out = tmp_path / f"{'-'.join(words) or 'all'}.npz"
        given = ["--class", *words] if words else []
        assert ganstyle("sample", run_dir, "--count=5", "--seed=2", f"--out={out}", *given) == 0
        asked = {"latents": latents[:5], "label": np.array(labels, np.int32)}
        np.testing.assert_array_equal(np.load(out)["images"], images.to_uint8(run.draw(asked)))
    np.testing.assert_array_equal(
        run.sample(jax.random.key(2), 5, classes=[2]),
        run.draw({"latents": latents[:5], "label": np.full(5, 2, np.int32)}),
    )


def test_grids_have_a_column_for_each_class(run_dir, tmp_path):
    for words, columns, rows in ((["owl", "cat"], 4, 3), ([], 3, 4), (["owl"], 4, 3)):
        out = tmp_path / "grid.png"
        assert ganstyle("sample", run_dir, "--count=12", f"--out={out}", *(["--class", *words] if words else [])) == 0
        width, height = Image.open(out).size
        assert ((width + 2) / 18, (height + 2) / 18) == (columns, rows)
    run = ganstyle_jax.load(run_dir)
    with Image.open(run_dir / "samples" / "000004.png") as grid:  # 64 pictures of three classes in nine columns
        assert grid.size == (9 * 18 - 2, 8 * 18 - 2)
        first = np.asarray(grid)[:16, :16]
    requests = run.requests(jax.random.key(0), 64)
    assert np.abs(images.to_uint8(run.draw(requests))[0].astype(int) - first).max() <= 1


def test_films_go_from_class_to_class(run_dir, tmp_path):
    run = ganstyle_jax.load(run_dir)
    for words, labels in ((["owl", "cat"], [2, 1, 2]), ([], [0, 1, 2])):
        given = ["--class", *words] if words else []
        walk = ["--interpolate", "--stops=3", "--frames=4", f"--out={tmp_path / 'walk'}"]
        assert ganstyle("sample", run_dir, *walk, *given) == 0
        requests = run.requests(jax.random.key(0), 3)
        way = walks.walk(requests["latents"], 3).astype(np.float32)
        weights = np.zeros((12, 3), np.float32)
        for i in range(12):
            weights[i, labels[i // 4]] += 1 - i % 4 / 4
            weights[i, labels[(i // 4 + 1) % 3]] += i % 4 / 4
        np.testing.assert_allclose(walks.blend(labels, 3, 3), weights, atol=1e-7)
        expected = images.grid(run.draw({"latents": way, "label": weights}), columns=4)
        strip = np.asarray(Image.open(tmp_path / "walk" / "strip.png"))
        np.testing.assert_array_equal(strip, images.to_uint8(expected))
    assert ganstyle("sample", run_dir, *walk, "--class", "cat") == 0
    one = run.draw({"latents": way, "label": np.full(12, 1, np.int32)})
    strip = np.asarray(Image.open(tmp_path / "walk" / "strip.png"))
    np.testing.assert_array_equal(strip, images.to_uint8(images.grid(one, columns=4)))


def test_classes_that_are_not_there(run_dir, plain, tmp_path, capsys):
    said = refusal(capsys, "sample", run_dir, f"--out={tmp_path / 'a.png'}", "--class", "dog")
    assert "has no class 'dog': it has 7, cat, owl" in said
    assert "has no class '3'" in refusal(capsys, "sample", run_dir, f"--out={tmp_path / 'a.png'}", "--class", "3")
    said = refusal(capsys, "sample", plain, f"--out={tmp_path / 'a.png'}", "--class", "cat")
    assert "is not conditional and knows no classes, got 'cat': train with --conditional" in said
    with pytest.raises(UserError, match="this method's pictures have none"):
        ganstyle_jax.load(plain).sample(jax.random.key(0), 2, classes=[1])
    assert not (tmp_path / "a.png").exists()


def test_training_on_classes_that_are_not_there(pictures, tmp_path, capsys):
    said = refusal(
        capsys, "train", "dcgan", f"--data={pictures}", f"--run-dir={tmp_path}", *TINY, "--steps=1", "--conditional"
    )
    assert "conditional needs pictures in classes, and" in said and "has none" in said


# ---------------------------------------------------------------------------------------------------------------------
# Distances class by class


def test_distances_of_each_class(run_dir, plain, animals, capsys):
    wanted = ["--metrics", "fid", "kid", "--features=compact", "--count=60", "--json"]
    assert ganstyle("evaluate", run_dir, *wanted, "--per-class") == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["classes"]) == list(NAMES)
    for of in record["classes"].values():
        assert (of["real"], of["generated"]) == (20, 20) and of["fid"] > 0 and np.isfinite(of["kid"])
    assert any("FID by class compares the covariances" in warning for warning in record["warnings"])
    # One class by itself: a reference of that class alone, and samples of it.
    network = evaluate.network_of(evaluate.Settings(features="compact"))
    chosen = evaluate.Settings(("fid", "kid"), "compact", count=60, real_count=60)
    of_owls = evaluate.look(*evaluate.images_of(str(animals / "owl"), network, 20, image_size=16), network, chosen)
    run = ganstyle_jax.load(run_dir)
    requests = run.requests(jax.random.key(0), 64)
    owls = images.to_uint8(run.draw(requests))[:60][np.arange(60) % 3 == 2]
    features = evaluate.look(evaluate.images_from(owls, network), {"source": "owls"}, network, chosen).features
    expected = distances.frechet_distance(of_owls.gaussian, distances.gaussian(features))
    assert record["classes"]["owl"]["fid"] == pytest.approx(expected, rel=1e-3)
    assert ganstyle("evaluate", run_dir, *wanted[:-1], "--per-class") == 0
    table = capsys.readouterr().out
    assert "class" in table and "generated" in table and "owl" in table
    assert "--per-class is for a run that is conditional" in refusal(capsys, "evaluate", plain, *wanted, "--per-class")
    said = refusal(capsys, "evaluate", animals, f"--reference={animals}", "--per-class")
    assert "--per-class is for a run" in said
    said = refusal(capsys, "evaluate", run_dir, *wanted, "--per-class", f"--reference={animals / 'owl'}")
    assert "has no classes" in said


def seen(features):
    features = np.asarray(features, np.float32)
    return Seen(distances.gaussian(features), features, None, None, [], None, {"source": "made up"})


def test_a_class_with_few_pictures_has_no_distances():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + [[3, 0, 0, 0]]
    real_labels, fake_labels = np.repeat([0, 1, 2], [30, 25, 5]), np.arange(60) % 3
    fake[fake_labels == 0] -= [[3, 0, 0, 0]]
    settings = evaluate.Settings(("fid", "kid"), "compact")
    found, warnings = classes.by_class(seen(real), seen(fake), real_labels, fake_labels, "abc", settings)
    assert found["c"] == {"real": 5, "generated": 20}
    assert found["a"]["fid"] < 2 and found["b"]["fid"] > 5 and found["a"]["kid"] < found["b"]["kid"]
    assert warnings == [
        "classes with fewer than 10 real or generated pictures have no distances: c. Raise --count and --real-count"
    ]
    with pytest.raises(UserError, match="--per-class measures fid and kid, got --metrics precision_recall"):
        settings = evaluate.Settings(("precision_recall",), "compact")
        classes.by_class(seen(real), seen(fake), real_labels, fake_labels, "abc", settings)
