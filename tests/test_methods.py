"""The contract between the loop and every method, one shared test over the list of all of them.

A new method is one line in TINY_METHODS; its config should be as small and as quick as can be, and use all at once that
the method draws or averages over the batch, and could do otherwise on many devices.
"""

import dataclasses
import types
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_encoder
import small_prior
import small_stylizer
import small_translator
import small_wgan

from ganstyle_jax import contract
from ganstyle_jax.data import Source
from ganstyle_jax.gan import cyclegan, dcgan, r3gan, stylegan2
from ganstyle_jax.loop import sources, step, train
from ganstyle_jax.loop.checkpoints import digest
from ganstyle_jax.loop.feed import Feed
from ganstyle_jax.loop.settings import Loop
from ganstyle_jax.restore import super_resolution
from ganstyle_jax.style import adain, fast_style

pytestmark = pytest.mark.usefixtures("quick_compile")

DOCS = Path(__file__).resolve().parents[1] / "docs"
FAST_STYLE = fast_style.Config(
    style=(DOCS / "faces.png", DOCS / "stylized.jpg"),
    image_size=16,
    width=2,
    blocks=1,
    content_layer="relu2_1",
    style_layers=("relu1_1", "relu2_1"),
)
TRANSLATION = dict(image_size=18, crop=16, width=2, blocks=1, discriminator_width=2, discriminator_halvings=2)
R3GAN = dict(image_size=16, channels=3, width=2, latent_dim=4, mirror=True, ema_halflife_images=(9.0, 50.0))
ALL_AT_ONCE = dict(discriminator_steps=2, gradient_penalty=1.0, clip_norm=1.0, augment="color", instance_noise=0.1)
STYLEGAN2 = dict(image_size=16, channels=3, latent_dim=4, mapping_layers=2, capacity=64, max_channels=4)
EVERY_AUGMENTATION = dict(augment_policy="blit,geometry,color,filter,noise,cutout", augment_p=0.5, augment_interval=2)
CONDITIONAL = dcgan.Config(
    image_size=16, channels=3, width=2, latent_dim=4, conditional=True, classes=3, discriminator_steps=2, r1=1.0
)
TINY_METHODS = [
    pytest.param(dcgan, dcgan.Config(image_size=16, channels=3, width=2, latent_dim=4), id="dcgan"),
    pytest.param(dcgan, dcgan.Config(image_size=16, channels=3, width=2, latent_dim=4, **ALL_AT_ONCE), id="dcgan-all"),
    pytest.param(dcgan, CONDITIONAL, id="dcgan-conditional"),
    pytest.param(  # whose step takes half a minute to compile, without augmentation a few seconds
        stylegan2, stylegan2.Config(**STYLEGAN2, **EVERY_AUGMENTATION), id="stylegan2", marks=pytest.mark.slow
    ),
    pytest.param(
        stylegan2,
        stylegan2.Config(**STYLEGAN2, augment="none", conditional=True, classes=3, mirror=True),
        id="stylegan2-conditional",
    ),
    pytest.param(adain, adain.Config(24, 16, small_encoder.path(), ema_halflife_images=50.0), id="adain"),
    pytest.param(small_wgan, small_wgan.Config(channels=3, width=8, latent_dim=4), id="wgan"),
    pytest.param(small_translator, small_translator.Config(width=4, history=20), id="translator"),
    pytest.param(cyclegan, cyclegan.Config(**TRANSLATION, history=20, ema_halflife_images=50.0), id="cyclegan"),
    pytest.param(cyclegan, cyclegan.Config(**TRANSLATION, mode="paired"), id="cyclegan-paired"),
    pytest.param(cyclegan, cyclegan.Config(**TRANSLATION, mode="contrastive", nce_width=8), id="cyclegan-contrastive"),
    pytest.param(r3gan, r3gan.Config(**R3GAN, augment="color,cutout", augment_probability=(0.5, 0.7)), id="r3gan"),
    pytest.param(
        r3gan,
        r3gan.Config(**R3GAN, conditional=True, classes=3, group_size=2, convolution="xla"),
        id="r3gan-conditional",
    ),
    pytest.param(small_stylizer, small_stylizer.Config(), id="stylizer"),
    pytest.param(fast_style, FAST_STYLE, id="fast-style"),
    pytest.param(small_prior, small_prior.Config(width=4), id="prior"),
    pytest.param(
        super_resolution,
        super_resolution.Config(
            scale=2, image_size=16, patch=8, width=4, blocks=1, norm="batch", loss="feature", layers=("relu1_1",)
        ),
        id="super-resolution",
    ),
]
every_method = pytest.mark.parametrize("module, cfg", TINY_METHODS)
KEY = jax.random.key(5)


