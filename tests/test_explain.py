"""Explanations: the mathematics in closed form, against finite differences and numpy; a run from end to end."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_wgan
import stand_in
from PIL import Image

from ganstyle_jax import cli, contract
from ganstyle_jax.features import vgg, weights
from ganstyle_jax.gan import dcgan
from ganstyle_jax.io import pictures
from ganstyle_jax.io.files import UserError
from ganstyle_jax.look import explain
from ganstyle_jax.look.explain import directions, maps, projections, saliency, sections, style, subject
from ganstyle_jax.loop import runs, train
from ganstyle_jax.style import losses

pytestmark = pytest.mark.usefixtures("quick_compile")

CFG = dcgan.Config(image_size=16, channels=3, width=4, latent_dim=6)
GROWTH, DIRECTIONS = "How a picture grows", "What single latent directions do"
MAP, CLASSES = "Real and made-up pictures on one map", "Which classes are made, and how often"
SMALL = subject.Settings(count=24, labelled=40, drawn=64, jacobians=2)


@partial(jax.jit, static_argnames="cfg")
def init(key, cfg):
    return dcgan.init(key, cfg)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@pytest.fixture
def judge(x64):
    """Logits of images (b, 4, 4, 3) by a smooth perceptron."""
    hidden, last = jnp.asarray(random(48, 20, seed=8)) / 7, jnp.asarray(random(20, seed=9))
    return lambda x: jnp.tanh(x.reshape(len(x), -1) @ hidden) @ last


def test_gradient_of_a_discriminator_equals_finite_differences(x64):
    """Of a DCGAN with random weights, whose statistics are not those of the beginning."""
    cfg = dataclasses.replace(CFG, dtype="float64")
    state = init(jax.random.key(1), cfg)
    images = random(2, 16, 16, 3).clip(-1, 1)
    stats = jax.tree.map(lambda x: x + jnp.asarray(random(*x.shape)) ** 2, state.disc.batch_stats)
    state = dataclasses.replace(state, disc=dataclasses.replace(state.disc, batch_stats=stats))
    judge = jax.jit(lambda x: 30 * dcgan.discriminate(state, x, cfg))
    found = np.asarray(saliency.input_gradient(judge, jnp.asarray(images)))
    assert np.abs(found).max() > 1e-3
    step = 1e-7  # so short that hardly a unit of the network changes sides, and rounding leaves 1e-8
    for place in [(0, 3, 4, 0), (1, 15, 0, 2), (0, 8, 8, 1)]:
        moved = np.zeros_like(images)
        moved[place] = step
        difference = (judge(images + moved) - judge(images - moved)) / (2 * step)
        np.testing.assert_allclose(found[place], difference[place[0]], atol=1e-6)
        assert difference[1 - place[0]] == 0  # a logit depends on its own image alone


def test_smoothgrad_without_noise_is_the_gradient(judge):
    images = jnp.asarray(random(2, 4, 4, 3))
    plain = saliency.input_gradient(judge, images)
    np.testing.assert_allclose(saliency.smooth_gradient(judge, images, jax.random.key(0), 0.0, 3), plain, rtol=1e-12)
    noisy = saliency.smooth_gradient(judge, images, jax.random.key(0), 0.2, 3)
    assert np.abs(noisy - plain).max() > 1e-3 * np.abs(plain).max()


def test_smoothgrad_is_the_mean_over_noise_of_the_stated_size(x64):
    images = jnp.asarray(random(1, 4, 4, 1)) * 5
    range_, draws = float(images.max() - images.min()), 4000
    # The gradient of x^3 / 3 is x^2, whose mean under noise of deviation s is x^2 + s^2.
    found = saliency.smooth_gradient(lambda x: (x**3 / 3).sum((1, 2, 3)), images, jax.random.key(0), 0.1, draws)
    spread = 0.1 * range_
    error = np.sqrt(4 * images**2 * spread**2 + 2 * spread**4) / draws**0.5
    assert np.all(np.abs(found - images**2 - spread**2) < 4.5 * error)


def test_integrated_gradients_are_complete(judge):
    images, baseline = jnp.asarray(random(3, 4, 4, 3)), jnp.asarray(random(4, 4, 3, seed=5))
    difference = judge(images) - judge(baseline[None])[0]
    coarse, fine = (saliency.integrated_gradients(judge, images, baseline, n).sum((1, 2, 3)) for n in (16, 128))
    assert np.abs(difference).min() > 0.1
    np.testing.assert_allclose(fine, difference, atol=1e-3)
    # The midpoint rule is of second order: 8 times as many steps leave a 64th of the error.
    np.testing.assert_allclose((coarse - difference) / (fine - difference), 64, rtol=0.2)


def test_integrated_gradients_of_a_quadratic_are_exact(x64):
    images, baseline = jnp.asarray(random(2, 4, 4, 1)), jnp.asarray(random(4, 4, 1, seed=3))
    found = saliency.integrated_gradients(lambda x: (x**2).sum((1, 2, 3)), images, baseline, 1)
    np.testing.assert_allclose(found, images**2 - baseline**2, atol=1e-12)


def test_replacing_the_strongest_pixels():
    images, weights_ = random(2, 4, 4, 1).astype(np.float32), random(4, 4, 1, seed=2).astype(np.float32)
    baseline = np.full((4, 4, 1), 0.5, np.float32)
    logit = lambda x: jnp.sum(weights_ * x, (1, 2, 3))  # noqa: E731
    gain = (weights_ * (images - baseline))[..., 0]
    found = saliency.replace_strongest(logit, images, gain, baseline, (0.0, 0.25, 1.0))
    np.testing.assert_allclose(found[0], logit(images), rtol=1e-6)
    best = np.sort(gain.reshape(2, -1), axis=1)[:, -4:].sum(1)  # no four pixels hold more
    np.testing.assert_allclose(found[1], np.asarray(logit(images)) - best, rtol=1e-4)
    np.testing.assert_allclose(found[2], np.full(2, logit(baseline[None])[0]), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Directions


def test_jacobian_equals_forward_mode_and_finite_differences(x64):
    a, b = jnp.asarray(random(5, 7)), jnp.asarray(random(7, 12, seed=1))
    generate = lambda z: jnp.tanh(jnp.tanh(z @ a) @ b).reshape(-1, 2, 2, 3)  # noqa: E731
    latents = jnp.asarray(random(3, 5, seed=2))
    found = directions.jacobian_gram(generate, latents)
    wanted = 0
    for z in latents:
        columns = [(generate((z + e)[None]) - generate((z - e)[None])).ravel() / 2e-6 for e in 1e-6 * jnp.eye(5)]
        wanted += np.array(columns) @ np.array(columns).T / 3
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)
    forward = jax.vmap(jax.jacfwd(lambda z: generate(z[None]).ravel()))(latents)
    np.testing.assert_allclose(found, jnp.einsum("npa,npb->ab", forward, forward) / 3, rtol=1e-10, atol=1e-12)


def test_jacobian_goes_through_convolutions_with_rules_of_their_own(x64):
    cfg = dataclasses.replace(CFG, dtype="float64", convolution="cpu")
    variables = init(jax.random.key(0), cfg).gen.variables
    latents = dcgan.requests(jax.random.key(1), 1, cfg)
    ours, plain = (
        directions.jacobian_gram(partial(lambda z, cfg: dcgan.sample(variables, z, cfg), cfg=cfg), latents)
        for cfg in (cfg, dataclasses.replace(cfg, convolution="xla"))
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-15)


def test_directions_of_a_linear_generator_are_its_singular_vectors(x64):
    weights_ = random(6, 12)
    left, lengths, _ = np.linalg.svd(weights_)
    generate = lambda z: (z @ jnp.asarray(weights_)).reshape(-1, 2, 2, 3)  # noqa: E731
    gram = directions.jacobian_gram(generate, jnp.asarray(random(2, 6)))
    for values, axes in (directions.sefa(weights_), directions.principal_directions(gram)):
        np.testing.assert_allclose(values, lengths**2, rtol=1e-9)
        np.testing.assert_allclose(np.abs(np.sum(axes * left.T, axis=1)), 1, rtol=1e-9)
        assert np.all(np.diff(values) <= 0)
        np.testing.assert_allclose(directions.overlap(axes[:3], left.T[:3]), 1, rtol=1e-9)
    assert directions.overlap(left.T[:2], left.T[2:4]) == pytest.approx(0, abs=1e-12)


def test_first_layer_and_activations_are_those_of_the_generator():
    state = init(jax.random.key(0), CFG)
    variables, z = (
        dcgan.generator(state, dataclasses.replace(CFG, batch_norm="running")),
        random(2, 6).astype(np.float32),
    )
    hidden = dcgan.activations(variables, z, CFG)
    assert {name: x.shape for name, x in hidden.items()} == {"4x4": (2, 4, 4, 8), "8x8": (2, 8, 8, 4)}
    assert list(hidden) == ["4x4", "8x8"]
    # At the beginning the statistics are 0 and 1, and BatchNorm only divides by sqrt(1 + 1e-5) and weighs channels.
    first = z @ np.asarray(dcgan.first_layer(variables, CFG))
    scale = variables["params"]["norm0"]["scale"]
    wanted = np.maximum(first.reshape(2, 4, 4, 8) * scale / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(hidden["4x4"], wanted, rtol=1e-4, atol=1e-6)


def test_a_walk_sets_one_component_and_leaves_the_others():
    latents, direction = random(4, 5), random(5, seed=1)
    direction /= np.linalg.norm(direction)
    found = directions.along(latents, direction, np.array([-3.0, 0.0, 3.0]))
    assert found.shape == (4, 3, 5)
    np.testing.assert_allclose(found @ direction, np.tile([-3, 0, 3], (4, 1)), atol=1e-12)
    across = latents - np.outer(latents @ direction, direction)
    np.testing.assert_allclose(
        found - (found @ direction)[..., None] * direction, across[:, None].repeat(3, 1), atol=1e-12
    )


def test_effects_are_the_distance_of_the_ends(monkeypatch):
    """Of a generator that copies two numbers: along one of them 6 sigma, along others nothing."""
    monkeypatch.setattr(projections, "features_of", lambda pictures: np.ones((len(pictures), 1)))
    of = subject.Subject(None, None, None, None, None, (), "")
    monkeypatch.setattr(subject.Subject, "make_from", lambda self, z: z[:, :, :2].reshape(-1, 2, 1, 1))
    found = directions.effects(of, random(5, 4), np.eye(4)[[0, 3]], 0.5)
    np.testing.assert_allclose(found, [[3 / 2**0.5, 0], [0, 0]], atol=1e-12)


def test_ranking_counts_pairs():
    told = saliency.ranking_text(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0]))  # 4 + 2 of 8 pairs, and one tie
    assert "mean +2.5 of 4 real pictures and +1.0 of 2 made up" in told and "first in 81% of the cases" in told


# ---------------------------------------------------------------------------------------------------------------------
# Maps


def test_principal_components_are_those_of_the_covariance():
    points = random(30, 5) * [3, 1, 2, 0.5, 1]
    found, shares = projections.principal_components(points, 2)
    values, axes = np.linalg.eigh(np.cov(points.T))
    wanted = (points - points.mean(0)) @ axes[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), rtol=1e-9)
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), rtol=1e-9)
    with pytest.raises(ValueError, match="got shape"):
        projections.principal_components(points[:1])


def test_components_of_points_that_are_all_the_same():
    found, shares = projections.principal_components(np.ones((5, 3)), 2)
    assert not found.any() and not shares.any()


def test_tsne_keeps_clusters_together():
    labels = np.repeat(np.arange(3), 30)
    points = random(90, 10) + 12 * random(3, 10, seed=1)[labels]
    sheet, divergence = projections.tsne(points, 10.0, 300)
    assert (projections.nearest_classes(sheet, labels) == labels).all()
    centres = np.stack([sheet[labels == k].mean(0) for k in range(3)])
    width = max(np.abs(sheet[labels == k] - centres[k]).max() for k in range(3))
    assert min(np.linalg.norm(centres[a] - centres[b]) for a, b in [(0, 1), (0, 2), (1, 2)]) > width
    noise, left = projections.tsne(random(90, 10), 10.0, 300)  # of which no map keeps all neighbours
    assert 0 < divergence < left and noise.shape == (90, 2)


def test_tsne_is_the_same_every_time():
    points = random(40, 5)
    np.testing.assert_array_equal(projections.tsne(points, 5.0, 260)[0], projections.tsne(points.copy(), 5.0, 260)[0])


def test_tsne_of_doubles_and_of_a_perplexity_out_of_range():
    points = np.repeat(random(5, 3), 4, axis=0)
    assert np.isfinite(projections.tsne(points, 2.0, 250)[0]).all()
    assert np.isfinite(projections.tsne(np.zeros((9, 4)), 2.0, 250)[0]).all()
    with pytest.raises(ValueError, match=r"below 19.*got 19"):
        projections.tsne(points, 19)


def test_nearest_classes():
    points, labels = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]), np.array([0, 0, 2, 1, 1, 1])
    np.testing.assert_array_equal(projections.nearest_classes(points, labels, np.array([[0.5], [10.6]]), 3), [0, 1])
    np.testing.assert_array_equal(projections.nearest_classes(points, labels, neighbours=2), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(projections.nearest_classes(points, labels, neighbours=1)[2:4], [0, 1])


def test_discriminant_of_two_classes_in_closed_form():
    labels = np.repeat([0, 1], 200)
    points = random(400, 4) @ random(4, 4, seed=1) + np.outer(labels, [1.0, 2.0, 0.0, -1.0])
    means = np.stack([points[labels == k].mean(0) for k in (0, 1)])
    within = np.cov((points - means[labels]).T, bias=True)
    within += 0.01 * np.trace(within) / 4 * np.eye(4)
    wanted = np.linalg.solve(within, means[1] - means[0])  # Fisher 1936
    (found,) = projections.discriminant_directions(points, labels, 1)
    assert abs(found @ wanted) / np.linalg.norm(found) / np.linalg.norm(wanted) == pytest.approx(1, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Style


@pytest.fixture(scope="module")
def painted():
    """A content and a style picture, and a network of five small blocks with random weights."""
    network = vgg.VGG(((6,), (8,), (8,), (8,), (8,)))
    ramp = np.linspace(-1, 1, 32)
    content = np.stack([ramp[:, None] * np.ones(32), np.outer(ramp, ramp), -ramp * np.ones((32, 1))], -1)
    stripes = np.sign(np.sin(np.arange(32) * 1.3))[:, None, None] * np.array([0.9, -0.4, 0.6]) * np.ones((32, 32, 1))
    return content.astype(np.float32), stripes.astype(np.float32), network, network.init(jax.random.key(0))


def test_gram_matrices_are_means_of_products(painted):
    _, picture, network, params = painted
    found = style.gram_matrices(network, params, picture)
    taps = network.apply(params, picture[None], style.gatys.STYLE_LAYERS)
    for layer, features in taps.items():
        np.testing.assert_allclose(found[layer], losses.gram_matrix(features[0]), rtol=1e-4, atol=1e-6)
    flat = np.asarray(taps["relu2_1"], np.float64).reshape(-1, 8)
    np.testing.assert_allclose(found["relu2_1"], flat.T @ flat / len(flat), rtol=1e-4, atol=1e-6)


def test_channels_that_belong_together_come_together():
    group, rng = np.array([0, 1, 0, 2, 1, 2, 0, 1]), np.random.default_rng(0)
    features = rng.uniform(size=(500, 3))[:, group] ** 4 + 0.02 * rng.uniform(size=(500, 8))
    features = np.concatenate([features, np.zeros((500, 1))], axis=1)  # and one that is silent
    order = style.cluster_order(features.T @ features / 500)
    assert sorted(order) == list(range(9)) and order[-1] == 8
    assert np.count_nonzero(np.diff(group[order[:8]])) == 2  # three blocks
    assert sorted(style.cluster_order(np.zeros((4, 4)))) == [0, 1, 2, 3]


def test_a_texture_of_one_layer_lowers_the_loss_of_that_layer(painted):
    _, picture, network, params = painted
    settings, targets = style.Settings(size=32, steps=60), style.gram_matrices(network, params, picture)
    noise = style.gatys.first_image(
        jax.random.key(0), picture, [picture], None, style.texture_config(("relu1_1",), settings)
    )
    before = style.style_errors(style.gram_matrices(network, params, noise), targets)
    layer = "relu2_1"
    made = style.optimise(picture, style.texture_config((layer,), settings), network, params, 0)
    after = style.style_errors(style.gram_matrices(network, params, made), targets)
    gains = {name: before[name] / after[name] for name in targets}
    assert max(gains, key=gains.__getitem__) == layer and gains[layer] > 30, gains


def test_inversion_lowers_the_loss_of_its_layer(painted):
    content, _, network, params = painted
    settings = style.Settings(size=32, steps=60)
    errors = {}
    for layer in ("relu1_1", "relu4_1"):
        cfg = style.inversion_config(layer, settings)
        noise = style.gatys.first_image(jax.random.key(0), content, [content], None, cfg)
        made = style.optimise(content, cfg, network, params, 0)
        left = style.content_error(network, params, made, content, layer)
        assert left < 0.1 * style.content_error(network, params, noise, content, layer)
        errors[layer] = np.mean((made - content) ** 2)
    assert errors["relu1_1"] < errors["relu4_1"]  # a deep layer knows less of the pixels


# ---------------------------------------------------------------------------------------------------------------------
# From end to end


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    loop = train.Loop(run_dir=folder, steps=2, batch_size=8, sample_every=2, checkpoint_every=2, devices=1)
    train.run(dcgan, CFG, "glyphs:digits:night", loop)
    return folder


def check(folder: Path) -> list[dict]:
    """That explain.json is as it is promised to be, and that all it names is there; its sections."""
    found = json.loads((folder / "explain.json").read_text(encoding="utf-8"))
    assert set(found) == {"sections"}
    named = []
    for section in found["sections"]:
        assert set(section) == {"title", "text", "pictures"} and section["title"] and len(section["text"]) > 40
        for picture in section["pictures"]:
            assert set(picture) == {"file", "caption"} and picture["caption"].endswith(".")
            with Image.open(folder / picture["file"]) as image:
                assert image.format == "PNG" and image.width >= 900 and np.asarray(image.convert("L")).std() > 5
            named.append(picture["file"])
    assert sorted(path.name for path in folder.iterdir()) == sorted([*named, "explain.json"])  # nothing else is left
    return found["sections"]


@pytest.mark.slow
def test_a_run_is_explained(run_dir):
    written = explain.run(run_dir, settings=SMALL)
    assert written == run_dir / "explain" / "explain.json"
    found = {section["title"]: section for section in check(run_dir / "explain")}
    assert list(found)[:5] == [*("Where the discriminator looks", "Testing the maps"), GROWTH, DIRECTIONS, MAP]
    assert "4x4 (8 channels), 8x8 (4 channels)" in found[GROWTH]["text"]
    files = [picture["file"] for picture in found[DIRECTIONS]["pictures"]]
    assert files == [*("directions.png", "directions-jacobian.png", "directions-sefa.png", "directions-lot.png")]
    assert "SeFa" in found[DIRECTIONS]["text"] and "come out right" in found[CLASSES]["text"]
    assert "nan" not in json.dumps(found).lower()


def test_what_a_method_lacks_is_left_out(tmp_path):
    loop = train.Loop(run_dir=tmp_path / "run", steps=1, batch_size=4, devices=1)
    train.run(small_wgan, small_wgan.Config(), "glyphs:grey", loop)
    explain.run(tmp_path / "run", tmp_path / "out", settings=SMALL)
    looks, grown, walks = check(tmp_path / "out")[:3]
    assert "discriminate(state, images, cfg)" in looks["text"] and not looks["pictures"]
    assert "activations(variables, requests, cfg)" in grown["text"] and not grown["pictures"]
    assert "SeFa" not in walks["text"] and len(walks["pictures"]) == 3


def test_data_that_are_gone_and_data_without_classes(run_dir, tmp_path, pictures):
    loaded = runs.load(run_dir)
    gone = subject.prepare(dataclasses.replace(loaded, data=str(tmp_path / "gone.zip")), SMALL)
    assert gone.real is None and "gone.zip" in gone.absent and str(tmp_path) not in gone.absent
    assert "gone.zip" in maps.sections(gone, tmp_path, SMALL)[0].text
    assert all(section.pictures for section in saliency.sections(gone, tmp_path, SMALL))
    unlabelled = subject.prepare(dataclasses.replace(loaded, data=str(pictures)), SMALL)
    assert unlabelled.labels is None and len(unlabelled.real) == 24
    assert "k-means" in maps.sections(unlabelled, tmp_path, SMALL)[1].text


def stand_in_run(module, cfg, **data):
    return stand_in.Loaded(contract.Method(module), cfg, module.init(jax.random.key(0), cfg), data)


def test_a_method_with_labels_titles_and_two_sources(tmp_path, pictures):
    cfg = stand_in.Config(8)
    run = stand_in_run(stand_in.Labelled, cfg, a=str(pictures), b="nowhere")
    of = subject.prepare(run, SMALL)
    assert of.real.shape == (24, 8, 8, 3) and of.latents.shape == (64, 3)
    asked = stand_in.Labelled.requests(jax.random.key(0), 64, cfg, {})
    wanted = stand_in.Labelled.sample(run.state, asked, cfg)["shifted"]  # the judged ones
    np.testing.assert_allclose(of.make(5), wanted[:5], atol=1e-6)
    # A walk changes the latents and leaves each request its label.
    still = np.repeat(of.latents[:3, None], 2, axis=1)
    np.testing.assert_allclose(of.make_from(still), np.repeat(wanted[:3], 2, axis=0), atol=1e-6)
    found = explain.trained_sections(of, tmp_path, SMALL)
    assert [section.title for section in found][1:5] == ["Testing the maps", GROWTH, DIRECTIONS, MAP]
    gram = directions.jacobian_gram(of.generate, jnp.asarray(of.latents[:2]), jax.tree.map(lambda x: x[:2], asked))
    forward = lambda z, i: of.generate({"latents": z[None], "label": asked["label"][i : i + 1]}).ravel()  # noqa: E731
    jacobians = [np.asarray(jax.jacfwd(forward)(asked["latents"][i], i)) for i in range(2)]
    np.testing.assert_allclose(gram, sum(j.T @ j for j in jacobians) / 2, rtol=1e-4, atol=1e-5)


def test_a_method_without_latents_and_without_data(tmp_path):
    of = subject.prepare(stand_in_run(stand_in.Restoring, stand_in.Config()), SMALL)
    assert of.real is None and of.latents is None and of.make(3).shape == (3, 8, 12, 3)
    found = explain.trained_sections(of, tmp_path, SMALL)
    assert len(found) == 4 and not any(section.pictures for section in found)
    said = dict((section.title, section.text) for section in found)
    assert "no vectors" in said[DIRECTIONS] and "no training images" in said[MAP]


def test_a_damaged_explanation_is_written_anew(tmp_path):
    record = {"sections": [{"pictures": [{"file": name} for name in ("../run.json", "mine.txt", "old.png")]}]}
    for text in ("{", "[]", '{"sections": 3}', "[" * 100_000, json.dumps(record)):
        (tmp_path / "explain").mkdir(exist_ok=True)
        for name in ("run.json", "explain/mine.txt", "explain/old.png"):
            (tmp_path / name).touch()
        (tmp_path / "explain" / "explain.json").write_text(text)
        sections.write(tmp_path / "explain", [sections.Section("t", "x")])
        assert (tmp_path / "run.json").exists() and (tmp_path / "explain" / "mine.txt").exists()
    assert not (tmp_path / "explain" / "old.png").exists()  # it was ours to remove


@pytest.mark.slow
def test_style_is_explained(tmp_path, data_dir):
    names = ("tubingen.jpg", "starry_night.jpg")
    content, painting = (str(data_dir / "images" / "inputs" / name) for name in names)
    cli.main(["explain", content, painting, "--out", str(tmp_path / "out"), "--size", "64"])
    assert [len(section["pictures"]) for section in check(tmp_path / "out")] == [1, 1, 1]


def test_style_run_folder(tmp_path, painted, monkeypatch):
    content, painting, network, params = painted
    (tmp_path / "run.json").write_text(
        json.dumps({"method": "gatys", "config": {}, "data": "photo.jpg", "loop": {"features": "mine"}})
    )
    with pytest.raises(UserError, match=r"there is no .*content\.png, no .*style-1\.png, no .*result\.png yet"):
        explain.run(tmp_path)
    for name, picture in (("content", content), ("style-1", painting), ("result", content)):
        pictures.write_picture(tmp_path / f"{name}.png", picture)
    asked = []
    monkeypatch.setattr(weights, "load", lambda name: (asked.append(name), (network, params))[1])
    monkeypatch.setattr(style, "Settings", partial(style.Settings, size=32))
    monkeypatch.setattr(style, "optimise", lambda picture, *_: picture)  # which is tested above, and compiles for long
    explain.run(tmp_path)
    assert asked == ["mine"] and len(check(tmp_path / "explain")) == 3


def test_errors_for_people(tmp_path, run_dir, capsys):
    def fails(match, *args):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["explain", *map(str, args)])
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert match in error and "Traceback" not in error

    fails("is not a run folder", tmp_path / "nothing")
    fails("CONTENT STYLE [RESULT], got a b c d", "a", "b", "c", "d")
    fails("CONTENT STYLE [RESULT], got nothing")
    fails("--size must be from 32 to 1024 pixels, got 5", "a.png", "b.png", "--size", 5)
    fails("--seed must be from 0", run_dir, "--seed", -1)
    fails("belong to pictures", run_dir, "--features", "vgg19")
    fails("--step belongs to a run folder", "a.png", "b.png", "--step", 5)
    fails("there is no picture a.png", "a.png", "b.png")
    fails("no checkpoint", run_dir, "--step", 7)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run_dir / "run.json", empty)
    fails("holds no checkpoint yet", empty)


def test_a_figure_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), sections.figure(tmp_path / "a.png", 1, 1, 2.0):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_explaining_again_removes_what_is_shown_no_more(tmp_path):
    def write(*files):
        for file in files:
            (tmp_path / file).touch()
        return sections.write(tmp_path, [sections.Section("t", "", tuple(sections.Picture(f, "") for f in files))])

    (tmp_path / "mine.png").touch()
    write("a.png", "b.png")
    write("b.png", "c.png")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["b.png", "c.png", "explain.json", "mine.png"]
