"""R3GAN against PyTorch, forward, penalties and whole steps, and what its settings mean."""

import dataclasses
import json
import math
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import load_script

from ganstyle_jax.data import Source
from ganstyle_jax.gan import r3gan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.nn import layers, losses, resampling

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = r3gan.Config(image_size=16, channels=3, width=2, latent_dim=4, group_size=2)
PARITY = dataclasses.replace(
    TINY,
    width=None,
    widths=(6, 6, 4),  # one stage keeps its width, one does not
    blocks=2,
    schedule_images=16,
    learning_rate=(2e-3, 5e-4),
    gamma=(1.0, 0.2),
    ema_halflife_images=(0.0, 20.0),
    augment="color",
    augment_probability=(0.3, 0.8),
    dtype="float64",
)
CONDITIONAL = dataclasses.replace(PARITY, conditional=True, classes=3)
BATCH = 4
KEY = jax.random.key(3)
both = pytest.mark.parametrize("cfg", [PARITY, CONDITIONAL], ids=["unconditional", "conditional"])


def named(tree):
    """{"4x4_block0/expand": array}: weights by their places in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def filled(cfg):
    """A state in which no weight is 0, and the average another than the weights."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if any(getattr(key, "name", "") in ("opt_state", "step") for key in path):
            return jnp.zeros(leaf.shape, leaf.dtype)
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        return jnp.asarray(rng.normal(size=leaf.shape) / fan_in**0.5, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda key: r3gan.init(key, cfg), KEY))


def pictures(seed, n, cfg):
    return np.tanh(np.random.default_rng(seed).normal(size=(n, *cfg.shape))).astype(np.dtype(cfg.param_dtype))


def labels(seed, n, cfg):
    return np.random.default_rng(seed).integers(0, 3, n).astype(np.int32) if cfg.conditional else None


def batch(seed, cfg):
    """Of one step: two updates' pictures, in turn."""
    part = {"image": pictures(seed, 2 * BATCH, cfg)}
    return {"real": part | ({"label": labels(seed, 2 * BATCH, cfg)} if cfg.conditional else {})}


def nhwc(images):
    return images.detach().numpy().transpose(0, 2, 3, 1)


def difference(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def reference(torch):
    """(cfg, state) -> generator, discriminator and averaged generator in PyTorch, with the state's weights."""
    import torch_r3gan

    def networks(cfg, state):
        recipe, classes = cfg.recipe, cfg.classes or 0
        gens = [
            torch_r3gan.Generator(recipe.widths, recipe.blocks, recipe.group_size, recipe.latent_dim, 3, classes)
            for _ in range(2)
        ]
        disc = torch_r3gan.Discriminator(recipe.widths, recipe.blocks, recipe.group_size, 3, classes)
        for network, params in ((gens[0], state.gen.params), (disc, state.disc.params), (gens[1], state.ema)):
            torch_r3gan.load(network, named(params))
        return gens[0], disc, gens[1]

    return networks


def to_torch(torch, x):
    if x is None:
        return None
    x = np.asarray(x)
    return torch.tensor(x.astype(np.int64) if x.ndim == 1 else x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x)


# ---------------------------------------------------------------------------------------------------------------------
# Config


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"preset": "best"}, "preset must be small or cifar10 or .*, got 'best'"),
        ({"image_size": 48}, "image_size must be a power of two from 16 to 1024, got 48: take 64"),
        ({"image_size": 0}, "image_size must be a power of two from 16 to 1024, got 0: take 16"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"conditional": True, "classes": 0}, "classes must be at least 1, got 0"),
        ({"classes": 3}, "classes go with conditional, which is off, got 3"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"widths": (8, 8)}, r"widths must be 5 numbers from 1 up, one for each of 4x4 to 64x64 pixels, got \(8, 8\)"),
        ({"preset": "cifar10", "image_size": 64}, r"widths must be 5 numbers .* 64x64 pixels, got \(768, 768"),
        ({"width": 8, "widths": (8,) * 5}, "width must not be given where widths are"),
        ({"width": 24, "group_size": 32}, "group_size must divide expansion . width = 48, got 32"),
        ({"bfloat16_stages": 6}, "bfloat16_stages must be from 0 to 5, got 6"),
        ({"bfloat16_stages": 1, "dtype": "float64"}, "bfloat16_stages must be 0 with dtype float64, got 1"),
        ({"gamma": (1.0, -1.0)}, r"gamma must not be negative, got \(1.0, -1.0\)"),
        ({"beta2": (0.9, 1.0)}, r"beta2 must be below 1, got \(0.9, 1.0\)"),
        ({"augment_probability": (0.0, 1.5)}, r"augment_probability must be at most 1, got \(0.0, 1.5\)"),
        ({"augment": "flip"}, "list of color, translation, cutout, got 'flip'"),
    ],
)
def test_config_names_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        r3gan.Config(**wrong)


