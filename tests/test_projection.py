"""Latents of pictures: what a generator has drawn is found again, each picture by itself, and what is wrong is said."""

import dataclasses

import jax
import numpy as np
import pytest

from ganstyle_jax import contract
from ganstyle_jax.commands import project
from ganstyle_jax.features import weights
from ganstyle_jax.forward import projection
from ganstyle_jax.gan import dcgan, stylegan2
from ganstyle_jax.io import images, video
from ganstyle_jax.io.files import UserError
from ganstyle_jax.loop import models
from ganstyle_jax.loop.models import Model

pytestmark = pytest.mark.usefixtures("quick_compile")

STYLES = stylegan2.Config(
    image_size=32, channels=3, preset="small", latent_dim=8, capacity=128, max_channels=8, mapping_layers=2
)
LATENTS = dcgan.Config(image_size=32, channels=1, latent_dim=8, width=8, batch_norm="running")
STEPS = projection.Settings(steps=60)


def a_model(module, cfg):
    """Weights as at the start, with styles and pictures of a size that training gives them."""
    method = contract.of(module)
    state = jax.jit(method.init, static_argnums=1)(jax.random.key(1), cfg)
    variables = jax.jit(method.generator, static_argnums=1)(state, cfg)
    if module is dcgan:
        variables = jax.tree_util.tree_map_with_path(
            lambda path, x: x * 20 if "kernel" in str(path) or "project" in str(path) else x, variables
        )
    return Model(method, cfg, jax.tree.map(np.asarray, variables), None, "made here")


@pytest.fixture(scope="module")
def made(quick_compile):
    return {"w": a_model(stylegan2, stylegan2.complete(STYLES)), "z": a_model(dcgan, LATENTS)}


@pytest.fixture(scope="module")
def drawn(made):
    """Two pictures of each."""
    return {
        space: np.asarray(model.draw(model.method.requests(jax.random.key(7), 2, model.cfg, {})))
        for space, model in made.items()
    }


@pytest.mark.parametrize("space", ["w", pytest.param("w+", marks=pytest.mark.slow), "z"])
def test_what_a_generator_drew_is_found_again(made, drawn, space):
    kind = "z" if space == "z" else "w"
    seen = []
    settings = dataclasses.replace(STEPS, space=space)
    found = projection.project(
        made[kind], drawn[kind], settings, on_step=lambda step, x: seen.append((step, x)), every=20
    )
    assert [step for step, _ in seen] == [20, 40, 60]
    np.testing.assert_array_equal(seen[-1][1], found.images)
    assert (found.distances < 0.35 * found.begun).all(), (found.begun, found.distances)
    if space == "z":
        assert found.latents.shape == (2, 8)
        np.testing.assert_allclose(np.linalg.norm(found.latents, axis=1), np.sqrt(8), rtol=1e-5)
        np.testing.assert_allclose(made[kind].draw(found.requests), found.images, atol=1e-5)
    else:
        cfg = made[kind].cfg
        assert found.latents.shape == (2, cfg.styles, 8) and found.requests is None
        assert (np.ptp(found.latents, axis=1).max() > 1e-3) == (space == "w+")
        again = stylegan2.synthesize(made[kind].variables, found.latents, cfg)
        np.testing.assert_allclose(again, found.images, atol=1e-5)


def noisy(model, strength=0.3):
    """With noise that can be seen."""
    cfg, variables = model.cfg, model.variables

    def louder(path, x):
        return np.full_like(x, strength) if "noise_strength" in str(path) else x

    return dataclasses.replace(model, cfg=cfg, variables=jax.tree_util.tree_map_with_path(louder, variables))


@pytest.mark.slow
@pytest.mark.parametrize("noise_maps", [False, True])
def test_a_picture_is_found_by_itself(made, drawn, noise_maps):
    model, settings = noisy(made["w"]), dataclasses.replace(STEPS, steps=10, noise_maps=noise_maps)
    both, alone = (projection.project(model, pictures, settings) for pictures in (drawn["w"], drawn["w"][1:]))
    np.testing.assert_allclose(alone.latents[0], both.latents[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(alone.begun[0], both.begun[1], rtol=1e-4)
    if noise_maps:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[1], rtol=1e-2, atol=1e-3), alone.noise, both.noise)