def found_for(module, cfg, size=48):
    """{source: open source of noise} that a method learns from, in classes where it is conditional."""
    found, names = {}, None
    if getattr(cfg, "conditional", False):
        names = tuple(f"class {k}" for k in range(cfg.classes or 3))
    for i, (name, wanted) in enumerate(module.sources(cfg).items()):
        height, width = wanted.size if isinstance(wanted.size, tuple) else (wanted.size, wanted.size)
        shape = (size + 2 * i, height, width, wanted.channels or 3)  # sources of different size
        images = np.random.default_rng(i).integers(0, 256, shape).astype(np.uint8)
        labels = (
            None if names is None else np.random.default_rng(100 + i).integers(0, len(names), len(images), np.int32)
        )

        def read(k, images=images, labels=labels):
            return {"image": images[k]} | ({} if labels is None else {"label": labels[k]})

        found[name] = Source(f"noise {name}", images.shape[1:], images.dtype, len(images), names, read)
    return found


def batch_of(module, cfg, images=4):
    examples = contract.examples_of(found_for(module, cfg), images)
    repeat = {name: wanted.batches for name, wanted in module.sources(cfg).items()}
    return {name: {k: np.concatenate([x] * n) for k, x in examples[name].items()} for name, n in repeat.items()}


class Compiled:
    """A method's step, compiled once for all tests of this file, and how often it was traced."""

    def __init__(self, module, cfg):
        self.method = contract.of(module)
        self.traces = 0

        def step(state, batch, key, constants):
            self.traces += 1
            return self.method.train_step(state, batch, key, cfg, constants)

        self.step = jax.jit(step)
        self.constants = self.method.constants(cfg)
        self.init = jax.jit(lambda key, constants: self.method.init(key, cfg, constants))
        self.state = self.init(KEY, self.constants)
        self.batch = batch_of(module, cfg)
        self.first = self.step(self.state, self.batch, KEY, self.constants)


@pytest.fixture(scope="module")
def compiled(quick_compile):
    made = {}

    def get(module, cfg):
        if (module, cfg) not in made:
            made[module, cfg] = Compiled(module, cfg)
        return made[module, cfg]

    return get


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


@every_method
def test_a_method_offers_what_the_loop_needs(module, cfg):
    method = contract.of(module)
    assert contract.of(method) is method and method == contract.of(module)
    assert dataclasses.is_dataclass(cfg) and hash(cfg) == hash(dataclasses.replace(cfg))
    assert isinstance(cfg, method.config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.image_size = 32
    loops = {field.name for field in dataclasses.fields(Loop)}
    assert not loops & {field.name for field in dataclasses.fields(cfg)}, "a flag of the loop's own"


@every_method
def test_a_config_survives_json(module, cfg):
    assert contract.config_from_json(module.Config, contract.to_json(cfg)) == cfg


DTYPES = [
    pytest.param(*p.values, dtype, id=f"{p.id}-{dtype}", marks=p.marks)
    for p in TINY_METHODS
    for dtype in ("float32", "bfloat16", "float64")
    if dtype != "bfloat16" or "dcgan" in p.id  # the small methods compute in the other two
]


@pytest.mark.parametrize("module, cfg, dtype", DTYPES)
def test_a_step_keeps_shapes_and_dtypes(module, cfg, dtype):
    cfg, method = dataclasses.replace(cfg, dtype=dtype), contract.of(module)
    with jax.enable_x64(dtype == "float64"):
        constants = method.constants(cfg)
        before = jax.eval_shape(lambda key, constants: method.init(key, cfg, constants), KEY, constants)
        step = partial(method.train_step, cfg=cfg)
        after, metrics = jax.eval_shape(step, before, batch_of(module, cfg), KEY, constants=constants)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    described = [jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), tree) for tree in (before, after)]
    assert described[0] == described[1]
    assert metrics and all(metric.shape == () for metric in metrics.values())


@every_method
def test_a_second_step_does_not_compile_again(compiled, module, cfg):
    made = compiled(module, cfg)
    made.step(made.first[0], made.batch, jax.random.fold_in(KEY, 1), made.constants)
    assert made.traces == 1


@every_method
def test_the_key_decides(compiled, module, cfg):
    made = compiled(module, cfg)
    assert same(made.step(made.state, made.batch, KEY, made.constants), made.first)
    assert same(made.init(KEY, made.constants), made.state)
    other = made.init(jax.random.key(6), made.constants)
    assert not same(other, made.state)