def test_a_preset_gives_what_is_not_given():
    assert set(typing.get_args(typing.get_type_hints(r3gan.Config)["preset"])) == set(r3gan.PRESETS)
    for name, recipe in r3gan.PRESETS.items():
        assert r3gan.Config(preset=name).recipe == recipe
    cfg = r3gan.Config(preset="cifar10", gamma=(1.0, 0.5), width=8)
    expected = dataclasses.replace(r3gan.PRESETS["cifar10"], gamma=(1.0, 0.5), widths=(64, 32, 16, 8))
    assert cfg.recipe == expected
    small = r3gan.Config(image_size=32, width=8)
    assert small.recipe.widths == (64, 32, 16, 8) and small.recipe.gamma == (0.5, 0.05)
    assert r3gan.Config(image_size=1024).recipe.widths == (128,) * 6 + (64, 32, 16)


@pytest.mark.parametrize(
    "preset, conditional, millions",
    [
        ("cifar10", True, (20.78, 21.28)),
        ("ffhq64", False, (22.43, 22.38)),
        ("ffhq256", False, (23.06, 23.01)),
        ("imagenet32", True, (82.91, 86.55)),
        ("imagenet64", True, (103.57, 107.21)),
    ],
)
def test_presets_have_as_many_weights_as_the_authors_networks(preset, conditional, millions):
    """Counted in their code with 10 classes, and with 1000 for ImageNet."""
    classes = (1000 if "imagenet" in preset else 10) if conditional else None
    cfg = r3gan.Config(preset=preset, conditional=conditional, classes=classes)
    state = jax.eval_shape(lambda key: r3gan.init(key, cfg), KEY)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(part.params)) for part in (state.gen, state.disc)]
    assert tuple(round(count / 1e6, 2) for count in counts) == millions


def test_settled_from_the_data():
    read = lambda k: {}  # noqa: E731
    found = {"real": Source("cats", (64, 64, 1), np.dtype(np.uint8), 9, ("a", "b"), read)}
    cfg = r3gan.settle(r3gan.Config(conditional=True), found)
    assert (cfg.channels, cfg.classes, cfg.image_size, cfg.blocks) == (1, 2, 64, 1)
    assert cfg.recipe == r3gan.Config().recipe  # what run.json then says in full
    assert r3gan.settle(cfg, found) == cfg
    assert r3gan.settle(r3gan.Config(width=8), found).recipe == r3gan.Config(width=8).recipe
    assert r3gan.settle(r3gan.Config(), found).classes is None
    with pytest.raises(UserError, match="classes must be as many as cats has, 2, got 3"):
        r3gan.settle(r3gan.Config(conditional=True, classes=3), found)
    found["real"] = dataclasses.replace(found["real"], label_names=None)
    with pytest.raises(UserError, match="conditional needs pictures in classes, and cats has none"):
        r3gan.settle(r3gan.Config(conditional=True), found)
    with pytest.raises(ValueError, match=r"needs labels and a number of classes, got .* and None"):
        r3gan.init(KEY, r3gan.Config(conditional=True))


