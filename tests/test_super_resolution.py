"""Super-resolution against PyTorch, its bicubic against an independent one, and what the method must do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scripts import load_script

from ganstyle_jax import contract
from ganstyle_jax.io import pictures
from ganstyle_jax.restore import bicubic
from ganstyle_jax.restore import super_resolution as sr

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = sr.Config(scale=4, image_size=16, patch=16, width=4, blocks=2, symmetries=False, dtype="float64")
FEATURE = dataclasses.replace(TINY, loss="feature", layers=("relu1_2", "relu2_2"), pixel_weight=0.5)
WAYS = [
    pytest.param(TINY, id="pixel"),
    pytest.param(dataclasses.replace(TINY, scale=8, norm="batch", skip=False, upsampling="transposed"), id="paper"),
    pytest.param(dataclasses.replace(TINY, upsampling="shuffle", distance="absolute", blur=1.0), id="shuffle"),
    pytest.param(FEATURE, id="feature"),
]


def new(cfg, constants=()):
    return jax.jit(lambda key, constants: sr.init(key, cfg, constants))(jax.random.key(0), constants)


def images(n=2, size=16, seed=0):
    """Smooth pictures with edges, (n, size, size, 3) float64 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-1, 1, (n, size // 4, size // 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + 0.1 * rng.normal(size=coarse.shape), -1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Bicubic, written anew pixel by pixel


def imresize(picture, factor, up):
    """MATLAB's imresize as its documentation and the article describe it, one output pixel after the other."""
    for axis in (0, 1):
        rows = np.moveaxis(picture, axis, 0)
        size = len(rows)
        wide = 1.0 if up else float(factor)
        scale = 1 / factor if up else float(factor)
        out = []
        for i in range(size * factor if up else size // factor):
            at = (i + 0.5) * scale - 0.5
            total, weight = np.zeros_like(rows[0]), 0.0
            for j in range(int(np.floor(at - 2 * wide)), int(np.ceil(at + 2 * wide)) + 1):
                d = abs(j - at) / wide
                k = 0.0
                if d < 1:
                    k = 1.5 * d**3 - 2.5 * d**2 + 1
                elif d < 2:
                    k = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
                total, weight = total + k * rows[min(max(j, 0), size - 1)], weight + k
            out.append(total / weight)
        picture = np.moveaxis(np.stack(out), 0, axis)
    return picture


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_bicubic_equals_the_one_pixel_by_pixel(x64, factor):
    large = np.random.default_rng(0).uniform(-1, 1, (24, 48, 3))
    small = np.random.default_rng(1).uniform(-1, 1, (3, 5, 3))
    shrunk = bicubic.shrink(jnp.asarray(large[None]), factor)[0]
    np.testing.assert_allclose(shrunk, imresize(large, factor, up=False), atol=1e-13)
    enlarged = bicubic.enlarge(jnp.asarray(small[None]), factor)[0]
    np.testing.assert_allclose(enlarged, imresize(small, factor, up=True), atol=1e-13)


def test_bicubic_equals_pytorchs_inside(x64, torch):
    large = np.random.default_rng(0).uniform(-1, 1, (1, 64, 48, 3))
    options = {"mode": "bicubic", "antialias": True}
    expected = torch.nn.functional.interpolate(torch.tensor(large).permute(0, 3, 1, 2), size=(16, 12), **options)
    found = bicubic.shrink(jnp.asarray(large), 4)
    np.testing.assert_allclose(found[:, 2:-2, 2:-2], expected.permute(0, 2, 3, 1)[:, 2:-2, 2:-2], atol=1e-12)


def test_bicubic_keeps_what_it_must(x64):
    flat = jnp.full((1, 8, 8, 3), 0.3)
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, :, None, None], (1, 32, 32, 3))
    for made in (bicubic.enlarge(flat, 4), bicubic.shrink(flat, 4), bicubic.shrink(flat, 4, blur=1.0)):
        np.testing.assert_allclose(made, 0.3, atol=1e-14)
    # A cubic of Keys' gives straight lines back, away from the border: pixel centres are where they are to be.
    np.testing.assert_allclose(bicubic.shrink(ramp, 4)[0, 2:-2, 0, 0], 4 * np.arange(8)[2:-2] + 1.5, atol=1e-12)
    np.testing.assert_allclose(bicubic.shrink(ramp, 4, 1.0)[0, 3:-3, 0, 0], 4 * np.arange(8)[3:-3] + 1.5, atol=1e-12)
    np.testing.assert_allclose(bicubic.enlarge(ramp, 2)[0, 8:-8, 0, 0], (np.arange(64) / 2 - 0.25)[8:-8], atol=1e-12)


