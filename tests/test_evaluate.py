"""`ganstyle evaluate`: what is measured of what, and that no figure is without its protocol."""

import dataclasses
import json
import os
import re
import types
import zipfile

import jax
import numpy as np
import pytest
import small_wgan
from PIL import Image

import ganstyle_jax
from ganstyle_jax import cli
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import evaluate, features
from ganstyle_jax.judge.metrics import distances
from ganstyle_jax.look import measure
from ganstyle_jax.loop import runs
from ganstyle_jax.loop.train import Loop, run

pytestmark = pytest.mark.usefixtures("home", "quick_compile")

WGAN = small_wgan.Config(latent_dim=4, width=8)
ALL = ("fid", "kid", "precision_recall", "density_coverage", "sliced_wasserstein", "ms_ssim")


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Features of one's own: the colours of four quarters. Quick to compile."""
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(
        "def quarters(images):\n"
        "    b, h, w, c = images.shape\n"
        "    return images.reshape(b, 2, h // 2, 2, w // 2, c).mean((2, 4)).reshape(b, -1)\n"
    )
    return f"{path}:quarters"


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory, mine, home):
    """A run of 12 steps that evaluates itself every 4."""
    run_dir = tmp_path_factory.mktemp("evaluated") / "run"
    loop = Loop(run_dir, 12, 8, log_every=4, sample_every=12, checkpoint_every=100, keep_checkpoints=1, devices=1)
    loop = dataclasses.replace(loop, evaluate_every=4, evaluate_features=mine, evaluate_count=64)
    run(small_wgan, WGAN, str(pictures), loop)
    return run_dir


def random_images(n, seed=0, size=16, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


def saved(path, images):
    np.savez(path, images=images)
    return path


def settings(mine, **changes):
    return evaluate.Settings(**({"metrics": ALL, "features": mine, "count": 50, "real_count": 40} | changes))


# ---------------------------------------------------------------------------------------------------------------------
# Sets of images


def test_the_metrics_are_those_of_the_features(tmp_path, mine):
    real, fake = random_images(40), random_images(50, 1)
    record = measure.run(
        saved(tmp_path / "fake.npz", fake),
        measure.Options(reference=str(saved(tmp_path / "real.npz", real))),
        settings(mine),
    )

    def quarters(images):
        images = images.astype(np.float32) / 127.5 - 1
        return images.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4)).reshape(len(images), -1)

    a, b = quarters(real), quarters(fake)
    found = record["metrics"]
    assert found["fid"] == pytest.approx(
        distances.frechet_distance(distances.gaussian(a), distances.gaussian(b)), rel=1e-5
    )
    assert (found["precision"], found["recall"]) == pytest.approx(distances.precision_recall(a, b))
    assert (found["density"], found["coverage"]) == pytest.approx(distances.density_coverage(a, b))
    assert found["kid_spread"] > 0 and found["ms_ssim_scales"] == 1 and found["sliced_wasserstein_16"] > 0
    protocol = record["protocol"]
    assert protocol["real"] == {"source": "real.npz", "count": 40, "of": 40, "image_size": None}
    assert protocol["fake"]["count"] == 50 and protocol["features"] == "mine.py:quarters"
    assert (
        protocol["colours"] == "sRGB"
        and protocol["kid_subset"] == 20
        and len(protocol["weights"]) == 64
        and record["step"] is None
    )
    assert set(record["versions"]) >= {"ganstyle_jax", "jax"}
    json.dumps(record)