@pytest.mark.parametrize("size", [16, 64, 1024])
def test_shapes(size):
    cfg = r3gan.Config(image_size=size, channels=1, width=2)
    state = jax.eval_shape(lambda key: r3gan.init(key, cfg), KEY)
    z = jax.ShapeDtypeStruct((3, 64), jnp.float32)
    images = jax.eval_shape(lambda s, z: r3gan.sample(r3gan.generator(s, cfg), z, cfg), state, z)
    assert images.shape == (3, size, size, 1)
    assert jax.eval_shape(partial(r3gan.discriminate, cfg=cfg), state, images).shape == (3,)


def test_weights_begin_as_the_authors_do():
    """Scales by He's rule with the activation's gain, less by the network's blocks; the last of a block at 0."""
    cfg = r3gan.Config(image_size=32, width=32, blocks=2, channels=3, conditional=True, classes=40)
    state = r3gan.init(KEY, cfg)
    gain = math.sqrt(2 / 1.04) * 8 ** (-1 / 4)  # 4 stages of 2 blocks
    widest, finest = 256, 32
    for name, leaf in named({"gen": state.gen.params, "disc": state.disc.params}).items():
        which, *_, last = name.split("/")
        if last in ("project", "bias1", "bias2"):
            assert (leaf == 0).all(), name
            continue
        expected = {
            "expand": gain / leaf.shape[0] ** 0.5,
            "grouped": gain / (9 * 16) ** 0.5,
            "embed": 40**-0.5 * (1 if which == "gen" else widest**-0.5),
            "basis": 1 if which == "gen" else 1 / 4,
            "latent": 128**-0.5,
            "judge": widest**-0.5,
            "from_picture": 3**-0.5,
            "to_picture": finest**-0.5,
        }.get(last, leaf.shape[0] ** -0.5)  # 1x1 convolutions to another width
        assert abs(leaf.mean()) < 5 * expected / leaf.size**0.5, name
        assert abs(leaf.std() - expected) < 5 * expected / (2 * leaf.size) ** 0.5, name
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.gen.params)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules and losses


def test_schedules_are_half_a_cosine():
    cfg = r3gan.Config(preset="cifar10")
    start, quarter, middle, end, after = (r3gan.scheduled(jnp.float32(n * 1e6), cfg) for n in (0, 5, 10, 20, 99))
    assert set(start) == set(r3gan.SCHEDULED)
    first = dict(learning_rate=2e-4, gamma=0.05, beta2=0.9, ema_halflife_images=0.0, augment_probability=0.0)
    last = dict(learning_rate=5e-5, gamma=0.005, beta2=0.99, ema_halflife_images=5e6, augment_probability=0.55)
    share = (1 - math.sqrt(0.5)) / 2
    for name in r3gan.SCHEDULED:
        values = [float(at[name]) for at in (start, quarter, middle, end, after)]
        moved = [first[name] + part * (last[name] - first[name]) for part in (0, share, 0.5, 1, 1)]
        np.testing.assert_allclose(values, moved, rtol=1e-6, atol=1e-6 * last[name])


def test_a_step_counts_the_pictures_of_all_devices(x64):
    """The learning rate of the second step is that after one global batch: with beta1 0 and one step's square it shows
    in how far a weight moves."""
    cfg = dataclasses.replace(PARITY, augment="", beta2=(0.0, 0.0), learning_rate=(0.0, 1e-3), schedule_images=8)
    state = filled(cfg)
    step = jax.jit(r3gan.train_step, static_argnames="cfg")
    once, _ = step(state, batch(0, cfg), KEY, cfg)
    twice, _ = step(once, batch(1, cfg), KEY, cfg)
    for before, after in zip(*(jax.tree.leaves(s.disc.params) for s in (state, once)), strict=True):
        np.testing.assert_array_equal(before, after)  # a rate of 0
    pairs = zip(*(jax.tree.leaves(s.disc.params) for s in (once, twice)), strict=True)
    moved = np.concatenate([np.abs(after - before).ravel() for before, after in pairs])
    # Half way. Some biases move less: those that add the same to real and generated pictures.
    np.testing.assert_allclose(moved[moved > 4e-4], 5e-4, rtol=1e-3)
    assert (moved > 4e-4).mean() > 0.9