@pytest.mark.slow
def test_noise_is_found_too(made):
    """Of pictures with other noise than that of samples, which are drawn again from what was found."""
    model = noisy(made["w"])
    other = model.variables | {"noise": jax.tree.map(lambda x: np.roll(x, 1, 1)[::-1], model.variables["noise"])}
    w = stylegan2.to_w(model.variables, model.method.requests(jax.random.key(7), 2, model.cfg, {}), model.cfg)
    pictures = np.asarray(stylegan2.synthesize(other, w, model.cfg))
    found = projection.project(model, pictures, dataclasses.replace(STEPS, noise_maps=True))
    again = stylegan2.synthesize(model.variables | {"noise": found.noise}, found.latents, model.cfg)
    np.testing.assert_allclose(again, found.images, atol=1e-5)
    network, params = projection.compared_by("auto")
    before = stylegan2.synthesize(model.variables, found.latents, model.cfg)  # with the noise of samples
    wanted, seen = (projection.features(network, params, x) for x in (pictures, before))
    assert (found.distances < 0.6 * projection.distance(seen, wanted)).all()
    for x in jax.tree.leaves(found.noise):
        assert x.shape[0] == 2 and np.abs(x[0] - x[1]).max() > 0.1
        np.testing.assert_allclose(x.mean((1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(x.std((1, 2)), 1, rtol=1e-4)
    assert (projection.noise_penalty(found.noise) < 1e-3).all()


def test_the_penalty_on_noise_matches_pytorch(x64, torch):
    """Appendix D of the paper in PyTorch's words, value and gradient, each picture by itself."""
    rng = np.random.default_rng(0)
    maps = {f"b{s}": {"conv1": np.cumsum(rng.normal(size=(3, s, s)), 1)} for s in (4, 8, 16, 32)}
    ours, back = jax.vjp(projection.noise_penalty, maps)
    gradients = back(np.arange(1.0, 4.0))[0]
    theirs = {name: torch.tensor(x["conv1"], requires_grad=True) for name, x in maps.items()}
    expected = []
    for i in range(3):
        total = torch.zeros((), dtype=torch.float64)
        for x in theirs.values():
            level = x[i][None, None]
            while True:
                size = level.shape[-1]
                for dim in (2, 3):
                    products = level * torch.cat([level.narrow(dim, size - 1, 1), level.narrow(dim, 0, size - 1)], dim)
                    total = total + (products.sum() / size**2) ** 2
                if size <= 8:
                    break
                level = 2 * torch.nn.functional.avg_pool2d(level, 2)  # which keeps the variance of independent pixels
        expected.append(total)
    np.testing.assert_allclose(ours, [x.item() for x in expected], rtol=1e-12)
    torch.stack(expected).backward(torch.arange(1.0, 4.0, dtype=torch.float64))
    for name, x in theirs.items():
        np.testing.assert_allclose(gradients[name]["conv1"], x.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_the_penalty_on_noise_is_that_of_likeness():
    """2 for stripes, and for one grey, whose neighbours are all alike or all opposite; near 0 for noise."""
    stripes = np.tile([1.0, -1.0], (1, 8, 4))
    np.testing.assert_allclose(projection.noise_penalty([stripes, np.ones((1, 8, 8))]), 4, rtol=1e-6)
    noise = np.random.default_rng(0).normal(size=(1, 256, 256))
    assert projection.noise_penalty([noise]) < 0.1
    odd = np.random.default_rng(0).normal(size=(1, 27, 19))
    assert projection.noise_penalty([odd]) > 0


def test_it_can_begin_at_the_average(made, drawn):
    settings = dataclasses.replace(STEPS, steps=1, begin="average", noise=0.0, learning_rate=1e-9)
    found = projection.project(made["w"], drawn["w"], settings)
    requests = made["w"].method.requests(jax.random.key(5), 10_000, made["w"].cfg, {})
    w = np.asarray(stylegan2.to_w(made["w"].variables, requests, made["w"].cfg))
    error = np.abs(found.latents - w.mean(0)) / (w.std(0) / 100)  # two means of 10,000
    assert error.max() < 7 and (found.latents[0] == found.latents[1]).all()


def test_a_run_in_parts_is_one_in_one_piece(made, drawn):
    settings = dataclasses.replace(STEPS, steps=12)
    parts, whole = (projection.project(made["z"], drawn["z"], settings, every=every) for every in (5, 12))
    np.testing.assert_allclose(parts.latents, whole.latents, rtol=1e-5, atol=1e-6)


def test_distances_are_zero_for_the_same_and_of_pixels_directions(made, drawn):
    network, params = weights.load("compact")
    of = projection.features(network, params, drawn["w"])
    assert len(of) == len(projection.TAPS)
    for x in of:  # of length 1, unless nothing is there
        lengths = np.linalg.norm(np.asarray(x), axis=-1) * np.sqrt(x.shape[1] * x.shape[2])
        assert (np.isclose(lengths, 1, atol=1e-3) | (lengths < 0.99)).all() and np.median(lengths) > 0.99
    np.testing.assert_array_equal(projection.distance(of, of), 0)
    large = np.repeat(np.repeat(drawn["w"], 16, 1), 16, 2)  # 512 pixels, of which features are taken at 256
    halved = np.repeat(np.repeat(drawn["w"], 8, 1), 8, 2)
    a, b = (projection.features(network, params, x) for x in (large, halved))
    np.testing.assert_allclose(projection.distance(a, b), 0, atol=1e-6)


@pytest.mark.slow
def test_a_class_is_kept(quick_compile):
    cfg = stylegan2.complete(dataclasses.replace(STYLES, conditional=True, classes=3))
    model = a_model(stylegan2, cfg)
    pictures = np.zeros((1, 32, 32, 3), np.float32)
    projection.project(model, pictures, projection.Settings(steps=1), label=2)


def test_the_command_writes_what_it_found(made, drawn, tmp_path, capsys):
    model = made["w"]
    models.write(tmp_path / "small.safetensors", model.method, model.cfg, model.variables)
    for i, picture in enumerate(drawn["w"]):
        images.save_png(tmp_path / f"face{i}.png", picture)
    out = tmp_path / "out"
    project.run(
        [str(tmp_path / x) for x in ("small.safetensors", "face0.png", "face1.png")]
        + ["-o", str(out), "--steps", "8", "--noise-maps"]
    )
    said = capsys.readouterr().out
    assert "face0: distance" in said and "2 pictures are in" in said
    assert sorted(path.name for path in out.iterdir()) == [
        *("comparison.png", "face0.png", "face1.png", "latents.npz", "projection.mp4")
    ]
    with np.load(out / "latents.npz") as kept:
        assert kept["latents"].shape == (2, model.cfg.styles, 8)
        assert kept["noise/b4/conv1"].shape == (2, 4, 4) and kept["noise/b32/conv0"].shape == (2, 32, 32)
        assert len(kept.files) == 1 + len(jax.tree.leaves(model.variables["noise"]))
    assert len(list(video.read_video(out / "projection.mp4"))) == 8


def test_what_cannot_be_done_is_said(made, tmp_path):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        projection.Settings(steps=0)
    with pytest.raises(ValueError, match="learning_rate must be above 0"):
        projection.Settings(learning_rate=0.0)
    with pytest.raises(ValueError, match="noise must not be negative"):
        projection.Settings(noise=-1.0)
    with pytest.raises(ValueError, match="begin must be nearest or average, got 'zero'"):
        projection.Settings(begin="zero")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="dcgan has no maps of noise to search: leave out --noise-maps"):
        projection.space_of(made["z"], projection.Settings(noise_maps=True))
    with pytest.raises(UserError, match="--begin average is of styles w"):
        projection.space_of(made["z"], projection.Settings(begin="average"))
    with pytest.raises(UserError, match="dcgan has no styles w: use --space z"):
        projection.space_of(made["z"], projection.Settings(space="w"))
    with pytest.raises(UserError, match="give pictures after"):
        project.run([str(tmp_path)])
    with pytest.raises(UserError, match="names of their own"):
        project.run([str(tmp_path), "a/x.png", "b/x.png"])
