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


@pytest.mark.slow
def test_a_picture_is_found_by_itself(made, drawn):
    both = projection.project(made["w"], drawn["w"], dataclasses.replace(STEPS, steps=10))
    alone = projection.project(made["w"], drawn["w"][1:], dataclasses.replace(STEPS, steps=10))
    np.testing.assert_allclose(alone.latents[0], both.latents[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(alone.begun[0], both.begun[1], rtol=1e-4)


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
        [str(tmp_path / x) for x in ("small.safetensors", "face0.png", "face1.png")] + ["-o", str(out), "--steps", "8"]
    )
    said = capsys.readouterr().out
    assert "face0: distance" in said and "2 pictures are in" in said
    assert sorted(path.name for path in out.iterdir()) == [
        *("comparison.png", "face0.png", "face1.png", "latents.npz", "projection.mp4")
    ]
    with np.load(out / "latents.npz") as kept:
        assert kept["latents"].shape == (2, model.cfg.styles, 8)
    assert len(list(video.read_video(out / "projection.mp4"))) == 8


def test_what_cannot_be_done_is_said(made, tmp_path):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        projection.Settings(steps=0)
    with pytest.raises(ValueError, match="learning_rate must be above 0"):
        projection.Settings(learning_rate=0.0)
    with pytest.raises(ValueError, match="noise must not be negative"):
        projection.Settings(noise=-1.0)
    with pytest.raises(UserError, match="dcgan has no styles w: use --space z"):
        projection.space_of(made["z"], projection.Settings(space="w"))
    with pytest.raises(UserError, match="give pictures after"):
        project.run([str(tmp_path)])
    with pytest.raises(UserError, match="names of their own"):
        project.run([str(tmp_path), "a/x.png", "b/x.png"])