def test_relativistic_loss():
    a, b = jnp.asarray([1.0, -2.0, 30.0]), jnp.asarray([1.0, 0.5, -70.0])
    np.testing.assert_allclose(losses.relativistic(a, b), [math.log(2), math.log1p(math.exp(2.5)), 0], rtol=1e-6)
    # Exchanged, the two sides differ by the difference itself; a shift of all logits changes nothing.
    np.testing.assert_allclose(losses.relativistic(b, a) - losses.relativistic(a, b), a - b, rtol=1e-6)
    np.testing.assert_allclose(losses.relativistic(a + 5, b + 5), losses.relativistic(a, b), rtol=1e-6)
    slopes = jax.grad(lambda a, b: losses.relativistic(a, b).sum(), (0, 1))(a, b)
    np.testing.assert_allclose(slopes[0], -1 / (1 + np.exp(np.asarray(a - b, np.float64))), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(slopes[1], -slopes[0])


# ---------------------------------------------------------------------------------------------------------------------
# Layers


def test_resampling_against_pytorch(torch, x64):
    import torch_r3gan

    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3))
    there = to_torch(torch, x)
    np.testing.assert_allclose(resampling.enlarge(jnp.asarray(x)), nhwc(torch_r3gan.filtered(there, True)), atol=1e-14)
    np.testing.assert_allclose(resampling.reduce(jnp.asarray(x)), nhwc(torch_r3gan.filtered(there, False)), atol=1e-14)
    small = np.random.default_rng(1).normal(size=(2, 3, 4, 3))
    a, b = np.vdot(resampling.reduce(jnp.asarray(x)), small), np.vdot(x, resampling.enlarge(jnp.asarray(small)))
    np.testing.assert_allclose(4 * a, b, rtol=1e-12)  # each other's transpose, up to the sum of the filter


# ---------------------------------------------------------------------------------------------------------------------
# Parity with PyTorch


@both
def test_outputs_and_penalties_match_pytorch(torch, x64, reference, cfg):
    """Values, and the derivative of the penalties by every weight: two backward passes through every layer."""
    import torch_r3gan

    state = filled(cfg)
    gen, disc, _ = reference(cfg, state)
    z = np.random.default_rng(1).normal(size=(BATCH, cfg.recipe.latent_dim))
    real, label = pictures(0, BATCH, cfg), labels(5, BATCH, cfg)
    fake = jax.jit(partial(r3gan.apply, r3gan.Generator(cfg)))(state.gen.params, z, label)
    theirs = gen(to_torch(torch, z), to_torch(torch, label))
    assert theirs.std() > 0.1 and difference(fake, nhwc(theirs)) < 1e-12

    @jax.jit
    def penalties(params, images):
        def value(params):
            def critic(x):
                return r3gan.apply(r3gan.Discriminator(cfg), params, x, label)

            values = losses.r1_penalty(critic, images)
            return values.mean(), (critic(images), values)

        return jax.grad(value, has_aux=True)(params)

    for images in (real, np.asarray(fake)):
        gradients, (logits, values) = penalties(state.disc.params, images)
        there = to_torch(torch, images).requires_grad_()
        their_logits = disc(there, to_torch(torch, label))
        their_values = torch_r3gan.penalty(their_logits, there)
        assert difference(logits, their_logits.detach().numpy()) < 1e-12
        assert difference(values, their_values.detach().numpy()) < 1e-11
        disc.zero_grad()
        their_values.mean().backward()
        weights = torch_r3gan.named_weights(disc)
        ours = named(gradients)
        assert set(ours) == set(weights)
        for name, weight in weights.items():
            expected = torch_r3gan.from_ours(name, ours[name]).reshape(weight.shape)
            if name.endswith(("bias1", "bias2")):  # a network of ramps is linear beside its kinks
                assert (expected == 0).all() and (weight.grad == 0).all(), name
            else:
                assert difference(expected, weight.grad.numpy()) < 1e-10, name