def test_a_blur_of_one_pixel_is_scipys(x64):
    large = np.random.default_rng(0).uniform(-1, 1, (16, 24, 3))
    blurred = ndimage.gaussian_filter(large, (1, 1, 0), mode="nearest", truncate=4)
    np.testing.assert_allclose(
        bicubic.shrink(jnp.asarray(large[None]), 4, blur=1.0)[0], imresize(blurred, 4, up=False), atol=1e-13
    )


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_makes_the_small_pictures_of_set5(x64, data_dir, factor):
    """To the bit: rounded after the rows and after the columns, as MATLAB does with bytes."""
    files = sorted((data_dir / "restoration" / "Set5" / f"image_SRF_{factor}").glob("*_HR.png"))
    assert len(files) == 5
    for path in files:
        truth = np.rint(pictures.read_picture(path) * 127.5 + 127.5).astype(np.float64)
        small = np.rint(pictures.read_picture(path.with_name(path.name.replace("_HR", "_LR"))) * 127.5 + 127.5)
        for axis in (0, 1):
            matrix = bicubic._shrinking(truth.shape[axis], factor, 0.0)
            truth = np.moveaxis(np.tensordot(matrix, truth, (1, axis)), 0, axis)
            truth = np.clip(np.floor(truth + 0.5), 0, 255)
        np.testing.assert_array_equal(truth, small)


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 4 .*got 10 x 8: crop first"):
        bicubic.shrink(jnp.zeros((1, 10, 8, 3)), 4)


# ---------------------------------------------------------------------------------------------------------------------
# The network and a whole step, against PyTorch


def torch_network(torch, cfg, params):
    """x (b, 3, h, w) to the network's result, in training mode; and its parameters by name, requiring gradients."""
    functional = torch.nn.functional
    flat = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    weights = {}
    for name, leaf in flat.items():
        x = torch.tensor(np.asarray(leaf))
        if name.endswith("kernel"):
            if cfg.upsampling == "transposed" and name.startswith("up"):
                x = x.flip(0, 1).permute(2, 3, 0, 1)  # (in, out, 3, 3); XLA convolves where PyTorch transposes
            else:
                x = x.permute(3, 2, 0, 1)
        weights[name] = x.contiguous().requires_grad_()

    def conv(name, x, plain=False):
        bias = weights.get(f"{name}/bias")
        if cfg.upsampling == "transposed" and name.startswith("up"):
            x = functional.conv_transpose2d(x, weights[f"{name}/kernel"], bias, 2, 1, 1)
        else:
            x = functional.conv2d(x, weights[f"{name}/kernel"], bias, padding="same")
        if cfg.norm == "batch" and not plain:
            scale, shift = weights[f"{name}/norm/scale"], weights[f"{name}/norm/bias"]
            x = functional.batch_norm(x, None, None, scale, shift, training=True, eps=1e-5)
        return x

    def network(small):
        x = functional.relu(conv("first", small))
        for i in range(1, cfg.blocks + 1):
            x = x + conv(f"block{i}_2", functional.relu(conv(f"block{i}_1", x)))
        if cfg.upsampling == "shuffle":
            x = functional.pixel_shuffle(conv("last", x, plain=True), cfg.scale)
        else:
            for i in range(1, cfg.doublings + 1):
                if cfg.upsampling == "nearest":
                    x = functional.interpolate(x, scale_factor=2, mode="nearest")
                x = functional.relu(conv(f"up{i}", x))
            x = conv("last", x, plain=True)
        if cfg.skip:
            large = np.stack([imresize(picture, cfg.scale, up=True) for picture in small.permute(0, 2, 3, 1).numpy()])
            x = x + torch.tensor(large).permute(0, 3, 1, 2)
        return x

    return network, weights


