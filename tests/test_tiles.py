"""Images cut into tiles and rows, and many images at once: the same loss, gradient and pictures as in one piece."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from ganstyle_jax.features import vgg
from ganstyle_jax.io import images
from ganstyle_jax.nn import tiles
from ganstyle_jax.style import gatys

TINY = vgg.VGG(((4, 4), (6,), (8, 8)), padding="reflect", platform="xla")
CFG = gatys.Config(
    size=64, content_layers=("relu3_1",), style_layers=("relu1_1", "relu2_1", "relu3_2"), steps=8, smallest=32
)

pytestmark = pytest.mark.usefixtures("quick_compile")


def scene(shape, style_shape=(48, 40), seed=0):
    """(content, style), smooth pictures of these shapes."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(-0.9, 0.9, (2, 6, 6, 3))
    return [np.clip(images.resize(x, s), -1, 1) for x, s in zip(small, (shape, style_shape), strict=True)]


@functools.cache
def weights():
    """TINY's, as `numpy` has them."""
    return jax.tree.map(np.asarray, jax.jit(TINY.init)(jax.random.key(0)))


@functools.partial(jax.jit, static_argnames=("network", "cfg"))
def evaluate(network, params, image, targets, cfg):
    """((loss, terms), gradient by the image)."""

    def loss(image):
        terms = gatys.loss_terms(network, params, image, targets, cfg)
        return sum(terms.values()), terms

    return jax.value_and_grad(loss, has_aux=True)(image)


def loss_and_gradient(network, params, content, styles, cfg, at, mesh=None, **masks):
    """Of an image `at`, in whatever pieces."""
    targets = gatys.make_targets(network, params, content, styles, cfg, mesh=mesh, **masks)
    ((_, terms), gradient) = evaluate(network, params, targets.canvas.put(at), targets, cfg)
    assert np.asarray(gradient)[targets.canvas.extent[0] :].any() == False  # noqa: E712
    return {name: float(value) for name, value in terms.items()}, targets.canvas.crop(gradient)


@pytest.fixture
def exact(x64):
    """The network and its weights in float64, so that equality is proven and not just seen."""
    network = dataclasses.replace(TINY, dtype="float64")
    return network, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), weights())


@functools.cache
def of_the_whole(network, shape, cfg):
    """The loss and gradient of a scene in one piece, in float64."""
    content, style = scene(shape)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), weights())
    return loss_and_gradient(network, params, content, [style], cfg, content[::-1].astype(np.float64))


def assert_same(found, expected, rtol):
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=rtol, err_msg=name)
    difference = np.linalg.norm(found[1] - expected[1]) / np.linalg.norm(expected[1])
    assert difference < rtol