def test_float32_outputs_match_pytorch(torch, reference):
    """At 64 pixels, with the default's widths and groups."""
    cfg = r3gan.Config(channels=3)
    state = filled(cfg)
    gen, disc, _ = reference(cfg, state)
    z = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)
    fake = jax.jit(partial(r3gan.apply, r3gan.Generator(cfg)))(state.gen.params, z, None)
    theirs = gen(to_torch(torch, z))
    assert fake.dtype == jnp.float32 and difference(fake, nhwc(theirs)) < 2e-6
    logits = jax.jit(partial(r3gan.apply, r3gan.Discriminator(cfg)))(state.disc.params, fake, None)
    assert difference(logits, disc(theirs).detach().numpy()) < 2e-5


def colored(torch, cfg, key):
    """`color` in PyTorch, of the pictures that the step's keys choose, by the numbers that they draw."""

    def change(images, which, probability):
        own = jax.random.fold_in(jax.random.split(key)[which // 2], 2 + which % 2)
        key_part, key_which = jax.random.split(jax.random.fold_in(own, 0))
        chosen = jax.random.bernoulli(key_which, jnp.asarray(probability), (len(images), 1, 1, 1))
        key_color = jax.random.fold_in(key_part, 0)
        draws = jax.random.uniform(key_color, (3, len(images)), cfg.param_dtype)
        brightness, saturation, contrast = (torch.tensor(np.array(d))[:, None, None, None] for d in draws)
        x = images + brightness - 0.5
        grey = x.mean(1, keepdim=True)
        x = grey + 2 * saturation * (x - grey)
        mean = x.mean((1, 2, 3), keepdim=True)
        return torch.where(torch.tensor(np.array(chosen)), mean + (contrast + 0.5) * (x - mean), images)

    return change


@both
@pytest.mark.parametrize("platform", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_five_steps_match_pytorch(torch, x64, reference, cfg, platform):
    """While all five schedules go from beginning to end; also as GPUs have it, both batches in one pass."""
    import torch_r3gan

    state = filled(cfg)
    gen, disc, average = reference(cfg, state)
    pairs = {name: getattr(cfg.recipe, name) for name in r3gan.SCHEDULED}
    trainer = torch_r3gan.Trainer(gen, disc, average, cfg.recipe.schedule_images, pairs)
    step = jax.jit(lambda *arguments: r3gan.train_step(*arguments, cfg))
    for i in range(5):
        data, key = batch(i, cfg), jax.random.fold_in(KEY, i)
        with layers.compiling_for(platform):
            state, metrics = step(state, data, key)
        parts = []
        for half, key_half in enumerate(jax.random.split(key)):
            z = jax.random.normal(jax.random.fold_in(key_half, 1), (BATCH, cfg.recipe.latent_dim), jnp.float64)
            label = data["real"]["label"][half::2] if cfg.conditional else None
            parts.append([to_torch(torch, x) for x in (z, data["real"]["image"][half::2], label)])
        values = trainer.step(*parts, change=colored(torch, cfg, key))
        for name, value in values.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-9)
    assert state.step == 5 and trainer.images == 20
    for network, params in ((gen, state.gen.params), (disc, state.disc.params), (average, state.ema)):
        ours = named(params)
        for name, weight in torch_r3gan.named_weights(network).items():
            expected = torch_r3gan.from_ours(name, ours[name]).reshape(weight.shape)
            assert difference(expected, weight.detach().numpy()) < 1e-9, name
    assert difference(named(state.ema)["basis"], named(state.gen.params)["basis"]) > 1e-6  # it is an average


# ---------------------------------------------------------------------------------------------------------------------
# What settings do


def test_fine_stages_compute_in_bfloat16():
    """Near to float32 and not the same; weights and pictures stay float32."""
    cfg = dataclasses.replace(PARITY, dtype="float32", bfloat16_stages=1)
    plain = dataclasses.replace(cfg, bfloat16_stages=0)
    state, z = filled(plain), np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    half, full = (r3gan.activations({"params": state.gen.params}, z, c) for c in (cfg, plain))
    short = [np.array_equal(x, x.astype(jnp.bfloat16).astype(x.dtype)) for x in half.values()]
    assert list(half) == ["4x4", "8x8", "16x16"] and short == [False, False, True]
    np.testing.assert_array_equal(half["8x8"], full["8x8"])
    a, b = (r3gan.apply(r3gan.Generator(c), state.gen.params, z, None) for c in (cfg, plain))
    assert a.dtype == jnp.float32 and 1e-4 < difference(a, np.asarray(b)) < 2e-2
    # PARITY's coarsest stage follows in float32, and sees what the finest has rounded.
    c, d = (r3gan.apply(r3gan.Discriminator(c), state.disc.params, b, None) for c in (cfg, plain))
    assert c.dtype == jnp.float32 and 1e-5 < difference(c, np.asarray(d)) < 5e-2
    new = jax.eval_shape(lambda s: r3gan.train_step(s, batch(0, cfg), KEY, cfg)[0], state)
    assert {leaf.dtype for leaf in jax.tree.leaves(new.gen)} == {np.dtype(np.float32)}


def test_mirrored_pictures_come_from_the_key(x64):
    """A step with mirror is a step without it on pictures some of which are turned."""
    cfg = dataclasses.replace(PARITY, augment="")
    state, data, key_step = filled(cfg), batch(0, cfg), jax.random.key(0)
    step = jax.jit(r3gan.train_step, static_argnames="cfg")
    images = data["real"]["image"].copy()
    for half, key in enumerate(jax.random.split(key_step)):
        turned = np.asarray(jax.random.bernoulli(jax.random.fold_in(key, 0), 0.5, (BATCH,)))
        assert 0 < turned.sum() < BATCH
        images[half::2] = np.where(turned[:, None, None, None], images[half::2, :, ::-1], images[half::2])
    turned, _ = step(state, data, key_step, dataclasses.replace(cfg, mirror=True))
    expected, _ = step(state, {"real": {"image": images}}, key_step, cfg)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), turned, expected)