@every_method
def test_the_images_decide(compiled, module, cfg):
    made = compiled(module, cfg)
    for name in made.batch:  # those of each source
        batch = made.batch | {name: made.batch[name] | {"image": made.batch[name]["image"] / 2}}
        other, _ = made.step(made.state, batch, KEY, made.constants)
        assert not same(other, made.first[0]), name


@pytest.mark.parametrize("module, cfg", [p for p in TINY_METHODS if getattr(p.values[1], "conditional", False)])
def test_the_classes_decide(compiled, module, cfg):
    made = compiled(module, cfg)
    method, state = made.method, made.first[0]
    for name in made.batch:
        labels = (made.batch[name]["label"] + 1) % cfg.classes
        other, _ = made.step(made.state, made.batch | {name: made.batch[name] | {"label": labels}}, KEY, made.constants)
        assert not same(other, made.first[0]), name
    requests = method.requests(KEY, 6, cfg, contract.examples_of(found_for(module, cfg), 6))
    assert requests["label"].dtype == jnp.int32
    np.testing.assert_array_equal(requests["label"], np.arange(6) % cfg.classes)

    @jax.jit
    def draw(state, requests, constants):
        return method.sample(method.generator(state, cfg, constants), requests, cfg)

    one, other = (
        draw(state, requests | {"label": x}, made.constants) for x in (jnp.zeros(6, jnp.int32), jnp.ones(6, jnp.int32))
    )
    assert all(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@every_method
def test_a_step_moves_every_weight_and_reports_finite_numbers(compiled, module, cfg):
    made = compiled(module, cfg)
    after, metrics = made.first
    if module is r3gan:  # whose blocks end in weights that begin at 0: those before them wait for the second step
        after, _ = made.step(after, made.batch, jax.random.fold_in(KEY, 1), made.constants)
    before = dict(jax.tree_util.tree_leaves_with_path(made.state))
    weights = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all(), path
        names = {getattr(key, "name", getattr(key, "key", "")) for key in path}
        if names & {"params", "batch_stats", "ema", "step"} and "opt_state" not in names:
            if leaf.size == 1 and "step" not in names:
                continue  # the bias of a critic's last layer, of which a difference of two critiques knows nothing
            assert not np.array_equal(leaf, before[path]), f"{jax.tree_util.keystr(path)} has not moved"
            weights += 1
    assert weights > 0
    assert all(isinstance(name, str) and metric.shape == () for name, metric in metrics.items())
    assert all(np.isfinite(metric) for metric in metrics.values())


@every_method
def test_samples(compiled, module, cfg):
    made = compiled(module, cfg)
    method, state = made.method, made.first[0]
    examples = contract.examples_of(found_for(module, cfg), 6)
    requests = method.requests(KEY, 6, cfg, examples)
    assert contract.count_of(requests) == 6
    assert same(requests, method.requests(KEY, 6, cfg, contract.examples_of(found_for(module, cfg), 6)))

    @jax.jit
    def draw(state, requests, constants):
        return method.sample(method.generator(state, cfg, constants), requests, cfg)

    drawn = draw(state, requests, made.constants)
    titled = drawn if isinstance(drawn, dict) else {"": drawn}
    for title, images in titled.items():
        assert isinstance(title, str)
        assert images.ndim == 4 and len(images) == 6 and images.shape[-1] in (1, 3) and images.dtype == jnp.float32
        assert np.abs(images).max() <= 1
        assert len({np.asarray(image).tobytes() for image in images}) == 6
    if len(method.sources(cfg)) == 1 or method.has("judged"):
        title, source = method.judged(cfg)
        assert source in method.sources(cfg) and (title is None or title in titled)
    numbers, warning = method.watch({}, jax.tree.map(np.asarray, drawn), examples)
    assert all(np.isfinite(value) for value in numbers.values()) and (warning is None or isinstance(warning, str))


def three_steps(module, cfg, parallel, devices):
    """(state, metrics) after three steps, through the loop's own compiled step, in one dispatch."""
    method = contract.of(module)
    loop = Loop(steps=3, batch_size=16, parallel=parallel, devices=devices, steps_per_dispatch=3, workers=1)
    mesh = step.make_mesh(loop)
    feed = Feed(sources.batched(found_for(module, cfg), method, cfg, loop), loop, mesh)
    constants = method.constants(cfg)
    state = jax.jit(lambda key: method.init(key, cfg, constants))(KEY)
    advance = step.make_advance(method, cfg, KEY, loop, mesh, jax.eval_shape(lambda: state), feed.rows)
    stored = feed.load()
    with feed.stream(0, 3) as chunks:
        done = advance(state, constants, stored, chunks(0, 3), np.int32(0), np.int32(3))
    return jax.tree.map(np.asarray, done)


def assert_close(actual, expected, name):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.float64(a), np.float64(b)
        error, allowed = np.linalg.norm(a - b), 1e-10 * np.linalg.norm(b)
        assert error <= allowed, f"{name}: {jax.tree_util.keystr(path)} is off by {error}"


LONG = ("dcgan-all", "stylegan2", "stylegan2-conditional", "r3gan", "r3gan-conditional", "cyclegan-paired")
LONG += ("cyclegan-contrastive",)  # all of which take a minute and more to compile


@pytest.mark.parametrize(
    "module, cfg",
    [pytest.param(*p.values, id=p.id, marks=[pytest.mark.slow] if p.id in LONG else p.marks) for p in TINY_METHODS[1:]],
)
def test_eight_devices_give_what_one_gives(x64, module, cfg):
    """Under jit and under pmap, statistics, gradients, draws, metrics and state are those of the global batch."""
    cfg = dataclasses.replace(cfg, dtype="float64")
    one = three_steps(module, cfg, "jit", 1)
    for parallel in ("jit", "pmap"):
        assert_close(three_steps(module, cfg, parallel, 8), one, parallel)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, options",
    [
        pytest.param(stylegan2, STYLEGAN2 | dict(group=1, augment_policy="blit,noise", augment_p=0.5), id="stylegan2"),
        pytest.param(r3gan, R3GAN | dict(conditional=True, classes=3, augment="cutout"), id="r3gan"),
    ],
)
def test_eight_devices_compute_their_batch_in_parts(x64, module, options):
    """One picture at a time on each, under jit and under pmap: as one device that computes all at once."""
    cfg = module.Config(**options, dtype="float64")
    whole, parts = three_steps(module, cfg, "jit", 1), dataclasses.replace(cfg, micro_batch=8, remat=True)
    for parallel in ("jit", "pmap"):
        assert_close(three_steps(module, parts, parallel, 8), whole, parallel)