def torch_features(torch, encoder, x, taps):
    """Of the compact network: VGG's first two blocks, the first convolution reflected at the border."""
    functional = torch.nn.functional
    weights = {k: {n: torch.tensor(np.asarray(a)) for n, a in of.items()} for k, of in encoder.items()}
    x = torch.einsum("bchw,cd->bdhw", x, weights["input"]["kernel"]) + weights["input"]["bias"][:, None, None]
    found = {}
    for i in (1, 2):
        if i == 2:
            x = functional.max_pool2d(x, 2)
        for j in (1, 2):
            kernel = weights[f"conv{i}_{j}"]["kernel"].permute(3, 2, 0, 1)
            x = functional.pad(x, (1, 1, 1, 1), mode="reflect" if (i, j) == (1, 1) else "constant")
            x = found[f"relu{i}_{j}"] = functional.relu(functional.conv2d(x, kernel, weights[f"conv{i}_{j}"]["bias"]))
    return [found[tap] for tap in taps]


def as_ours(cfg, name, x):
    """A PyTorch tensor laid out as the parameter of that name is here."""
    x = x.detach().numpy()
    if not name.endswith("kernel"):
        return x
    if cfg.upsampling == "transposed" and name.startswith("up"):
        return x.transpose(2, 3, 0, 1)[::-1, ::-1]
    return x.transpose(2, 3, 1, 0)


