"""What the training loop asks of every method: one line of TINY_METHODS per method."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganstyle_jax import runs, train
from ganstyle_jax.data import Batches, Source
from ganstyle_jax.gan import dcgan

pytestmark = pytest.mark.usefixtures("quick_compile")

DCGAN = dcgan.Config(image_size=16, channels=3, width=2, latent_dim=4)
TINY_METHODS = [
    pytest.param(dcgan, DCGAN, id="dcgan"),
]
# And one line here: all at once that a method draws or averages over the batch, and could do otherwise on many devices.
ALL_AT_ONCE = [
    pytest.param(
        dcgan,
        dataclasses.replace(
            DCGAN,
            discriminator_steps=2,
            gradient_penalty=1.0,
            clip_norm=1.0,
            augment="color",
            instance_noise=0.1,
        ),
        id="dcgan-all",
    ),
]
KEY = jax.random.key(5)


def batch_of(method, cfg, images=4):
    n = images * getattr(method, "batches_per_step", lambda cfg: 1)(cfg)
    shape = (n, cfg.image_size, cfg.image_size, cfg.channels)
    return {"image": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}


class Compiled:
    """A method's step, compiled once for all tests of this file, and how often it was traced."""

    def __init__(self, method, cfg):
        self.traces = 0

        def step(state, batch, key):
            self.traces += 1
            return method.train_step(state, batch, key, cfg)

        self.step = jax.jit(step)
        self.state = jax.jit(partial(method.init, cfg=cfg))(KEY)
        self.batch = batch_of(method, cfg)
        self.first = self.step(self.state, self.batch, KEY)


@pytest.fixture(scope="module")
def compiled(quick_compile):
    made = {}

    def get(method, cfg):
        if (method, cfg) not in made:
            made[method, cfg] = Compiled(method, cfg)
        return made[method, cfg]

    return get


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


@pytest.mark.parametrize("method, cfg", TINY_METHODS)
def test_a_method_offers_what_the_loop_needs(method, cfg):
    runs.check_method(method)
    assert dataclasses.is_dataclass(cfg) and hash(cfg) == hash(dataclasses.replace(cfg))
    assert isinstance(cfg, method.Config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.image_size = 32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("method, cfg", TINY_METHODS + ALL_AT_ONCE)
def test_a_step_keeps_shapes_and_dtypes(method, cfg, dtype):
    cfg = dataclasses.replace(cfg, dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        before = jax.eval_shape(partial(method.init, cfg=cfg), KEY)
        step = partial(method.train_step, cfg=cfg)
        after, metrics = jax.eval_shape(step, before, batch_of(method, cfg), KEY)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    described = [jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), tree) for tree in (before, after)]
    assert described[0] == described[1]
    assert metrics and all(metric.shape == () for metric in metrics.values())


@pytest.mark.parametrize("method, cfg", TINY_METHODS)
def test_a_second_step_does_not_compile_again(compiled, method, cfg):
    made = compiled(method, cfg)
    made.step(made.first[0], made.batch, jax.random.fold_in(KEY, 1))
    assert made.traces == 1


@pytest.mark.parametrize("method, cfg", TINY_METHODS)
def test_the_key_decides(compiled, method, cfg):
    made = compiled(method, cfg)
    assert same(made.step(made.state, made.batch, KEY), made.first)
    other, _ = made.step(made.state, made.batch, jax.random.key(6))
    assert not same(other, made.first[0])
    init = jax.jit(partial(method.init, cfg=cfg))
    assert same(init(KEY), made.state)
    assert not same(init(jax.random.key(6)), made.state)


@pytest.mark.parametrize("method, cfg", TINY_METHODS)
def test_the_images_decide(compiled, method, cfg):
    made = compiled(method, cfg)
    other, _ = made.step(made.state, {"image": made.batch["image"] / 2}, KEY)
    assert not same(other, made.first[0])


@pytest.mark.parametrize("method, cfg", TINY_METHODS)
def test_a_step_moves_every_weight_and_reports_finite_numbers(compiled, method, cfg):
    made = compiled(method, cfg)
    after, metrics = made.first
    before = dict(jax.tree_util.tree_leaves_with_path(made.state))
    weights = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all(), path
        if any(getattr(key, "name", "") in ("params", "batch_stats", "ema", "step") for key in path):
            assert not np.array_equal(leaf, before[path]), f"{jax.tree_util.keystr(path)} has not moved"
            weights += 1
    assert weights > 4
    assert all(isinstance(name, str) and metric.shape == () for name, metric in metrics.items())
    assert all(np.isfinite(metric) for metric in metrics.values())


@pytest.mark.parametrize("method, cfg", TINY_METHODS)
def test_samples(compiled, method, cfg):
    state = compiled(method, cfg).first[0]
    z = method.latents(KEY, 6, cfg)
    assert z.shape[0] == 6
    np.testing.assert_array_equal(z, method.latents(KEY, 6, cfg))
    assert not np.array_equal(z, method.latents(jax.random.key(6), 6, cfg))
    images = jax.jit(lambda state, z: method.sample(method.generator(state, cfg), z, cfg))(state, z)
    assert images.shape == (6, cfg.image_size, cfg.image_size, cfg.channels) and images.dtype == jnp.float32
    assert np.abs(images).max() <= 1
    assert len({np.asarray(image).tobytes() for image in images}) == 6


def three_steps(method, cfg, parallel, devices):
    """(state, metrics) after three steps, through the loop's own compiled step, in one dispatch."""
    shape = (48, cfg.image_size, cfg.image_size, cfg.channels)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    source = Source("noise", images.shape[1:], images.dtype, len(images), None, lambda i: {"image": images[i]})
    loop = train.Loop(steps=3, batch_size=16, parallel=parallel, devices=devices, steps_per_dispatch=3)
    mesh = train.make_mesh(loop)
    feed = train.Feed(Batches(source, train.images_per_step(method, cfg, loop), seed=0, workers=1), loop, mesh)
    state = jax.jit(partial(method.init, cfg=cfg))(KEY)
    advance = train.make_advance(method, cfg, KEY, loop, mesh, jax.eval_shape(lambda: state), feed)
    stored = feed.load()
    with feed.stream(0, 3) as chunks:
        return jax.tree.map(np.asarray, advance(state, stored, chunks(0, 3), np.int32(0), np.int32(3)))


@pytest.mark.slow
@pytest.mark.parametrize("method, cfg", ALL_AT_ONCE)
def test_eight_devices_give_what_one_gives(x64, method, cfg):
    """Under jit and under pmap, statistics, gradients, draws and metrics are those of the global batch."""
    cfg = dataclasses.replace(cfg, dtype="float64")
    one = three_steps(method, cfg, "jit", 1)
    for parallel in ("jit", "pmap"):
        many = three_steps(method, cfg, parallel, 8)
        for (path, actual), expected in zip(
            jax.tree_util.tree_leaves_with_path(many), jax.tree.leaves(one), strict=True
        ):
            actual, expected = np.float64(actual), np.float64(expected)
            error, allowed = np.linalg.norm(actual - expected), 1e-10 * np.linalg.norm(expected)
            assert error <= allowed, f"{parallel}: {jax.tree_util.keystr(path)} is off by {error}"
