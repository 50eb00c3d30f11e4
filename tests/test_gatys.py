"""Style transfer by optimisation: losses, variables, optimizers and the way from coarse to fine."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from ganstyle_jax.control import Advanced, Control, Done, Metrics, Pictures
from ganstyle_jax.features import vgg
from ganstyle_jax.io import images
from ganstyle_jax.nn import tiles
from ganstyle_jax.style import config, gatys, losses, optimise

PATIENCE = 300  # seconds that another thread may take, which may have to compile on a machine that does much else
TINY = vgg.VGG(((4, 4), (6,), (8,)), padding="reflect")
CFG = gatys.Config(
    size=32,
    content_layers=("relu3_1",),
    style_layers=("relu1_1", "relu2_1", "relu3_1"),
    steps=12,
    taper=0.0,
    smallest=16,
)

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def params(quick_compile):
    return jax.jit(TINY.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def scene():
    """(content, style), smooth pictures of different sizes and shapes."""
    rng = np.random.default_rng(0)
    small = rng.uniform(-0.9, 0.9, (2, 6, 6, 3))
    return np.clip(images.resize(small[0], (40, 56)), -1, 1), np.clip(images.resize(small[1], (48, 30)), -1, 1)


loss_terms = jax.jit(gatys.loss_terms, static_argnames=("network", "cfg"))
spread = jax.jit(gatys.spread, static_argnums=1)


def targets_of(params, content, style, cfg=CFG):
    return gatys.make_targets(TINY, params, content, [style], cfg)


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def test_gram_matrix_in_closed_form():
    features = jnp.asarray([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [1.0, 0.0]]])  # (2, 2, 2)
    np.testing.assert_allclose(losses.gram_matrix(features), np.array([[11, 14], [14, 21]]) / 4, rtol=1e-6)


def test_gram_matrix_does_not_know_where_things_are():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 8, 5)).astype(np.float32)
    mixed = rng.permutation(features.reshape(-1, 5)).reshape(8, 6, 5)
    np.testing.assert_allclose(losses.gram_matrix(features), losses.gram_matrix(mixed), rtol=1e-5, atol=1e-6)


def test_gram_matrix_of_a_repeated_picture_is_the_same():
    features = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    doubled = np.tile(features, (2, 3, 1))
    np.testing.assert_allclose(losses.gram_matrix(features), losses.gram_matrix(doubled), rtol=1e-5, atol=1e-6)


def test_gram_matrix_of_bfloat16_is_summed_in_float32():
    features = jnp.ones((64, 64, 2), jnp.bfloat16)  # 4096 ones, where bfloat16 stops counting at 256
    gram = losses.gram_matrix(features)
    assert gram.dtype == jnp.float32
    np.testing.assert_allclose(gram, np.ones((2, 2)))


def test_relative_error_and_total_variation_in_closed_form():
    target = jnp.asarray([3.0, 4.0])
    assert losses.relative_error(target, target) == 0
    assert losses.relative_error(jnp.zeros(2), target) == 1
    assert losses.relative_error(jnp.zeros(2), jnp.zeros(2)) == 0
    np.testing.assert_allclose(losses.relative_error(jnp.asarray([4.0, 4.0]), target), 1 / 25, rtol=1e-6)
    ramp = jnp.broadcast_to(jnp.arange(5.0)[:, None, None], (5, 4, 3))
    assert losses.total_variation(ramp) == 1
    assert losses.total_variation(2 * ramp.swapaxes(0, 1)) == 4


def test_trace_of_a_square_root(x64):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 4))
    matrix, direction = a.T @ a, (lambda b: b + b.T)(rng.normal(size=(4, 4)))
    np.testing.assert_allclose(losses.trace_sqrt(jnp.asarray(np.diag([4.0, 9.0, 0.0]))), 5)
    np.testing.assert_allclose(losses.trace_sqrt(jnp.asarray(matrix)), np.sqrt(np.linalg.eigvalsh(matrix)).sum())
    value, slope = jax.jit(losses.trace_sqrt), jax.jit(jax.grad(losses.trace_sqrt))
    found = jnp.sum(slope(jnp.asarray(matrix)) * direction)
    h = 1e-6
    expected = (value(matrix + h * direction) - value(matrix - h * direction)) / (2 * h)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(slope(jnp.eye(3)), np.eye(3) / 2, atol=1e-12)  # equal eigenvalues
    assert np.isfinite(slope(jnp.zeros((3, 3)))).all()


def test_wasserstein_distance_in_closed_form(x64):
    mean, other = np.array([1.0, 2.0]), np.array([4.0, 6.0])
    # Of Gaussians along the same axes: the distances of the means and of the deviations.
    distance = losses.wasserstein(mean, np.diag([4.0, 9.0]), other, losses.factor(jnp.diag(jnp.array([1.0, 25.0]))))
    np.testing.assert_allclose(distance, 25 + (2 - 1) ** 2 + (3 - 5) ** 2)
    a, b = np.random.default_rng(0).normal(size=(2, 6, 3))
    c, d = a.T @ a, b.T @ b
    root = lambda m: (lambda v, u: u * np.sqrt(v) @ u.T)(*np.linalg.eigh(m))  # noqa: E731
    expected = np.trace(c) + np.trace(d) - 2 * np.trace(root(root(d) @ c @ root(d)))
    np.testing.assert_allclose(losses.wasserstein(np.zeros(3), c, np.zeros(3), losses.factor(d)), expected)
    np.testing.assert_allclose(losses.wasserstein(mean, c[:2, :2], mean, losses.factor(c[:2, :2])), 0, atol=1e-12)


def test_moments_of_regions_add_up():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(6, 8, 5)).astype(np.float32))
    mask = rng.uniform(size=(6, 8, 1)).astype(np.float32)
    parts, whole = gatys.moments(features, jnp.stack([mask, 1 - mask])), gatys.moments(features)
    np.testing.assert_allclose(parts.mean.sum(0), whole.mean[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.gram.sum(0), whole.gram[0], rtol=1e-4, atol=1e-5)
    half = gatys.moments(features, jnp.ones((1, 6, 8, 1)).at[:, 3:].set(0))
    np.testing.assert_allclose(half.gram[0] / 24, losses.gram_matrix(features[:3]), rtol=1e-5, atol=1e-6)


def test_a_mask_of_everything_changes_nothing(params, scene):
    content, style = scene
    at = jnp.asarray(content[::-1].copy())
    plain = loss_terms(TINY, params, at, targets_of(params, *scene), CFG)
    ones = {"content_masks": [np.ones((40, 56))], "style_masks": [0.5 * np.ones((48, 30))]}
    masked = loss_terms(TINY, params, at, gatys.make_targets(TINY, params, content, [style], CFG, **ones), CFG)
    for name, value in plain.items():
        np.testing.assert_allclose(masked[name], value, rtol=1e-4, err_msg=name)


def test_masks_keep_each_style_to_its_place(params, scene):
    content, style = scene
    other = -style
    left = np.broadcast_to(np.arange(56) < 28, (40, 56)).astype(np.float32)

    def gradient(styles):
        masks = {"content_masks": [left, 1 - left], "style_masks": [np.ones((48, 30))] * 2}
        targets = gatys.make_targets(TINY, params, content, styles, CFG, **masks)
        loss = jax.jit(jax.grad(lambda x: sum(gatys.loss_terms(TINY, params, x, targets, CFG).values())))
        return loss(jnp.asarray(content))

    reach = TINY.reach(CFG.layers) + 4
    one, two = gradient([style, other]), gradient([style, style])
    np.testing.assert_allclose(one[:, : 28 - reach], two[:, : 28 - reach], atol=1e-9)
    assert np.abs(one - two)[:, 28 + reach :].max() > 1e-6


def test_style_masks_choose_what_the_style_is(params, scene):
    content, style = scene
    both = np.concatenate([style, -style], axis=1)
    mask = np.broadcast_to(np.arange(60) < 30, (48, 60)).astype(np.float32)
    found = gatys.make_targets(TINY, params, content, [both], CFG, style_masks=[mask]).style["relu1_1"].gram
    alone = gatys.make_targets(TINY, params, content, [style], CFG).style["relu1_1"].gram
    other = gatys.make_targets(TINY, params, content, [-style], CFG).style["relu1_1"].gram
    near, far = (float(jnp.linalg.norm(found - x) / jnp.linalg.norm(x)) for x in (alone, other))
    assert near < 0.05 and near < far / 3  # one column of thirty sees across the border


def test_loss_of_the_content_picture_itself(params, scene):
    content, style = scene
    terms = loss_terms(TINY, params, jnp.asarray(content), targets_of(params, *scene), CFG)
    assert set(terms) == {"content/relu3_1", "style/relu1_1", "style/relu2_1", "style/relu3_1", "tv", "range"}
    assert terms["content/relu3_1"] < 1e-10
    assert terms["style/relu1_1"] > 0
    swapped = loss_terms(TINY, params, jnp.asarray(style), targets_of(params, style, style), CFG)
    # Targets are compiled by themselves, which rounds in another order; these are squares of that.
    assert all(swapped[name] < 1e-10 for name in swapped if name != "tv")


def test_colours_out_of_range_are_penalised(params, scene):
    content, _ = scene
    targets = targets_of(params, *scene)
    assert loss_terms(TINY, params, jnp.asarray(content), targets, CFG)["range"] == 0
    at = jnp.asarray(content).at[:20].set(1.5).at[20:30].set(-3.0)
    expected = CFG.range_weight * (20 * 0.5**2 + 10 * 2.0**2) / 40
    np.testing.assert_allclose(loss_terms(TINY, params, at, targets, CFG)["range"], expected, rtol=1e-5)


def test_weights_of_the_loss(params, scene):
    content, _ = scene
    targets = targets_of(params, *scene)
    at = jnp.asarray(content[::-1].copy())
    plain = loss_terms(TINY, params, at, targets, CFG)
    changed = dataclasses.replace(
        CFG, content_weight=3 * CFG.content_weight, style_weight=2.0, style_layer_weights=(1.0, 0.0, 3.0), tv_weight=0.0
    )
    terms = loss_terms(TINY, params, at, targets, changed)
    np.testing.assert_allclose(terms["content/relu3_1"], 3 * plain["content/relu3_1"], rtol=1e-6)
    for layer, share in (("relu1_1", 1 / 4), ("relu2_1", 0.0), ("relu3_1", 3 / 4)):
        np.testing.assert_allclose(terms[f"style/{layer}"], 2 * 3 * share * plain[f"style/{layer}"], rtol=1e-5)
    assert terms["tv"] == 0


def test_loss_does_not_depend_on_the_scale_of_the_features(params, scene):
    content, _ = scene
    louder = {k: dict(v) for k, v in params.items()}
    louder["conv1_1"] = jax.tree.map(lambda x: 7 * x, params["conv1_1"])  # and so all that follows: biases are 0
    at = jnp.asarray(content[:, ::-1].copy())
    quiet = loss_terms(TINY, params, at, targets_of(params, *scene), CFG)
    loud = loss_terms(TINY, louder, at, targets_of(louder, *scene), CFG)
    for name in quiet:
        np.testing.assert_allclose(loud[name], quiet[name], rtol=1e-4)


def test_gradient_of_the_loss_against_finite_differences(x64, params, scene):
    network = dataclasses.replace(TINY, dtype="float64")
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
    content, style = (jnp.asarray(x, jnp.float64) for x in scene)
    targets = gatys.make_targets(network, params, content, [style], CFG)
    rng = np.random.default_rng(1)
    at = content + 0.1 * rng.normal(size=content.shape)
    direction = jnp.asarray(rng.normal(size=content.shape))

    @jax.jit
    def loss(t):
        return sum(gatys.loss_terms(network, params, at + t * direction, targets, CFG).values())

    gradient = jax.jit(jax.grad(lambda x: sum(gatys.loss_terms(network, params, x, targets, CFG).values())))(at)
    found, h = jnp.sum(gradient * direction), 1e-6
    np.testing.assert_allclose(found, (loss(h) - loss(-h)) / (2 * h), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Variables and optimizers


@settings(max_examples=10)
@given(st.sampled_from([1, 2, 15, 16, 17, 33]), st.sampled_from([1, 7, 32, 40]), st.integers(0, 100), st.booleans())
def test_spread_is_symmetric_and_positive(h, w, seed, circular):
    rng = np.random.default_rng(seed)
    h, w = (h + -h % 16, w + -w % 16) if circular else (h, w)
    a, b = rng.normal(size=(2, h, w, 2)).astype(np.float32)
    left, right = np.vdot(spread(a, circular), b), np.vdot(a, spread(b, circular))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-3)
    assert np.vdot(spread(a, circular), a) >= np.vdot(a, a) * 0.999


def test_spread_enlarges_what_is_coarse():
    flat = jnp.ones((32, 48, 1))
    np.testing.assert_allclose(spread(flat), 2 ** (gatys.COARSENESS * gatys.SCALES) * flat, rtol=1e-6)
    np.testing.assert_allclose(spread(flat, True), 2 ** (gatys.COARSENESS * gatys.SCALES) * flat, rtol=1e-6)
    checkers = jnp.asarray((np.indices((32, 48)).sum(0) % 2 * 2 - 1)[..., None], jnp.float32)
    np.testing.assert_allclose(spread(checkers, True), checkers, atol=1e-6)
    checkers = jnp.tile(checkers, (4, 4, 1))
    middle = np.s_[48:80, 64:128]  # at the corners ends are taken for their own neighbours
    np.testing.assert_allclose(spread(checkers)[middle], checkers[middle], atol=1e-6)


def test_what_is_spread_has_no_outlines():
    """A point becomes a bump: no step of it stands out, wherever in the squares of 16 it lies."""
    for place in (24, 31, 32, 37):
        bump = np.asarray(spread(jnp.zeros((64, 64, 1)).at[place, place].set(1)))[:, place + 3, 0]
        steps = np.abs(np.diff(np.diff(bump)))
        far = np.abs(np.arange(1, 63) - place) > 4
        assert steps[far].max() < 0.1 * np.abs(bump).max()


def test_variables_mean_the_same_in_a_larger_array():
    """Of tiles and rows, at the borders too."""
    rng = np.random.default_rng(0)
    base, x = rng.normal(size=(2, 40, 56, 3)).astype(np.float32)
    larger = tiles.by_tiles((40, 56), 16, 32, 8)
    assert larger.shape == (64, 64)
    to_image = jax.jit(optimise.to_image, static_argnames="canvas")
    alone = to_image(base, x, CFG, tiles.whole((40, 56)))
    found = to_image(larger.put(base), larger.put(x), CFG, larger)
    np.testing.assert_allclose(larger.crop(found), alone, atol=1e-5)


def started(params, targets, image, cfg):
    value, gradient, _ = gatys.evaluate(TINY, params, targets, image, cfg)
    return gatys.start(image, value, gradient, cfg)


def begin(objective, image, cfg):
    """The first iterate with any loss."""
    value, gradient = jax.jit(jax.value_and_grad(objective, argnums=1))(*gatys.variables(image, cfg))
    return gatys.start(image, value, gradient, cfg)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_optimizers_lower_the_loss_and_count_evaluations(params, scene, optimizer):
    content, _ = scene
    cfg = dataclasses.replace(CFG, optimizer=optimizer)
    targets = targets_of(params, *scene)
    calls = 0

    def objective(base, x):
        def count(_):
            nonlocal calls
            calls += 1

        value = gatys.make_objective(TINY, params, targets, cfg)(base, x)
        jax.debug.callback(count, value)
        return value

    at = begin(objective, jnp.asarray(content), cfg)
    first = float(at.value)
    step = jax.jit(lambda at: gatys.improve(objective, at, cfg))
    for _ in range(15):
        at = step(at)
    jax.effects_barrier()
    assert int(at.evaluations) == calls
    assert float(at.value) < 0.5 * first
    assert int(at.resets) == 0
    np.testing.assert_allclose(at.value, jax.jit(objective)(at.base, at.x), rtol=1e-5)


def test_lbfgs_forgets_when_a_search_fails_and_goes_on():
    cfg = dataclasses.replace(CFG, optimizer="lbfgs")

    def smooth(base, x):
        return 100 * jnp.sum((base + x - 0.3) ** 2)

    def broken(base, x):  # NaN a little away from where it stands
        return jnp.where(jnp.sum(x**2) > 1e-12, jnp.nan, smooth(base, x))

    at = begin(smooth, jnp.zeros((4, 4, 3)), cfg)
    stuck = jax.jit(lambda at: gatys.improve(broken, at, cfg))(at)
    assert (int(stuck.resets), int(stuck.stuck)) == (1, 1)
    np.testing.assert_array_equal(stuck.x, at.x)
    assert np.isfinite(stuck.value) and np.isfinite(stuck.gradient).all()
    step = jax.jit(lambda at: gatys.improve(smooth, at, cfg))
    going = step(stuck)
    assert (int(going.resets), int(going.stuck)) == (1, 0) and going.value < stuck.value
    for _ in range(5):
        going = step(going)
    assert going.value < 1e-3 * at.value


def test_advance_stops_at_the_evaluations_and_logs_each_step(params, scene):
    content, _ = scene
    targets = targets_of(params, *scene)
    at = started(params, targets, jnp.asarray(content), CFG)
    first = float(at.value) / gatys.LOSS_SCALE
    at, evaluations, values = gatys.advance(TINY, params, targets, at, np.int32(8), CFG)
    done = np.asarray(evaluations)[np.asarray(evaluations) > 0]
    assert done[-1] == int(at.evaluations) >= 8 and done[-2] < 8
    losses_seen = np.asarray(values)[: len(done)]
    assert losses_seen[0] < first and (np.diff(losses_seen) < 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Whole pictures


def test_sizes_go_by_the_factor():
    assert gatys.Config(size=512).sizes == [128, 256, 512]
    assert gatys.Config(size=512, factor=2**0.5).sizes == [128, 181, 256, 362, 512]
    assert gatys.Config(size=100).sizes == [100]
    assert gatys.Config(size=512, smallest=512).sizes == [512]
    assert gatys.Config(size=400, factor=2.0, smallest=100).sizes == [100, 200, 400]


def test_evaluations_get_fewer_with_the_size():
    cfg = gatys.Config(size=512, smallest=128, factor=2.0, steps=64, taper=0.5)
    assert [cfg.steps_at(size) for size in (100, *cfg.sizes)] == [64, 64, 45, 32] and cfg.evaluations == 141
    assert dataclasses.replace(cfg, taper=0.0).evaluations == 3 * 64
    assert dataclasses.replace(cfg, steps=1, taper=2.0).evaluations == 3  # one at each, at least
    with pytest.raises(ValueError, match="taper must be from 0 to 2, got -1"):
        gatys.Config(taper=-1)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_stylize_is_nearer_to_the_style_than_the_content_is(params, scene, optimizer):
    content, style = scene
    seen = []
    cfg = dataclasses.replace(CFG, optimizer=optimizer, steps=40, factor=2.0)
    key = jax.random.key(0)
    result = gatys.stylize(key, content, [style], cfg, TINY, params, callback=seen.append)
    assert result.shape == (23, 32, 3) and result.dtype == np.float32 and np.abs(result).max() <= 1
    assert [p.done for p in seen] == sorted(p.done for p in seen) and seen[-1].done == 1
    assert {p.shape for p in seen} == {(11, 16), (23, 32)}

    def style_loss(picture):
        small = images.resize(style, gatys.fitted_shape(style.shape, 32))
        terms = loss_terms(TINY, params, jnp.asarray(picture), targets_of(params, picture, small), cfg)
        return sum(float(v) for k, v in terms.items() if k.startswith("style"))

    assert style_loss(result) < 0.2 * style_loss(images.resize(content, (23, 32)))
    again = gatys.stylize(key, content, [style], cfg, TINY, params)
    if optimizer == "adam":  # L-BFGS steps are cut into dispatches by the clock, which its evaluations do not notice
        np.testing.assert_array_equal(result, again)
    else:
        np.testing.assert_allclose(result, again, atol=1e-6)


def test_styles_are_blended_by_their_weights(params, scene):
    content, style = scene
    other = style[::-1, :, ::-1].copy()
    key, cfg = jax.random.key(0), dataclasses.replace(CFG, steps=4, smallest=32)
    only = gatys.stylize(key, content, [style], cfg, TINY, params)
    first = gatys.stylize(key, content, [style, other], cfg, TINY, params, (2.0, 0.0))
    np.testing.assert_allclose(first, only, atol=1e-5)
    both = gatys.stylize(key, content, [style, other], cfg, TINY, params, (1.0, 1.0))
    assert np.abs(both - only).max() > 1e-3


def test_init_from_noise_and_from_a_picture(params, scene):
    content, style = scene
    key, cfg = jax.random.key(0), dataclasses.replace(CFG, steps=1, smallest=32)
    from_picture = gatys.stylize(key, content, [style], cfg, TINY, params, init_image=style)
    # The one evaluation is that of the beginning, and there is no step.
    np.testing.assert_array_equal(from_picture, np.clip(images.resize(style, (23, 32)), -1, 1))
    noisy = dataclasses.replace(cfg, init="noise")
    a, b = (gatys.stylize(k, content, [style], noisy, TINY, params) for k in jax.random.split(key))
    assert np.abs(a - b).mean() > 0.1
    np.testing.assert_array_equal(a, gatys.stylize(jax.random.split(key)[0], content, [style], noisy, TINY, params))


def test_init_from_the_colours_of_the_style():
    rng = np.random.default_rng(0)
    style = np.clip(0.2 * rng.normal(size=(40, 50, 3)) @ rng.normal(size=(3, 3)) + [0.3, -0.2, 0.0], -1, 1)
    cfg = dataclasses.replace(CFG, init="style")
    content = np.zeros((60, 80, 3), np.float32)
    image = gatys.first_image(jax.random.key(0), content, [style], gatys.Job(content, [style]), cfg)
    assert image.shape == content.shape and image.dtype == np.float32 and np.abs(image).max() <= 1
    np.testing.assert_allclose(image.mean((0, 1)), style.mean((0, 1)), atol=0.03)
    np.testing.assert_allclose(np.cov(image.reshape(-1, 3).T), np.cov(style.reshape(-1, 3).T), atol=0.03)


def test_the_mean_of_the_images_on_the_way(params, scene):
    content, _ = scene
    cfg = dataclasses.replace(CFG, optimizer="adam", averaging=0.8)
    targets, canvas = targets_of(params, *scene), gatys.canvas_of(content.shape, TINY, CFG)
    at = started(params, targets, jnp.asarray(content), cfg)
    np.testing.assert_array_equal(gatys.picture_of(at, cfg, canvas), content)
    seen = []
    for until in range(2, 6):
        at, *_ = gatys.advance(TINY, params, targets, at, np.int32(until), cfg)
        seen.append(np.asarray(at.x))
    weights = 0.8 ** np.arange(4)[::-1]
    expected = np.average(seen, axis=0, weights=weights)
    np.testing.assert_allclose(gatys.picture_of(at, cfg, canvas), expected, atol=1e-5)


def test_rows_are_shared_from_the_beginning():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("rows",))
    image = tiles.by_rows((30, 20), 4, mesh).put(np.zeros((30, 20, 3), np.float32))
    at = gatys.start(image, jnp.zeros(()), jnp.zeros_like(image), CFG, canvas=tiles.by_rows((30, 20), 4, mesh))
    pictures = [x for x in jax.tree.leaves(at) if x.ndim >= 3]
    assert len(pictures) >= 5  # the image, the variables, the gradient and what L-BFGS remembers
    for x in pictures:
        assert {shard.data.shape[-3] for shard in x.addressable_shards} == {8}


def test_adam_takes_its_moments_along():
    cfg = dataclasses.replace(CFG, optimizer="adam")
    at = gatys.start(jnp.zeros((8, 8, 3)), jnp.zeros(()), jnp.zeros((8, 8, 3)), cfg)
    adam, *others = at.opt_state
    adam = adam._replace(count=adam.count + 5, mu=adam.mu + 8.0, nu=adam.nu + 32.0)
    image, before = jnp.zeros((16, 16, 3)), dataclasses.replace(at, opt_state=(adam, *others))
    larger = gatys.start(image, jnp.zeros(()), image, cfg, before)
    assert larger.opt_state[0].count == 5
    np.testing.assert_allclose(larger.opt_state[0].mu, np.full((16, 16, 3), 2.0), rtol=1e-6)  # a quarter, as gradients
    np.testing.assert_allclose(larger.opt_state[0].nu, np.full((16, 16, 3), 2.0), rtol=1e-6)


def test_wasserstein_style_comes_nearer_to_the_style(params, scene):
    content, style = scene
    cfg = dataclasses.replace(CFG, style_loss="wasserstein", steps=30, smallest=32)
    seen = []
    result = gatys.stylize(jax.random.key(0), content, [style], cfg, TINY, params, callback=seen.append)
    assert np.isfinite(result).all()
    first, last = (sum(v for k, v in p.terms.items() if k.startswith("style")) for p in (seen[0], seen[-1]))
    assert 0 <= last < 0.2 * first


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"tile": -1}, "tile must not be negative, got -1"),
        ({"averaging": 1.0}, "averaging must be at least 0 and less than 1, got 1.0"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"content_weight": -1.0}, "content_weight must be a number that is not negative, got -1.0"),
        ({"style_strength": 1.5}, "style_strength must be from 0 to 1, got 1.5"),
        (
            {"style_strength": 0.75, "content_weight": 0.1},
            r"only one of them can be given, got 0.75 \(which is 0.00158\) and 0.1",
        ),
        ({"tv_weight": float("nan")}, "tv_weight must be a number that is not negative, got nan"),
        ({"style_scale": 0.0}, "style_scale must be a positive number, got 0.0"),
        ({"learning_rate": float("inf")}, "learning_rate must be a positive number, got inf"),
        ({"factor": 1.0}, "factor must be more than 1, got 1.0"),
        ({"factor": 1.001}, "factor must be at least 1.05, or there are too many sizes, got 1.001"),
        (
            {"style_layers": ("relu1_1", "relu2_1", "relu1_1")},
            "style_layers must be different layers, got relu1_1 more",
        ),
        ({"content_layers": ("relu4_1",) * 3}, "content_layers must be different layers, got relu4_1 more than once"),
        ({"style_layer_weights": (0.0,)}, "0 or more, one of them more, got"),
        ({"style_layer_weights": (1.0, 2.0)}, "one number or 5, one for each style layer, got 2"),
    ],
)
def test_config_names_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        gatys.Config(**wrong)


def test_style_strength_is_a_content_weight():
    assert gatys.Config(style_strength=0.5) == gatys.Config()
    weights = [gatys.Config(style_strength=s).content_weight for s in np.linspace(0, 1, 11)]
    assert (np.diff(np.log(weights)) < 0).all() and weights[5] == gatys.Config().content_weight
    np.testing.assert_allclose(np.diff(np.log(weights)), np.log(weights[1] / weights[0]), rtol=1e-9)
    strong = gatys.Config(style_strength=0.8)
    assert dataclasses.replace(strong, size=100).content_weight == strong.content_weight < 0.05
    turned = gatys.with_strength(strong, 0.5)
    assert turned == gatys.Config() and gatys.with_strength(gatys.Config(content_weight=3.0), 0.8) == strong
    tree = jax.tree.structure(strong)
    assert tree == jax.tree.structure(gatys.Config())  # the same program


def test_stylize_names_what_is_wrong(params, scene):
    content, style = scene
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="no layer 'relu9_1'; it has conv1_1, relu1_1"):
        gatys.stylize(key, content, [style], dataclasses.replace(CFG, content_layers=("relu9_1",)), TINY, params)
    with pytest.raises(ValueError, match="for each of 2 styles"):
        gatys.stylize(key, content, [style, style], CFG, TINY, params, (1.0,))
    wrong_masks = [
        (
            {"content_masks": [np.ones((40, 40))]},
            "content mask must have the 56 x 40 pixels of its picture, got 40 x 40",
        ),
        ({"style_masks": [np.zeros((48, 30))]}, "style mask is black all over"),
        ({"content_masks": []}, "a content mask for each of 1 styles, got 0"),
    ]
    for masks, message in wrong_masks:
        with pytest.raises(ValueError, match=message):
            gatys.stylize(key, content, [style], CFG, TINY, params, **masks)
    with pytest.raises(ValueError, match="too small for these layers"):
        gatys.stylize(key, content[:2], [style], dataclasses.replace(CFG, size=16), TINY, params)


def test_another_number_compiles_nothing(params, scene):
    """Weights, rates and lengths of the work are numbers in programs that are there; what a number is not is known."""
    content, style = scene
    cfg = dataclasses.replace(CFG, steps=4, smallest=32, optimizer="adam", averaging=0.5)

    def made(cfg):
        compiled = []

        def listener(event, seconds, **_):
            compiled.extend([event] if "backend_compile" in event else [])

        jax.monitoring.register_event_duration_secs_listener(listener)
        try:
            return gatys.stylize(jax.random.key(0), content, [style], cfg, TINY, params), len(compiled)
        finally:
            jax.monitoring.unregister_event_duration_listener(listener)

    before, compiled = made(cfg)
    assert compiled  # or it would not be noticed
    for name, value in {
        "content_weight": 0,
        "style_weight": 2.0,
        "tv_weight": 0.0,
        "range_weight": 3.0,
        "style_layer_weights": (1.0, 0.0, 3.0),
        "learning_rate": 0.02,
        "averaging": 0.7,
        "steps": 3,
        "init": "noise",
    }.items():
        result, compiled = made(dataclasses.replace(cfg, **{name: value}))
        assert compiled <= (name == "init"), name  # of jax.random.normal
        assert np.abs(result - before).max() > 0, name
    names = {*config.PROGRAM, *config.NUMBERS, *config.OPTIONAL}
    assert names < {field.name for field in dataclasses.fields(gatys.Config)}
    seen = jax.jit(lambda cfg: jnp.zeros(()) if cfg.size is None else None)(cfg)  # known to the loop alone
    assert seen == 0 and jax.tree.map(lambda x: 2 * x, cfg).tv_weight == 2 * cfg.tv_weight


# ---------------------------------------------------------------------------------------------------------------------
# What comes in

GREY = np.full((24, 24, 3), 128, np.uint8)


@pytest.mark.parametrize(
    "picture, message",
    [
        (GREY, r"floats in \[-1, 1\], got dtype uint8: of 0..255 take x / 127.5 - 1"),
        (GREY.astype(np.float32), r"floats in \[-1, 1\], got floats from 128 to 128: of 0..255 take x / 127.5 - 1"),
        (GREY.astype(np.int64), r"floats in \[-1, 1\], got dtype int64"),
        (GREY[..., 0], r"shape \(h, w, 3\), got shape \(24, 24\): repeat the grey in three channels"),
        (GREY[..., :1], r"got shape \(24, 24, 1\): repeat the grey"),
        (np.zeros((24, 24, 4)), r"got shape \(24, 24, 4\): blend it over white"),
        (np.zeros((0, 24, 3)), r"got shape \(0, 24, 3\)"),
        (np.full((24, 24, 3), np.nan), "hold finite numbers, got 1728 that are not"),
        (np.full((24, 24, 3), -1.2), "got floats from -1.2 to -1.2"),
    ],
)
def test_pictures_that_are_none(picture, message):
    good = np.zeros((24, 24, 3), np.float32)
    for name, job in {
        "content": lambda: gatys.Job(picture, [good]),
        "style": lambda: gatys.Job(good, [good, picture]),
        "init_image": lambda: gatys.Job(good, [good], init_image=picture),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must .*{message}"):
            job()


def test_what_resizing_has_overshot_is_taken_as_it_is():
    overshot = np.linspace(-1.05, 1.05, 192).reshape(8, 8, 3)
    job = gatys.Job(overshot, [overshot])
    assert job.content.dtype == np.float32
    np.testing.assert_array_equal(job.content, overshot.astype(np.float32))


def test_one_style_is_put_in_brackets():
    good = np.zeros((24, 24, 3), np.float32)
    with pytest.raises(ValueError, match=r"styles must be a sequence of pictures, got one of shape .*write \[style\]"):
        gatys.Job(good, good)
    assert len(gatys.Job(good, np.stack([good, good])).styles) == 2
    with pytest.raises(ValueError, match="for each of 0 styles"):
        gatys.Job(good, [])


def test_masks_are_from_0_to_1():
    good = np.zeros((4, 6, 3), np.float32)
    half = np.arange(24).reshape(4, 6) < 12
    for mask in (half, half.astype(np.float64)):
        (found,) = gatys.Job(good, [good], content_masks=[mask]).content_masks
        np.testing.assert_array_equal(found, half)
    for mask, message in {
        "0..255": (255.0 * half, r"floats in \[0, 1\], got floats from 0 to 255"),
        "bytes": (half.astype(np.uint8) * 255, "got dtype uint8: of 0..255 take x / 255"),
        "below": (half - 1.0, r"got floats from -1 to 0"),
        "NaN": (np.where(half, np.nan, 0), "finite numbers, got 12 that are not"),
        "integers": (half.astype(int), "got dtype int64"),
    }.values():
        with pytest.raises(ValueError, match=f"a style mask must hold .*{message}"):
            gatys.Job(good, [good], style_masks=[mask])


# ---------------------------------------------------------------------------------------------------------------------
# Control

SLOW = dataclasses.replace(CFG, optimizer="adam", steps=400, factor=2.0)  # far more than there is time for


def stylize_under(control, params, scene, cfg=SLOW, **more):
    return gatys.stylize(jax.random.key(0), scene[0], [scene[1]], cfg, TINY, params, control=control, **more)


def test_events_are_told_in_order(params, scene):
    heard, called = [], []
    control = Control([heard.append])
    cfg = dataclasses.replace(SLOW, steps=6)
    result = stylize_under(control, params, scene, cfg, callback=called.append, tell_every=(2,))
    assert [type(event) for event in heard[:3]] == [gatys.Stepped, Pictures, Advanced] and len(heard) % 3 == 1
    assert heard[-1] == Done(12, False)
    stepped, shown, advanced = heard[:-1:3], heard[1:-1:3], heard[2:-1:3]
    assert [event.progress for event in stepped] == [(progress,) for progress in called]
    steps = [event.step for event in stepped]
    assert set(range(2, 13, 2)) <= set(steps) and steps == sorted(steps)  # each multiple, whatever the clock said
    assert all(isinstance(event, Metrics) and event.values["loss"] > 0 for event in stepped)
    assert stepped[-1].values["loss"] == pytest.approx(sum(v for k, v in stepped[-1].values.items() if k != "loss"))
    assert advanced[-1] == Advanced(12, 12)
    assert shown[0].pictures.shape == (1, 11, 16, 3) and shown[-1].pictures.shape == (1, 23, 32, 3)
    np.testing.assert_array_equal(shown[-1].pictures[0], result)


def test_terms_and_the_moment_they_belong_to(params, scene):
    cfg = dataclasses.replace(SLOW, steps=30, smallest=32)
    seen = []
    stylize_under(None, params, scene, cfg, callback=seen.append, tell_every=(7,))
    first, last = seen[0], seen[-1]
    assert first.terms_at == 1 and sum(first.terms.values()) > first.losses[-1][1]  # of the beginning
    assert last.terms_at == last.evaluations == 30
    assert sum(last.terms.values()) == pytest.approx(last.losses[-1][1], rel=1e-4)


@pytest.mark.parametrize("pictures", [1, 2])
def test_stopped_from_another_thread_it_is_as_it_is_by_then(params, scene, pictures):
    """Also outside the main thread, and at a size that is not the last."""
    control, under_way, asked, result = Control(), threading.Event(), threading.Event(), []
    shown = []

    def hear(event):  # and go on when it has been asked to stop, so that it is not done before
        shown.append(event)
        under_way.set()
        assert asked.wait(PATIENCE)

    control.listeners.append(hear)
    work = functools.partial(stylize_under, control, params, scene)
    if pictures > 1:
        jobs = [gatys.Job(scene[0], [scene[1]]), gatys.Job(scene[0], [-scene[1]])]
        work = functools.partial(gatys.stylize_many, jax.random.key(0), jobs, SLOW, TINY, params, control=control)
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    assert under_way.wait(PATIENCE)
    control.stop()
    asked.set()
    thread.join(PATIENCE)
    assert not thread.is_alive() and isinstance(shown[-1], Done) and shown[-1].stopped
    made = result[0] if pictures > 1 else result
    last = next(event for event in reversed(shown) if isinstance(event, Pictures)).pictures
    assert len(made) == len(last) == pictures
    for picture, seen in zip(made, last, strict=True):
        assert picture.shape == (23, 32, 3) and np.abs(picture).max() <= 1
        np.testing.assert_allclose(picture, np.clip(images.resize(seen, (23, 32)), -1, 1), atol=1e-6)


def test_paused_it_waits_and_then_is_what_it_would_have_been(params, scene):
    cfg = dataclasses.replace(SLOW, steps=6)
    expected = stylize_under(None, params, scene, cfg)
    control, reached, result, heard = Control(), threading.Event(), [], []

    def hear(event):
        heard.append(event)
        if isinstance(event, Advanced) and not reached.is_set():
            control.pause()
            reached.set()

    control.listeners.append(hear)
    thread = threading.Thread(target=lambda: result.append(stylize_under(control, params, scene, cfg)))
    thread.start()
    assert reached.wait(PATIENCE)
    thread.join(0.5)
    assert thread.is_alive() and len(heard) == 3  # nothing since
    control.go_on()
    thread.join(PATIENCE)
    assert heard[-1] == Done(12, False)
    np.testing.assert_array_equal(result[0], expected)


def test_stopped_before_it_is_begun_it_is_what_it_begins_with(params, scene):
    heard = []
    control = Control([heard.append])
    control.stop()
    result = stylize_under(control, params, scene)
    np.testing.assert_array_equal(result, np.clip(images.resize(scene[0], (23, 32)), -1, 1))
    assert heard == [Done(0, True)]


def test_stop_ends_a_pause(params, scene):
    control = Control()
    control.pause()
    thread = threading.Thread(target=stylize_under, args=(control, params, scene))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    control.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# ---------------------------------------------------------------------------------------------------------------------
# States


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_from_any_state_on_it_is_what_it_would_have_been(params, scene, optimizer):
    content, style = scene
    cfg = dataclasses.replace(CFG, optimizer=optimizer, steps=9, factor=2.0, averaging=0.5)
    key, job = jax.random.key(0), gatys.Job(content, [style])
    seen = []
    expected = gatys.stylize(key, content, [style], cfg, TINY, params, keep=lambda s: seen.append(gatys.arrays_of(s)))
    assert [int(arrays["size"]) for arrays in seen] == sorted(int(arrays["size"]) for arrays in seen)
    assert int(seen[-1]["size"]) == 1 and int(seen[-1]["at.evaluations"]) >= 9
    for arrays in (seen[0], seen[1], seen[-2], seen[-1]):
        again = gatys.stylize(key, content, [style], cfg, TINY, params, state=arrays)
        np.testing.assert_array_equal(again, expected)
    made = list(gatys.states(key, [job], cfg, TINY, params, seen[1]))[-1]
    for name, array in gatys.arrays_of(made).items():
        np.testing.assert_array_equal(array, seen[-1][name], err_msg=name)
    for wrong in ({"size": np.int32(2)}, {"at.x": np.zeros((2, 2, 3))}, {"at.gradient": None}):
        arrays = {name: x for name, x in (seen[1] | wrong).items() if x is not None}
        with pytest.raises(ValueError, match=r"size must be from 0 to 1|must have shape \(11, 16, 3\), got"):
            gatys.states(key, [job], cfg, TINY, params, arrays)


def test_weights_are_turned_while_it_runs(params, scene):
    content, style = scene
    cfg = dataclasses.replace(CFG, optimizer="adam", steps=300, smallest=32)
    work = gatys.states(jax.random.key(0), [gatys.Job(content, [style])], cfg, TINY, params)
    next(work)
    before = next(work)
    turned = dataclasses.replace(cfg, content_weight=50.0)
    count = gatys.advance._cache_size(), gatys.evaluate._cache_size()
    evaluations, terms = int(before.at.evaluations), {name: float(x) for name, x in before.terms.items()}
    after = work.send(turned)
    assert (gatys.advance._cache_size(), gatys.evaluate._cache_size()) == count
    assert int(after.at.evaluations) > evaluations
    assert after.terms["content/relu3_1"] > terms["content/relu3_1"]  # as it was when it was turned
    *_, last = work
    assert last.terms["content/relu3_1"] < 0.1 * float(after.terms["content/relu3_1"])
    with pytest.raises(ValueError, match="can be turned while it runs, not size, an optional part"):
        work = gatys.states(jax.random.key(0), [gatys.Job(content, [style])], cfg, TINY, params)
        next(work)
        work.send(dataclasses.replace(cfg, size=16, averaging=0.5))


# ---------------------------------------------------------------------------------------------------------------------
# Planning


def test_a_step_that_is_lowered_for_other_devices():
    cfg = gatys.Config(size=100)
    chips = jax.devices()[:4]
    made = gatys.lower_step(gatys.PlanSettings("v5e:2x2", features="compact", precision="float32"), cfg, chips)
    assert made.unit == "an evaluation of 100 x 100 pixels, compact in float32"
    assert "take more chips, --remat" in made.advice
    # Of 128 rows each chip has 32; L-BFGS keeps 20 pairs and six more images of three float32.
    assert made.kept == (2 * 20 + 6) * 12 * 32 * 100
    assert "num_partitions = 4" in made.lowered.as_text()