def distorted(images, p, cfg):
    drawn = r3gan.draw_distortion(KEY, len(images), {"augment_probability": jnp.float32(p)}, cfg, None)
    return r3gan.distort(images, drawn, cfg)


def test_augmentation_comes_with_its_probability():
    images = jnp.ones((400, 16, 16, 3)) * jnp.linspace(-1, 1, 16)[:, None, None]
    cfg = dataclasses.replace(TINY, augment="color,cutout")
    changed = {}
    for p in (0.0, 0.3, 1.0):
        seen = distorted(images, p, cfg)
        grey = (np.asarray(seen) == 0).all(-1).mean((1, 2)) > 0.05  # a square is cut out
        other = np.abs(np.asarray(seen - images)).max((1, 2, 3)) > 1e-3
        changed[p] = grey.mean(), other.mean()
    assert changed[0.0] == (0, 0)
    assert changed[1.0] == (1, 1)
    for found, expected in zip(changed[0.3], (0.3, 1 - 0.7**2), strict=True):  # each part by itself
        assert abs(found - expected) < 4 * math.sqrt(0.25 / 400)


def test_the_adaptive_pipeline_has_the_scheduled_probability():
    images = pictures(0, 300, TINY)
    cfg = dataclasses.replace(TINY, augment_policy="blit,cutout")
    for p in (0.0, 0.3):
        seen = np.asarray(distorted(images, p, cfg))
        cut = ((seen == 0).all(-1).mean((1, 2)) > 0.05).mean()
        assert abs(cut - p) <= 4 * math.sqrt(p * (1 - p) / 300)
    np.testing.assert_allclose(distorted(images, 0.0, cfg), images, atol=1e-5)
    with pytest.raises(ValueError, match="augment_policy must be"):
        r3gan.Config(augment_policy="colour")