def test_a_state_of_one_devices_own_is_found(x64):
    """The test above catches what `pmap` does not: it takes the state of the first device for that of all."""

    def train_step(state, batch, key, cfg, axis_name=None):
        new, metrics = small_wgan.train_step(state["wgan"], batch, key, cfg, axis_name)
        return {"wgan": new, "brightness": batch["real"]["image"].astype(cfg.dtype).mean()}, metrics

    names = {name: getattr(small_wgan, name) for name in contract.REQUIRED}
    naughty = types.ModuleType("naughty")
    vars(naughty).update(names, __file__="naughty.py", train_step=train_step)
    naughty.init = lambda key, cfg: {"wgan": small_wgan.init(key, cfg), "brightness": jnp.zeros((), cfg.dtype)}
    cfg = small_wgan.Config(channels=3, width=8, latent_dim=4, dtype="float64")
    one = three_steps(naughty, cfg, "jit", 1)
    assert_close(three_steps(naughty, cfg, "jit", 8), one, "jit")
    with pytest.raises(AssertionError, match="brightness"):
        assert_close(three_steps(naughty, cfg, "pmap", 8), one, "pmap")


@pytest.mark.parametrize("module, cfg", [p for p in TINY_METHODS if p.id != "dcgan-all"])
def test_a_stopped_run_goes_on_bit_for_bit(module, cfg, tmp_path):
    """Through the whole loop: folder, data, checkpoints, grids. What is frozen is not in a checkpoint."""
    method, given = contract.of(module), found_for(module, cfg) or None

    def run(folder, steps):
        loop = Loop(
            run_dir=tmp_path / folder,
            steps=steps,
            batch_size=4,
            resume="auto",
            devices=1,
            steps_per_dispatch=2,
            sample_every=2,
            checkpoint_every=2,
            log_every=2,
            progress="none",
        )
        return train.run(module, cfg, given, loop)

    whole = run("whole", 4)
    run("parts", 2)
    assert digest(run("parts", 4)) == digest(whole)
    assert (tmp_path / "parts" / "samples" / "000004.png").is_file()
    saved = {path.name for path in (tmp_path / "parts" / "checkpoints" / "4").iterdir()}
    assert saved
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(method.constants(cfg)))
    assert not size or "encoder" not in (tmp_path / "parts" / "checkpoints" / "4" / "_METADATA").read_text()
