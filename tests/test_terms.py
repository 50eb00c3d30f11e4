"""The loss as a list of terms: each by itself, of a batch, and the same in tiles and rows as in one piece."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from ganstyle_jax.features import vgg
from ganstyle_jax.nn import tiles
from ganstyle_jax.style import gatys, losses, terms

TINY = vgg.VGG(((4, 4), (6,)), padding="reflect", platform="xla", dtype="float64")
CFG = gatys.Config(
    size=32, content_layers=("relu2_1",), style_layers=("relu1_1", "relu2_1"), steps=4, smallest=16, taper=0.0
)

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")


def scene(count, shape=(40, 33, 3)):
    return np.random.default_rng(0).uniform(-1, 1, (count, *shape))


def network_params():
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), jax.jit(TINY.init)(jax.random.key(0)))


def test_terms_of_a_batch_and_of_the_optimised_image_are_the_same():
    """A list made by hand, as a network's trainer makes it, of a batch of images with a content each."""
    params, (style, *contents) = network_params(), scene(4)
    images = jnp.asarray(contents)[:, ::-1] * 0.7
    layers = CFG.layers

    def of_one(image, content):
        wanted = TINY.apply(params, content[None], layers)["relu2_1"][0]
        features = {layer: x[0] for layer, x in TINY.apply(params, image[None], layers).items()}
        total = {layer: losses.moments(x[0]) for layer, x in TINY.apply(params, style[None], layers).items()}
        areas = {layer: np.ones(1) * features[layer][..., 0].size for layer in layers}
        made = [
            terms.content_term("content/relu2_1", 0.05, "relu2_1", wanted),
            *(
                terms.style_term(f"style/{layer}", 0.5, layer, losses.means(total[layer], areas[layer]))
                for layer in layers
            ),
            terms.tv_term(0.02),
            terms.range_term(10.0),
        ]
        return terms.weighted(made, image, features)

    found = jax.jit(jax.vmap(of_one))(images, jnp.asarray(contents))
    for i, content in enumerate(contents):
        targets = gatys.make_targets(TINY, params, content, [style], CFG)
        expected = gatys.loss_terms(TINY, params, images[i], targets, CFG)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-9, err_msg=name)


def whole_term():
    """That of features in other places, which is no sum over tiles."""

    def error(taps):
        x, y = taps["relu1_1"], taps["relu2_1"]
        return jnp.mean(jnp.sin(3 * x) * x[::-1, ::-1]) + jnp.mean(y[: y.shape[0] // 2].max(0) * y[-1])

    return terms.Term("places", 2.0, error, ("relu1_1", "relu2_1"))


@pytest.mark.parametrize("how", ["tiles", "rows"])
def test_a_term_that_needs_all_features_is_the_same_in_pieces(how):
    params, image = network_params(), jnp.asarray(scene(1)[0])
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("rows",)) if how == "rows" else None
    canvas = gatys.canvas_of(image.shape, TINY, dataclasses.replace(CFG, tile=0 if mesh else 16), mesh)
    assert canvas.padded == (40, 33) and canvas.tiled == (how == "tiles")

    def value(image, canvas):
        return terms.values([whole_term()], TINY, params, image, canvas)["places"]

    expected, slope = jax.jit(jax.value_and_grad(value), static_argnums=1)(image, tiles.whole(image.shape))
    found, found_slope = jax.jit(jax.value_and_grad(value), static_argnums=1)(canvas.put(image), canvas)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(canvas.crop(found_slope), slope, rtol=1e-9, atol=1e-14)
    assert np.abs(slope).max() > 1e-6


@pytest.mark.parametrize("how", ["whole", "tiles", "rows"])
def test_what_a_frame_is_held_to(how):
    params, (content, style, previous, at) = network_params(), scene(4)
    cfg = dataclasses.replace(CFG, temporal_weight=3.0, tile=16 if how == "tiles" else 0)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("rows",)) if how == "rows" else None
    trusted = scene(1)[0, ..., 0] > 0
    targets = gatys.make_targets(
        TINY, params, content, [style], cfg, mesh=mesh, previous=previous, trusted=trusted.astype(float)
    )
    found = gatys.loss_terms(TINY, params, targets.canvas.put(at), targets, cfg)
    expected = 3 * np.mean(trusted[..., None] * (at - previous) ** 2)
    np.testing.assert_allclose(found["temporal"], expected, rtol=1e-6)  # previous and trusted are float32
    without = gatys.loss_terms(
        TINY, params, targets.canvas.put(at), targets, dataclasses.replace(cfg, temporal_weight=0)
    )
    assert "temporal" not in without and without.keys() == found.keys() - {"temporal"}