@pytest.mark.parametrize("cfg", WAYS)
def test_two_whole_steps_equal_pytorchs(x64, torch, cfg):
    constants = sr.constants(cfg)
    state = new(cfg, constants)
    network, params = torch_network(torch, cfg, state.params)
    adam = torch.optim.Adam(params.values(), lr=cfg.learning_rate)
    step = jax.jit(lambda state, batch: sr.train_step(state, batch, jax.random.key(1), cfg, constants))
    for i in range(2):
        batch = images(seed=i)
        state, metrics = step(state, {"pictures": {"image": batch}})
        blurred = [ndimage.gaussian_filter(x, (cfg.blur,) * 2 + (0,), mode="nearest") for x in batch]
        small = np.stack([imresize(x, cfg.scale, up=False) for x in (blurred if cfg.blur else batch)])
        truth = torch.tensor(batch).permute(0, 3, 1, 2)
        found = network(torch.tensor(small).permute(0, 3, 1, 2))
        pixel = (found - truth).abs().mean() if cfg.distance == "absolute" else ((found - truth) ** 2).mean()
        loss = pixel
        if cfg.loss == "feature":
            taps = [torch_features(torch, constants["encoder"], x, cfg.layers) for x in (found, truth)]
            feature = sum(((a - b) ** 2).mean() for a, b in zip(*taps, strict=True))
            loss = feature + cfg.pixel_weight * pixel
            np.testing.assert_allclose(metrics["loss/feature"], feature.detach(), rtol=1e-10)
        np.testing.assert_allclose(metrics["loss/pixel"], pixel.detach(), rtol=1e-10)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert int(state.step) == 2
    flat = {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(state.params)}
    assert flat.keys() == params.keys()
    for name, ours in flat.items():
        np.testing.assert_allclose(ours, as_ours(cfg, name, params[name]), rtol=1e-10, atol=1e-10, err_msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# Patches, results and settings


def test_patches_are_parts_of_their_pictures_in_all_eight_ways():
    cfg = sr.Config(image_size=12, patch=8, width=4, blocks=0)
    y, x = np.mgrid[:12, :12].astype(np.float32)
    picture = np.stack([y, x, 0 * x], -1)
    batch = np.stack([picture + np.float32([0, 0, i]) for i in range(200)])
    found = np.asarray(sr.patches(jnp.asarray(batch), jax.random.key(0), cfg))
    assert found.shape == (200, 8, 8, 3)
    ways, places = set(), set()
    for i, patch in enumerate(found):
        assert (patch[..., 2] == i).all()
        rows, columns = patch[..., 0], patch[..., 1]
        steps = [float(part[at] - part[0, 0]) for part in (rows, columns) for at in ((1, 0), (0, 1))]
        assert sorted(map(abs, steps)) == [0, 0, 1, 1] and rows.max() - rows.min() == columns.max() - columns.min() == 7
        ways.add(tuple(steps))
        places.add((float(rows.min()), float(columns.min())))
    assert len(ways) == 8 and len(places) == 25
    still = dataclasses.replace(cfg, symmetries=False)
    found = np.asarray(sr.patches(jnp.asarray(batch), jax.random.key(0), still))
    assert (np.diff(found[..., 0], axis=1) == 1).all() and (np.diff(found[..., 1], axis=2) == 1).all()


def test_pixel_shuffle_equals_pytorchs(torch):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 48)).astype(np.float32)
    expected = torch.nn.functional.pixel_shuffle(torch.tensor(x).permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(sr.shuffle(jnp.asarray(x), 4), expected)


def test_matched_histograms():
    rng = np.random.default_rng(0)
    small = rng.uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    large = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    match = jax.jit(sr.with_histograms_of)
    found = np.asarray(match(large, small))
    for i in range(2):
        for c in range(3):
            a, b = found[i, ..., c].ravel(), large[i, ..., c].ravel()
            assert (np.diff(a[np.argsort(b)]) >= 0).all()
            np.testing.assert_allclose([a.min(), a.max()], [small[i, ..., c].min(), small[i, ..., c].max()], atol=1e-6)
            assert abs(a.mean() - small[i, ..., c].mean()) < 0.02
    # A picture whose values are the reference's own has them already.
    np.testing.assert_allclose(match(small, small), small, atol=1e-6)


def draw(state, requests, cfg):
    """As LoadedRun draws."""
    made = jax.jit(lambda state, requests: contract.of(sr).sample(sr.generator(state, cfg), requests, cfg))
    return {title: np.asarray(x) for title, x in made(state, requests).items()}


@pytest.mark.parametrize("upsampling", ["nearest", "shuffle"])
def test_pictures_of_any_size_get_as_many_times_larger(upsampling):
    cfg = sr.Config(image_size=16, patch=16, width=4, blocks=1, upsampling=upsampling)
    state = new(cfg)
    small = images(1, 32).astype(np.float32)[:, :7, :11]
    made = draw(state, sr.requests_of(small, cfg), cfg)
    assert list(made) == ["bicubic", "result"]
    assert all(x.shape == (1, 28, 44, 3) and np.abs(x).max() <= 1 for x in made.values())
    matched = draw(state, {"small": small}, dataclasses.replace(cfg, match_histograms=True))["result"]
    np.testing.assert_allclose(matched.max((1, 2)), small.max((1, 2)), atol=1e-6)


def test_requests_have_the_truth_and_its_small_version():
    cfg = sr.Config(image_size=16, patch=8, width=4, blocks=1)
    truth = images(3).astype(np.float32)
    requests = sr.requests(jax.random.key(0), 3, cfg, {"pictures": {"image": truth}})
    assert requests["small"].shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(requests["truth"], truth)
    made = draw(new(cfg), requests, cfg)
    assert list(made) == ["bicubic", "result", "truth"] and sr.judged(cfg) == ("result", "pictures")
    numbers, warning = sr.watch({}, made, {})
    error = np.mean((made["bicubic"] - truth) ** 2, (1, 2, 3))
    assert numbers["psnr/bicubic"] == pytest.approx(np.mean(10 * np.log10(4 / error)), abs=1e-3) and warning is None


@pytest.mark.slow
def test_a_small_training_beats_bicubic():
    """On pictures of one kind, here edges, of which it learns in a few steps how they go on between the pixels."""
    cfg = sr.Config(image_size=16, patch=16, width=8, blocks=1, upsampling="shuffle", learning_rate=5e-3)
    some = lambda seed: images(16, 32, seed)[:, 2:18, 2:18].astype(np.float32)  # noqa: E731
    state = new(cfg)
    step = jax.jit(lambda s, b, key: sr.train_step(s, {"pictures": {"image": b}}, key, cfg)[0])
    for i in range(150):
        state = step(state, some(i), jax.random.fold_in(jax.random.key(1), i))
    requests = sr.requests(jax.random.key(0), 16, cfg, {"pictures": {"image": some(1000)}})
    numbers, _ = sr.watch({}, draw(state, requests, cfg), {})
    assert numbers["psnr/result"] > numbers["psnr/bicubic"] + 0.3


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"scale": 3}, "scale must be 2, 4 or 8, got 3"),
        ({"patch": 50}, "patch must be a multiple of the scale 4, got 50: take 48"),
        ({"image_size": 64}, "patch must be no larger than image_size, 64, got 96: take --image-size 96"),
        ({"norm": "layer"}, "norm must be none or batch, got 'layer'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"schedule": "cosine"}, "a cosine schedule needs schedule_steps >= 1, got 0"),
        ({"loss": "feature", "layers": ()}, "a feature loss needs layers, such as relu2_2"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        sr.Config(**settings)


def test_a_feature_loss_says_which_layers_there_are_and_how_large_a_patch_must_be():
    with pytest.raises(ValueError, match=r"no layer 'relu9_1'; it has conv1_1"):
        sr.constants(sr.Config(loss="feature", layers=("relu9_1",)))
    with pytest.raises(ValueError, match=r"patch must be at least 16 for relu5_1, got 8"):
        sr.constants(sr.Config(loss="feature", layers=("relu5_1",), patch=8))
    assert sr.constants(sr.Config()) == {}


# ---------------------------------------------------------------------------------------------------------------------
# The experiment


@pytest.mark.slow
def test_the_experiment_trains_and_measures(data_dir, home, tmp_path, capsys):
    script = load_script("super_resolution")
    (tmp_path / "data" / "restoration" / "Set5" / "image_SRF_4").mkdir(parents=True)
    (tmp_path / "data" / "weights").symlink_to(data_dir / "weights")
    for i, truth in enumerate(images(2, 64).astype(np.float32)):
        small = np.asarray(bicubic.shrink(jnp.asarray(truth[None]), 4))[0]
        for name, picture in (("HR", truth), ("LR", small)):
            path = tmp_path / "data" / "restoration" / "Set5" / "image_SRF_4" / f"img_{i}_SRF_4_{name}.png"
            pictures.write_picture(path, picture)
    source = np.round(127.5 * (images(8, 16) + 1)).astype(np.uint8)
    np.savez(tmp_path / "source.npz", images=source)
    record = script.main(
        script.Settings(
            data=tmp_path / "data",
            source=str(tmp_path / "source.npz"),
            width=4,
            blocks=1,
            image_size=16,
            patch=16,
            batch_size=2,
            steps=2,
            feature_steps=2,
            devices=1,
            folder=tmp_path / "runs",
            json=tmp_path / "record.json",
        )
    )
    assert len(record["rows"]) == 6 and set(record["means"]) == {"bicubic", "pixel loss", "feature loss"}
    for row in record["rows"]:
        assert 5 < row["psnr_y"] < 60 and 0 < row["ssim_y"] < 1 and row["distance"] > 0
    first = {row["way"]: row for row in record["rows"][:3]}
    assert first["pixel loss"]["psnr_y"] != first["feature loss"]["psnr_y"] != first["bicubic"]["psnr_y"]
    assert (tmp_path / "record.json").is_file() and (tmp_path / "runs" / "x4" / "set5.png").is_file()
    assert "| pixel loss |" in capsys.readouterr().out


def test_small_pictures_of_a_factor_that_set5_lacks_are_made(data_dir):
    script = load_script("super_resolution")
    found = script.set5(script.Settings(data=data_dir, scale=8))
    assert len(found) == 5
    for _, small, truth in found:
        assert truth.shape[:2] == (8 * small.shape[0], 8 * small.shape[1]) and small.dtype == truth.dtype == np.uint8


def test_the_most_detailed_square():
    script = load_script("super_resolution")
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[32:64, 48:80] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    assert script.busiest(picture, 32) == (32, 48)
