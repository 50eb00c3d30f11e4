"""Terms that need places one by one: in tiles, in rows and in regions as in one piece, many pictures as each alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from ganstyle_jax.features import vgg
from ganstyle_jax.io import images
from ganstyle_jax.style import gatys, memory, places, plan, terms

TINY = vgg.VGG(((4,), (6, 6)), padding="reflect", platform="xla", dtype="float64")
CFG = gatys.Config(
    size=64,
    content_layers=("relu2_1",),
    style_layers=("relu1_1", "relu2_2"),
    steps=6,
    taper=0.0,
    smallest=64,
    tv_weight=0.0,
)
CONFIGS = {
    "mean-std": {"style_loss": "mean-std", "laplacian_weight": 0.5, "self_similarity_weight": 0.7},
    "histogram": {"style_loss": "histogram", "style_layer_weights": (1.0, 3.0)},
    "patches": {"style_loss": "patches", "histogram_weight": 0.3, "histogram_layers": ("relu2_2",)},
}
SHAPE = (42, 33)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mean-std", "patches")]

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")


def scene(shape=SHAPE, style_shape=(48, 40), seed=0):
    """(content, style), smooth pictures of these shapes."""
    small = np.random.default_rng(seed).uniform(-0.9, 0.9, (2, 6, 6, 3))
    return [np.clip(images.resize(x, s), -1, 1) for x, s in zip(small, (shape, style_shape), strict=True)]


def network_params():
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), jax.jit(TINY.init)(jax.random.key(0)))


@jax.jit
def evaluate(params, image, targets, cfg):
    def loss(image):
        terms = gatys.loss_terms(TINY, params, image, targets, cfg)
        return sum(terms.values()), terms

    return jax.value_and_grad(loss, has_aux=True)(image)


def terms_and_gradient(cfg, styles, mesh=None, **masks):
    content = scene()[0].astype(np.float64)
    targets = gatys.make_targets(TINY, network_params(), content, styles, cfg, mesh=mesh, **masks)
    ((_, found), gradient) = evaluate(network_params(), targets.canvas.put(0.8 * content[::-1]), targets, cfg)
    return {name: float(value) for name, value in found.items()}, targets.canvas.crop(gradient)


def assert_same(found, expected, rtol):
    assert found[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=rtol, atol=1e-12, err_msg=name)
    assert np.linalg.norm(found[1] - expected[1]) < rtol * np.linalg.norm(expected[1])


@pytest.mark.parametrize("name", CONFIGS)
def test_tiles_and_rows_give_the_loss_and_gradient_of_the_whole(name):
    cfg, style = dataclasses.replace(CFG, **CONFIGS[name]), scene()[1]
    expected = terms_and_gradient(cfg, [style])
    assert all(value > 1e-4 for term, value in expected[0].items() if not term.startswith(("tv", "range")))
    # Masks, and levels that are summed up from them, are float32.
    assert_same(terms_and_gradient(dataclasses.replace(cfg, tile=16), [style]), expected, 1e-6)
    mesh = Mesh(np.asarray(jax.devices()), ("rows",))
    assert mesh.size == 8
    assert_same(terms_and_gradient(cfg, [style], mesh), expected, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_regions_in_tiles_and_rows(name):
    cfg, style = dataclasses.replace(CFG, **CONFIGS[name]), scene()[1]
    styles = [style, style[::-1, :, ::-1] * 0.5]
    left = np.broadcast_to(np.arange(SHAPE[1]) < 12, SHAPE).astype(float)
    masks = {"content_masks": [left, 1 - left], "style_masks": [np.eye(48, 40, 3), np.ones((48, 40))]}
    expected = terms_and_gradient(cfg, styles, **masks)
    assert_same(terms_and_gradient(dataclasses.replace(cfg, tile=16), styles, **masks), expected, 1e-6)
    mesh = Mesh(np.asarray(jax.devices()), ("rows",))
    assert_same(terms_and_gradient(cfg, styles, mesh, **masks), expected, 1e-6)


@pytest.mark.parametrize("name", [*SLOW, "histogram"])
def test_pictures_made_together_are_each_alone(name):
    """Of styles of other shapes too."""
    cfg = dataclasses.replace(CFG, size=32, smallest=32, steps=4, optimizer="adam", **CONFIGS[name])
    scenes = [scene((32, 24), (48, 40)), scene((32, 24), (30, 48), 1)]
    jobs = [gatys.Job(content, [style]) for content, style in scenes]
    key, params = jax.random.key(0), network_params()
    many = gatys.stylize_many(key, jobs, cfg, TINY, params)
    for job, found in zip(jobs, many, strict=True):
        alone = gatys.stylize(key, job.content, job.styles, cfg, TINY, params)
        np.testing.assert_allclose(found, alone, atol=1e-5)
        assert abs(alone - images.resize(job.content, (32, 24))).max() > 1e-3


def test_a_mask_of_everything_changes_nothing():
    for changes in CONFIGS.values():
        cfg, style = dataclasses.replace(CFG, **changes), scene()[1]
        masks = {"content_masks": [np.ones(SHAPE)], "style_masks": [np.ones((48, 40))]}
        assert_same(terms_and_gradient(cfg, [style], **masks), terms_and_gradient(cfg, [style]), 1e-6)


def test_what_has_no_weight_is_not_there():
    style = scene()[1]
    content = scene()[0]
    targets = gatys.make_targets(TINY, network_params(), content, [style], CFG)
    assert targets.places is None
    plain, _ = terms_and_gradient(CFG, [style])
    assert set(plain) == {"content/relu2_1", "style/relu1_1", "style/relu2_2", "tv", "range"}
    more, _ = terms_and_gradient(dataclasses.replace(CFG, **{f"{x}_weight": 0.1 for x in FURTHER}, **LAYER), [style])
    assert set(more) - set(plain) == {"histogram/relu2_2", "self-similarity/relu2_1", "laplacian"}
    assert {name: more[name] for name in plain} == pytest.approx(plain)
    twice = dataclasses.replace(CFG, **{f"{x}_weight": 0.2 for x in FURTHER}, **LAYER)
    twice, _ = terms_and_gradient(twice, [style])
    for name in set(more) - set(plain):
        np.testing.assert_allclose(twice[name], 2 * more[name], rtol=1e-9)


FURTHER, LAYER = ("histogram", "laplacian", "self_similarity"), {"histogram_layers": ("relu2_2",)}


def test_a_style_is_not_apart_from_itself():
    """And the content picture is as like to itself as the content is, and has its edges."""
    style = scene(SHAPE, SHAPE)[0].astype(np.float64)
    for changes in CONFIGS.values():
        cfg = dataclasses.replace(CFG, **changes)
        targets = gatys.make_targets(TINY, network_params(), style, [style], cfg)
        ((_, found), _) = evaluate(network_params(), jnp.asarray(style), targets, cfg)
        for name, value in found.items():
            assert value < 1e-4, name  # a table has its 1,024 levels, of pictures with more and fewer places


def test_blended_styles():
    """Histograms: quantiles between those of both. Patches: the nearest of either."""
    (first, second), alone = scene((40, 40), (40, 40)), {}
    cfg = dataclasses.replace(CFG, style_loss="patches")
    alone = [terms_and_gradient(cfg, [style])[0]["style/patches"] for style in (first, second)]
    both = terms_and_gradient(cfg, [first, second])[0]["style/patches"]
    assert both < 1.1 * min(alone)  # centred and scaled by both
    one = terms_and_gradient(cfg, [first, second], style_weights=[1, 0])[0]["style/patches"]
    np.testing.assert_allclose(one, alone[0], rtol=1e-9)
    cfg = dataclasses.replace(CFG, style_loss="histogram")
    tables = [gatys.make_targets(TINY, network_params(), first, [x], cfg).places.tables for x in (first, second)]
    for weights, nearer in (([3, 1], 0), ([1, 3], 1), ([1, 0], 0)):
        blend = gatys.make_targets(TINY, network_params(), first, [first, second], cfg, style_weights=weights)
        distances = [abs(blend.places.tables["relu2_2"] - x["relu2_2"]).sum() for x in tables]
        assert np.argmin(distances) == nearer
        if 0 in weights:
            assert min(distances) < 1e-9


def test_what_patches_cannot_do_is_said():
    content, style = scene()
    cfg, styles = dataclasses.replace(CFG, style_loss="patches"), [style, style[::-1]]
    for more, message in (
        ({"style_weights": [1, 2]}, "count alike or with 0 not at all, got the weights 1 2"),
        ({"style_layers": ["fine", "coarse"]}, "a style counts in all layers: none can be chosen"),
    ):
        with pytest.raises(ValueError, match=message):
            gatys.make_targets(TINY, network_params(), content, styles, cfg, **more)
    with pytest.raises(ValueError, match="histogram_layers must be some of the style_layers relu1_1 relu2_2, got rel"):
        dataclasses.replace(CFG, histogram_weight=1.0, histogram_layers=("relu5_1",))
    with pytest.raises(ValueError, match="laplacian_weight must be a number that is not negative, got -1"):
        dataclasses.replace(CFG, laplacian_weight=-1)
    with pytest.raises(ValueError, match="a plan is made for the style losses gram"):
        plan.lower(TINY, cfg, (64, 64), jax.devices())


def test_patches_keep_a_square_of_places_whatever_the_style():
    assert places.patch_shape((256, 192)) == (64, 48) and places.patch_shape((512, 384)) == (64, 48)
    assert places.patch_shape((3, 200)) == (1, 50)
    assert places.patch_count((256, 100), CFG) == 4096
    columns, white = jnp.arange(10.0)[:, None] * jnp.ones(2), jnp.array([1, 0] * 5, jnp.float32)
    few = places.patches_of(columns, white, (1, 1), 7)
    np.testing.assert_array_equal(few.mean, [4, 4])
    np.testing.assert_array_equal(few.columns[:, 0] + 4, [0, 2, 4, 6, 8, 0, 2])
    np.testing.assert_array_equal(few.squares, [8, 8])
    np.testing.assert_allclose(few.spread, [8**0.5] * 2, rtol=1e-6)
    fewer = places.patches_of(columns, white, (1, 1), 2)
    np.testing.assert_array_equal(fewer.columns[:, 0] + 4, [0, 4])


def test_the_term_of_patches_is_that_of_pytorch(torch):
    """Angles of what is centred, each by its own mean, and means and deviations besides, of two layers."""
    fine, coarse = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    style = 0.4 + np.random.default_rng(1).normal(size=(20, 6)) * [1, 2, 1, 3, 1, 1]
    target = places.patches_of(jnp.asarray(style), jnp.ones(20), (3, 3), 20)
    target = jax.tree.map(lambda x: x[None], target)
    term = terms.patches_term("", 1.0, ("a", "b"), target, (4, 5), (1.0, 3.0))
    slope = jax.jit(jax.value_and_grad(lambda a, b: term.function({"a": a, "b": b}), (0, 1)))
    value, gradients = slope(jnp.asarray(fine), jnp.asarray(coarse))

    leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in (fine, coarse)]
    found, wanted = torch.cat(leaves, -1).reshape(20, 6), torch.from_numpy(style)
    variances = wanted.var(0, unbiased=False)
    by_layer = torch.tensor([1.0, 3.0]) / torch.stack([variances[:3].sum(), variances[3:].sum()])
    scale = by_layer.double().repeat_interleave(3)
    angles = torch.nn.functional.cosine_similarity(
        ((found - found.mean(0)) * scale.sqrt())[:, None], ((wanted - wanted.mean(0)) * scale.sqrt())[None], dim=-1
    )
    floor = 1e-5 * variances.mean() + 1e-12
    spreads = (found.var(0, unbiased=False) + floor).sqrt() - (variances + floor).sqrt()
    apart = ((found.mean(0) - wanted.mean(0)) ** 2 + spreads**2) * scale
    expected = (1 - angles.max(1).values).mean() + apart.sum() / 4
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-10)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-9, atol=1e-11)


def test_memory_counts_what_is_kept_for_places():
    for changes in CONFIGS.values():
        cfg = dataclasses.replace(CFG, **changes)
        assert memory.needed(TINY, cfg, (256, 256)) > 1.05 * memory.needed(TINY, CFG, (256, 256))