def test_real_against_itself_is_at_no_distance_and_damage_is_seen(tmp_path, mine):
    real = random_images(60)
    reference = measure.Options(reference=str(saved(tmp_path / "real.npz", real)))
    chosen = settings(mine, metrics=("fid", "precision_recall", "density_coverage"), count=60, real_count=60)
    found = measure.run(tmp_path / "real.npz", reference, chosen)["metrics"]
    assert found["fid"] == pytest.approx(0, abs=1e-9) and found["precision"] == found["coverage"] == 1
    darker = measure.run(saved(tmp_path / "dark.npz", real // 2), reference, chosen)["metrics"]
    assert darker["fid"] > 0.1 and darker["coverage"] < 0.1


def test_a_folder_a_zip_and_an_npz_give_the_same(tmp_path, mine):
    images = random_images(12)
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "folder" / f"{i:03d}.png")
            archive.write(tmp_path / "folder" / f"{i:03d}.png", f"{i:03d}.png")
    saved(tmp_path / "images.npz", images)
    options = measure.Options(reference=str(saved(tmp_path / "real.npz", random_images(30, 5))))
    chosen = settings(mine, metrics=("fid", "kid"))
    found = [
        measure.run(tmp_path / name, options, chosen)["metrics"] for name in ("folder", "images.zip", "images.npz")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-9) and found[0] == pytest.approx(found[2], rel=1e-9)


def later(path, seconds=7):
    """As if so much time had gone by, since the clock of a file system may tick slowly."""
    then = path.stat().st_mtime_ns + seconds * 10**9
    os.utime(path, ns=(then, then))


def test_what_was_seen_before_is_not_looked_at_again_until_it_changes(tmp_path, mine, monkeypatch):
    path = saved(tmp_path / "real.npz", random_images(30))
    chosen = settings(mine, metrics=("fid", "kid"))
    network = evaluate.network_of(chosen)
    first = evaluate.look_at_source(str(path), network, chosen, None, None)
    assert first.features is not None
    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", None)  # whoever looks, fails
        again = evaluate.look_at_source(str(path), network, chosen, None, None)
    np.testing.assert_array_equal(again.features, first.features)
    np.testing.assert_array_equal(again.gaussian.covariance, first.gaussian.covariance)
    later(saved(path, random_images(30, 7)))
    changed = evaluate.look_at_source(str(path), network, chosen, None, None)
    assert changed.features is not None
    assert np.abs(changed.features - first.features).max() > 0.1


def test_what_lies_at_home_is_seen_to_change_too(tmp_path, mine, monkeypatch):
    """A ~ that no shell has replaced, as in a script."""
    monkeypatch.setenv("HOME", str(tmp_path))
    chosen, found = settings(mine, metrics=("fid",)), []
    for seed in (0, 7):
        later(saved(tmp_path / "real.npz", random_images(30, seed)), seed)
        found.append(evaluate.look_at_source("~/real.npz", evaluate.network_of(chosen), chosen, None, None))
    assert found[0].about["source"] == "real.npz"
    assert np.abs(found[0].gaussian.mean - found[1].gaussian.mean).max() > 0


def test_statistics_in_the_format_of_pytorch_fid(tmp_path, mine):
    real, fake = saved(tmp_path / "real.npz", random_images(40)), saved(tmp_path / "fake.npz", random_images(50, 1))
    chosen = settings(mine, metrics=("fid",))
    first = measure.run(fake, measure.Options(str(real), save_statistics=tmp_path / "stats.npz"), chosen)
    with np.load(tmp_path / "stats.npz") as file:
        assert file["mu"].shape == (12,) and file["sigma"].shape == (12, 12)
        np.savez(tmp_path / "bare.npz", mu=file["mu"], sigma=file["sigma"])  # as pytorch-fid writes them
        np.savez(tmp_path / "other.npz", mu=file["mu"][:5], sigma=file["sigma"][:5, :5])
    for name, count in [("stats.npz", 40), ("bare.npz", "unknown")]:
        found = measure.run(fake, measure.Options(str(tmp_path / name)), chosen)
        assert found["metrics"]["fid"] == pytest.approx(first["metrics"]["fid"], rel=1e-12)
        assert found["protocol"]["real"]["count"] == count
        assert found["protocol"]["real"]["source"] in (name, "real.npz")
    with pytest.raises(UserError, match=r"kid needs the images.*--metrics fid"):
        measure.run(fake, measure.Options(str(tmp_path / "stats.npz")), settings(mine, metrics=("kid",)))
    with pytest.raises(UserError, match=r"kid|images themselves"):
        measure.run(fake, measure.Options(str(tmp_path / "stats.npz")), settings(mine, metrics=("ms_ssim",)))
    with pytest.raises(UserError, match="5 features, and compact"):  # of another network
        measure.run(
            fake,
            measure.Options(str(tmp_path / "other.npz")),
            settings(mine, features="compact", metrics=("fid",), resize=None),
        )


def test_fid_of_few_images_says_so_and_names_the_remedy(tmp_path, mine, caplog):
    real, fake = saved(tmp_path / "real.npz", random_images(13)), saved(tmp_path / "fake.npz", random_images(12, 1))
    record = measure.run(fake, measure.Options(str(real)), settings(mine, metrics=("fid",)))  # of 12 features
    (warning,) = record["warnings"]
    assert re.search(
        r"12 features, and 12 generated images are too few .* more than 12 images .*--count.* kid", warning
    )
    assert caplog.messages == [warning] and "real images" not in warning
    caplog.clear()
    statistics = tmp_path / "statistics.npz"
    np.savez(statistics, mu=np.zeros(12), sigma=np.eye(12))  # that do not say of how many
    for enough in (
        measure.run(real, measure.Options(str(statistics)), settings(mine, metrics=("fid",))),
        measure.run(fake, measure.Options(str(real)), settings(mine, metrics=("precision_recall",))),
    ):
        assert "warnings" not in enough
    assert not caplog.messages


def test_statistics_of_another_network_are_refused_by_both_names(tmp_path, mine):
    theirs = tmp_path / "fid_stats_cifar10_train.npz"
    np.savez(theirs, mu=np.zeros(2048), sigma=np.eye(2048))
    fake = saved(tmp_path / "fake.npz", random_images(12))
    of_mine = r"fid_stats_cifar10_train.npz has statistics of 2,048 features, and mine.py:quarters gives 12: take the"
    of_compact = r"fid_stats_cifar10_train.npz has the statistics of 2048 features, and compact:.* --features inception"
    for network, said in ((mine, of_mine), ("compact", of_compact)):
        with pytest.raises(UserError, match=said):
            measure.run(fake, measure.Options(str(theirs)), settings(network, metrics=("fid",)))


def test_a_cache_that_cannot_be_written_does_not_end_the_work(tmp_path, mine, monkeypatch, caplog):
    (tmp_path / "home").write_text("a file, where a folder is wanted")
    monkeypatch.setenv("GANSTYLE_HOME", str(tmp_path / "home"))
    real, fake = saved(tmp_path / "real.npz", random_images(30)), saved(tmp_path / "fake.npz", random_images(30, 1))
    found = measure.run(fake, measure.Options(str(real)), settings(mine, metrics=("fid",)))
    assert found["metrics"]["fid"] > 0
    (said,) = caplog.messages
    assert re.search(r"^the features of real.npz are not kept for next time: .*home/features cannot be written", said)


def test_paths_may_be_texts(tmp_path, mine):
    real = saved(tmp_path / "real.npz", random_images(30))
    options = measure.Options(str(real), save_statistics=str(tmp_path / "statistics.npz"))  # pyright: ignore
    assert measure.run(str(real), options, settings(mine, metrics=("fid",)))["metrics"]["fid"] < 1e-9
    assert (tmp_path / "statistics.npz").is_file()
    with pytest.raises(UserError, match="say with --reference"):
        measure.run("/nonexistent", measure.Options(), evaluate.Settings())
    with pytest.raises(UserError, match=r"statistics cannot be written to .*real.npz/statistics.npz: "):
        options = measure.Options(str(real), save_statistics=real / "statistics.npz")
        measure.run(str(real), options, settings(mine, metrics=("fid",)))


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def test_training_evaluates_and_keeps_the_best(trained, mine):
    records = runs.evaluations(trained)
    assert [record["step"] for record in records] == [4, 8, 12]
    assert all(record["score"] == record["metrics"]["fid"] > 0 for record in records)
    best = min(records, key=lambda record: record["score"])["step"]
    assert runs.best_step(trained) == best
    kept = {int(path.name) for path in (trained / "checkpoints").iterdir() if path.is_dir()}
    assert kept == {best, 12}  # the newest one, by keep_checkpoints, and the best
    assert ganstyle_jax.load(trained, step="best").step == best
    # Asked again of the same step in the same way, the command finds the same figure.
    chosen = evaluate.Settings(("fid",), mine, count=64, real_count=64)
    again = measure.run(trained, measure.Options(step=best), chosen)
    first = next(record for record in records if record["step"] == best)
    assert again["metrics"]["fid"] == pytest.approx(first["metrics"]["fid"], rel=1e-5)
    assert again["protocol"] == first["protocol"]
    assert runs.evaluations(trained)[-1]["metrics"] == again["metrics"]
    assert runs.best_step(trained) == best  # which only training's records decide


def test_two_runs_agree_and_a_resumed_one_forgets_what_it_does_again(trained, pictures, mine, tmp_path):
    loop = Loop(tmp_path, 8, 8, log_every=4, sample_every=12, checkpoint_every=8, devices=1, resume="auto")
    loop = dataclasses.replace(loop, evaluate_every=4, evaluate_features=mine, evaluate_count=64)
    run(small_wgan, WGAN, str(pictures), loop)
    runs.add_evaluation(tmp_path, {"step": 12, "score": -1.0, "metrics": {}, "protocol": {}})  # as if killed at 12
    run(small_wgan, WGAN, str(pictures), dataclasses.replace(loop, steps=12))
    found = [(record["step"], record["score"]) for record in runs.evaluations(tmp_path)]
    assert found == [(record["step"], record["score"]) for record in runs.evaluations(trained)[:3]]


def test_the_command_prints_a_table_or_json(trained, mine, capsys):
    args = ["evaluate", str(trained), "--metrics", "fid", "--features", mine, "--count", "32", "--real-count", "24"]
    cli.main(args)
    table = capsys.readouterr().out
    assert table.startswith("fid  ") and "32 images of generator against 24 of pictures.npz" in table
    cli.main([*args, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert f"{record['metrics']['fid']:.4g}" == table.split()[1] and record["step"] == 12


def test_collapse_ends_a_run_if_asked(pictures, tmp_path):
    method = types.ModuleType("method")
    vars(method).update({k: v for k, v in vars(small_wgan).items() if not k.startswith("__")})
    method.__file__ = small_wgan.__file__
    method.watch = dcgan.watch
    method.sample = lambda generator, z, cfg: 0 * small_wgan.sample(generator, z, cfg)
    loop = Loop(tmp_path / "run", 100, 8, log_every=4, sample_every=4, checkpoint_every=4, devices=1)
    loop = dataclasses.replace(loop, stop_on_collapse=True, steps_per_dispatch=4)
    with pytest.raises(UserError, match=r"stopped at step (\d+), because the generator has collapsed.*checkpoints"):
        run(method, WGAN, str(pictures), loop)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 8 <= max(steps) <= 20  # two grids in a row, and at most two dispatches later


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be measured


@pytest.mark.parametrize(
    "args, message",
    [
        (["--count", "1"], "count must be at least 2, got 1"),
        (["--metrics", "glyphs"], "for generators of glyphs, and the real images are pictures.npz"),
        (["--metrics", "inception_score"], "names classes"),
        (["--step", "5"], "no checkpoint of step 5"),
        (["--reference", "nowhere"], "nowhere"),
        (["--features", "nothing"], "nothing"),
        (["--weights", "last"], "a small_wgan.py run has no setting weights"),
    ],
)
def test_errors_of_a_run(trained, mine, capsys, args, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(trained), "--features", mine, "--count", "16", *args])
    assert ended.value.code in (1, 2) and message in capsys.readouterr().err


def test_errors_of_images(tmp_path, mine):
    fake = saved(tmp_path / "fake.npz", random_images(20))
    with pytest.raises(UserError, match="say with --reference"):
        measure.run(fake, measure.Options(), settings(mine))
    with pytest.raises(UserError, match=r"--batch-norm is for a run, and .*fake.npz is none"):
        measure.run(fake, measure.Options(str(fake), batch_norm="batch"), settings(mine))
    few = saved(tmp_path / "few.npz", random_images(3))
    with pytest.raises(UserError, match=r"needs at least \d+ images, and there are 3"):
        measure.run(few, measure.Options(str(fake)), settings(mine, metrics=("density_coverage", "precision_recall")))
    (tmp_path / "sizes").mkdir()
    for size in (16, 18):
        Image.fromarray(random_images(1, size=size)[0]).save(tmp_path / "sizes" / f"{size}.png")
    with pytest.raises(UserError, match="16 x 16 and of 18 x 18"):
        measure.run(tmp_path / "sizes", measure.Options(str(fake)), settings(mine, metrics=("fid",)))


def test_images_of_other_sizes_than_the_real_ones(tmp_path, mine):
    real, fake = saved(tmp_path / "real.npz", random_images(20)), saved(tmp_path / "fake.npz", random_images(20, 1, 24))
    for _ in range(2):  # looked at, and remembered
        with pytest.raises(UserError, match=r"the real ones have 16 x 16 pixels, the others 24 x 24.*@24"):
            measure.run(fake, measure.Options(str(real)), settings(mine, metrics=("fid",)))
    resized = settings(f"{mine}@16", metrics=("fid",))
    assert measure.run(fake, measure.Options(str(real)), resized)["protocol"]["size"] == 16


def test_a_generator_that_draws_nan(trained):
    loaded = runs.load(trained)
    state = jax.tree.map(lambda x: x * np.nan if x.dtype == np.float32 else x, loaded.state)
    shown, _ = evaluate.drawn_by(loaded.method, loaded.cfg, state, 8)
    with pytest.raises(UserError, match="not finite"):
        list(shown)
