"""`ganstyle evaluate --pairs`: pictures beside those that they belong to."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import metrics as skimage_metrics

from ganstyle_jax import cli
from ganstyle_jax.features import alexnet, vgg, weights
from ganstyle_jax.io import pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import evaluate, features, networks
from ganstyle_jax.judge import pairs as evaluate_pairs
from ganstyle_jax.judge.metrics import distances, lpips, style

pytestmark = pytest.mark.usefixtures("home", "quick_compile")


def picture(seed, height=48, width=40):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(folder, **named):
    folder.mkdir(exist_ok=True)
    for name, image in named.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    noisy = {name: np.clip(picture(i) + np.int64(9), 0, 255).astype(np.uint8) for i, name in enumerate("ab")}
    return save(tmp_path / "results", **noisy), save(tmp_path / "originals", a=picture(0), b=picture(1), c=picture(2))


def test_psnr_and_ssim_are_scikit_images(folders):
    results, originals = folders
    chosen = evaluate_pairs.Settings(originals, ("psnr", "ssim", "psnr_y", "ms_ssim"), border=2)
    record = evaluate_pairs.run(results, None, chosen, evaluate.Settings())
    for row, name in zip(record["pairs"], "ab", strict=True):
        a, b = (np.asarray(Image.open(folder / f"{name}.png")) for folder in (originals, results))
        assert row["picture"] == row["partner"] == f"{name}.png"
        assert row["psnr"] == pytest.approx(skimage_metrics.peak_signal_noise_ratio(a, b), rel=1e-6)
        ours = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
        expected = skimage_metrics.structural_similarity(a, b, data_range=255, **ours)
        assert row["ssim"] == pytest.approx(expected, abs=1e-6)
    means = {name: np.mean([row[name] for row in record["pairs"]]) for name in ("psnr", "ssim", "psnr_y", "ms_ssim")}
    assert record["metrics"] == pytest.approx(means)
    assert record["protocol"] == {"pairs": 2, "partners": "originals", "fit": False, "border": 2, "scales": 2}


def test_the_command(folders, capsys):
    results, originals = folders
    cli.main(["evaluate", str(results), "--pairs", str(originals), "--json"])
    assert set(json.loads(capsys.readouterr().out)["metrics"]) == {"psnr", "ssim"}
    cli.main(["evaluate", str(results), "--pairs", str(originals)])
    assert capsys.readouterr().out.startswith("psnr  ")


def test_names_of_partners(tmp_path):
    originals = [tmp_path / name for name in ("a.png", "a-b.jpg", "c.png")]
    results = [tmp_path / name for name in ("a-b-scream.png", "a-night.png", "c.webp")]
    found = evaluate_pairs.partners(results, originals)
    assert [partner.name for _, partner in found] == ["a-b.jpg", "a.png", "c.png"]
    with pytest.raises(UserError, match=r"d\.png has no partner"):
        evaluate_pairs.partners([tmp_path / "d.png"], originals)
    with pytest.raises(UserError, match="same name"):
        evaluate_pairs.partners(results, [*originals, tmp_path / "c.jpg"])
    styles = [tmp_path / "scream.png", tmp_path / "b-scream.png", tmp_path / "night.jpg"]
    assert [evaluate_pairs.style_of(path, styles) for path in results] == ["b-scream", "night", "c.webp"]


def test_partners_by_pattern(tmp_path):
    def of(patterns, results, originals, folders=None):
        paths = [[tmp_path / name for name in names] for names in (results, originals)]
        found = evaluate_pairs.partners(*paths, folders, patterns)
        return [(result.name, partner.name) for result, partner in found]

    upscaled = ["a-1_x4.png", "b_x4.png", "notes.png"]
    expected = [("a-1_x4.png", "a-1.jpg"), ("b_x4.png", "b.tif")]
    for pattern in ("{}_x4.png", "{}_x4"):
        assert of((pattern,), upscaled, ["a-1.jpg", "b.tif", "a.png"]) == expected
    together = ["1_gt.png", "1_lq.png", "1_restored.png", "2_gt.png", "2_lq.png", "2_restored.png"]  # in one folder
    expected = [("1_restored.png", "1_gt.png"), ("2_restored.png", "2_gt.png")]
    assert of(("{}_restored.png", "{}_gt.png"), together, together) == expected
    assert of(("out_{}",), ["out_c.d.png"], ["c.d.webp"]) == [("out_c.d.png", "c.d.webp")]
    for patterns, originals, said in (
        (("{}_x2.png",), ["b.tif"], r"none of the 3 pictures in .* is named as --pairs-pattern {}_x2.png"),
        (("{}_x4.png",), ["a-1.jpg"], r"b_x4.png has no partner in .*: b was looked for"),
        (("{}_x4", "{}_gt"), ["a-1_gt.jpg", "c.png"], r"b_x4.png has no partner in .*: b_gt was looked for"),
        (("{}_x4",), ["a-1.jpg", "a-1.png", "b.png"], r"a-1.jpg and .*a-1.png have the same name"),
    ):
        with pytest.raises(UserError, match=said):
            of(patterns, upscaled, originals)
    for patterns, said in ((("*_x4.png",), "must have {} once"), (("{}", "{}", "{}"), "one pattern or two, got 3")):
        with pytest.raises(ValueError, match=said):
            evaluate_pairs.Settings(pairs_pattern=patterns)


def test_folders_in_folders_and_every_kind_of_picture(tmp_path, capsys):
    for i, place in enumerate(("one", "two")):
        for folder in ("results", "originals"):
            (tmp_path / folder / place).mkdir(parents=True)
        Image.fromarray(picture(i)).save(tmp_path / "results" / place / "same-blue.bmp")
        Image.fromarray(picture(i)).save(tmp_path / "originals" / place / "same.ppm")
    (tmp_path / "results" / ".thumbnails").mkdir()
    Image.fromarray(picture(5)).save(tmp_path / "results" / ".thumbnails" / "no.png")
    cli.main(
        ["evaluate", f"{tmp_path}/results", "--pairs", f"{tmp_path}/originals", "--pair-metrics", "ssim", "--json"]
    )
    record = json.loads(capsys.readouterr().out)
    places = [(row["picture"], row["partner"]) for row in record["pairs"]]
    assert places == [("one/same-blue.bmp", "one/same.ppm"), ("two/same-blue.bmp", "two/same.ppm")]
    assert record["metrics"]["ssim"] == pytest.approx(1)
    Image.fromarray(picture(1)).save(tmp_path / "results" / "same.png")
    with pytest.raises(UserError, match=r"one/same.ppm and .*two/same.ppm have the same name: .*results/same.png"):
        evaluate_pairs.run(
            str(tmp_path / "results"),
            None,
            evaluate_pairs.Settings(str(tmp_path / "originals")),  # pyright: ignore[reportArgumentType]
            evaluate.Settings(),
        )


def test_the_command_takes_a_pattern(tmp_path, capsys):
    folder = save(tmp_path / "both", a_gt=picture(0), a_restored=picture(0), b_gt=picture(1), b_restored=picture(1))
    args = ["evaluate", str(folder), "--pairs", str(folder), "--pairs-pattern", "{}_restored.png", "{}_gt.png"]
    cli.main([*args, "--pair-metrics", "ssim", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert [row["partner"] for row in record["pairs"]] == ["a_gt.png", "b_gt.png"]
    assert record["metrics"]["ssim"] == pytest.approx(1)


def test_other_sizes_are_refused_or_fitted(folders, tmp_path):
    results, _ = folders
    originals = save(tmp_path / "larger", a=picture(0, 96, 80), b=picture(1))
    chosen = evaluate_pairs.Settings(originals)
    with pytest.raises(UserError, match=r"80 x 96 pixels and .*40 x 48.*--fit"):
        evaluate_pairs.run(results, None, chosen, evaluate.Settings())
    fitted = evaluate_pairs.Settings(originals, fit=True)
    assert evaluate_pairs.run(results, None, fitted, evaluate.Settings())["protocol"]["fit"]
    with pytest.raises(UserError, match="no folder with pictures"):
        evaluate_pairs.run(tmp_path / "nowhere", None, chosen, evaluate.Settings())


def test_stylised_pictures(tmp_path, data_dir):
    heads = data_dir / "weights" / "lpips_v0.1" / "alex.pth"
    trunk = tmp_path / "alexnet.safetensors"
    network = alexnet.AlexNet()
    weights.write(trunk, network, network.init(jax.random.key(0)) | {"input": weights.IMAGENET_INPUT})
    small = vgg.VGG(((4, 4), (4, 4), (8, 8, 8, 8)))
    weights.write(tmp_path / "small.safetensors", small, small.init(jax.random.key(1)))
    contents = save(tmp_path / "contents", x=picture(0, 64, 64), y=picture(1, 64, 64))
    styles = save(tmp_path / "styles", s=picture(2, 64, 64), t=picture(3, 64, 64), u=picture(3, 64, 64))
    made = {
        f"{content}-{of}": picture(i, 64, 64) for i, (content, of) in enumerate([("x", "s"), ("x", "t"), ("y", "s")])
    }
    results = save(tmp_path / "results", **made)
    chosen = evaluate_pairs.Settings(
        contents,
        ("art_fid", "cfsd"),
        lpips_trunk=str(trunk),
        lpips_heads=str(heads),
        cfsd_features=str(tmp_path / "small.safetensors"),
    )
    others = evaluate.Settings(features="compact")
    with pytest.raises(UserError, match="--reference"):
        evaluate_pairs.run(results, None, chosen, others)
    record = evaluate_pairs.run(results, str(styles), chosen, others)
    assert "3 generated and 3 real images are too few" in record["warnings"][0]
    read = {
        path.stem: pictures.read_picture(path)[None]
        for folder in (contents, styles, results)
        for path in folder.glob("*")
    }
    measure, net = lpips.load("alex", trunk, heads), networks.feature_network("compact")
    distance = np.mean([float(measure(read[name[0]], read[name])[0]) for name in made])
    a, b = (features.extract(net, [read[name] for name in names])[0] for names in (("s", "t", "u"), made))
    fid = distances.frechet_distance(distances.gaussian(a), distances.gaussian(b))
    assert record["metrics"]["art_fid"] == pytest.approx((1 + distance) * (1 + fid), rel=1e-4)
    network, params = weights.load(tmp_path / "small.safetensors")
    cfsd = np.mean([float(style.cfsd(network, params, read[name[0]], read[name])[0]) for name in made])
    assert record["metrics"]["cfsd"] == pytest.approx(cfsd, rel=1e-4)
    protocol = record["protocol"]
    assert (protocol["unique_styles"], protocol["style_pictures"], protocol["different_style_pictures"]) == (2, 3, 2)
    with pytest.raises(UserError, match=r"5,000"):
        infinite = evaluate_pairs.Settings(**{**vars(chosen), "infinity": True})
        evaluate_pairs.run(results, str(styles), infinite, others)