def test_a_frame_that_is_held_stays_where_it_is_trusted():
    params, (content, style, previous) = network_params(), scene(3, (24, 32, 3)) * 0.8
    trusted = np.broadcast_to(np.arange(32) < 16, (24, 32)).astype(float)
    cfg = dataclasses.replace(CFG, optimizer="adam", steps=30, smallest=32, temporal_weight=100.0, learning_rate=0.1)
    key = jax.random.key(0)
    held = gatys.stylize(key, content, [style], cfg, TINY, params, previous=previous, trusted=trusted)
    distance = np.abs(held - previous).mean((0, 2))
    assert distance[:14].mean() < 0.2 * distance[18:].mean()
    jobs = [gatys.Job(content, [style], previous=previous, trusted=trusted)] * 2
    for made in gatys.stylize_many(key, jobs, cfg, TINY, params):
        np.testing.assert_allclose(made, held, atol=1e-5)
    with pytest.raises(ValueError, match="must all have a previous frame, or none"):
        gatys.stylize_many(key, [jobs[0], gatys.Job(content, [style])], cfg, TINY, params)
    with pytest.raises(ValueError, match="give previous too"):
        gatys.Job(content, [style], trusted=trusted)
    assert gatys.Job(content, [style], previous=previous, trusted=0 * trusted).trusted is not None  # all is hidden
    with pytest.raises(ValueError, match="trusted must have the 32 x 24 pixels of its picture"):
        gatys.Job(content, [style], previous=previous, trusted=trusted[:4])


# ---------------------------------------------------------------------------------------------------------------------
# Several styles


def relative(found, style, layer):
    return float(jnp.linalg.norm(found[layer].gram - style[layer].gram) / jnp.linalg.norm(style[layer].gram))


def test_of_two_styles_each_counts_as_its_weight_says():
    """Whatever their norms: without it, the louder one would be met and the other not."""
    params, (content, loud, quiet) = network_params(), scene(3)
    quiet = 0.1 * quiet[::-1] + 0.05

    def style_of(styles, **how):
        return gatys.make_targets(TINY, params, content, styles, CFG, **how).style

    alone = [style_of([loud]), style_of([quiet])]
    for layer in CFG.style_layers:
        norms = [float(jnp.linalg.norm(style[layer].gram)) for style in alone]
        assert norms[0] > 10 * norms[1]
        for weights in ((1, 1), (3, 1), (1, 3)):
            mean = style_of([loud, quiet], style_weights=weights)
            first, second = (relative(mean, style, layer) for style in alone)
            np.testing.assert_allclose(first / second, weights[1] / weights[0], rtol=1e-6)


def test_fine_layers_of_one_style_and_coarse_ones_of_another():
    params, (content, one, other) = network_params(), scene(3)
    made = gatys.make_targets(TINY, params, content, [one, other], CFG, style_layers=("fine", ["relu2_1"])).style
    for layer, style in {"relu1_1": one, "relu2_1": other}.items():
        alone = gatys.make_targets(TINY, params, content, [style], CFG).style
        assert relative(made, alone, layer) < 1e-12
    masks = [np.broadcast_to(np.arange(33) < 10, (40, 33)).astype(float)]
    masks.append(1 - masks[0])
    share = gatys.make_targets(
        TINY, params, content, [one, other], CFG, content_masks=masks, style_layers=("all", "coarse")
    ).share
    assert share["relu1_1"][1] == 0 and share["relu2_1"][1] > 0 and share["relu1_1"][0] == share["relu2_1"][0]
    for layers, message in {
        ("fine", "fine"): "each style layer needs a style that counts in it, and relu2_1 has none",
        ("fine", "relu2_1,relu4_1"): "fine, coarse, all, or some of relu1_1,relu2_1, got 'relu4_1'",
    }.items():
        with pytest.raises(ValueError, match=message):
            gatys.make_targets(TINY, params, content, [one, other], CFG, style_layers=layers)
    with pytest.raises(ValueError, match="style_layers for each of 2 styles"):
        gatys.Job(content, [one, other], style_layers=("fine",))