def test_labels_and_what_lies_between_them():
    """A logit without labels is the mean of all classes'; labels decide which vector is multiplied with."""
    cfg = dataclasses.replace(CONDITIONAL, augment="")
    with jax.enable_x64(True):
        state, images = filled(cfg), pictures(0, 5, cfg)
        disc = r3gan.Discriminator(cfg)
        each = np.stack([r3gan.apply(disc, state.disc.params, images, np.full(5, c)) for c in range(3)], 1)
        np.testing.assert_allclose(r3gan.discriminate(state, images, cfg), each.mean(1), rtol=1e-12)
        assert (np.ptp(each, axis=1) > 1e-3).all()
        asked = r3gan.requests(KEY, 7, cfg)
        assert asked["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
        same = {"latents": jnp.repeat(asked["latents"][:1], 3, 0), "label": jnp.arange(3)}
        drawn = np.asarray(r3gan.sample(r3gan.generator(state, cfg), same, cfg))
        assert np.abs(drawn[0] - drawn[1]).max() > 1e-2 and np.abs(drawn).max() <= 1
        weights = {"latents": same["latents"], "label": jnp.asarray([[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0]])}
        between = np.asarray(r3gan.sample(r3gan.generator(state, cfg), weights, cfg))
        np.testing.assert_allclose(between[:2], drawn[:2], rtol=1e-12)
        assert all(np.abs(between[2] - one).max() > 1e-3 for one in drawn)
        with pytest.raises(ValueError, match="needs labels and a number of classes, got None and 3"):
            r3gan.sample(r3gan.generator(state, cfg), asked["latents"], cfg)


def test_the_average_is_what_samples_come_from(x64):
    cfg = dataclasses.replace(PARITY, weights="last")
    state = filled(cfg)
    assert r3gan.generator(state, cfg)["params"] is state.gen.params
    assert r3gan.generator(state, PARITY)["params"] is state.ema
    z = np.asarray(r3gan.requests(KEY, 2, cfg))
    hidden = r3gan.activations({"params": state.gen.params}, z, cfg)
    assert {name: x.shape for name, x in hidden.items()} == {
        "4x4": (2, 4, 4, 6),
        "8x8": (2, 8, 8, 6),
        "16x16": (2, 16, 16, 4),
    }
    # What leaves the 4x4 stage, were it without blocks: the basis times the first layer's product.
    params = jax.tree.map(jnp.copy, state.gen.params)
    for i in range(cfg.recipe.blocks):
        params[f"4x4_block{i}"]["project"] *= 0
    first = r3gan.first_layer({"params": params}, cfg)
    expected = np.abs((z @ first)[:, None, None] * params["basis"])
    np.testing.assert_allclose(r3gan.activations({"params": params}, z, cfg)["4x4"], expected, rtol=1e-12)


def test_watch_sees_collapse():
    rng = np.random.default_rng(0)
    real = {"real": {"image": rng.normal(size=(16, 8, 8, 3))}}
    numbers, warning = r3gan.watch({"accuracy": 0.6}, rng.normal(size=(16, 8, 8, 3)), real)
    assert abs(numbers["diversity"] - 1) < 0.1 and warning is None
    alike = np.repeat(rng.normal(size=(1, 8, 8, 3)), 16, 0)
    assert "collapsed" in r3gan.watch({}, alike + 0.01 * rng.normal(size=(16, 8, 8, 3)), real)[1]
    less = 0.3 * rng.normal(size=(16, 8, 8, 3))
    assert r3gan.watch({"accuracy": 0.8}, less, real)[1] is None
    assert "right about 1.000" in r3gan.watch({"accuracy": 1.0}, less, real)[1]


@pytest.mark.slow
def test_the_benchmark_times_what_agrees(torch, tmp_path, monkeypatch):
    script = load_script("bench/r3gan")
    bench = script.Bench(16, 2, batch_size=2, rounds=2, steps=1, threads=1, json=tmp_path / "r3gan.json")
    record = script.main(bench)
    assert json.loads(bench.json.read_text())["ratio"] == record["ratio"] > 0
    assert [len(times) for times in record["seconds"].values()] == [2, 2, 2]
    monkeypatch.setattr(losses, "relativistic", lambda a, b: jax.nn.softplus(a - b))
    with pytest.raises(UserError, match="of the first step is"):
        script.main(dataclasses.replace(bench, batch_size=3))