@pytest.mark.parametrize(
    "shape, tile, changes, style_loss",
    [
        ((70, 53), 32, {}, "gram"),
        ((45, 90), 48, {"padding": "replicate", "pooling": "average"}, "wasserstein"),
        ((33, 100), 1000, {"padding": "zeros", "first_padding": "reflect", "ceil_mode": True}, "gram"),
        pytest.param((64, 64), 32, {"padding": "zeros"}, "gram", marks=pytest.mark.slow),
        # the other style loss for each
        pytest.param((70, 53), 32, {}, "wasserstein", marks=pytest.mark.slow),
        pytest.param((64, 64), 32, {"padding": "zeros"}, "wasserstein", marks=pytest.mark.slow),
        pytest.param((45, 90), 48, {"padding": "replicate", "pooling": "average"}, "gram", marks=pytest.mark.slow),
        pytest.param(
            *((33, 100), 1000, {"padding": "zeros", "first_padding": "reflect", "ceil_mode": True}, "wasserstein"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tiles_give_the_loss_and_gradient_of_the_whole(exact, shape, tile, changes, style_loss):
    network, params = exact
    network = dataclasses.replace(network, **changes)
    content, style = scene(shape)
    at = content[::-1].astype(np.float64)
    cfg = dataclasses.replace(CFG, style_loss=style_loss)
    expected = of_the_whole(network, shape, cfg)
    found = loss_and_gradient(network, params, content, [style], dataclasses.replace(cfg, tile=tile), at)
    assert_same(found, expected, 1e-9)


@pytest.mark.parametrize(
    "shape",
    [
        (70, 53),
        (17, 64),
        pytest.param((128, 40), marks=pytest.mark.slow),
        pytest.param((250, 31), marks=pytest.mark.slow),
    ],
)
def test_rows_on_eight_devices_give_the_loss_and_gradient_of_one(exact, shape):
    network, params = exact
    content, style = scene(shape)
    at = content[::-1].astype(np.float64)
    mesh = Mesh(np.asarray(jax.devices()), ("rows",))
    assert mesh.size == 8
    found = loss_and_gradient(network, params, content, [style], CFG, at, mesh)
    assert_same(found, of_the_whole(network, shape, CFG), 1e-9)


def test_tiles_and_rows_with_masks(exact):
    network, params = exact
    content, style = scene((70, 53))
    other = style[::-1, :, ::-1]
    left = np.broadcast_to(np.arange(53) < 20, (70, 53)).astype(float)
    masks = {"content_masks": [left, 1 - left], "style_masks": [np.eye(48, 40, 3), np.ones((48, 40))]}
    at = content[::-1].astype(np.float64)
    expected = loss_and_gradient(network, params, content, [style, other], CFG, at, **masks)
    tiled = dataclasses.replace(CFG, tile=32)
    # Masks are float32, and so are their sums.
    assert_same(loss_and_gradient(network, params, content, [style, other], tiled, at, **masks), expected, 1e-6)
    mesh = Mesh(np.asarray(jax.devices()), ("rows",))
    assert_same(loss_and_gradient(network, params, content, [style, other], CFG, at, mesh, **masks), expected, 1e-6)


def test_a_halo_that_is_too_narrow_would_show(exact):
    network, params = exact
    content, style = scene((70, 53))
    cfg = dataclasses.replace(CFG, tile=32)
    expected = of_the_whole(network, (70, 53), CFG)
    targets = gatys.make_targets(network, params, content, [style], cfg)
    assert targets.canvas.halo == 16  # 2 + 2 + 8 of convolutions, in whole squares of 16
    narrow = dataclasses.replace(targets, canvas=dataclasses.replace(targets.canvas, halo=0))
    (_, terms), _ = evaluate(network, params, jnp.asarray(content[::-1], jnp.float64), narrow, cfg)
    assert abs(terms["style/relu3_2"] / expected[0]["style/relu3_2"] - 1) > 1e-6


def test_a_sum_over_tiles_is_differentiated_by_the_image_alone():
    canvas, image = tiles.by_tiles((32, 32), 16, 16, 0), jnp.ones((32, 32, 1))

    def total(image, scale):
        return tiles.sum_over(lambda window, place, scale: scale * jnp.sum(window**2), image, scale, canvas)

    np.testing.assert_allclose(jax.jit(jax.grad(total))(image, 3.0), 6 * image)
    for by_args in (jax.grad(total, argnums=1), jax.jit(jax.grad(total, argnums=(0, 1)))):
        with pytest.raises(ValueError, match="differentiated by the image alone, not by args"):
            by_args(image, 3.0)


def test_tiles_are_as_equal_as_may_be():
    canvas = tiles.by_tiles((1000, 600), 16, 512, 70)
    assert canvas.tile == (512, 304) and canvas.shape == (1024, 608) and canvas.halo == 80
    assert tiles.by_tiles((100, 100), 16, 512, 70).tile == (112, 112)
    assert tiles.by_tiles((513, 64), 16, 512, 70).tile == (272, 64)
    assert tiles.by_tiles((64, 64), 16, 3, 70).tile == (16, 16)


@pytest.mark.slow
def test_pictures_in_tiles_and_rows_are_those_in_one_piece(exact):
    network, params = exact
    content, style = scene((50, 64))
    cfg = dataclasses.replace(CFG, steps=5, smallest=64)
    key = jax.random.key(0)
    whole = gatys.stylize(key, content, [style], cfg, network, params)
    tiled = gatys.stylize(key, content, [style], dataclasses.replace(cfg, tile=32), network, params)
    shared = gatys.stylize(key, content, [style], cfg, network, params, devices=jax.devices())
    assert whole.shape == (50, 64, 3)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    np.testing.assert_allclose(shared, whole, atol=1e-5)


@pytest.mark.slow
def test_adam_in_tiles_from_coarse_to_fine(exact):
    network, params = exact
    content, style = scene((50, 64))
    cfg = dataclasses.replace(CFG, optimizer="adam", steps=5, factor=2.0, tile=32, averaging=0.5)
    seen = []
    result = gatys.stylize(jax.random.key(0), content, [style], cfg, network, params, callback=seen.append)
    assert result.shape == (50, 64, 3) and {progress.shape for progress in seen} == {(25, 32), (50, 64)}
    assert seen[-1].losses[-1][1] < seen[0].losses[0][1]


@pytest.mark.slow
def test_memory_of_a_device_falls_with_their_number():
    network = dataclasses.replace(TINY, channels=((8, 8), (8,), (8, 8)))
    params = network.init(jax.random.key(0))
    content, style = scene((256, 64))
    bytes_of = {}
    for count in (1, 2, 4, 8):
        mesh = Mesh(np.asarray(jax.devices()[:count]), ("rows",)) if count > 1 else None
        targets = gatys.make_targets(network, params, content, [style], CFG, mesh=mesh)

        def loss(image, targets):
            return sum(gatys.loss_terms(network, params, image, targets, CFG).values())

        compiled = jax.jit(jax.grad(loss)).lower(targets.canvas.put(content), targets).compile()
        bytes_of[count] = compiled.memory_analysis().temp_size_in_bytes
        if count > 1:
            program = compiled.as_text()
            assert "collective-permute" in program and "all-gather" not in program
    for count in (2, 4, 8):
        assert bytes_of[count] < 0.75 * bytes_of[count // 2], bytes_of


def test_memory_of_tiles_hardly_grows_with_the_image():
    params = weights()

    def temporary(side, tile):
        cfg = dataclasses.replace(CFG, tile=tile)
        content, style = scene((side, side))
        targets = gatys.make_targets(TINY, params, content, [style], cfg)

        def loss(image, targets):
            return sum(gatys.loss_terms(TINY, params, image, targets, cfg).values())

        compiled = jax.jit(jax.grad(loss)).lower(targets.canvas.put(content), targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(512, 64) < 0.25 * temporary(512, 0)


@pytest.mark.slow
def test_many_pictures_are_what_each_is_alone(exact):
    network, params = exact
    # Adam, whose steps are evaluations: of L-BFGS all go on until the last has done its evaluations.
    key, cfg = jax.random.key(0), dataclasses.replace(CFG, optimizer="adam", steps=5, smallest=64)
    jobs = []
    for seed in range(3):
        content, style = scene((40, 64), seed=seed)
        jobs.append(gatys.Job(content, [style, style[:, ::-1] * 0.5]))
    alone = [gatys.stylize(key, job.content, job.styles, cfg, network, params) for job in jobs]
    seen = []
    together = gatys.stylize_many(key, jobs, cfg, network, params, callback=seen.append)
    dealt = gatys.stylize_many(key, jobs, cfg, network, params, devices=jax.devices()[:2])
    assert len(together) == len(dealt) == 3 and {len(progress) for progress in seen} == {3}
    for a, b, c in zip(alone, together, dealt, strict=True):
        for other in (b, c):
            # Images are float32, and Adam divides each derivative by its size: one of a thousandth of its neighbours'
            # is rounded by 6e-5 of itself, which moves a pixel by 6e-5 of the rate, 0.05, in each step.
            np.testing.assert_allclose(other, a, atol=1e-5)
            assert np.abs(other - a).mean() < 1e-7
    with_lbfgs = dataclasses.replace(cfg, optimizer="lbfgs")
    told = []
    gatys.stylize_many(key, jobs, with_lbfgs, network, params, callback=told.append)
    for progress in told[-1]:
        assert progress.evaluations >= 5 and progress.losses[-1][1] < progress.losses[0][1]


def test_what_cannot_be_cut_or_made_together(exact):
    network, params = exact
    content, style = scene((50, 64))
    key = jax.random.key(0)
    squeeze = vgg.SqueezeNet()
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), jax.eval_shape(squeeze.init, key))
    cfg = dataclasses.replace(CFG, tile=32, content_layers=("fire2",), style_layers=("relu1",))
    with pytest.raises(ValueError, match="only a network laid out like VGG"):
        gatys.stylize(key, content, [style], cfg, squeeze, zeros)
    with pytest.raises(ValueError, match="not both"):
        gatys.stylize(key, content, [style], dataclasses.replace(CFG, tile=32), network, params, devices=jax.devices())
    with pytest.raises(ValueError, match="same shape"):
        gatys.stylize_many(key, [gatys.Job(content, [style]), gatys.Job(content[:30], [style])], CFG, network, params)
